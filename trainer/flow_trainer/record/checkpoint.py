"""Checkpoints: complete, atomic, and enough to continue bit for bit.

::

    RUN/checkpoints/epoch_00010/     the state after 10 whole epochs
        weights.safetensors          trained parameters, float32
        ema.safetensors              their moving average (when EMA is on)
        old.safetensors              the policy that samples (nft and awm)
        sampler.safetensors          what drew the next epoch already (scoring.overlap = "epoch")
        optimizer.safetensors        AdamW's moments
        state.json                   counters, loss scale, best score, metrics offset
        adapter/                     EMA weights as diffusers loads them
        checksums.json               size and SHA-256 of each of these files

Where parameters are sharded, weights/, ema/, old/, sampler/ and optimizer/ are folders instead, in which
every rank writes its part. Either form resumes on any number of ranks, sharded or not.

A folder appears under its final name only when it is complete (written beside it, then renamed).
One that was damaged since is set aside, and the run goes on from the newest that is whole.
There is no random state to save: prompts, noise and windows are functions of (seed, epoch).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from flow_trainer.algorithm.ema import EMA_STEP, Ema
from flow_trainer.errors import ConfigError, NonFiniteError, StorageError
from flow_trainer.models.policy import Policy
from flow_trainer.parallel.world import ALONE, World
from flow_trainer.record.optimizer_state import load_state_tensors, state_tensors
from flow_trainer.record.seal import damage, seal
from flow_trainer.record.tensor_files import read_tensors, tensors_exist, write_tensors


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
    loss_scale: dict[str, float] = field(default_factory=dict)
    """State of the float16 loss scale; empty in checkpoints from before there was one."""
    prompts: str | None = None
    """Digest of the training prompts."""
    data: str | None = None
    """Digest of the image-text data."""
    evaluated: dict[str, str] = field(default_factory=dict)
    """Digests of the prompts that are evaluated, by split."""
    log_offsets: dict[str, int] | None = None
    """Bytes of each log file that belong to the finished epochs."""


class Checkpoints:
    """All ranks call its methods together; the folder must be on storage that they share."""

    def __init__(self, run: Path, keep: int, world: World = ALONE) -> None:
        self._folder = run / "checkpoints"
        self._keep = keep
        self._best = run / "best"
        self._world = world
        self.damaged: list[str] = []
        """What `resume` and `load_best` found broken, a line each."""

    def save(
        self,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        averages: Mapping[str, Ema],
        progress: Progress,
    ) -> Path:
        """Writes the state after `progress.epoch` epochs and drops what retention does not keep.
        Raises StorageError when it cannot be written; what was there before stands."""
        final = self._folder / f"epoch_{progress.epoch:05d}"
        parameters = policy.trainable()
        with self._published(final) as partial:
            self._write(parameters, partial / "weights")
            self._write(state_tensors(parameters, optimizer), partial / "optimizer")
            for name, average in averages.items():
                self._write(average.state_dict(), partial / name)
            self._export(policy, averages.get("ema"), partial / "adapter")
            if self._world.is_main:
                state = json.dumps(asdict(progress), indent=2)
                (partial / "state.json").write_text(state + "\n")
        if self._world.is_main:
            for old in self._complete()[: -self._keep]:
                shutil.rmtree(old)
        return final

    def save_best(self, policy: Policy, ema: Ema | None) -> None:
        """Keeps the weights that were best on validation, as `RUN/best`."""
        with self._published(self._best) as partial:
            state = ema.weights() if ema is not None else policy.trainable()
            self._write(state, partial / "weights")
            self._export(policy, ema, partial / "adapter")

    def load_best(self, policy: Policy) -> bool:
        """Loads `RUN/best` into the policy; False when there is none, or a damaged one."""
        weights = self._best / "weights"
        if not self._world.any(tensors_exist(weights)):
            return False
        if problem := self._agreed(damage(self._best) if self._world.is_main else None):
            self.damaged.append(f"{self._best} is damaged ({problem}): not used")
            return False
        parameters = policy.trainable()
        _copy_into(parameters, read_tensors(weights, parameters.get), weights)
        return True

    def resume(
        self, policy: Policy, optimizer: torch.optim.Optimizer, averages: Mapping[str, Ema]
    ) -> Progress | None:
        """Loads the newest whole checkpoint; None when there is none. Raises ConfigError when it
        belongs to another model or tuning, or when all are damaged."""
        # another node may see an older state of shared storage for a while: the first rank decides
        newest = self._agreed(self._newest_whole() if self._world.is_main else None)
        if newest is None:
            return None
        folder = self._folder / newest
        parameters = policy.trainable()
        _copy_into(parameters, read_tensors(folder / "weights", parameters.get), folder)
        load_state_tensors(parameters, optimizer, _optimizer_state(parameters, folder))
        for name, average in averages.items():
            if not tensors_exist(folder / name):
                raise ConfigError(
                    f"{folder} has no {name}; it was made with another update.objective, "
                    "ema.enabled or scoring.overlap"
                )
            average.load_state_dict(read_tensors(folder / name, parameters.get))
        return Progress(**json.loads((folder / "state.json").read_text()))

    def _newest_whole(self) -> str | None:
        """Its name; what is newer and damaged is renamed, so that it does not count as a checkpoint."""
        for folder in reversed(self._complete()):
            problem = damage(folder)
            if problem is None:
                return folder.name
            aside = folder.with_name(f"damaged_{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            self.damaged.append(f"{folder} is damaged ({problem}): kept as {aside.name}, not used")
        if self.damaged:
            raise ConfigError(
                f"no checkpoint is whole: {'; '.join(self.damaged)}; to begin again, remove "
                f"{self._folder}"
            )
        return None

    def _agreed(self, value: str | None) -> str | None:
        """The first rank's value."""
        return self._world.exchange([value])[0][0]

    def _complete(self) -> list[Path]:
        return sorted(p.parent for p in self._folder.glob("epoch_*/state.json"))

    @contextmanager
    def _published(self, final: Path) -> Iterator[Path]:
        """A folder to fill, which appears as `final` once all ranks have."""
        partial = final.with_name(f".{final.name}.partial")
        try:
            if self._world.is_main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self._world.barrier()
            yield partial
            self._world.barrier()
            if self._world.is_main:
                seal(partial)
                _publish(partial, final)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise StorageError(
                f"{final} could not be written ({error}): the checkpoints before it stand; free space "
                "there, or lower checkpoints.keep, and continue with --resume"
            ) from error
        self._world.barrier()

    def _write(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        write_tensors(tensors, path, self._world)

    def _export(self, policy: Policy, ema: Ema | None, folder: Path) -> None:
        if self._world.is_main or self._world.lockstep:
            with ema.swapped() if ema is not None else nullcontext():
                policy.save(folder if self._world.is_main else None)


def load_weights(policy: Policy, path: Path, *, prefer_ema: bool = True) -> None:
    """Loads a checkpoint folder (or `RUN/best`) into the policy, its EMA weights if it has them."""
    source = path / ("ema" if prefer_ema and tensors_exist(path / "ema") else "weights")
    if not tensors_exist(source):
        raise ConfigError(
            f"{path} is not a checkpoint: it holds no weights; name RUN/best or "
            "RUN/checkpoints/epoch_N"
        )
    if problem := damage(path):
        raise ConfigError(f"{path} is damaged ({problem}): name another checkpoint")
    parameters = policy.trainable()
    try:
        state = read_tensors(source, parameters.get)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{source}.safetensors cannot be read: {error}") from error
    state.pop(EMA_STEP, None)
    _copy_into(parameters, state, source)


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


def _optimizer_state(parameters: dict[str, nn.Parameter], folder: Path) -> dict[str, Tensor]:
    """Divided as the parameters are."""

    def like(key: str) -> Tensor | None:
        name, _, field = key.rpartition(".")
        return None if field == "step" else parameters.get(name)

    return read_tensors(folder / "optimizer", like)


def _copy_into(parameters: dict[str, nn.Parameter], state: dict[str, Tensor], source: Path) -> None:
    if state.keys() != parameters.keys():
        odd = sorted(state.keys() ^ parameters.keys())
        raise ConfigError(
            f"{source} does not fit this model: {len(odd)} parameter names differ, e.g. {odd[0]}; "
            "resume with the recipe it was made with (same model, tuning and LoRA rank)"
        )
    for name, parameter in parameters.items():
        if parameter.shape != state[name].shape:
            raise ConfigError(
                f"{source} does not fit this model: {name} is {tuple(state[name].shape)} there and "
                f"{tuple(parameter.shape)} here; use the recipe it was made with (model.lora_rank)"
            )
        values: Any = state[name]
        if not getattr(values, "_local_tensor", values).isfinite().all():
            raise NonFiniteError(
                f"{source}: {name} has values that are not finite: use an earlier one"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
