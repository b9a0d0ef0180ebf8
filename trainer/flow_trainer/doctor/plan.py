"""One micro-batch's way through an epoch of the real, full-size model as fake tensors.

Sampling, decoding, replay, update and optimizer step are the program's own. Of an epoch only what
repeats is run: a micro-batch or two images, and as many steps as go into one forward. What is not
seen: the allocator's fragmentation, the workspaces of libraries and CUDA's context (about 1 GB
together), what compiled kernels fuse, and how a sharded model is gathered.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from flow_trainer.algorithm.advantages import Advantages
from flow_trainer.algorithm.ema import Ema, ema_rule, old_policy_rule
from flow_trainer.doctor.estimate import GB, trained_steps
from flow_trainer.doctor.fake_device import Ledger, Section, fake_gpu
from flow_trainer.errors import ConfigError
from flow_trainer.loop.rollout import rollout
from flow_trainer.loop.updates.chosen import update_chosen
from flow_trainer.loop.updates.distill import update_distill
from flow_trainer.loop.updates.forward import update_forward
from flow_trainer.loop.updates.optimizers import make_optimizer
from flow_trainer.loop.updates.replay import reference_velocities
from flow_trainer.loop.updates.through_pixels import PixelGradients, update_through_pixels
from flow_trainer.loop.updates.trajectory import update_policy
from flow_trainer.models import diffusers_policy, tuning
from flow_trainer.models.architectures import transformer_config
from flow_trainer.models.conditioning import Conditioning
from flow_trainer.models.diffusers_policy import DiffusersPolicy
from flow_trainer.models.families import FAMILIES
from flow_trainer.models.memory import text_tokens, trained_rows
from flow_trainer.recipe import Recipe
from flow_trainer.recipe.prompts import Prompt

VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "shift_factor": 0.06,
    "scaling_factor": 1.5,
}
"""Of SD3, FLUX.1 and Z-Image; the last two do not matter here."""
COUNTS = ("launches", "bytes", "flops")


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What the fake run of a recipe found; bytes, on one GPU that holds the whole model."""

    transformer: int
    vae: int
    training_state: int
    """Gradients, moments and averages."""
    activations: int
    """The most that an update holds beyond weights, training state and samples."""
    forward: int
    """The same of a forward without gradients."""
    decode: int
    step: int
    """The same of an optimizer step with its averages."""
    sections: dict[str, Section]


def plan(recipe: Recipe) -> Plan:
    """Runs a micro-batch of `recipe` on a fake GPU; teachers are taken to have adapters of the student's
    own rank, [data] beside samples is left out. Raises ConfigError for a model whose parts are not on
    record, and where there are no samples."""
    if recipe.update.trains_on == "data":
        raise ConfigError("no fake run for update.objective = data: it has no samples to draw")
    small = _one_micro_batch(recipe)
    with fake_gpu(torch.device("cpu")) as ledger:
        return _Epoch(small, ledger, trained=trained_rows(recipe)).run()


def per_image(recipe: Recipe, sections: Mapping[str, Section]) -> dict[str, dict[str, float]]:
    """Launches, bytes (of what is no matrix product) and FLOPs per image of a whole epoch, from the
    fake run's `sections`: by part, and in all."""
    small = _one_micro_batch(recipe)
    images = small.images_per_epoch
    trained = trained_steps(recipe) / recipe.update.steps_per_forward
    if recipe.update.trains_on == "gradients":
        trained = 1.0  # all steps of the window are in the fake run's update
    steps = recipe.sampled_steps / small.sampled_steps
    group = recipe.sampling.group_size
    passes = trained * recipe.update.chosen(group) / group / trained_rows(recipe)
    times = {
        "sampling": 1 / images,
        "sampling forward": steps / images,
        "decode": 1 / images,
        "frozen forward": passes,
        "update": passes,
        "step": 1 / recipe.share,
    }
    found = {
        name: {key: getattr(sections[name], key) * factor for key in COUNTS}
        for name, factor in times.items()
        if name in sections
    }
    found["in all"] = {key: sum(part[key] for part in found.values()) for key in COUNTS}
    return found


