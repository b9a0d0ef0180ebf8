"""How fast a run is: images, tokens and floating-point operations per second, memory, bytes under way."""

from __future__ import annotations

import resource
import sys
import threading
from concurrent.futures import Future
from typing import Any

import torch

from flow_trainer.models.policy import Work

PEAK_TFLOPS = {
    "NVIDIA A10": 125.0,
    "NVIDIA A30": 165.0,
    "NVIDIA A40": 149.7,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA B200": 2250.0,
    "NVIDIA GeForce RTX 3090": 71.0,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H200": 989.4,
    "NVIDIA L4": 121.0,
    "NVIDIA L40": 181.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA RTX 6000 Ada Generation": 364.2,
    "NVIDIA RTX A6000": 154.8,
}
"""Published peak of dense matrix products in 16 bits with float32 sums, without sparsity, by the name
that CUDA gives. A name that is not here, such as a MIG slice's, has no MFU."""


class Traffic:
    """Bytes of pixels on their way to rewards, once for each reward, before any PNG or JPEG."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent = self._in_flight = self._most = 0

    def track(self, future: Future[Any], num_bytes: int) -> None:
        """`num_bytes` are under way until `future` is done."""
        with self._lock:
            self._sent += num_bytes
            self._in_flight += num_bytes
            self._most = max(self._most, self._in_flight)
        future.add_done_callback(lambda _: self._arrived(num_bytes))

    def take(self) -> dict[str, int]:
        """What was sent since the last call, and the most that was under way at a time."""
        with self._lock:
            taken = {"reward_bytes": self._sent, "reward_bytes_in_flight": self._most}
            self._sent, self._most = 0, self._in_flight
        return taken

    def _arrived(self, num_bytes: int) -> None:
        with self._lock:
            self._in_flight -= num_bytes


def speed(work: Work, images: int, seconds: float, peak: float | None) -> dict[str, float]:
    """Rates over `seconds`; model FLOPs utilisation where the devices' `peak` (FLOP/s) is known."""
    found = {
        "images_per_second": images / seconds,
        "tokens_per_second": work.tokens / seconds,
        "model_tflops": work.flops / seconds / 1e12,
    }
    if peak is not None:
        found["mfu"] = work.flops / seconds / peak
    return found


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """FLOP/s of one device in `dtype`; None on CPUs, in float32 and for GPUs not on record."""
    if device.type != "cuda" or dtype == "float32":
        return None
    tflops = PEAK_TFLOPS.get(torch.cuda.get_device_name(device))
    return None if tflops is None else tflops * 1e12


def peak_memory_gb(device: torch.device) -> float:
    """GPU: the most that tensors have held since `reset_peak_memory`. CPU: the most resident memory
    that the process ever had."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def synchronize(device: torch.device) -> None:
    """Waits for what the device still has to do: its kernels run behind the program."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
