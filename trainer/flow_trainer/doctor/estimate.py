"""What a recipe costs, from its numbers alone: transformer forwards per image, and what `--dry-run` says.

A forward, F, is one evaluation of the transformer for one image at one step. With LoRA the backward
costs about one F, because frozen weights need no gradient of their own; with full fine-tuning two.
Activation checkpointing repeats the forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from flow_trainer.models.architectures import inspect
from flow_trainer.models.memory import Memory, memory
from flow_trainer.recipe import Recipe

GB, MB = 1e9, 1e6


@dataclass(frozen=True, slots=True)
class Forwards:
    """Transformer forwards per image, the backward counted in them."""

    sampling: int
    training: int

    @property
    def total(self) -> int:
        return self.sampling + self.training


def forwards(recipe: Recipe) -> Forwards:
    """The first epoch's cost, if every sample has an advantage; groups of equal rewards are skipped.
    Of image-text data beside samples see `data_forwards`; alone, per image of it."""
    u, model = recipe.update, recipe.model
    if u.trains_on == "data":
        return Forwards(0, data_forwards(recipe))
    rows = 2 if model.classifier_free > 1 else 1
    backward = 1 if model.tuning == "lora" else 2
    passes = rows * (1 + backward + int(model.gradient_checkpointing))
    if u.trains_on == "finished samples":
        passes += rows  # the old policy
    if u.needs_reference:
        guided = recipe.forward.reference_guidance or model.guidance
        passes += 2 if model.family != "flux" and guided > 1 else 1
    s = recipe.sampling
    chosen = u.chosen(s.group_size) / s.group_size
    training = round(trained_steps(recipe) * (passes + _teacher_rows(recipe)) * chosen)
    scouts = (s.candidates or 0) / s.group_size * (s.scout_steps or s.num_steps)
    return Forwards(sampling=round(rows * (recipe.sampled_steps + scouts)), training=training)


def data_forwards(recipe: Recipe) -> int:
    """Transformer forwards per image of [data], the backward counted in them; 0 without it."""
    d, model = recipe.data, recipe.model
    if d is None:
        return 0
    rows = 2 if model.family != "flux" and d.guidance > 1 else 1
    reference = d.members - 1  # pairs have one
    backward = 1 if model.tuning == "lora" else 2
    return rows * d.levels * (1 + backward + int(model.gradient_checkpointing) + reference)


def _teacher_rows(recipe: Recipe) -> float:
    """Forwards of the teachers per image and step, on average over the sources."""
    model, weights = recipe.model, recipe.source_weights
    return sum(
        weights[name] * (2 if model.family != "flux" and (t.guidance or model.guidance) > 1 else 1)
        for name, t in recipe.teachers.items()
    )


def trained_steps(recipe: Recipe) -> int:
    """Of an image in the first epoch."""
    if recipe.update.forward_process:
        return recipe.forward_steps
    window = len(recipe.window(0))
    return min(recipe.update.trained_steps or window, window)


def trained_parameters(recipe: Recipe) -> int | None:
    """None when the model's size is not on record."""
    model = inspect(recipe.model.path, recipe.model.family, recipe.model.lora_rank)
    if model is None:
        return None
    return model.lora_parameters if recipe.model.tuning == "lora" else model.parameters


def dry_run(recipe: Recipe, gpus: int = 1) -> Iterator[str]:
    """What `flow-grpo train --dry-run` prints, a line each. Loads no weights."""
    s, u, f = recipe.sampling, recipe.update, forwards(recipe)
    yield f"recipe    {recipe.name}: {recipe.model.family} {recipe.model.path}, {u.objective}"
    samples = (
        f"{s.prompts_per_epoch} prompts x {s.group_size} images = {recipe.images_per_epoch} images per "
        "epoch, "
    )
    yield (
        f"sizes     {samples if u.trains_on != 'data' else ''}{u.updates_per_epoch} "
        f"update{'s' * (u.updates_per_epoch > 1)} per epoch, {recipe.epochs} epochs"
    )
    yield from _data_lines(recipe)
    if u.trains_on != "data":
        stochastic = "" if s.deterministic else f", {len(recipe.noisy_steps(0))} of them stochastic"
        yield (
            f"steps     {s.num_steps} sampled ({s.dynamics}){stochastic}, "
            f"{trained_steps(recipe)} trained per image"
        )
        yield (
            f"forwards  {f.total} per image: {f.sampling} sampling, {f.training} training "
            f"({f.total * recipe.images_per_epoch:,} per epoch)"
        )
    model = inspect(recipe.model.path, recipe.model.family, recipe.model.lora_rank)
    if model is None:
        yield f"memory    unknown: the size of {recipe.model.path} is not on record"
        return
    trained = model.lora_parameters if recipe.model.tuning == "lora" else model.parameters
    yield f"model     {model.parameters:,} parameters, {trained:,} trained"
    yield from _memory_lines(memory(recipe, model, gpus), gpus)


def _data_lines(recipe: Recipe) -> Iterator[str]:
    d, u = recipe.data, recipe.update
    if d is None:
        return
    what = f"pairs of {d.pairs}" if d.pairs is not None else f"images of {d.images}"
    cost = data_forwards(recipe) * d.batch * d.members * u.updates_per_epoch
    alone = " and nothing else" if u.trains_on == "data" else ""
    yield (
        f"data      {d.batch} {what} per update at {d.levels} noise level{'s' * (d.levels > 1)}{alone}: "
        f"{cost:,} forwards per epoch"
    )


def _memory_lines(found: Memory, gpus: int) -> Iterator[str]:
    unit, name = (GB, "GB") if found.peak >= GB else (MB, "MB")
    part = {k: f"{v / unit:.1f}" for k, v in asdict(found).items() if not isinstance(v, bool)}
    where = "one GPU" if gpus == 1 else f"each of {gpus} GPUs"
    stay = f"text encoders {part['text_encoders']}, " if found.encoders_stay else ""
    yield f"memory    about {found.peak / unit:.0f} {name} on {where} (an estimate), the larger of"
    yield (
        f"  training  {found.training_peak / unit:.1f}: transformer {part['transformer']}, VAE "
        f"{part['vae']}, {stay}training state {part['training_state']}, trajectories "
        f"{part['trajectories']}, and the most of activations {part['activations']}, decoding "
        f"{part['decode']} and an optimizer step {part['step']}"
    )
    yield (
        f"  loading   {found.loading_peak / unit:.1f}: transformer {part['transformer']}, VAE "
        f"{part['vae']}, text encoders {part['text_encoders']}"
    )
    if found.encoders_stay:
        yield (
            "  the text encoders stay: the encoded prompts exceed model.prompt_cache_gb; raise it where "
            "the host has the memory, or set model.offload = true"
        )
