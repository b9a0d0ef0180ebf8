"""What a run leaves of an epoch: its line of metrics, audit and grid; at its end, the summary."""

from __future__ import annotations

import json
import math
import platform
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from flow_trainer.algorithm.advantages import Advantages
from flow_trainer.loop.evaluate import Evaluation, stack_images
from flow_trainer.loop.ratio import ratio_tolerance
from flow_trainer.loop.rollout import generate
from flow_trainer.loop.run import Run
from flow_trainer.loop.sampling import Batch
from flow_trainer.loop.updates.descend import UpdateStats
from flow_trainer.models.policy import Work
from flow_trainer.recipe.prompts import Prompt
from flow_trainer.record.audit import audit_rows, image_hash
from flow_trainer.record.runlog import image_grid
from flow_trainer.record.scores import Scores
from flow_trainer.record.throughput import peak_flops, peak_memory_gb, reset_peak_memory, speed

MISSING_SHARE = 0.01
"""Of an epoch's or an evaluation's samples: more without a score are worth a line on the console."""


def restart_meters(run: Run) -> None:
    run.policy.take_work()
    run.scorer.traffic.take()
    reset_peak_memory(run.policy.device)


def meters(run: Run, seconds: float) -> dict[str, float]:
    recipe, device = run.recipe, run.policy.device
    peak = peak_flops(device, recipe.model.dtype)
    traffic = run.scorer.traffic.take()
    work = run.policy.take_work()
    ranks = run.world.exchange([work.tokens, work.flops, peak_memory_gb(device), *traffic.values()])
    tokens, flops, memory, *sent = zip(*ranks, strict=True)
    return {
        **speed(
            Work(sum(tokens), sum(flops)),
            recipe.images_taken,
            seconds,
            None if peak is None else peak * run.world.size,
        ),
        "peak_memory_gb": max(memory),
        **{name: sum(column) for name, column in zip(traffic, sent, strict=True)},
    }


def log_grid(run: Run, batch: Batch) -> None:
    """The samples of the first eight prompts."""
    group = run.recipe.sampling.group_size
    rows = [row for row in batch.samples.rows if row < 8 * group]
    images = run.world.gather_rows(rows, stack_images(batch.images)[: len(rows)])
    if run.world.is_main:
        run.log.images("samples", batch.epoch + 1, image_grid(images, columns=group))


def log_fixed(run: Run, epoch: int) -> None:
    """One image of each fixed prompt with the weights of now; the same noise at every call."""
    prompts = fixed_prompts(run)
    if not run.recipe.logging.image_every or not prompts:
        return
    drawn: list[Tensor] = []
    rows: list[int] = []

    def on_images(some: range, images: Tensor) -> None:
        rows.extend(some)
        drawn.append(images)

    steps = run.recipe.evaluation.num_steps
    with run.averaged():
        generate(run.policy, run.recipe, prompts, steps, 1, on_images, run.world)
    images = run.world.gather_rows(rows, stack_images(drawn))
    if run.world.is_main:
        texts = [prompt.text for prompt in prompts]
        run.log.images("fixed", epoch, image_grid(images, columns=len(images)), texts)


