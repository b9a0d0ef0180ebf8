"""Flow-GRPO (arXiv 2505.05470): the loop, written out."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flow_trainer.errors import Interrupted
from flow_trainer.loop.epoch_log import (
    log_data_epoch,
    log_epoch,
    log_fixed,
    log_grid,
    meters,
    missing_scores,
    restart_meters,
    write_summary,
)
from flow_trainer.loop.evaluate import Evaluation, evaluate
from flow_trainer.loop.feedback import Feedback, diversity_bonus
from flow_trainer.loop.ratio import check_ratio
from flow_trainer.loop.run import Run, note_revisions, open_run
from flow_trainer.loop.sampling import Batch, sample, sample_again
from flow_trainer.loop.update import update, update_on_data
from flow_trainer.loop.watching import Watching
from flow_trainer.parallel.world import open_world, pick_device, restarted
from flow_trainer.recipe import Recipe
from flow_trainer.recipe.changes import refuse_inside_a_run
from flow_trainer.record.lock import sole_trainer


def train(recipe: Recipe, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Trains a recipe in `folder` and returns the summary that it also leaves as summary.json.

    `resume` continues from the newest checkpoint in `folder`, bit for bit on a CPU; a process that
    torchrun restarts does so unasked. Under torchrun, all ranks call this together. Raises
    ConfigError, OutageError, StorageError, NonFiniteError, RatioError; Interrupted after saving.
    """
    refuse_inside_a_run(folder)
    device = pick_device(recipe.device)
    with open_world(device, recipe.sharding) as world, sole_trainer(folder, world):
        resume = resume or restarted()
        run = open_run(recipe, folder, resume=resume, device=device, world=world)
        try:
            with _signals(run), closing(Watching(run)) as watching:
                _heldout(run, "before")
                if recipe.update.trains_on == "data":
                    _epochs_of_data(run)
                else:
                    _epochs(run, watching)
                after = _finish(run)
            return write_summary(run, after)
        finally:
            run.log.close()
            run.scorer.close()


def _epochs(run: Run, watching: Watching) -> None:
    recipe = run.recipe
    # a run that goes on may do so on another device: compiled blocks are judged where they run
    unseen = not run.resumed or run.policy.compiled_by_choice
    if unseen and recipe.update.trains_on == "trajectories":
        found = check_ratio(run.policy, recipe, run.prompts["train"], run.world)
        if found.compiled_error is not None:
            run.log.say(f"[yellow]{found.explain()}[/yellow]")
    if not run.resumed:
        log_fixed(run, 0)
        run.save()
    run.log.start(run.progress.epoch)
    ahead = sample_again(run)
    for epoch in range(run.progress.epoch, recipe.epochs):
        restart_meters(run)
        started, cpu = time.perf_counter(), time.process_time()
        # SAMPLING: images leave for the rewards while the next micro-batch is drawn
        batch = ahead or sample(run, epoch)
        ahead = None
        if recipe.scoring.overlap == "epoch" and epoch + 1 < recipe.epochs:
            ahead = sample(run, epoch + 1, ahead=True)
        sampled = time.perf_counter()
        watching.begin(batch)
        # TRAINING: replay the stochastic steps with gradients
        feedback = Feedback(
            recipe,
            run.scorer,
            batch.jobs,
            partial(_hold, run),
            partial(_leave_waiting, run),
            [prompt.source for prompt in batch.prompts],
            diversity_bonus(run, batch),
        )
        stats = update(run, batch, feedback)
        ended = time.perf_counter()
        run.progress.epoch = epoch + 1
        run.progress.updates += stats.updates
        run.progress.train_seconds += ended - started
        run.progress.reward_wait_seconds += feedback.wait_s
        timing = {
            "sample_s": sampled - started,
            "reward_wait_s": feedback.wait_s,
            "update_s": ended - sampled - feedback.wait_s,
            "epoch_s": ended - started,
            "epoch_cpu_s": time.process_time() - cpu,
            **meters(run, ended - started),
        }
        note_revisions(run, feedback.scores.revisions())
        metrics = log_epoch(
            run,
            batch,
            feedback.scores,
            feedback.advantages,
            stats,
            watching.look(batch),
            timing,
        )
        watching.ring(epoch + 1, metrics)
        mean = feedback.scores.mean()
        note = "no scores" if mean is None else f"reward {mean:.3f}"
        _after_epoch(run, epoch + 1, note, batch)


def _epochs_of_data(run: Run) -> None:
    """Epochs without samples: image-text data alone."""
    recipe = run.recipe
    if not run.resumed:
        log_fixed(run, 0)
        run.save()
    run.log.start(run.progress.epoch)
    for epoch in range(run.progress.epoch, recipe.epochs):
        restart_meters(run)
        started = time.perf_counter()
        stats = update_on_data(run, epoch)
        seconds = time.perf_counter() - started
        run.progress.epoch = epoch + 1
        run.progress.updates += stats.updates
        run.progress.train_seconds += seconds
        log_data_epoch(run, epoch, stats, seconds)
        _after_epoch(run, epoch + 1, f"loss {stats.beside['data.loss']:.4f}")


