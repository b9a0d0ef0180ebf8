"""Step `precision`: ratio and gradient of SD3.5-M in 16 bits, compiled and not, against float32.

The weights are random, rounded to the type under test; the float32 model has the same ones. Gradients
are of a replayed step's log-probability over the divisor of a published update, scaled by 2^16 as
loss scaling does; the smallest and largest noise level of the window.
"""

from __future__ import annotations

from typing import Any

import torch
from environment import device
from random_pipelines import random_pipeline
from step import Write
from torch import Tensor

from flow_trainer.loop.rollout import rollout, transition
from flow_trainer.loop.updates.replay import make_replay
from flow_trainer.models.diffusers_policy import DiffusersPolicy
from flow_trainer.models.families.sd3 import FAMILY
from flow_trainer.models.policy import Policy
from flow_trainer.recipe import Recipe, load_recipe
from flow_trainer.recipe.prompts import Prompt

from harness import ROOT  # isort: skip

DIVISOR, SCALE = 576 * 9, 2.0**16
PROMPT = Prompt("a red sign")


def precision(name: str, shrunk: bool, write: Write) -> None:
    found: dict[str, Any] = {}
    for compiled in (False, True):
        # a CPU's compiler takes minutes, and says of bfloat16 what it says of float16
        for dtype in ("float16",) if compiled and shrunk else ("float16", "bfloat16"):
            kind = f"{dtype}{' compiled' if compiled else ''}"
            try:
                found[kind] = _compared(dtype, compiled, shrunk)
            except Exception as error:  # the other kinds are still worth knowing
                found[kind] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            write(found)


def _compared(dtype: str, compiled: bool, shrunk: bool) -> dict[str, float]:
    recipe = _recipe(dtype, compiled, shrunk)
    place = device(shrunk)
    low = _policy(recipe, place, shrunk)
    samples = rollout(low, recipe, 0, [PROMPT], [0], lambda rows, images: None)
    offsets = [0, len(recipe.window(0)) - 1]
    gradients, errors = [], []
    for offset in offsets:
        ratio, gradient = _replay(low, recipe, samples, offset)
        errors.append(ratio)
        gradients.append(gradient)
    del low
    plain = recipe.model.model_copy(update={"compile": False, "dtype": "float32"})
    exact = _policy(recipe.model_copy(update={"model": plain}), place, shrunk, dtype)
    worst, zeros = 1.0, 0.0
    for offset, gradient in zip(offsets, gradients, strict=True):
        _, expected = _replay(exact, recipe, samples, offset)
        worst = min(worst, float(torch.cosine_similarity(gradient, expected, 0)))
        lost = (gradient == 0) & (expected != 0)
        zeros = max(zeros, float(lost.float().mean()))
    return {"ratio_error": max(errors), "cosine": worst, "zeros": zeros}


def _recipe(dtype: str, compiled: bool, shrunk: bool) -> Recipe:
    small = ["model.height=64", "model.width=64", "model.max_sequence_length=16"]
    return load_recipe(
        ROOT / "trainer" / "recipes" / "sd35m_ocr_8x8.toml",
        [
            f"model.dtype={dtype}",
            f"model.compile={str(compiled).lower()}",
            "sampling.prompts_per_epoch=1",
            "sampling.group_size=2",
            "sampling.micro_batch=2",
            "update.updates_per_epoch=1",
            "update.kl=none",
            "update.beta=0.0",
            *([*small, "model.autocast_on_cpu=true"] if shrunk else []),
        ],
    )


def _policy(
    recipe: Recipe, place: torch.device, shrunk: bool, rounded: str | None = None
) -> DiffusersPolicy:
    """Of the same random weights at every call; `rounded` to another type than the model's."""
    dtype = getattr(torch, rounded or recipe.model.dtype)
    pipeline = random_pipeline("sd35m", place, dtype, shrunk=shrunk)
    pipeline.transformer.to(getattr(torch, recipe.model.dtype))
    torch.manual_seed(0)
    policy = DiffusersPolicy(FAMILY, recipe.model, place, with_reference=False, pipeline=pipeline)
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.trainable().values():  # an adapter that has moved
        noise = torch.randn(parameter.shape, generator=generator) * 1e-3
        parameter.data.add_(noise.to(parameter.device))
    policy.prepare_prompts([PROMPT.text])
    return policy


def _replay(policy: Policy, recipe: Recipe, samples: Any, offset: int) -> tuple[float, Tensor]:
    """max |ratio - 1|, and the gradient of all trained parameters in one row."""
    conditioning = policy.encode([PROMPT.text])
    r = make_replay(recipe, samples, conditioning, range(2), [offset])
    v = policy.velocity(r.x, r.sigmas[r.steps], r.conditioning)
    log_ratio = transition(recipe, r.sigmas, r.steps, r.x, v).log_prob(r.x_next) - r.old_log_prob
    parameters = list(policy.trainable().values())
    gradients = torch.autograd.grad(log_ratio.sum() * (SCALE / DIVISOR), parameters)
    flat = torch.cat([gradient.flatten().double() for gradient in gradients]) / SCALE
    return float(log_ratio.detach().exp().sub(1).abs().max()), flat