def plan_lines(recipe: Recipe) -> Iterator[str]:
    """What `flow-grpo plan` prints, a line each."""
    found = plan(recipe)
    yield f"recipe    {recipe.name}, on a fake GPU that holds all of it (GB of 1e9 bytes)"
    held = f"transformer {found.transformer / GB:.2f}, VAE {found.vae / GB:.2f}"
    yield f"held      {held}, training state {found.training_state / GB:.2f}"
    yield (
        f"beyond    update {found.activations / GB:.2f}, forward without gradients "
        f"{found.forward / GB:.2f}, decoding {found.decode / GB:.2f}, optimizer step "
        f"{found.step / GB:.2f}"
    )
    yield "not in it: text encoders, trajectories (see --dry-run), CUDA's context, fragmentation"
    yield "per image        launches   GB moved    TFLOP"
    for name, part in per_image(recipe, found.sections).items():
        yield (
            f"  {name:<17}{part['launches']:>6.0f}   {part['bytes'] / GB:8.1f} {part['flops'] / 1e12:8.2f}"
        )
    yield "GB moved: read and written by kernels that are neither matrix products nor attention"


def waits(recipe: Recipe) -> dict[str, Section]:
    """Where a micro-batch's epoch waits for the device, by section; of the transformer only
    the first blocks are run. Raises ConfigError as `plan`, and without a CUDA build of torch."""
    recipe = _one_micro_batch(recipe)
    with fake_gpu(torch.device("cuda:0")) as ledger:
        _Epoch(recipe, ledger, blocks=2).run()
    return {n: s for n, s in ledger.sections.items() if s.syncs or s.copies}


def _one_micro_batch(recipe: Recipe) -> Recipe:
    """The recipe, with as few steps and images as show what repeats."""
    s, m = recipe.sampling, recipe.model
    group = max(2, s.micro_batch)
    steps = recipe.update.steps_per_forward + 1
    sizes = {"prompts_per_epoch": 1, "group_size": group}
    window = s.window.model_copy(update={"kind": "all"})
    if recipe.update.trains_on == "gradients":
        steps = s.window.size + 1
        window = s.window.model_copy(update={"kind": "first", "lo": 1})
    sections = {
        "sampling": s.model_copy(update={**sizes, "num_steps": steps, "window": window}),
        "update": recipe.update.model_copy(update={"updates_per_epoch": 1, "trained_steps": None}),
        "model": m.model_copy(update={"compile": False}),
    }
    return recipe.model_copy(update=sections)


