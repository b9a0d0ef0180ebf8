"""A run: what the loop works with, opened fresh or from its newest checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from flow_trainer.checkpoint import Checkpoints, Progress
from flow_trainer.config import Recipe, save_resolved
from flow_trainer.ema import Ema, ema_rule, old_policy_rule
from flow_trainer.errors import ConfigError
from flow_trainer.models import Policy, load_policy
from flow_trainer.optimizers import make_optimizer
from flow_trainer.prompts import Prompt, read_prompts
from flow_trainer.runlog import RunLog
from flow_trainer.scoring import Scorer


@dataclass(slots=True)
class Run:
    """One run of a recipe."""

    recipe: Recipe
    folder: Path
    policy: Policy
    optimizer: torch.optim.Optimizer
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
    stopping: bool = False

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the policy has the EMA weights."""
        return self.ema.swapped() if self.ema is not None else nullcontext()

    def sampling(self) -> AbstractContextManager[None]:
        """Inside, the policy has the weights that draw samples for training."""
        return self.old.swapped() if self.old is not None else nullcontext()

    def save(self) -> None:
        self.progress.log_offsets = self.log.offsets()
        averages = _averages(self.ema, self.old, self.sampler)
        self.checkpoints.save(self.policy, self.optimizer, averages, self.progress)


def open_run(recipe: Recipe, folder: Path, *, resume: bool) -> Run:
    if (folder / "checkpoints").exists() and not resume:
        raise ConfigError(f"{folder} holds a run already: continue it with --resume, or pass --out")
    torch.backends.cuda.matmul.allow_tf32 = True
    device = pick_device(recipe.device)
    prompts = {
        split: read_prompts(path)
        for split, path in recipe.prompts.model_dump().items()
        if path is not None
    }
    scorer = Scorer(recipe.rewards, recipe.scoring)
    scorer.wait_ready(recipe.scoring.outage_wait_s if resume else recipe.scoring.timeout_s)
    torch.manual_seed(recipe.seed)  # LoRA's initial weights
    policy = load_policy(recipe.model, device, with_reference=recipe.update.beta > 0)
    policy.prepare_prompts([prompt.text for split in prompts.values() for prompt in split])
    u = recipe.update
    parameters = policy.trainable()
    optimizer = make_optimizer(u, parameters)
    ema = old = sampler = None
    if recipe.ema.enabled:
        ema = Ema(parameters, ema_rule(recipe.ema.decay, recipe.ema.interval))
    if u.forward_process:
        f = recipe.forward
        old = Ema(parameters, old_policy_rule(f.old_start, f.old_rate, f.old_max))
    if recipe.scoring.overlap == "epoch":
        sampler = Ema(parameters, lambda k: 0.0)
    checkpoints = Checkpoints(folder, recipe.checkpoints.keep)
    averages = _averages(ema, old, sampler)
    progress = checkpoints.resume(policy, optimizer, averages) if resume else None
    log = RunLog(folder, recipe, offsets=progress.log_offsets if progress else None)
    save_resolved(recipe, folder / "recipe.json")
    if progress is not None:
        log.say(f"resuming after epoch {progress.epoch}")
    run = Run(
        recipe,
        folder,
        policy,
        optimizer,
        ema,
        old,
        sampler,
        scorer,
        checkpoints,
        log,
        progress or Progress(),
        prompts,
    )
    note_revisions(run, {name: meta.revision for name, meta in scorer.metadata().items()})
    return run


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


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device = {name!r}: {error}") from None