def _after_epoch(run: Run, epoch: int, note: str, batch: Batch | None = None) -> None:
    """Validation, sample grid and checkpoint when they are due, and the way out on a signal."""
    recipe = run.recipe
    if _due(epoch, recipe.evaluation.every, recipe.epochs):
        _validate(run, epoch)
    if batch and recipe.logging.image_every and epoch % recipe.logging.image_every == 0:
        log_grid(run, batch)
    if _due(epoch, recipe.logging.image_every, recipe.epochs):
        log_fixed(run, epoch)
    stopping = run.asked_to_stop()
    if stopping or _due(epoch, recipe.checkpoints.every, recipe.epochs):
        run.save()
    run.log.advance(epoch, recipe.epochs, note)
    if stopping:
        raise Interrupted(f"stopped after epoch {epoch}; saved")


def _leave_waiting(run: Run) -> None:
    if run.asked_to_stop():
        run.save()
        raise Interrupted(
            f"stopped while epoch {run.progress.epoch + 1} waited for scores; saved before it"
        )


def _due(epoch: int, every: int, last: int) -> bool:
    return every > 0 and (epoch % every == 0 or epoch == last)


def _hold(run: Run, update: int, down: list[str]) -> Callable[[], None]:
    """Saves the run during an outage; the result raises Interrupted once a signal asks to leave."""
    if update == 0:
        run.save()
    saved = "the run saved" if update == 0 else "the last checkpoint stands"
    return _wait_for(run, "the epoch", saved, down)


def _wait_for(run: Run, what: str, saved: str, down: list[str]) -> Callable[[], None]:
    run.log.say(
        f"no scores from {', '.join(down)}: {what} is held and {saved}; waiting up to "
        f"{run.recipe.scoring.outage_wait_s:.0f} s for the service"
    )

    def still_wanted() -> None:
        if run.asked_to_stop():
            raise Interrupted(f"stopped while {what} waited for scores; {saved}")

    return still_wanted


def _hold_evaluation(run: Run, down: list[str]) -> Callable[[], None]:
    # not saved: a run resumed from here would lack this evaluation
    return _wait_for(run, "the evaluation", "the last checkpoint stands", down)


def _validate(run: Run, epoch: int) -> None:
    if "validation" not in run.prompts:
        return
    run.log.phase("evaluating validation prompts", long=True)
    with run.averaged():
        result = evaluate(
            run.policy,
            run.scorer,
            run.recipe,
            run.prompts["validation"],
            run.recipe.evaluation.images_per_prompt,
            world=run.world,
            hold=partial(_hold_evaluation, run),
            keep_images=run.recipe.evaluation.diversity,
        )
    _say_missing(run, f"validation after epoch {epoch}", result)
    run.progress.reward_wait_seconds += result.scores.wait_s
    score = result.score
    best = run.progress.best_score
    if score is not None and (best is None or score > best):
        run.progress.best_score, run.progress.best_epoch = score, epoch
        run.checkpoints.save_best(run.policy, run.ema)
    run.log.metrics("validation", epoch, result.summary())


def _heldout(run: Run, name: str) -> Evaluation | None:
    """Evaluates the held-out prompts and keeps the pictures; None when there are none, or when a
    resumed run has done it already."""
    if "heldout" not in run.prompts or (name == "before" and run.resumed):
        return None
    run.log.phase("evaluating held-out prompts", long=True)
    result = evaluate(
        run.policy,
        run.scorer,
        run.recipe,
        run.prompts["heldout"],
        run.recipe.evaluation.heldout_images_per_prompt,
        world=run.world,
        hold=partial(_hold_evaluation, run),
    )
    _say_missing(run, f"held-out prompts, {name} training", result)
    if run.world.is_main:
        _keep_heldout(run.folder / "heldout", name, result)
    run.log.metrics(f"heldout_{name}", run.progress.epoch, result.summary())
    run.log.say(f"held-out prompts, {name} training: {_format(result.score)}")
    return result


def _say_missing(run: Run, what: str, result: Evaluation) -> None:
    if (missing := missing_scores(result.scores)) is not None:
        run.log.say(f"[yellow]{what}: {missing}[/yellow]")


def _keep_heldout(folder: Path, name: str, result: Evaluation) -> None:
    folder.mkdir(exist_ok=True)
    np.savez_compressed(
        folder / f"{name}.npz",
        images=result.images,
        prompts=np.array(result.prompts),
        values=result.scores.values,
    )
    (folder / f"{name}.json").write_text(json.dumps(result.summary(), indent=2) + "\n")


def _finish(run: Run) -> Evaluation | None:
    """Loads the weights that were best on validation (else the final EMA) and evaluates them."""
    known = len(run.checkpoints.damaged)
    if run.checkpoints.load_best(run.policy):
        return _heldout(run, "after")
    for line in run.checkpoints.damaged[known:]:
        run.log.say(f"[yellow]{line}; the last weights are evaluated instead[/yellow]")
    with run.averaged():
        return _heldout(run, "after")


def _format(score: float | None) -> str:
    return "no scores" if score is None else f"{score:.3f}"


@contextmanager
def _signals(run: Run) -> Iterator[None]:
    """SIGINT and SIGTERM ask the run to save and leave; a second one ends it at once. Not under
    torchrun: there it is the same signal, passed on, and torchrun ends what takes too long."""

    def ask(number: int, frame: Any) -> None:
        run.stopping = True
        if run.world.size > 1:
            run.log.say("stopping: saving first")
            return
        for name, handler in previous.items():
            signal.signal(name, handler)
        run.log.say("stopping: saving first (once more to stop at once)")

    names = (signal.SIGINT, signal.SIGTERM)
    previous = {name: signal.signal(name, ask) for name in names}
    try:
        yield
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
