"""A policy from what a recipe says of its model."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import torch
from torch.distributed.device_mesh import DeviceMesh

from flow_trainer.models.diffusers_policy import DiffusersPolicy
from flow_trainer.models.families import FAMILIES
from flow_trainer.models.policy import Policy
from flow_trainer.recipe import Model
from flow_trainer.recipe.recipe import Teacher


def load_policy(
    config: Model,
    device: torch.device,
    *,
    with_reference: bool,
    mesh: DeviceMesh | None = None,
    teachers: Mapping[str, Teacher] | None = None,
) -> Policy:
    """Loads weights from the hub or a folder. `with_reference` keeps what `reference()` needs; the
    transformer is sharded over `mesh`; `teachers` are what `teacher()` switches to, by name."""
    family = importlib.import_module(FAMILIES[config.family]).FAMILY
    adapters = {name: teacher.adapter for name, teacher in (teachers or {}).items()}
    return DiffusersPolicy(
        family, config, device, with_reference=with_reference, mesh=mesh, teachers=adapters
    )
