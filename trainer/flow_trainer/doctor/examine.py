"""`flow-grpo doctor`: everything that can be known to go wrong before a run, one line each."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

from flow_trainer.doctor.checks import Check, attempt
from flow_trainer.doctor.device import check_arithmetic, check_device, check_memory
from flow_trainer.doctor.estimate import forwards, trained_parameters
from flow_trainer.doctor.host import check_host
from flow_trainer.doctor.precision import check_precision
from flow_trainer.doctor.services import check_reward
from flow_trainer.errors import ConfigError, TrainerError
from flow_trainer.loop.ratio import check_ratio
from flow_trainer.loop.updates.examples import open_examples
from flow_trainer.models.hub import can_load
from flow_trainer.models.load import load_policy
from flow_trainer.models.policy import Policy
from flow_trainer.parallel.world import pick_device
from flow_trainer.recipe import Recipe
from flow_trainer.recipe.checks import busy_share
from flow_trainer.recipe.prompts import Prompt, read_prompts

PROBE = Prompt('a sign that says "probe"')


def examine(recipe: Recipe, folder: Path, gpus: int = 1) -> Iterator[Check]:
    """Yields one Check after another; a failure does not stop what can still be checked. `gpus`: those
    of the run, for its memory."""
    yield attempt("prompts", lambda: _check_prompts(recipe))
    yield attempt("sizes", lambda: _check_sizes(recipe, gpus))
    for name in recipe.rewards:
        yield from check_reward(name, recipe, _first_prompt(recipe, name))
    weights = attempt("weights", lambda: _check_weights(recipe))
    yield weights
    device = check_device(recipe)
    yield device
    yield _check_disk(recipe, folder)
    if not device.ok:
        return
    yield from check_host(recipe, gpus)
    memory = check_memory(recipe, gpus)
    yield memory
    yield check_arithmetic(pick_device(recipe.device))
    if not (weights.ok and memory.ok):
        yield Check("model", False, "not loaded: see weights and memory above")
    elif gpus > 1 and not check_memory(recipe).ok:
        yield Check("model", True, "not loaded: it fits divided over the GPUs, not this one alone")
    else:
        yield from _check_policy(recipe)


def _check_prompts(recipe: Recipe) -> Check:
    counts: dict[str, int] = {}
    for key, source, split, path in recipe.prompts.files():
        if not Path(path).exists():
            return Check(
                "prompts",
                False,
                f"no {path}: correct {key}, or write it (`flow-grpo prompts --help`)",
            )
        name = f"{source} {split}".strip()
        counts[name] = len(read_prompts(path))
        wanted = math.ceil(recipe.sampling.prompts_per_epoch * recipe.source_weights[source])
        if split == "train" and counts[name] < wanted:
            return Check(
                "prompts",
                False,
                f"{counts[name]} training prompts{f' of {source}' * bool(source)} are fewer than "
                f"{f'its {wanted} of ' * bool(source)}sampling.prompts_per_epoch = "
                f"{recipe.sampling.prompts_per_epoch}: lower it, or add prompts to {path}",
            )
    if (examples := open_examples(recipe)) is not None:
        counts["image-text examples"] = len(examples)
    found = ", ".join(f"{n} {name}" for name, n in counts.items())
    chosen = any(split == "validation" for _, _, split, _ in recipe.prompts.files())
    return Check("prompts", True, found + "; without prompts.validation no RUN/best" * (not chosen))


def _first_prompt(recipe: Recipe, reward: str) -> Prompt:
    """A training prompt with the metadata that the reward reads; a made-up one where there is none."""
    for _, source, split, path in recipe.prompts.files():
        if split == "train" and reward in recipe.source_rewards[source]:
            try:
                return read_prompts(path)[0]
            except ConfigError:
                break
    return PROBE


def _check_sizes(recipe: Recipe, gpus: int) -> Check:
    busy = busy_share(recipe, gpus)
    s, f = recipe.sampling, forwards(recipe)
    message = (
        f"{s.prompts_per_epoch} prompts x {s.group_size} images, {recipe.update.updates_per_epoch} "
        f"updates per epoch, {f.total} forwards per image"
    )
    message += uneven_micro_batches(recipe.share, s.micro_batch)
    if busy < 1:
        message += f"; {gpus} GPUs are busy {busy:.0%} of the time"
    return Check("sizes", True, message)


def uneven_micro_batches(share: int, micro_batch: int) -> str:
    """A hint where an update's images end in a smaller micro-batch, which is a shape of its own (compiled
    once more), and a size not much smaller has none."""
    whole, left = divmod(share, micro_batch)
    even = max(n for n in range(1, min(share, micro_batch) + 1) if share % n == 0)
    if not whole or not left or 2 * even <= micro_batch:
        return ""
    return (
        f"; an update's {share} images are {whole} of sampling.micro_batch = {micro_batch} and one of "
        f"{left}: {even} divides them"
    )


def _check_weights(recipe: Recipe) -> Check:
    return Check("weights", True, can_load(recipe.model.path, recipe.model.revision))


def _check_disk(recipe: Recipe, folder: Path) -> Check:
    count = trained_parameters(recipe)
    if count is None:
        return Check("disk", True, f"the size of {recipe.model.path} is not on record")
    # weights, EMA, two moments and an exported copy, float32, per kept checkpoint and the best one
    needed = 20 * count * (recipe.checkpoints.keep + 1)
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    enough = free > needed
    return Check(
        "disk",
        enough,
        f"checkpoints need {needed / 1e9:.2f} GB, {free / 1e9:.1f} GB free in {parent}"
        + ("" if enough else "; lower checkpoints.keep or pass --out"),
    )


def _check_policy(recipe: Recipe) -> Iterator[Check]:
    device = pick_device(recipe.device)
    try:
        policy = load_policy(
            recipe.model,
            device,
            with_reference=recipe.needs_reference,
            teachers=recipe.teachers,
        )
    except TrainerError as error:
        yield Check("model", False, str(error))
        return
    count = sum(p.numel() for p in policy.trainable().values())
    yield Check("model", True, f"{recipe.model.path} on {device}, {count:,} trained parameters")
    yield attempt("prompt cache", lambda: _check_cache(policy, recipe))
    yield attempt("ratio", lambda: _check_ratio(policy, recipe))
    yield attempt("precision", lambda: check_precision(policy, recipe, PROBE))


def _check_cache(policy: Policy, recipe: Recipe) -> Check:
    files = recipe.prompts.files()
    texts = {prompt.text for *_, path in files for prompt in read_prompts(path)}
    needed = policy.encode([PROBE.text]).nbytes() * len(texts) / 1e9
    room = recipe.model.prompt_cache_gb
    message = f"about {needed:.2f} GB for {len(texts)} prompts, model.prompt_cache_gb = {room:g}"
    if needed > room and not recipe.model.offload:
        message += (
            ": prompts are encoded as they come and the text encoders stay on the device; raise it, "
            "or set model.offload = true"
        )
    return Check("prompt cache", True, message)


def _check_ratio(policy: Policy, recipe: Recipe) -> Check:
    if recipe.update.trains_on != "trajectories":
        return Check("ratio", True, f"{recipe.update.objective} has no ratio to replay")
    return Check("ratio", True, check_ratio(policy, recipe, [PROBE]).explain())