class _Epoch:
    """The parts of a run, made of fake tensors."""

    def __init__(
        self,
        recipe: Recipe,
        ledger: Ledger,
        blocks: int | None = None,
        trained: int | None = None,
    ) -> None:
        """`trained`: samples that the update takes (default: all)."""
        self.recipe, self.ledger = recipe, ledger
        self.trained = trained or recipe.sampling.group_size
        u = recipe.update
        self.policy = _fake_policy(recipe, ledger, blocks)
        pipeline: Any = self.policy._pipeline
        self.vae = _nbytes(pipeline.vae)
        self.transformer = _nbytes(pipeline.transformer)
        if self.policy._tuning._reference is not None:
            self.transformer += _nbytes(self.policy._tuning._reference)
        self.parameters = self.policy.trainable()
        self.optimizer = make_optimizer(u, self.parameters)
        for group in self.optimizer.param_groups:
            group["foreach"] = True  # torch's choice on a GPU
        self.averages: list[Ema] = []
        self._update_peak = 0
        self.ema = self.old = None
        if recipe.ema.enabled:
            self.ema = Ema(self.parameters, ema_rule(recipe.ema.decay, 1))
            self.averages.append(self.ema)
        if u.forward_process:
            f = recipe.forward
            self.old = Ema(self.parameters, old_policy_rule(f.old_start, f.old_rate, f.old_max))
            self.averages.append(self.old)

    def run(self) -> Plan:
        recipe, ledger, policy = self.recipe, self.ledger, self.policy
        s = recipe.sampling
        prompts = [Prompt(f"a sign {p}") for p in range(s.prompts_per_epoch)]
        policy.prepare_prompts([prompt.text for prompt in prompts])
        self._watch()
        before = ledger.live
        with ledger.section("sampling"):
            samples = rollout(policy, recipe, 0, prompts, range(len(prompts)), lambda *_: None)
        forward = ledger.sections["sampling forward"].peak - before
        decode = ledger.sections["decode"].peak - before
        conditioning = policy.encode([prompt.text for prompt in prompts])
        v_ref = reference_velocities(policy, recipe, 0, samples, conditioning)
        before = ledger.live
        for parameter in self.parameters.values():  # as an earlier micro-batch leaves them
            parameter.grad = torch.zeros_like(parameter)
        with ledger.section("update"):
            self._update(samples, conditioning, v_ref)
        gradients = sum(p.nbytes for p in self.parameters.values())
        moments = sum(
            value.nbytes
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor) and value.device == ledger.device
        )
        averages = sum(w.nbytes for average in self.averages for w in average.weights().values())
        peak = {name: section.peak - before for name, section in ledger.sections.items()}
        peak["update"] = self._update_peak - before
        return Plan(
            transformer=self.transformer,
            vae=self.vae,
            training_state=gradients + moments + averages,
            activations=peak["update"] - gradients,
            forward=forward,
            decode=decode,
            step=peak["step"] - gradients - moments,
            sections={name: found for name, found in ledger.sections.items() if found.launches},
        )

    def _watch(self) -> None:
        """Names the sections of what the loop calls."""
        policy, ledger = self.policy, self.ledger
        plain: Any = policy.velocity
        named = {
            "sampling": ledger.within("sampling forward", plain),
            "start": ledger.within("frozen forward", plain),
            "update": lambda *a: (plain if torch.is_grad_enabled() else frozen)(*a),
        }
        frozen = named["start"]
        policy.velocity = lambda *a: named[ledger.at](*a)  # type: ignore[method-assign]
        policy.decode = ledger.within("decode", policy.decode)  # type: ignore[method-assign]
        self.optimizer.zero_grad = lambda **_: None  # type: ignore[method-assign]
        step = ledger.within("step", self.optimizer.step)

        def first_step(*args: Any, **kwargs: Any) -> Any:
            # what comes after it holds the moments too, which are training state
            self._update_peak = ledger.sections["update"].peak
            return step(*args, **kwargs)

        self.optimizer.step = first_step  # type: ignore[method-assign]
        for average in self.averages:
            average.update = ledger.within("step", average.update)  # type: ignore[method-assign]

    def _update(self, samples: Any, conditioning: Conditioning, v_ref: Any) -> None:
        recipe, s = self.recipe, self.recipe.sampling
        shape = (s.prompts_per_epoch, s.group_size)
        # none is 0, and no two of a group are equal: some objectives choose among them
        values = torch.arange(1.0, 1 + s.group_size).expand(shape).clone()
        advantages = Advantages(values, torch.ones(shape, dtype=torch.bool), {})
        what = recipe, 0, samples, conditioning, advantages
        if recipe.update.trains_on == "chosen samples" and self.old is not None:
            # which are chosen cannot be read from fake tensors: these alone are its samples
            alone = {"group_size": self.trained, "micro_batch": self.trained}
            fewer = recipe.model_copy(update={"sampling": s.model_copy(update=alone)})
            few = dataclasses.replace(
                samples,
                rows=samples.rows[: self.trained],
                keys=samples.keys[: self.trained],
                x_0=samples.x_0[: self.trained],
            )
            values, used = values[:, : self.trained], advantages.used[:, : self.trained]
            what = fewer, 0, few, conditioning, Advantages(values, used, {})
            update_chosen(self.policy, self.optimizer, self.ema, self.old, *what)
        elif recipe.update.trains_on == "gradients":
            update_through_pixels(
                self.policy, self.optimizer, self.ema, *what[:-1], lambda: _made_up(recipe)
            )
        elif self.old is not None:
            update_forward(self.policy, self.optimizer, self.ema, self.old, *what)
        elif recipe.teachers:
            source = next(iter(recipe.teachers))
            named = [source] * s.prompts_per_epoch
            update_distill(self.policy, self.optimizer, self.ema, *what[:-1], named)
        else:
            update_policy(self.policy, self.optimizer, self.ema, *what, v_ref)


