"""Scouts: a large group of each prompt drawn in few steps and scored, so that the epoch draws only the
members that the reward sets furthest apart, again and in full, from the same noise (Sol-RL,
arXiv 2604.06916)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from flow_trainer.algorithm.selection import top_and_bottom
from flow_trainer.loop.rollout import rollout
from flow_trainer.loop.run import Run
from flow_trainer.loop.scoring import Job
from flow_trainer.recipe.prompts import Prompt


def scouted_members(
    run: Run,
    epoch: int,
    prompts: Sequence[Prompt],
    indices: Sequence[int],
    leave_if_asked: Callable[[], None],
) -> list[int]:
    """Which member of the candidates each of the epoch's samples is, prompt by prompt. Waits for the
    scouts' scores; during an outage the run is saved and held. Raises Interrupted, OutageError."""
    keep, scouting = run.recipe.update.keep, run.recipe.scouting
    assert keep is not None
    group = scouting.sampling.group_size
    jobs: list[Job] = []

    def on_images(rows: range, pixels: Tensor) -> None:
        jobs.append(run.scorer.submit(rows, pixels, [prompts[row // group] for row in rows]))
        run.log.phase(f"scouting {rows.stop}/{scouting.images_per_epoch}")

    def hold(down: list[str]) -> Callable[[], None]:
        run.save()
        run.log.say(
            f"no scores from {', '.join(down)}: the scouts of epoch {epoch + 1} are held and the run "
            f"saved; waiting up to {run.recipe.scoring.outage_wait_s:.0f} s for the service"
        )
        return leave_if_asked

    rollout(run.policy, scouting, epoch, prompts, indices, on_images, run.world, leave_if_asked)
    run.log.phase("waiting for the scouts' scores")
    scores = run.scorer.collect(jobs, hold, leave_if_asked)
    scores.require_one()
    run.progress.reward_wait_seconds += scores.wait_s
    values = scores.values.reshape(-1, group)
    valid = scores.valid.reshape(-1, group)
    return [
        member
        for rewards, scored in zip(values, valid, strict=True)
        for member in top_and_bottom(rewards, scored, *keep)
    ]
