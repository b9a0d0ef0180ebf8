"""An epoch's updates, chosen by what the objective trains on."""

from __future__ import annotations

from collections.abc import Callable

from flow_trainer.loop.feedback import Feedback
from flow_trainer.loop.run import Run
from flow_trainer.loop.sampling import Batch
from flow_trainer.loop.updates.chosen import update_chosen
from flow_trainer.loop.updates.data import DataGradients, update_data
from flow_trainer.loop.updates.descend import Beside, UpdateStats
from flow_trainer.loop.updates.distill import update_distill
from flow_trainer.loop.updates.forward import update_forward
from flow_trainer.loop.updates.through_pixels import pixel_gradients, update_through_pixels
from flow_trainer.loop.updates.trajectory import update_policy

Ready = Callable[[int], None]
"""Called with the number of an update before it begins; blocks until its advantages are there."""


def update(run: Run, batch: Batch, feedback: Feedback) -> UpdateStats:
    """The optimizer steps on `batch`, each once `feedback` has what it needs."""

    def ready(number: int) -> None:
        run.log.phase("waiting for rewards")
        feedback.ready(number)
        run.log.phase("updating")
        if number == 0 and run.sampler is not None:
            # what a batch ahead was drawn with; not sooner, since an outage may still save the run
            with run.sampling():
                run.sampler.update()

    own = UPDATES[run.recipe.update.trains_on]
    beside = data_gradients(run, batch.epoch)
    stats = own(run, batch, feedback, ready, beside)
    if beside is not None:
        stats.beside = beside.means()
    return stats


def update_on_data(run: Run, epoch: int) -> UpdateStats:
    """The optimizer steps of an epoch without samples."""
    gradients = data_gradients(run, epoch)
    assert gradients is not None
    run.log.phase("updating")
    return update_data(
        run.policy, run.optimizer, run.ema, run.recipe, epoch, gradients, run.world, run.scale
    )


def data_gradients(run: Run, epoch: int) -> DataGradients | None:
    """None without [data]."""
    data = run.recipe.data
    if data is None or run.examples is None:
        return None
    return DataGradients(run.policy, run.recipe, data, run.examples, epoch, run.world)


def _on_trajectories(
    run: Run, batch: Batch, feedback: Feedback, ready: Ready, beside: Beside | None
) -> UpdateStats:
    return update_policy(
        run.policy,
        run.optimizer,
        run.ema,
        run.recipe,
        batch.epoch,
        batch.samples,
        batch.conditioning,
        feedback.advantages,
        batch.v_ref,
        ready,
        run.world,
        run.scale,
        beside,
    )


def _on_finished_samples(
    run: Run, batch: Batch, feedback: Feedback, ready: Ready, beside: Beside | None
) -> UpdateStats:
    assert run.old is not None
    chooses = run.recipe.update.trains_on == "chosen samples"
    update_samples = update_chosen if chooses else update_forward
    return update_samples(
        run.policy,
        run.optimizer,
        run.ema,
        run.old,
        run.recipe,
        batch.epoch,
        batch.samples,
        batch.conditioning,
        feedback.advantages,
        ready,
        run.world,
        run.scale,
        beside,
    )


def _on_gradients(
    run: Run, batch: Batch, feedback: Feedback, ready: Ready, beside: Beside | None
) -> UpdateStats:
    sources = [prompt.source for prompt in batch.prompts]
    return update_through_pixels(
        run.policy,
        run.optimizer,
        run.ema,
        run.recipe,
        batch.epoch,
        batch.samples,
        batch.conditioning,
        lambda: pixel_gradients(run.recipe, feedback.scores, sources, batch.jobs),
        ready,
        run.world,
        run.scale,
        beside,
    )


def _on_teachers(
    run: Run, batch: Batch, feedback: Feedback, ready: Ready, beside: Beside | None
) -> UpdateStats:
    return update_distill(
        run.policy,
        run.optimizer,
        run.ema,
        run.recipe,
        batch.epoch,
        batch.samples,
        batch.conditioning,
        [prompt.source for prompt in batch.prompts],
        ready,
        run.world,
        run.scale,
        beside,
    )


UPDATES: dict[str, Callable[[Run, Batch, Feedback, Ready, Beside | None], UpdateStats]] = {
    "trajectories": _on_trajectories,
    "finished samples": _on_finished_samples,
    "chosen samples": _on_finished_samples,
    "teachers": _on_teachers,
    "gradients": _on_gradients,
}
