"""`flow-grpo doctor`: everything that can be known to go wrong before a run, one line each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flow_trainer.config import Recipe
from flow_trainer.errors import ConfigError, OutageError, TrainerError
from flow_trainer.models import Policy, load_policy
from flow_trainer.prompts import Prompt, read_prompts
from flow_trainer.ratio import measure_ratio
from flow_trainer.scoring import Scorer
from flow_trainer.world import pick_device
from reward_api import RewardError

READY_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    ok: bool
    message: str
    """What was found; for a failure, with the fix."""


def examine(recipe: Recipe, folder: Path) -> Iterator[Check]:
    """Yields one Check after another; a failure does not stop what can still be checked."""
    yield _check_prompts(recipe)
    yield from _check_rewards(recipe)
    policy: Policy | None = None
    try:
        device = pick_device(recipe.device)
        policy = load_policy(recipe.model, device, with_reference=recipe.update.beta > 0)
        count = sum(p.numel() for p in policy.trainable().values())
        yield Check("model", True, f"{recipe.model.path} on {device}, {count:,} trained parameters")
    except TrainerError as error:
        yield Check("model", False, str(error))
    if policy is not None:
        yield from _check_policy(policy, recipe, folder)


def _check_prompts(recipe: Recipe) -> Check:
    found = []
    try:
        for split, path in recipe.prompts.model_dump().items():
            if path is not None:
                found.append(f"{len(read_prompts(path))} {split}")
        train = len(read_prompts(recipe.prompts.train))
    except ConfigError as error:
        return Check("prompts", False, str(error))
    wanted = recipe.sampling.prompts_per_epoch
    if train < wanted:
        return Check(
            "prompts",
            False,
            f"{train} training prompts are fewer than sampling.prompts_per_epoch = {wanted}",
        )
    return Check("prompts", True, ", ".join(found))


def _check_rewards(recipe: Recipe) -> Iterator[Check]:
    for name, reward in recipe.rewards.items():
        scorer = Scorer({name: reward}, recipe.scoring)
        try:
            scorer.wait_ready(READY_TIMEOUT_S)
            meta = scorer.metadata()[name]
            low, high = meta.score.minimum, meta.score.maximum
            span = f"[{'-inf' if low is None else low}, {'inf' if high is None else high}]"
            yield Check(
                f"reward {name}",
                True,
                f"{reward.url} serves {meta.name} {meta.version}, score {meta.score.name} in {span}, "
                f"revision {meta.revision}",
            )
        except (OutageError, RewardError) as error:
            yield Check(f"reward {name}", False, f"{reward.url}: {error}")
        finally:
            scorer.close()


def _check_policy(policy: Policy, recipe: Recipe, folder: Path) -> Iterator[Check]:
    prompts = [Prompt('a sign that says "probe"')]
    yield _attempt("ratio", lambda: _ratio(policy, recipe, prompts))
    count = sum(p.numel() for p in policy.trainable().values())
    # weights, EMA and two moments, float32, for every kept checkpoint and the best one
    needed = 16 * count * (recipe.checkpoints.keep + 1)
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    yield Check(
        "disk",
        free > needed,
        f"checkpoints need {needed / 1e9:.2f} GB, {free / 1e9:.1f} GB free in {parent}"
        + ("" if free > needed else "; lower checkpoints.keep or pass --out"),
    )


def _ratio(policy: Policy, recipe: Recipe, prompts: list[Prompt]) -> Check:
    if recipe.update.forward_process:
        return Check("ratio", True, f"{recipe.update.objective} has no trajectories to replay")
    report = measure_ratio(policy, recipe, prompts)
    return Check("ratio", report.ok, report.explain())


def _attempt(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except TrainerError as error:
        return Check(name, False, str(error))
