"""Published recipes with narrow models at the published latents, and what a type leaves of their
gradients. On a CPU, but for the rule that layer norms are in float32 under autocast, which is a GPU's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F

from flow_trainer.doctor.fake_device import layer_norm
from flow_trainer.loop.precision import Precision, measure_precision
from flow_trainer.loop.updates.loss_scale import LossScale, make_loss_scale
from flow_trainer.models.load import load_policy
from flow_trainer.recipe import Recipe, load_recipe
from flow_trainer.recipe.prompts import Prompt
from tiny_pipelines import build

CPU = torch.device("cpu")
RECIPES = Path(__file__).parents[2] / "trainer" / "recipes"
SHRINK = 4
"""The narrow models' VAE makes a latent of 2x2 pixels, the published ones' of 8x8."""
TEXT_TOKENS = {"sd3": 0, "flux": 8}
MOVED = 0.02
"""Deviation by which the trained weights differ from the reference's, so that a KL term has a gradient."""


class NarrowModels:
    """Pipelines and teachers, each made once, under `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built: dict[str, Path] = {}

    def recipe(self, name: str, *options: str) -> Recipe:
        """The published recipe of that name at its own latents, with a narrow model."""
        path = RECIPES / f"{name}.toml"
        full = load_recipe(path, options)
        family = full.model.family
        kind = f"{family}_published_latents"
        if family == "sd3" and full.model.height > 512:
            kind += "_1024"
        sources = full.prompts.sources
        names = [f"prompts.sources.{n}" for n in sources] or ["prompts"]
        teachers = [f"{n}.teacher={self._teacher(kind, n)}" for n in names if full.teachers]
        return load_recipe(path, [*options, *teachers, *self._model(kind, full)])

    def _model(self, kind: str, full: Recipe) -> list[str]:
        m = full.model
        settings = {
            "path": self._pipeline(kind),
            "height": m.height // SHRINK,
            "width": m.width // SHRINK,
            "max_sequence_length": TEXT_TOKENS[m.family],
            "gradient_checkpointing": "false",
            "autocast_on_cpu": "true",
            "lora_rank": 4,
        }
        return [f"model.{key}={value}" for key, value in settings.items()]

    def _pipeline(self, kind: str) -> Path:
        if kind not in self._built:
            self._built[kind] = build(kind, self._folder / kind)
        return self._built[kind]

    def _teacher(self, kind: str, name: str) -> Path:
        """An adapter that moves the model, in a direction of its own."""
        key = f"{kind}/{name}"
        if key not in self._built:
            plain = load_recipe(RECIPES / "sd35m_ocr.toml")
            recipe = load_recipe(RECIPES / "sd35m_ocr.toml", self._model(kind, plain))
            policy = load_policy(recipe.model, CPU, with_reference=False)
            torch.manual_seed(len(self._built))
            _move(policy)
            self._built[key] = self._folder / "teachers" / key
            policy.save(self._built[key])
        return self._built[key]


@dataclass
class Output:
    """Elements of the loss's gradient as it enters the network."""

    zeros: int = 0
    count: int = 0

    @contextmanager
    def watched(self, policy: Any) -> Iterator[None]:
        """Counts what passes in the type that the policy has now."""
        dtype = policy.dtype

        def forward(module: Any, arguments: Any, output: Any) -> None:
            if output[0].requires_grad and output[0].dtype == dtype:
                output[0].register_hook(self._count)

        handle = policy._tuning.transformer.register_forward_hook(forward)
        yield
        handle.remove()

    def _count(self, gradient: torch.Tensor) -> None:
        self.zeros += int((gradient == 0).sum())
        self.count += gradient.numel()

    @property
    def share(self) -> float:
        return self.zeros / self.count


def measured(
    recipe: Recipe, prompt: Prompt, scale: float | None = None
) -> tuple[Precision, Output]:
    """Away from the reference; `scale`: that of the loss, by default the one that a run begins with."""
    torch.manual_seed(0)
    policy = load_policy(
        recipe.model, CPU, with_reference=recipe.update.needs_reference, teachers=recipe.teachers
    )
    _move(policy)
    weights = [p.detach().clone() for p in policy.trainable().values()]
    used = make_loss_scale(policy, recipe) if scale is None else LossScale(scale, dynamic=True)
    output = Output()
    with output.watched(policy), patch.object(F, "layer_norm", layer_norm):
        found = measure_precision(policy, recipe, prompt, used)
    for parameter, weight in zip(policy.trainable().values(), weights, strict=True):
        assert torch.equal(parameter, weight)
    return found, output


def _move(policy: Any) -> None:
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += MOVED * torch.randn_like(parameter)
