"""Doctor: a reward's services answer, mean the same thing, and score within the range they declare."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from flow_trainer.doctor.checks import Check
from flow_trainer.errors import OutageError, TrainerError
from flow_trainer.loop.scoring import Scorer
from flow_trainer.loop.updates.through_pixels import no_gradient
from flow_trainer.recipe import Recipe, Reward
from flow_trainer.recipe.prompts import Prompt
from reward_api import RewardError, RewardMetadata

READY_TIMEOUT_S = 5.0
PROBE_IMAGES = 2


def check_reward(name: str, recipe: Recipe, prompt: Prompt) -> Iterator[Check]:
    """Every replica by itself: what it serves, and its score of an image of the recipe's size."""
    reward = recipe.rewards[name]
    urls = [reward.url] if isinstance(reward.url, str) else reward.url
    revisions: dict[str, str] = {}
    for url in urls:
        title = f"reward {name}" if len(urls) == 1 else f"reward {name} at {url}"
        try:
            scorer = Scorer({name: reward.model_copy(update={"url": url})}, recipe.scoring)
        except TrainerError as error:
            yield Check(title, False, str(error))
            continue
        try:
            scorer.wait_ready(READY_TIMEOUT_S)
            meta = scorer.metadata()[name]
            revisions[url] = meta.revision
            problem = (
                _clip_problem(name, reward, meta)
                or _gradient_problem(name, meta, recipe)
                or _probe(name, scorer, meta, recipe, prompt)
            )
            yield Check(title, problem is None, f"{_describe(url, meta)}{problem or ''}")
        except (OutageError, RewardError) as error:
            reason = error.__cause__ or error  # an outage's own advice is for runs
            fix = f"start it (reward-serve), or correct rewards.{name}"
            yield Check(title, False, f"{url}: {reason}; {fix}")
        finally:
            scorer.close()
    if len(set(revisions.values())) > 1:
        found = ", ".join(f"{url} {revision}" for url, revision in revisions.items())
        yield Check(
            f"reward {name}",
            False,
            f"replicas have different revisions and may score differently: {found}; serve the same "
            "weights and settings",
        )


def _describe(url: str, meta: RewardMetadata) -> str:
    return (
        f"{url} serves {meta.name} {meta.version}, score {meta.score.name} in {_span(meta)}, "
        f"revision {meta.revision}"
    )


def _span(meta: RewardMetadata) -> str:
    low, high = meta.score.minimum, meta.score.maximum
    return f"[{'-inf' if low is None else low}, {'inf' if high is None else high}]"


def _clip_problem(name: str, reward: Reward, meta: RewardMetadata) -> str | None:
    if reward.clip is None:
        return None
    least, most = reward.clip
    low = -float("inf") if meta.score.minimum is None else meta.score.minimum
    high = float("inf") if meta.score.maximum is None else meta.score.maximum
    if most <= low or least >= high:
        return (
            f"; rewards.{name}.clip = [{least:g}, {most:g}] leaves nothing of that range: every "
            "sample would score the same"
        )
    return None


def _gradient_problem(name: str, meta: RewardMetadata, recipe: Recipe) -> str | None:
    if meta.has_gradient or not _gradient(name, recipe):
        return None
    return f"; {no_gradient(name, meta, recipe)}"


def _gradient(name: str, recipe: Recipe) -> bool:
    """Whether the recipe follows this reward's gradient."""
    return recipe.update.trains_on == "gradients" and name in recipe.trained


def _probe(
    name: str, scorer: Scorer, meta: RewardMetadata, recipe: Recipe, prompt: Prompt
) -> str | None:
    """Scores images of the recipe's size; what is wrong with the scores."""
    torch.manual_seed(0)
    size = (PROBE_IMAGES, recipe.model.height, recipe.model.width, 3)
    images = torch.randint(0, 256, size, dtype=torch.uint8)
    prompts, gradient = [prompt] * PROBE_IMAGES, _gradient(name, recipe)
    job = scorer.submit(range(PROBE_IMAGES), images, prompts, gradient=gradient)
    scores = scorer.collect([job])
    batch = scores.rewards[name]
    if not batch.valid.all():
        failure = next(iter(batch.errors.values()))
        return f"; a {size[1]}x{size[2]} image was not scored: {failure} (its log says more)"
    low, high = meta.score.minimum, meta.score.maximum
    for value in batch.values.tolist():
        if (low is not None and value < low) or (high is not None and value > high):
            return f"; scored {value:g}, outside the range it declares: update the service"
    return None
