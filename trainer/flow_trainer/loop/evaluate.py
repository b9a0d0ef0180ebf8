"""Evaluation: ODE sampling at its own number of steps, the same noise every time, the same rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flow_trainer.loop.rollout import generate
from flow_trainer.loop.scoring import Job, Scorer
from flow_trainer.models.policy import Policy
from flow_trainer.parallel.world import ALONE, World
from flow_trainer.recipe import Recipe
from flow_trainer.recipe.prompts import Prompt
from flow_trainer.record.diversity import image_diversity
from flow_trainer.record.scores import Scores

Hold = Callable[[list[str]], Callable[[], None]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    scores: Scores
    images: np.ndarray
    """(N, H, W, 3) uint8, prompt-major; of several ranks, only the first has them. Empty when nobody
    asked for them."""
    prompts: list[str]
    """One per image."""
    sources: list[str]
    """One per image: which of the recipe's sources it is of."""
    weights: Mapping[str, float]
    """Of the sources in the score."""
    diversity: float | None
    """See `image_diversity`; None without images, or with one of each prompt."""

    @property
    def score(self) -> float | None:
        """Mean over the images; of several sources, the weighted mean of theirs, whatever their number
        of prompts, and None when one of them has no score at all."""
        means = self._source_means()
        if len(means) < 2:
            return self.scores.mean()
        if None in means.values():
            return None
        weighted = [(self.weights[name], mean) for name, mean in means.items() if mean is not None]
        return sum(w * mean for w, mean in weighted) / sum(w for w, _ in weighted)

    def _source_means(self) -> dict[str, float | None]:
        named = np.array(self.sources)
        means: dict[str, float | None] = {}
        for name in dict.fromkeys(self.sources):
            values = self.scores.values[(named == name) & self.scores.valid]
            means[name] = float(values.mean()) if len(values) else None
        return means

    def summary(self) -> dict[str, float | int | None]:
        """Mean score, mean of every reward and sub-score, standard error, diversity of a prompt's images
        where it has several, failed samples."""
        valid = self.scores.values[self.scores.valid]
        error = float(valid.std(ddof=1) / np.sqrt(len(valid))) if len(valid) > 1 else None
        return {
            "score": self.score,
            "standard_error": error,
            **{f"{name}/score": mean for name, mean in self._source_means().items() if name},
            **self.scores.reward_means(),
            **({} if self.diversity is None else {"image_diversity": self.diversity}),
            "images": len(self.prompts),
            "failed": int((~self.scores.valid).sum()),
        }


def stack_images(batches: Sequence[torch.Tensor]) -> np.ndarray:
    """Micro-batches (b, H, W, 3) uint8 as one array; an empty one for a rank that drew nothing."""
    return torch.cat(list(batches)).numpy() if batches else np.zeros(0, np.uint8)


def evaluate(
    policy: Policy,
    scorer: Scorer,
    recipe: Recipe,
    prompts: Sequence[Prompt],
    images_per_prompt: int,
    num_steps: int | None = None,
    world: World = ALONE,
    hold: Hold | None = None,
    keep_images: bool = True,
) -> Evaluation:
    """Scores `images_per_prompt` images of each prompt with the weights the policy has now. `hold` is
    told of an outage; see `Scorer.collect`. `keep_images`: gathers them on the first rank."""
    images: list[torch.Tensor] = []
    jobs: list[Job] = []
    drawn: list[int] = []
    expanded = [prompt for prompt in prompts for _ in range(images_per_prompt)]

    def on_images(rows: range, batch: torch.Tensor) -> None:
        if keep_images:
            images.append(batch)
            drawn.extend(rows)
        jobs.append(scorer.submit(rows, batch, expanded[rows.start : rows.stop]))

    generate(
        policy,
        recipe,
        prompts,
        num_steps or recipe.evaluation.num_steps,
        images_per_prompt,
        on_images,
        world,
    )
    scores = scorer.collect(jobs, hold)
    scores.require_one()
    kept = world.gather_rows(drawn, stack_images(images)) if keep_images else stack_images([])
    texts = [prompt.text for prompt in expanded]
    comparable = len(kept) > 0 and len(set(texts)) < len(texts)
    return Evaluation(
        scores=scores,
        images=kept,
        prompts=texts,
        sources=[prompt.source for prompt in expanded],
        weights=recipe.source_weights,
        diversity=image_diversity(kept, texts) if comparable else None,
    )
