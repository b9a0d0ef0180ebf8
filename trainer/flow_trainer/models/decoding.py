"""Latents to images, beside what the device does next.

On a GPU the VAE runs in its own stream and its images travel to pinned memory, so that the next
micro-batch is already sampled while they are on their way; nothing waits but who asks for the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from flow_trainer.errors import NonFiniteError


@dataclass(frozen=True, slots=True)
class Decoded:
    """Images on their way to the host."""

    pixels: Tensor
    """(B, H, W, 3) uint8 on the CPU."""
    finite: Tensor
    """() bool on the CPU."""
    done: Any = None
    """CUDA event after which both are there; None when they are."""

    def is_ready(self) -> bool:
        return self.done is None or self.done.query()

    def is_finite(self) -> bool:
        """Waits for the images."""
        if self.done is not None:
            self.done.synchronize()
        return bool(self.finite)

    def images(self) -> Tensor:
        """(B, H, W, 3) uint8; waits for them. Raises NonFiniteError."""
        if not self.is_finite():
            raise NonFiniteError(
                "decoded pixels are not finite although the latents are: the VAE's weights are broken"
            )
        # what was pinned is used again for the next ones
        return self.pixels if self.done is None else self.pixels.clone()


def is_asynchronous(device: torch.device) -> bool:
    """Whether work on `device` goes on beside this thread: on a GPU, but not on the fake one of
    `flow-grpo plan`, which lives in this thread only."""
    return device.type == "cuda" and torch.cuda.is_available() and not is_in_torch_dispatch_mode()


class Decoder:
    """Runs `decode`, (b, C, h, w) latents to pixels (b, 3, H, W) in -1..1, in chunks: a VAE's activations
    dwarf the latents."""

    def __init__(
        self,
        decode: Callable[[Tensor], Tensor],
        device: torch.device,
        visiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`visiting` is entered once around all chunks, in the stream that decodes them."""
        self._decode = decode
        self._visiting = visiting
        self._stream = torch.cuda.Stream(device) if is_asynchronous(device) else None

    @torch.no_grad()
    def start(self, x_0: Tensor, batch: int) -> Decoded:
        if self._stream is None:
            pixels, finite = self._images(x_0, batch)
            return Decoded(pixels.cpu(), finite)
        self._stream.wait_stream(torch.cuda.current_stream(x_0.device))
        x_0.record_stream(self._stream)  # its memory is not given away before the VAE has read it
        with torch.cuda.stream(self._stream), _fastest_convolutions():
            pixels, finite = (_to_host(t) for t in self._images(x_0, batch))
            done = torch.cuda.Event()
            done.record(self._stream)
        return Decoded(pixels, finite, done)

    def pull_back(self, x_0: Tensor, gradient: Tensor, batch: int) -> Tensor:
        """(B, C, h, w): d sum(gradient x pixels) / d x_0 for constant `gradient` (B, H, W, 3), `batch`
        images at a time; the pixels, in 0..1, are those of `start`. Their rounding to 8 bits counts as
        the identity (straight through); what was clipped to black or white has no gradient."""
        parts = []
        with self._visiting(), torch.enable_grad():
            for latents, outer in zip(
                x_0.detach().split(batch), gradient.split(batch), strict=True
            ):
                latents = latents.clone().requires_grad_()
                pixels = self._decode(latents)
                # pixels are in -1..1 here
                inner = outer.to(pixels).permute(0, 3, 1, 2) / 2 * (pixels.detach().abs() <= 1)
                parts += torch.autograd.grad(pixels, latents, inner)
        return torch.cat(parts)

    def _images(self, x_0: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        with self._visiting():
            decoded = [self._decode(chunk) for chunk in x_0.split(batch)]
        finite = torch.stack([pixels.isfinite().all() for pixels in decoded]).all()
        return torch.cat([_as_images(pixels) for pixels in decoded]), finite


def channels_last(vae: nn.Module) -> None:
    """Lays out the weights of two-dimensional convolutions, in place, as a GPU's kernels read them;
    activations follow their weights."""
    for parameter in vae.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _as_images(pixels: Tensor) -> Tensor:
    pixels = (pixels * 127.5 + 127.5).round().clamp(0, 255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _to_host(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


@contextmanager
def _fastest_convolutions() -> Iterator[None]:
    """cuDNN measures its kernels at the first image of a size. Only here: the transformer's own
    convolution must not choose anew between a rollout and its replay."""
    cudnn = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, True
    try:
        yield
    finally:
        cudnn.benchmark = before
