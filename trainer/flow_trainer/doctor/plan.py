"""One micro-batch's way through an epoch of the real, full-size model as fake tensors.

Sampling, decoding, replay, update and optimizer step are the program's own. Of an epoch only what
repeats is run: a micro-batch or two images, and as many steps as go into one forward. What is not
seen: the allocator's fragmentation, the workspaces of libraries and CUDA's context (about 1 GB
together), what compiled kernels fuse, and how a sharded model is gathered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flow_trainer.algorithm.advantages import Advantages
from flow_trainer.algorithm.ema import Ema, ema_rule, old_policy_rule
from flow_trainer.doctor.estimate import GB, trained_steps
from flow_trainer.doctor.fake_device import Ledger, Section, fake_gpu
from flow_trainer.doctor.fake_policy import fake_policy
from flow_trainer.loop.rollout import rollout
from flow_trainer.loop.updates.chosen import update_chosen
from flow_trainer.loop.updates.data import DataGradients, update_data
from flow_trainer.loop.updates.descend import UpdateStats
from flow_trainer.loop.updates.distill import update_distill
from flow_trainer.loop.updates.examples import Example, Examples
from flow_trainer.loop.updates.forward import update_forward
from flow_trainer.loop.updates.optimizers import make_optimizer
from flow_trainer.loop.updates.replay import reference_velocities
from flow_trainer.loop.updates.through_pixels import PixelGradients, update_through_pixels
from flow_trainer.loop.updates.trajectory import update_policy
from flow_trainer.models.conditioning import Conditioning
from flow_trainer.models.memory import trained_rows
from flow_trainer.recipe import Recipe
from flow_trainer.recipe.prompts import Prompt

BESIDE = ("encode", "data")
"""Sections of image-text data, where it is trained beside samples."""
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
    own rank. Where [data] trains alone, what is sampled is what evaluations sample. Raises ConfigError
    for a model whose parts are not on record."""
    small = _one_micro_batch(recipe)
    with fake_gpu(torch.device("cpu")) as ledger:
        return _Epoch(small, ledger, trained=trained_rows(recipe)).run()


def per_image(recipe: Recipe, sections: Mapping[str, Section]) -> dict[str, dict[str, float]]:
    """Launches, bytes (of what is no matrix product) and FLOPs per image of a whole epoch, from the
    fake run's `sections`: by part, and in all. Images are those sampled or, where [data] trains alone,
    its own."""
    small = _one_micro_batch(recipe)
    images = small.images_per_epoch
    beside, levels = _data_share(recipe, small), recipe.data.levels if recipe.data else 0
    trained = trained_steps(recipe) / recipe.update.steps_per_forward
    if recipe.update.trains_on == "gradients":
        trained = 1.0  # all steps of the window are in the fake run's update
    steps = recipe.sampled_steps / small.sampled_steps
    group = recipe.sampling.group_size
    # of all images of the fake run, which are two where a micro-batch is one
    rows = trained_rows(recipe) if recipe.update.trains_on == "chosen samples" else images
    passes = trained * recipe.update.chosen(group) / group / rows
    times = {
        "sampling": 1 / images,
        "sampling forward": steps / images,
        "decode": 1 / images,
        "frozen forward": passes,
        "update": passes,
        "encode": beside,
        "data": beside * levels,
        "step": 1 / recipe.share,
    }
    if recipe.update.trains_on == "data":
        per_update = recipe.images_taken / recipe.update.updates_per_epoch
        passes = beside * levels
        times = {
            "encode": beside,
            "frozen forward": passes,
            "update": passes,
            "step": 1 / per_update,
        }
    found = {
        name: {key: getattr(sections[name], key) * factor for key in COUNTS}
        for name, factor in times.items()
        if name in sections
    }
    found["in all"] = {key: sum(part[key] for part in found.values()) for key in COUNTS}
    return found


def _data_share(recipe: Recipe, small: Recipe) -> float:
    """An epoch's images of [data] over those of the fake run, per image."""
    if recipe.data is None or small.data is None:
        return 0.0
    count = recipe.data.batch * recipe.update.updates_per_epoch
    return count / small.data.batch / recipe.images_taken


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
    if recipe.data is not None:
        batch = max(1, s.micro_batch // recipe.data.members)
        sections["data"] = recipe.data.model_copy(update={"batch": batch, "levels": 1})
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
        self.policy = fake_policy(recipe, ledger, blocks)
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
        data = _made_up_data(recipe)
        policy.prepare_prompts(
            [*(prompt.text for prompt in prompts), *(data.prompts if data else ())]
        )
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
        self._update(samples, conditioning, v_ref, data)
        gradients = sum(p.nbytes for p in self.parameters.values())
        moments = sum(
            value.nbytes
            for state in self.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor) and value.device == ledger.device
        )
        averages = sum(w.nbytes for average in self.averages for w in average.weights().values())
        peak = {name: section.peak - before for name, section in ledger.sections.items()}
        peak["update"] = max([self._update_peak - before, *(peak[n] for n in BESIDE if n in peak)])
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
            "data": plain,
        }
        frozen = named["start"]
        policy.velocity = lambda *a: named[ledger.at](*a)  # type: ignore[method-assign]
        policy.decode = ledger.within("decode", policy.decode)  # type: ignore[method-assign]
        policy.to_latents = ledger.within("encode", policy.to_latents)  # type: ignore[method-assign]
        self.optimizer.zero_grad = lambda **_: None  # type: ignore[method-assign]
        step = ledger.within("step", self.optimizer.step)

        def first_step(*args: Any, **kwargs: Any) -> Any:
            # what comes after it holds the moments too, which are training state
            self._update_peak = ledger.sections["update"].peak
            return step(*args, **kwargs)

        self.optimizer.step = first_step  # type: ignore[method-assign]
        for average in self.averages:
            average.update = ledger.within("step", average.update)  # type: ignore[method-assign]

    def _update(
        self, samples: Any, conditioning: Conditioning, v_ref: Any, examples: Examples | None
    ) -> None:
        recipe, ledger = self.recipe, self.ledger
        if recipe.data is not None and examples is not None:
            gradients = DataGradients(self.policy, recipe, recipe.data, examples, 0)
            if recipe.update.trains_on == "data":
                with ledger.section("update"):
                    update_data(self.policy, self.optimizer, self.ema, recipe, 0, gradients)
                return
            with ledger.section("data"):
                gradients(0, 1.0, UpdateStats())
        with ledger.section("update"):
            self._update_on_samples(samples, conditioning, v_ref)

    def _update_on_samples(self, samples: Any, conditioning: Conditioning, v_ref: Any) -> None:
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


def _made_up(recipe: Recipe) -> PixelGradients:
    size = (recipe.model.height, recipe.model.width, 3)
    count = recipe.images_per_epoch
    return PixelGradients(
        torch.ones(count),
        torch.ones(count, dtype=torch.bool),
        lambda rows: torch.ones(len(rows), *size),
    )


class _MadeUp(Examples):
    def images(self, numbers: Sequence[int]) -> Tensor:
        count = sum(len(self._examples[number].names) for number in numbers)
        return torch.zeros(count, self._height, self._width, 3, dtype=torch.uint8)


def _made_up_data(recipe: Recipe) -> Examples | None:
    """As many as an update takes."""
    d, m = recipe.data, recipe.model
    if d is None:
        return None
    names = ("",) * d.members
    return _MadeUp([Example(f"a sign {n}", names, ()) for n in range(d.batch)], m.width, m.height)


def _nbytes(module: nn.Module) -> int:
    return sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
