"""What is measured: a model with a checkpoint, an adapter, or neither; and what makes two alike."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flow_trainer.errors import ConfigError
from flow_trainer.evaluation.sources import digest_rows
from flow_trainer.evaluation.suites import PROTOCOLS, Suite
from flow_trainer.recipe import Recipe
from flow_trainer.recipe.prompts import Prompt
from flow_trainer.record.tensor_files import tensors_exist

BASE = "base"


@dataclass(frozen=True, slots=True)
class Subject:
    """One row of a table."""

    label: str
    recipe: Recipe
    """With the suite's sampling: guidance and seed; its model.adapter is this subject's."""
    steps: int
    checkpoint: Path | None

    def identity(self, suite: Suite, prompts: list[Prompt]) -> dict[str, Any]:
        """Everything that decides the images; equal identities share their finished ones."""
        model = self.recipe.model
        return {
            "suite": suite.name,
            "images_per_prompt": suite.images_per_prompt,
            "prompts_sha256": _sha256(json.dumps(digest_rows(prompts)).encode()),
            "model": model.path,
            "revision": model.revision,
            "adapter": model.adapter,
            "weights_sha256": _weights_digest(self.checkpoint, model.adapter),
            "steps": self.steps,
            "guidance": model.guidance,
            "size": [model.height, model.width],
            "seed": self.recipe.seed,
        }

    def folder(self, identity: dict[str, Any]) -> str:
        """The name of its folder: readable, and its own."""
        short = _sha256(json.dumps(identity, sort_keys=True).encode())[:8]
        words = re.sub(r"[^A-Za-z0-9.]+", "-", self.label).strip("-.") or "model"
        return f"{words[-48:]}-{short}"


def make_subject(
    recipe: Recipe,
    which: str | Path | None,
    *,
    own_sampling: bool,
    steps: int | None,
    seed: int,
) -> Subject:
    """`which`: a checkpoint folder or RUN/best, an adapter as a folder or on the hub, `base` for the
    model alone, None for what the recipe names. `own_sampling` keeps the recipe's steps and guidance
    in place of the published protocol's. Raises ConfigError."""
    protocol = PROTOCOLS[recipe.model.family]
    checkpoint, adapter = None, recipe.model.adapter
    if which is not None:
        adapter = None
        path = Path(which)
        if any(tensors_exist(path / name) for name in ("ema", "weights")):
            checkpoint = path
        elif str(which) != BASE:
            adapter = _adapter(recipe, which)
    model = recipe.model.model_copy(update={"adapter": adapter})
    if not own_sampling:
        model = model.model_copy(update={"guidance": protocol.guidance})
    own_steps = recipe.evaluation.num_steps if own_sampling else protocol.steps
    return Subject(
        label=str(checkpoint or adapter or BASE),
        recipe=recipe.model_copy(update={"model": model, "seed": seed}),
        steps=steps or own_steps,
        checkpoint=checkpoint,
    )


def _adapter(recipe: Recipe, which: str | Path) -> str:
    path = Path(which)
    if path.exists() and not any(path.rglob("*.safetensors")):
        raise ConfigError(f"{path} holds neither a checkpoint nor an adapter (no .safetensors)")
    if not path.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(which)):
        raise ConfigError(
            f"no checkpoint {which}: name RUN/best, RUN/checkpoints/epoch_N, an adapter's folder or "
            "hub repository, or `base`"
        )
    if recipe.model.tuning == "full":
        raise ConfigError(
            f"{which} is an adapter, and the recipe has model.tuning = full: pass "
            "--set model.tuning=lora"
        )
    return str(which)


def _weights_digest(checkpoint: Path | None, adapter: str | None) -> str | None:
    """Of the files' bytes, so that a checkpoint written anew is another one; None on the hub."""
    folder = checkpoint or (Path(adapter) if adapter and Path(adapter).is_dir() else None)
    if folder is None:
        return None
    digest = hashlib.sha256()
    # what is loaded: EMA weights where there are some; never the optimizer's
    loaded = [p for p in sorted(folder.rglob("*.safetensors")) if "optimizer" not in str(p)]
    for path in loaded:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
