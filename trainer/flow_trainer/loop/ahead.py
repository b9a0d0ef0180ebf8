"""Random numbers drawn on the CPU while the device computes: no micro-batch waits for its own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from flow_trainer.models.decoding import is_asynchronous

K = TypeVar("K", bound=Hashable)


class Ahead(Generic[K]):
    """Calls `draw`, tensors by key, in a thread of its own for keys that come next. What it draws must
    depend on the key alone, so that a result is the same whenever it was drawn."""

    def __init__(
        self,
        draw: Callable[[K], tuple[Tensor, ...]],
        device: torch.device,
        *,
        beside: bool | None = None,
    ) -> None:
        """`beside`: draw while the device computes, the default where it does so by itself."""
        self._draw = draw
        self._device = device
        self._beside = is_asynchronous(device) if beside is None else beside
        self._drawn: dict[K, Future[tuple[Tensor, ...]]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def get(self, key: K, following: Iterable[K] = ()) -> tuple[Tensor, ...]:
        """The tensors of `key` on the device; those of the `following` keys are begun."""
        if not self._beside:
            return tuple(tensor.to(self._device) for tensor in self._draw(key))
        for wanted in (key, *following):
            if wanted not in self._drawn:
                self._drawn[wanted] = self._thread.submit(self._on_host, wanted)
        tensors = self._drawn.pop(key).result()
        # pinned memory goes back to torch's own cache, which knows of copies under way
        return tuple(tensor.to(self._device, non_blocking=True) for tensor in tensors)

    def _on_host(self, key: K) -> tuple[Tensor, ...]:
        tensors = self._draw(key)
        if self._device.type != "cuda":
            return tensors
        return tuple(tensor.pin_memory() for tensor in tensors)
