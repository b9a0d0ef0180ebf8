"""Checkpoints: complete, atomic, and enough to continue bit for bit.

::

    RUN/checkpoints/epoch_00010/     the state after 10 whole epochs
        weights.safetensors          trained parameters, float32
        ema.safetensors              their moving average (when EMA is on)
        old.safetensors              the policy that samples (nft and awm)
        sampler.safetensors          what drew the next epoch already (scoring.overlap = "epoch")
        optimizer.safetensors        AdamW's moments
        state.json                   counters, best score, metrics offset
        adapter/                     EMA weights as diffusers loads them

A folder appears under its final name only when it is complete (written beside it, then renamed).
There is no random state to save: prompts, noise and windows are functions of (seed, epoch).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flow_trainer.ema import EMA_STEP, Ema
from flow_trainer.errors import ConfigError
from flow_trainer.models import Policy
from flow_trainer.optimizers import load_state_tensors, state_tensors


@dataclass(slots=True)
class Progress:
    """Where a run stands between two epochs."""

    epoch: int = 0
    """Finished epochs."""
    updates: int = 0
    """Optimizer steps taken."""
    best_score: float | None = None
    """Best validation score so far."""
    best_epoch: int | None = None
    train_seconds: float = 0.0
    reward_wait_seconds: float = 0.0
    revisions: dict[str, str] | None = None
    """Revision of every reward, as first seen."""
    log_offsets: dict[str, int] | None = None
    """Bytes of each log file that belong to the finished epochs."""


class Checkpoints:
    def __init__(self, run: Path, keep: int) -> None:
        self._folder = run / "checkpoints"
        self._keep = keep
        self._best = run / "best"

    def save(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        averages: Mapping[str, Ema],
        progress: Progress,
    ) -> Path:
        """Writes the state after `progress.epoch` epochs and drops what retention does not keep."""
        final = self._folder / f"epoch_{progress.epoch:05d}"
        partial = _fresh(final)
        parameters = policy.trainable()
        save_file(_detached(parameters), partial / "weights.safetensors")
        save_file(state_tensors(parameters, optimizer), partial / "optimizer.safetensors")
        for name, average in averages.items():
            save_file(average.state_dict(), partial / f"{name}.safetensors")
        _export(policy, averages.get("ema"), partial / "adapter")
        (partial / "state.json").write_text(json.dumps(asdict(progress), indent=2) + "\n")
        _publish(partial, final)
        for old in self._complete()[: -self._keep]:
            shutil.rmtree(old)
        return final

    def save_best(self, policy: Policy, ema: Ema | None) -> None:
        """Keeps the weights that were best on validation, as `RUN/best`."""
        partial = _fresh(self._best)
        state = ema.weights() if ema is not None else _detached(policy.trainable())
        save_file(state, partial / "weights.safetensors")
        _export(policy, ema, partial / "adapter")
        _publish(partial, self._best)

    def load_best(self, policy: Policy) -> bool:
        """Loads `RUN/best` into the policy; False when there is none."""
        weights = self._best / "weights.safetensors"
        if weights.exists():
            _copy_into(policy.trainable(), load_file(weights), weights)
        return weights.exists()

    def resume(
        self, policy: Policy, optimizer: torch.optim.Optimizer, averages: Mapping[str, Ema]
    ) -> Progress | None:
        """Loads the newest complete checkpoint; None when there is none. Raises ConfigError when
        it belongs to another model or tuning."""
        complete = self._complete()
        if not complete:
            return None
        folder = complete[-1]
        parameters = policy.trainable()
        _copy_into(parameters, load_file(folder / "weights.safetensors"), folder)
        state = load_file(folder / "optimizer.safetensors")
        load_state_tensors(parameters, optimizer, state)
        for name, average in averages.items():
            file = folder / f"{name}.safetensors"
            if not file.exists():
                raise ConfigError(
                    f"{folder} has no {file.name}; it was made with another update.objective, "
                    "ema.enabled or scoring.overlap"
                )
            average.load_state_dict(load_file(file))
        return Progress(**json.loads((folder / "state.json").read_text()))

    def _complete(self) -> list[Path]:
        return sorted(p.parent for p in self._folder.glob("epoch_*/state.json"))


def load_weights(policy: Policy, path: Path, *, prefer_ema: bool = True) -> None:
    """Loads a checkpoint folder (or `RUN/best`) into the policy, its EMA weights if it has them."""
    ema = path / "ema.safetensors"
    source = ema if prefer_ema and ema.exists() else path / "weights.safetensors"
    if not source.exists():
        raise ConfigError(f"{path} is not a checkpoint: it holds no weights.safetensors")
    state = load_file(source)
    state.pop(EMA_STEP, None)
    _copy_into(policy.trainable(), state, source)


def _export(policy: Policy, ema: Ema | None, folder: Path) -> None:
    if ema is None:
        policy.save(folder)
        return
    with ema.swapped():
        policy.save(folder)


def _fresh(final: Path) -> Path:
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _publish(partial: Path, final: Path) -> None:
    """Makes `partial` durable, then visible under its final name in one rename."""
    for file in [*partial.rglob("*"), partial]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    if final.exists():
        # rename cannot replace a filled folder; a crash between the two leaves the partial one
        # to be made again, and the older checkpoints untouched
        shutil.rmtree(final)
    os.rename(partial, final)


def _detached(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: parameter.detach().contiguous() for name, parameter in parameters.items()}


def _copy_into(parameters: dict[str, nn.Parameter], state: dict[str, Tensor], source: Path) -> None:
    if state.keys() != parameters.keys():
        odd = sorted(state.keys() ^ parameters.keys())
        raise ConfigError(
            f"{source} does not fit this model: {len(odd)} parameter names differ, e.g. {odd[0]}; "
            "resume with the recipe it was made with (same model, tuning and LoRA rank)"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
