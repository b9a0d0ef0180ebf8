"""A run: what the loop works with, opened fresh or from its newest checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from flow_trainer.algorithm.ema import Ema, ema_rule, old_policy_rule
from flow_trainer.errors import ConfigError
from flow_trainer.loop.scoring import Scorer
from flow_trainer.loop.updates.loss_scale import LossScale, make_loss_scale
from flow_trainer.loop.updates.optimizers import make_optimizer
from flow_trainer.models.load import load_policy
from flow_trainer.models.policy import Policy
from flow_trainer.models.prompt_cache import Fit
from flow_trainer.parallel.world import World
from flow_trainer.recipe import Recipe, save_resolved
from flow_trainer.recipe.prompts import Prompt, read_prompts
from flow_trainer.record.checkpoint import Checkpoints, Progress
from flow_trainer.record.quiet_log import QuietLog
from flow_trainer.record.runlog import RunLog


@dataclass(slots=True)
class Run:
    """One run of a recipe."""

    recipe: Recipe
    folder: Path
    policy: Policy
    optimizer: torch.optim.Optimizer
    scale: LossScale
    ema: Ema | None
    old: Ema | None
    """The policy that samples, where that is not the trained one (nft, awm)."""
    sampler: Ema | None
    """What drew the epoch that is next, where that is one update older (scoring.overlap = epoch)."""
    scorer: Scorer
    checkpoints: Checkpoints
    log: RunLog
    progress: Progress
    prompts: dict[str, list[Prompt]]
    world: World
    stopping: bool = False

    def asked_to_stop(self) -> bool:
        """Whether a signal asked any rank to save and leave; all ranks ask together."""
        # never written back: a signal that arrives meanwhile would be lost
        return self.world.any(self.stopping)

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the policy has the EMA weights."""
        return self.ema.swapped() if self.ema is not None else nullcontext()

    def sampling(self) -> AbstractContextManager[None]:
        """Inside, the policy has the weights that draw samples for training."""
        return self.old.swapped() if self.old is not None else nullcontext()

    def save(self) -> None:
        self.progress.log_offsets = self.log.offsets()
        self.progress.loss_scale = self.scale.state_dict()
        averages = _averages(self.ema, self.old, self.sampler)
        self.checkpoints.save(self.policy, self.optimizer, averages, self.progress)


def open_run(
    recipe: Recipe, folder: Path, *, resume: bool, device: torch.device, world: World
) -> Run:
    """All ranks open a run together."""
    if world.any((folder / "checkpoints").exists()) and not resume:
        raise ConfigError(f"{folder} holds a run already: continue it with --resume, or pass --out")
    busy = busy_share(recipe, world.size)
    torch.backends.cuda.matmul.allow_tf32 = True
    prompts = {
        split: read_prompts(path)
        for split, path in recipe.prompts.model_dump().items()
        if path is not None
    }
    scorer = Scorer(recipe.rewards, recipe.scoring, world, recipe.images_per_epoch)
    scorer.wait_ready(recipe.scoring.outage_wait_s if resume else scorer.timeout_s)
    torch.manual_seed(recipe.seed)  # LoRA's initial weights
    policy = load_policy(
        recipe.model, device, with_reference=recipe.update.beta > 0, mesh=world.mesh
    )
    fit = policy.prepare_prompts([prompt.text for split in prompts.values() for prompt in split])
    u = recipe.update
    parameters = policy.trainable()
    world.barrier()  # loading may take one rank longer than NCCL's first collective would wait
    if not world.lockstep:
        world.broadcast(parameters.values())
    elif u.optimizer != "adamw":
        raise ConfigError(
            f"update.optimizer = {u.optimizer} cannot divide its state: use adamw, or "
            "parallel.sharding = none"
        )
    optimizer = make_optimizer(u, parameters)
    scale = make_loss_scale(policy, recipe)
    ema = old = sampler = None
    if recipe.ema.enabled:
        ema = Ema(parameters, ema_rule(recipe.ema.decay, recipe.ema.interval, recipe.ema.repeats))
    if u.forward_process:
        f = recipe.forward
        old = Ema(parameters, old_policy_rule(f.old_start, f.old_rate, f.old_max))
    if recipe.scoring.overlap == "epoch":
        sampler = Ema(parameters, lambda k: 0.0)
    checkpoints = Checkpoints(folder, recipe.checkpoints.keep, world)
    averages = _averages(ema, old, sampler)
    progress = checkpoints.resume(policy, optimizer, averages) if resume else None
    log = QuietLog()
    if world.is_main:
        log = RunLog(folder, recipe, offsets=progress.log_offsets if progress else None)
        save_resolved(recipe, folder / "recipe.json")
    for warning in _warnings(recipe, world, busy, fit):
        log.say(f"[yellow]{warning}[/yellow]")
    if progress is not None:
        scale.load_state_dict(progress.loss_scale)
        log.say(f"resuming after epoch {progress.epoch}")
    run = Run(
        recipe,
        folder,
        policy,
        optimizer,
        scale,
        ema,
        old,
        sampler,
        scorer,
        checkpoints,
        log,
        progress or Progress(),
        prompts,
        world,
    )
    note_revisions(run, {name: meta.revision for name, meta in scorer.metadata().items()})
    return run


def busy_share(recipe: Recipe, size: int) -> float:
    """Which part of the time `size` ranks have a micro-batch to work on. Raises ConfigError when an
    update has fewer micro-batches than there are ranks."""
    batches = -(-recipe.share // recipe.sampling.micro_batch)
    if batches < size:
        raise ConfigError(
            f"an update's {recipe.share} images in micro-batches of {recipe.sampling.micro_batch} "
            f"are work for {batches} processes, not for {size}: set sampling.micro_batch to "
            f"{max(recipe.share // size, 1)} or less, or start fewer processes"
        )
    return batches / (-(-batches // size) * size)


def _warnings(recipe: Recipe, world: World, busy: float, fit: Fit) -> Iterator[str]:
    """What costs time or memory without being wrong."""
    if busy < 0.9:
        yield (
            f"{world.size} processes are busy {busy:.0%} of the time: let an update's {recipe.share} "
            f"images be a multiple of {world.size} x sampling.micro_batch"
        )
    if not fit.fits:
        yield fit.explain()


def _averages(ema: Ema | None, old: Ema | None, sampler: Ema | None) -> dict[str, Ema]:
    """What a checkpoint holds beside the weights, by file name."""
    named = {"ema": ema, "old": old, "sampler": sampler}
    return {name: average for name, average in named.items() if average is not None}


def note_revisions(run: Run, current: Mapping[str, str]) -> None:
    """Remembers every reward's revision, and says so, once, when it is no longer the one before."""
    seen = run.progress.revisions or {}
    for name, revision in current.items():
        if name in seen and seen[name] != revision:
            run.log.say(
                f"[yellow]reward {name} changed from revision {seen[name]} to {revision} after epoch "
                f"{run.progress.epoch}: scores before and after may not compare[/yellow]"
            )
    run.progress.revisions = {**seen, **current}
