"""The transformer and its text encoders: rectified flow on drawn signs, first with true captions,
then with noisy ones, and both once more.

The noisy phases are what make the checkpoint useful for RL: the model draws sharp letters of which
some are wrong, so that a group of samples holds better and worse ones. A model that is merely
undertrained draws blurs, and RL cannot climb from there.
"""

from __future__ import annotations

import random
import string
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import mean

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from flow_trainer.tiny_sd3.signs import render
from flow_trainer.tiny_sd3.tokenizer import MAX_LENGTH
from flow_trainer.tiny_sd3.vae import to_latents
from flow_trainer.tiny_sd3.words import PROMPT, splits

BATCH, EMA_DECAY = 32, 0.998
RANDOM_STRINGS = 0.7
"""Share of captions that are four random letters; the rest are training words."""
PRETRAINING_WORDS = 128


@dataclass(frozen=True, slots=True)
class Phase:
    """Captions of `samples` signs, and how they are learned: in cycles of `steps` steps."""

    name: str
    steps: int
    rate: float
    """Peak learning rate."""
    timestep_shift: float
    """Mean of logit(sigma)."""
    samples: int
    cycles: int = 1
    """At most."""
    enough: float = 0.0
    """Mean loss of a cycle's last 100 steps after which no further cycle follows."""
    wrong_letter: float = 0.0
    """Probability that a drawn letter is a random one instead of the caption's."""
    wrong_word: float = 0.0
    """Probability that a sign shows another word than its caption."""


@dataclass(slots=True)
class TinySD3:
    """What is trained here, and its moving average."""

    tokenizer: CLIPTokenizer
    vae: AutoencoderKL
    transformer: SD3Transformer2DModel
    text_encoders: list[CLIPTextModelWithProjection]
    average: list[Tensor] = field(default_factory=list)

    def parameters(self) -> list[nn.Parameter]:
        models = [self.transformer, *self.text_encoders]
        return [parameter for model in models for parameter in model.parameters()]

    def encode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, 128) and pooled (B, 128), joined as StableDiffusion3Pipeline does."""
        outputs = [encoder(ids, output_hidden_states=True) for encoder in self.text_encoders]
        tokens = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        return tokens, torch.cat([output.text_embeds for output in outputs], -1)

    def ids(self, words: Sequence[str]) -> Tensor:
        prompts = [PROMPT.format(word=word) for word in words]
        return self.tokenizer(
            prompts, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt"
        ).input_ids

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the models have the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        with torch.no_grad():
            for parameter, average in zip(self.parameters(), self.average, strict=True):
                weights = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(weights)


def new_model(tokenizer: CLIPTokenizer, vae: AutoencoderKL) -> TinySD3:
    """Random weights: transformer 2.3 M parameters, text encoders 0.1 M each."""
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    encoders = [CLIPTextModelWithProjection(text), CLIPTextModelWithProjection(text)]
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=8,
        out_channels=8,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=128,
        caption_projection_dim=128,
        pooled_projection_dim=128,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    model = TinySD3(tokenizer, vae.eval().requires_grad_(False), transformer, encoders)
    model.average = [parameter.detach().clone() for parameter in model.parameters()]
    return model


def train_phase(
    model: TinySD3, phase: Phase, rng: random.Random, say: Callable[[str], None]
) -> None:
    ids, latents = _signs(model, phase, rng)
    for number in range(1, phase.cycles + 1):
        name = f"{phase.name} {number}"
        if _train_cycle(model, phase, name, ids, latents, say) <= phase.enough:
            return


def _train_cycle(
    model: TinySD3,
    phase: Phase,
    name: str,
    ids: Tensor,
    latents: Tensor,
    say: Callable[[str], None],
) -> float:
    """Flow matching: x = (1 - sigma) x_0 + sigma eps, target eps - x_0. The rate warms up over 100
    steps, holds, and falls to a twentieth over the last 40 %. Returns the mean loss of the last 100
    steps."""
    parameters, steps = model.parameters(), phase.steps
    optimizer = torch.optim.AdamW(parameters, lr=phase.rate, betas=(0.9, 0.98), weight_decay=0.01)
    losses: deque[float] = deque(maxlen=100)
    for step in range(steps):
        factor = min(1, (step + 1) / 100)
        if step >= steps * 0.6:
            factor *= max(0.05, (steps - step) / (steps * 0.4))
        for group in optimizer.param_groups:
            group["lr"] = phase.rate * factor
        loss = _loss(model, phase, ids, latents)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(model.average, list(parameters), 1 - decay)
        losses.append(loss.item())
        if step % 100 == 99:
            say(f"{name}  {step + 1}/{steps}  loss {mean(losses):.4f}")
    return mean(losses)


def _loss(model: TinySD3, phase: Phase, ids: Tensor, latents: Tensor) -> Tensor:
    rows = torch.randint(len(latents), (BATCH,))
    x_0 = latents[rows]
    tokens, pooled = model.encode(ids[rows])
    sigma = torch.sigmoid(torch.randn(BATCH) + phase.timestep_shift)
    eps = torch.randn_like(x_0)
    s = sigma.view(-1, 1, 1, 1)
    v = model.transformer(
        hidden_states=(1 - s) * x_0 + s * eps,
        timestep=sigma * 1000,
        encoder_hidden_states=tokens,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    return (v - (eps - x_0)).pow(2).mean()


def _signs(model: TinySD3, phase: Phase, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Token ids (N, 14) and latents (N, 8, 8, 16) of captioned signs. Neither captions nor signs
    show a validation or held-out word."""
    train, validation, heldout = splits()
    train = train[:PRETRAINING_WORDS]
    excluded = {*validation, *heldout}

    def words(count: int) -> list[str]:
        found: list[str] = []
        while len(found) < count:
            if rng.random() < RANDOM_STRINGS:
                word = "".join(rng.choices(string.ascii_uppercase, k=4))
            else:
                word = rng.choice(train)
            if word not in excluded:
                found.append(word)
        return found

    captions = words(phase.samples)
    drawn = []
    for caption in captions:
        word = words(1)[0] if rng.random() < phase.wrong_word else caption
        word = "".join(
            rng.choice(string.ascii_uppercase) if rng.random() < phase.wrong_letter else letter
            for letter in word
        )
        drawn.append(word if word not in excluded else words(1)[0])
    ids = model.ids(captions)
    latents = [
        to_latents(model.vae, [render(word, rng) for word in drawn[start : start + 100]])
        for start in range(0, len(drawn), 100)
    ]
    return ids, torch.cat(latents)
