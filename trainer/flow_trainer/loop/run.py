"""A run: what the loop works with, opened fresh or from its newest checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from flow_trainer.algorithm.ema import Ema, ema_rule, old_policy_rule
from flow_trainer.errors import ConfigError
from flow_trainer.loop.resuming import (
    check_data,
    check_prompts,
    keep_recipe,
    recipe_changes,
    what_is_said,
)
from flow_trainer.loop.scoring import Scorer
from flow_trainer.loop.updates.examples import Examples, open_examples
from flow_trainer.loop.updates.loss_scale import LossScale, make_loss_scale
from flow_trainer.loop.updates.optimizers import make_optimizer
from flow_trainer.loop.updates.through_pixels import check_gradients
from flow_trainer.models.load import load_policy
from flow_trainer.models.policy import Policy
from flow_trainer.models.prompt_cache import Fit
from flow_trainer.parallel.world import World
from flow_trainer.recipe import Recipe
from flow_trainer.recipe.checks import busy_share
from flow_trainer.recipe.prompts import Prompt, read_split
from flow_trainer.recipe.sampling import SPLITS
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
    examples: Examples | None = None
    """Image-text data."""
    resumed: bool = False
    """It goes on from a checkpoint."""
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
    scorer = Scorer(
        recipe.trained, recipe.scoring, world, recipe.images_per_epoch, recipe.source_rewards
    )
    try:
        return _open(recipe, folder, scorer, resume=resume, device=device, world=world)
    except BaseException:
        scorer.close()
        raise


def _open(
    recipe: Recipe,
    folder: Path,
    scorer: Scorer,
    *,
    resume: bool,
    device: torch.device,
    world: World,
) -> Run:
    if world.any((folder / "checkpoints").exists()) and not resume:
        raise ConfigError(f"{folder} holds a run already: continue it with --resume, or pass --out")
    changes = recipe_changes(recipe, folder) if resume else {}
    busy = busy_share(recipe, world.size)
    torch.backends.cuda.matmul.allow_tf32 = True
    splits = {split: read_split(recipe.prompts, split) for split in SPLITS}
    prompts = {split: found for split, found in splits.items() if found}
    examples = open_examples(recipe)
    scorer.wait_ready(recipe.scoring.outage_wait_s if resume else scorer.timeout_s)
    metadata = scorer.metadata()
    check_gradients(recipe, metadata)
    torch.manual_seed(recipe.seed)  # LoRA's initial weights
    policy = load_policy(
        recipe.model,
        device,
        with_reference=recipe.needs_reference,
        mesh=world.mesh,
        teachers=recipe.teachers,
    )
    texts = [prompt.text for split in prompts.values() for prompt in split]
    fit = policy.prepare_prompts([*texts, *(examples.prompts if examples else ())])
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
    ema, old, sampler = _open_averages(recipe, parameters)
    checkpoints = Checkpoints(folder, recipe.checkpoints.keep, world)
    averages = _averages(ema, old, sampler)
    progress = checkpoints.resume(policy, optimizer, averages) if resume else None
    resumed, progress = progress is not None, progress or Progress()
    other_prompts = check_prompts(progress, prompts)
    check_data(progress, examples.digest if examples else None)
    log = QuietLog()
    if world.is_main:
        log = RunLog(folder, recipe, offsets=progress.log_offsets if resumed else None)
        keep_recipe(recipe, folder, changes, progress.epoch)
    for warning in [*_warnings(recipe, world, busy, fit), *checkpoints.damaged]:
        log.say(f"[yellow]{warning}[/yellow]")
    scale.load_state_dict(progress.loss_scale)
    if resume:
        said = what_is_said(progress if resumed else None, folder, recipe.epochs, changes)
        log.say("\n".join([*said, *other_prompts]))
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
        progress,
        prompts,
        world,
        examples,
        resumed,
    )
    note_revisions(run, {name: meta.revision for name, meta in metadata.items()})
    return run


def _open_averages(
    recipe: Recipe, parameters: dict[str, nn.Parameter]
) -> tuple[Ema | None, Ema | None, Ema | None]:
    """ema, old and sampler of a `Run`, as the recipe asks for them."""
    ema = old = sampler = None
    if recipe.ema.enabled:
        ema = Ema(parameters, ema_rule(recipe.ema.decay, recipe.ema.interval, recipe.ema.repeats))
    if recipe.update.forward_process:
        f = recipe.forward
        old = Ema(parameters, old_policy_rule(f.old_start, f.old_rate, f.old_max))
    if recipe.scoring.overlap == "epoch":
        sampler = Ema(parameters, lambda k: 0.0)
    return ema, old, sampler


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