def fixed_prompts(run: Run) -> list[Prompt]:
    """Spread evenly over the first split there is that training does not use, else over that one."""
    splits = (run.prompts.get(name, []) for name in ("validation", "heldout", "train"))
    prompts = next(filter(None, splits))
    count = min(run.recipe.logging.fixed_prompts, len(prompts))
    return [prompts[number * len(prompts) // count] for number in range(count)]


def log_epoch(
    run: Run,
    batch: Batch,
    scores: Scores,
    advantages: Advantages,
    stats: UpdateStats,
    watched: dict[str, float],
    timing: dict[str, float],
) -> dict[str, Any]:
    """Writes them and returns the line of metrics."""
    epoch, tolerance = batch.epoch, ratio_tolerance(run.recipe)
    if stats.ratio_error > tolerance and batch.staleness == 0:
        run.log.say(
            f"[yellow]epoch {epoch + 1}: the on-policy ratio is off by {stats.ratio_error:.1e} "
            f"(tolerance {tolerance:.1e}); run `flow-grpo doctor`[/yellow]"
        )
    if (missing := missing_scores(scores)) is not None:
        run.log.say(f"[yellow]epoch {epoch + 1}: {missing}[/yellow]")
    failures = scores.failures()
    metrics = {
        "reward": scores.mean(),
        **_source_rewards(run, batch, scores),
        **advantages.metrics,
        **stats.means(),
        "ratio_error": stats.ratio_error,
        "staleness": batch.staleness,
        "grad_norm": stats.grad_norm,
        **_scaling(run, stats),
        "learning_rate": stats.learning_rate,
        "updates": run.progress.updates,
        "window": [run.recipe.window(epoch).start, run.recipe.window(epoch).stop],
        "failed": int((~scores.valid).sum()),
        **({"failures": failures} if failures else {}),
        **watched,
        **timing,
    }
    # A reward may have the name of a quantity that is watched.
    metrics |= {
        f"rewards.{name}" if name in metrics else name: mean
        for name, mean in scores.reward_means().items()
    }
    run.log.metrics("train", epoch + 1, metrics)
    hashes = _image_hashes(run, batch)
    run.log.audit(audit_rows(epoch + 1, batch.prompts, hashes, scores, advantages))
    return metrics


def log_data_epoch(run: Run, epoch: int, stats: UpdateStats, seconds: float) -> None:
    """Of an epoch without samples."""
    metrics = {
        **stats.means(),
        "grad_norm": stats.grad_norm,
        **_scaling(run, stats),
        "learning_rate": stats.learning_rate,
        "updates": run.progress.updates,
        "update_s": seconds,
        "epoch_s": seconds,
        **meters(run, seconds),
    }
    run.log.metrics("train", epoch + 1, metrics)


def missing_scores(scores: Scores) -> str | None:
    """What is said of more than MISSING_SHARE of samples without a score; None of fewer."""
    count, failed = len(scores.valid), int((~scores.valid).sum())
    if failed <= MISSING_SHARE * count:
        return None
    reasons = ", ".join(f"{name} {number}" for name, number in scores.failures().items())
    message = f"{failed} of {count} samples have no score and are left out ({reasons})"
    if any(name.endswith((".DEADLINE", ".DEADLINE_UNREACHABLE")) for name in scores.failures()):
        message += "; start more replicas of the slow reward, or raise scoring.timeout_s"
    return message


def _scaling(run: Run, stats: UpdateStats) -> dict[str, float]:
    """What float16 did to the epoch's updates; says so when one was skipped."""
    if not run.scale.dynamic:
        return {}
    if stats.skipped:
        run.log.say(
            f"[yellow]a float16 gradient overflowed: {stats.skipped} of {stats.skipped + stats.updates} "
            f"updates skipped, the loss scale is now 2^{math.log2(run.scale.value):.0f}[/yellow]"
        )
    return {"loss_scale": run.scale.value, "skipped_updates": stats.skipped}


def _source_rewards(run: Run, batch: Batch, scores: Scores) -> dict[str, float]:
    """Mean reward of every source of prompts, where there are several."""
    group = run.recipe.sampling.group_size
    named = np.repeat([prompt.source for prompt in batch.prompts], group)
    found = {
        name: scores.values[(named == name) & scores.valid] for name in run.recipe.prompts.sources
    }
    return {f"{name}/reward": float(values.mean()) for name, values in found.items() if len(values)}


def _image_hashes(run: Run, batch: Batch) -> list[str]:
    """Of all samples, in the order of their rows."""
    hashes = map(image_hash, stack_images(batch.images))
    mine = list(zip(batch.samples.rows, hashes, strict=True))
    return [found for _, found in sorted(chain.from_iterable(run.world.exchange(mine)))]


def write_summary(run: Run, after: Evaluation | None) -> dict[str, Any]:
    progress, untrained = run.progress, _untrained(run.folder)
    summary = {
        "recipe": run.recipe.name,
        "seed": run.recipe.seed,
        "epochs": progress.epoch,
        "heldout_before": untrained.get("score"),
        "heldout_after": after.score if after else None,
        "heldout_diversity_before": untrained.get("image_diversity"),
        "heldout_diversity_after": after.diversity if after else None,
        "best_validation": progress.best_score,
        "best_epoch": progress.best_epoch,
        "train_wall_seconds": round(progress.train_seconds, 2),
        "reward_wait_fraction": round(
            progress.reward_wait_seconds / max(progress.train_seconds, 1e-9), 5
        ),
        "train_steps": run.recipe.sampling.num_steps,
        "eval_steps": run.recipe.evaluation.num_steps,
        "rewards": progress.revisions,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "diffusers", "transformers", "peft")},
        },
        "device": str(run.policy.device),
        "processes": run.world.size,
    }
    if run.world.is_main:
        (run.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _untrained(folder: Path) -> dict[str, Any]:
    """What the held-out prompts gave before training, perhaps in an earlier process; else empty."""
    path = folder / "heldout" / "before.json"
    return json.loads(path.read_text()) if path.exists() else {}