def _fake_policy(recipe: Recipe, ledger: Ledger, blocks: int | None) -> DiffusersPolicy:
    """The recipe's policy with a pipeline of fake weights, its prompts' embeddings made up."""
    import diffusers

    m = recipe.model
    found = transformer_config(m.path)
    if found is None or m.family == "qwen_image":
        raise ConfigError(
            f"no fake run for model.path = {m.path!r}: its parts are not on record; those of "
            "SD3.5, FLUX.1-dev, FLUX.2-klein and Z-Image are"
        )
    name, config = found
    if blocks is not None:
        lists = ("num_layers", "num_single_layers", "n_layers")
        config = {**config, **{key: blocks for key in lists if key in config}}
    family = importlib.import_module(FAMILIES[m.family]).FAMILY
    dtype = getattr(torch, m.dtype)
    shift: dict[str, Any] = {"shift": 3.0}
    if m.family in ("flux", "flux2_klein"):
        shift |= {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    pipeline = SimpleNamespace(
        transformer=_fake(getattr(diffusers, name), config, dtype, ledger.device),
        vae=_fake(*_vae(m.family), torch.float32, ledger.device),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shift),
        vae_scale_factor=8,
        to=lambda device: None,
        **dict.fromkeys(family.text_encoders, torch.nn.Identity()),
    )
    width = family.text_width(pipeline.transformer.config)
    pooled = pipeline.transformer.config.get("pooled_projection_dim")

    def encode(pipeline: Any, model: Any, prompts: list[str], device: torch.device) -> Conditioning:
        rows, place = len(prompts), {"dtype": dtype, "device": device}
        return Conditioning(
            torch.zeros(rows, text_tokens(model), width, **place),
            None if pooled is None else torch.zeros(rows, pooled, **place),
        )

    with (
        patch.object(diffusers_policy, "_dtype", lambda model, _: getattr(torch, model.dtype)),
        patch.object(tuning, "load_adapter", _fake_adapter),
        torch.device(ledger.device),  # where LoRA's weights are made
    ):
        return DiffusersPolicy(
            dataclasses.replace(family, encode=encode),
            m,
            ledger.device,
            with_reference=recipe.needs_reference,
            pipeline=pipeline,
            teachers={name: teacher.adapter for name, teacher in recipe.teachers.items()},
        )


def _vae(family: str) -> tuple[Any, dict[str, Any]]:
    import diffusers

    if family == "flux2_klein":
        return diffusers.AutoencoderKLFlux2, {}  # its defaults are the published configuration
    return diffusers.AutoencoderKL, VAE


def _made_up(recipe: Recipe) -> PixelGradients:
    size = (recipe.model.height, recipe.model.width, 3)
    count = recipe.images_per_epoch
    return PixelGradients(
        torch.ones(count),
        torch.ones(count, dtype=torch.bool),
        lambda rows: torch.ones(len(rows), *size),
    )


def _fake_adapter(transformer: Any, source: str, name: str, key: str) -> None:
    """A teacher's, in place of the one at `source`: of the student's shape."""
    student = next(iter(transformer.peft_config.values()))
    transformer.add_adapter(copy.deepcopy(student), adapter_name=name)


def _nbytes(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))


def _fake(kind: Any, config: Any, dtype: torch.dtype, device: torch.device) -> nn.Module:
    with torch.device("meta"):
        module = kind.from_config(config)
    module.to_empty(device=device)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.to(dtype)
    return module
