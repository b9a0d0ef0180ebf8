"""An epoch's samples: drawn by the policy, and on their way to the rewards."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor

from flow_trainer.algorithm.trajectory import Trajectories
from flow_trainer.errors import Interrupted
from flow_trainer.loop.rollout import rollout
from flow_trainer.loop.run import Run
from flow_trainer.loop.scoring import Job
from flow_trainer.loop.scout import scouted_members
from flow_trainer.loop.updates.replay import reference_velocities
from flow_trainer.models.conditioning import Rows
from flow_trainer.models.prompt_rows import PromptRows
from flow_trainer.recipe.prompts import Prompt, mixed_epoch_prompts


@dataclass(frozen=True, slots=True)
class Batch:
    epoch: int
    staleness: int
    """Epochs of updates between the weights that drew it and those that train on it."""
    prompts: list[Prompt]
    images: list[Tensor]
    """This rank's micro-batches (b, H, W, 3) uint8, of the rows `samples.rows`."""
    jobs: list[Job]
    samples: Trajectories
    conditioning: Rows
    """One row per prompt."""
    v_ref: dict[int, Tensor] | None
    """The reference's velocities, when there is a KL term."""


def sample(run: Run, epoch: int, *, ahead: bool = False) -> Batch:
    """Draws an epoch with the policy of now; `ahead` of the update on the epoch before. Raises
    Interrupted, the run saved, when it is asked to stop."""
    return _draw(run, epoch, run.sampling(), ahead)


def sample_again(run: Run) -> Batch | None:
    """The batch that a resumed run had drawn ahead when it was saved, by the policy of then."""
    epoch = run.progress.epoch
    if run.sampler is None or not 0 < epoch < run.recipe.epochs:
        return None
    return _draw(run, epoch, run.sampler.swapped(), ahead=True)


def _draw(run: Run, epoch: int, weights: AbstractContextManager[None], ahead: bool) -> Batch:
    recipe = run.recipe
    group = recipe.sampling.group_size
    indices = mixed_epoch_prompts(
        run.prompts["train"],
        recipe.source_weights,
        recipe.sampling.prompts_per_epoch,
        epoch,
        recipe.seed,
    )
    prompts = [run.prompts["train"][index] for index in indices]
    images: list[Tensor] = []
    jobs: list[Job] = []
    gradient = recipe.update.trains_on == "gradients"

    def leave_if_asked() -> None:
        if run.asked_to_stop():
            raise Interrupted(f"stopped while sampling epoch {epoch + 1}; saved before it")

    def on_images(rows: range, pixels: Tensor) -> None:
        images.append(pixels)
        of_rows = [prompts[row // group] for row in rows]
        jobs.append(run.scorer.submit(rows, pixels, of_rows, gradient=gradient))
        run.log.phase(f"sampling {rows.stop}/{recipe.images_per_epoch}")

    try:
        with weights:
            chosen = None
            if recipe.update.keep is not None:
                chosen = scouted_members(run, epoch, prompts, indices, leave_if_asked)
            samples = rollout(
                run.policy,
                recipe,
                epoch,
                prompts,
                indices,
                on_images,
                run.world,
                leave_if_asked,
                chosen,
            )
    except Interrupted:
        # the weights are still those of the last finished epoch
        run.save()
        raise
    conditioning = PromptRows(
        run.policy, [prompt.text for prompt in prompts], [row // group for row in samples.rows]
    )
    v_ref = reference_velocities(run.policy, recipe, epoch, samples, conditioning, run.world)
    return Batch(epoch, int(ahead), prompts, images, jobs, samples, conditioning, v_ref)
