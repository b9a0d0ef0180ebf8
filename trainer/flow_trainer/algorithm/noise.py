"""Noise keyed by who it is for, not by when it is drawn: sample (epoch, prompt, member) gets the same
numbers whatever the batch split, the device or the number of processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def sample_noise(
    seed: int,
    epoch: int,
    keys: Sequence[tuple[int, int]],
    shape: tuple[int, ...],
    num_steps: int,
    *,
    same_latent: bool = False,
) -> tuple[Tensor, Tensor]:
    """Initial noise (B, *shape) and step noise (B, num_steps, *shape), standard normal float32 on
    the CPU, for samples keyed by (prompt index, member). `same_latent`: members of a prompt share
    the initial noise; their step noise stays their own."""
    initial, steps = [], []
    for prompt, member in keys:
        generator = _generator("train", seed, epoch, prompt, member)
        x_1 = torch.randn(shape, generator=generator)
        steps.append(torch.randn((num_steps, *shape), generator=generator))
        if same_latent:
            x_1 = torch.randn(shape, generator=_generator("group", seed, epoch, prompt))
        initial.append(x_1)
    return torch.stack(initial), torch.stack(steps)


def forward_steps(
    seed: int,
    epoch: int,
    keys: Sequence[tuple[int, int]],
    num_steps: int,
    *,
    shared: bool = False,
) -> Tensor:
    """(B, num_steps) int64: every sample's own order of the schedule's first steps, for training on the
    forward process. `shared`: members of a prompt have one order."""
    return torch.stack(
        [
            torch.randperm(num_steps, generator=_generator("forward steps", seed, epoch, *key))
            for key in _forward_keys(keys, shared)
        ]
    )


def stratified_times(
    seed: int,
    epoch: int,
    keys: Sequence[tuple[int, int]],
    count: int,
    *,
    shared: bool = False,
) -> Tensor:
    """(B, count) float32: every sample's own times in [0, 1), one in each of `count` equal parts, in
    order. `shared`: members of a prompt have the same."""
    within = torch.stack(
        [
            torch.rand(count, generator=_generator("forward times", seed, epoch, *key))
            for key in _forward_keys(keys, shared)
        ]
    )
    return (torch.arange(count) + within) / count


def forward_noise(
    seed: int,
    epoch: int,
    keys: Sequence[tuple[int, int]],
    shape: tuple[int, ...],
    numbers: Sequence[int],
    *,
    shared: bool = False,
) -> Tensor:
    """(B, len(numbers), *shape) noise of the samples' noise levels with these numbers. `shared`:
    members of a prompt have the same."""
    return torch.stack(
        [
            torch.stack(
                [
                    torch.randn(shape, generator=_generator("forward", seed, epoch, *key, number))
                    for number in numbers
                ]
            )
            for key in _forward_keys(keys, shared)
        ]
    )


def _forward_keys(
    keys: Sequence[tuple[int, int]], shared: bool
) -> list[tuple[int, int] | tuple[int, str]]:
    return [(prompt, "group") if shared else (prompt, member) for prompt, member in keys]


def evaluation_noise(seed: int, keys: Sequence[tuple[int, int]], shape: tuple[int, ...]) -> Tensor:
    """Initial noise (B, *shape) of a stream that training never uses, the same at every call."""
    return torch.stack(
        [torch.randn(shape, generator=_generator("evaluation", seed, *key)) for key in keys]
    )


def _generator(*key: str | int) -> torch.Generator:
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
