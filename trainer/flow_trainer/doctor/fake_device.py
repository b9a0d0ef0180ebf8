"""A GPU made of fake tensors: the program runs as on CUDA, with exact shapes, types and lifetimes, and
nothing is computed or allocated.

Two ways to look, because torch's backward asks for a real GPU as soon as a tensor says `cuda`:

- on the device `cpu`, with any build of torch: sizes, launches, bytes and FLOPs, backward included.
  Autocast is the CPU's with CUDA's rule for layer_norm and the flash kernel.
- on the device `cuda`, with a CUDA build, GPU or not: autocast is CUDA's own, a tensor on the wrong
  device is an error, and every wait for the device is seen. A backward only leaves zeros.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from flow_trainer.errors import ConfigError

ALIGNMENT = 512
"""Bytes to which CUDA's allocator rounds."""
SCALAR = 0.9
"""What a number read from the fake device is: true, finite and positive."""
VIEWS = frozenset(
    {
        *("view", "expand", "transpose", "permute", "unsqueeze", "squeeze", "slice", "select", "t"),
        *("alias", "detach", "as_strided", "_unsafe_view", "split", "split_with_sizes", "chunk"),
        *("unbind", "unflatten", "reshape", "unfold", "lift_fresh", "_local_scalar_dense"),
        *("empty", "empty_like", "new_empty", "empty_strided", "is_same_size"),
    }
)
"""Operators that launch no kernel."""


@dataclass(slots=True)
class Section:
    """What a part of the program did."""

    calls: int = 0
    launches: int = 0
    bytes: int = 0
    """Read and written by kernels that are neither matrix products nor attention."""
    flops: int = 0
    """Of matrix products, convolutions and attention."""
    peak: int = 0
    """The most that was held on the device meanwhile, bytes."""
    syncs: Counter[str] = field(default_factory=Counter)
    """Where the program waited for the device, by file and line."""
    copies: Counter[str] = field(default_factory=Counter)
    """Where unpinned host memory was copied to the device, which the program waits for too."""


class Ledger(TorchDispatchMode):
    """Counts what every section does, and what lives on the fake device."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.live = 0
        self.sections: dict[str, Section] = {}
        self.at = "start"
        self._sizes: dict[int, int] = {}

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Inside, work counts for `name`."""
        before, self.at = self.at, name
        now = self.sections.setdefault(name, Section())
        now.calls += 1
        now.peak = max(now.peak, self.live)
        try:
            yield
        finally:
            self.at = before

    def within(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its work counted for `name`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.section(name):
                return function(*args, **kwargs)

        return call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        section = self.sections.setdefault(self.at, Section())
        name = func._opname
        if name == "_local_scalar_dense":
            if args[0].device.type == "cuda":
                section.syncs[_place()] += 1
            return _scalar(args[0].dtype)
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._copied(section, name, args, made)
        if not any(tensor.device == self.device for tensor in made):
            return out
        for tensor in made:
            self._watch(tensor)
        section.peak = max(section.peak, self.live)
        if func.namespace != "prim" and name not in VIEWS and not name.startswith("sym_"):
            section.launches += 1
            count = flop_registry.get(func._overloadpacket)
            if count is not None:
                section.flops += count(*args, **kwargs, out_val=out)
            else:
                section.bytes += sum(t.numel() * t.element_size() for t in (*given, *made))
        return out

    def _copied(self, section: Section, name: str, args: Any, made: list[Tensor]) -> None:
        if self.device.type == "cpu" or name not in ("_to_copy", "copy_"):
            return
        source = args[1] if name == "copy_" else args[0]
        target = args[0] if name == "copy_" else made[0]
        if source.device == self.device and target.device.type == "cpu":
            section.syncs[_place()] += 1
        elif source.device.type == "cpu" and target.device == self.device:
            section.copies[_place()] += 1

    def _watch(self, tensor: Tensor) -> None:
        if tensor.device != self.device:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT
            self.live += self._sizes[key]
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


def _scalar(dtype: torch.dtype) -> float | int | bool:
    if dtype == torch.bool:
        return True
    return SCALAR if dtype.is_floating_point else 1


def _place() -> str:
    """The nearest line of this program's own, else of a library's, outside torch."""
    frame: Any = sys._getframe(2)
    outer = "torch"
    while frame is not None:
        file = frame.f_code.co_filename
        if "/flow_trainer/" in file and not file.endswith("fake_device.py"):
            return f"{file.rpartition('/flow_trainer/')[2]}:{frame.f_lineno}"
        if outer == "torch" and "/torch/" not in file and not file.endswith("fake_device.py"):
            outer = file.rpartition("/site-packages/")[2]
        frame = frame.f_back
    return outer


@contextmanager
def fake_gpu(device: torch.device) -> Iterator[Ledger]:
    """Inside, tensors are fake and CUDA's rules hold. Raises ConfigError for the device `cuda` where
    torch is a CPU build."""
    if device.type == "cuda" and not torch.backends.cuda.is_built():
        raise ConfigError(
            f"torch {torch.__version__} is a CPU build, which has no fake device `cuda`: install a "
            "CUDA build; no GPU is needed"
        )
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        for target, name, value in _rules(device):
            stack.enter_context(patch.object(target, name, value))
        yield stack.enter_context(Ledger(device))


def _rules(device: torch.device) -> Iterator[tuple[Any, str, Any]]:
    """What stands in for torch while it runs without a GPU."""
    import torch.cuda.amp.common as amp

    yield nn.Module, "_apply", _apply
    yield F, "scaled_dot_product_attention", _flash
    yield Tensor, "pin_memory", lambda tensor, *_: tensor
    if device.type == "cuda":
        yield amp, "amp_definitely_not_available", lambda: False
        yield torch.cuda, "is_bf16_supported", lambda *_, **__: True
        yield Tensor, "backward", lambda *_, **__: None
    else:
        yield F, "layer_norm", layer_norm


def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """Module.to and its kin; torch's own swaps tensors, which fake ones do not allow."""
    for part in module.modules() if recurse else [module]:
        for name, parameter in part._parameters.items():
            if parameter is not None:
                with torch.no_grad():
                    changed = function(parameter)
                if changed is not parameter:
                    part._parameters[name] = nn.Parameter(changed, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = function(buffer)
    return module


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What torch chooses on a GPU in 16 bits without a mask. torch asks the device, and there is none."""
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    q, k, v = (tensor.to(dtype) for tensor in (query, key, value))
    return torch.ops.aten._scaled_dot_product_flash_attention(
        q, k, v, dropout_p, is_causal, False, scale=scale
    )[0]


_PLAIN_LAYER_NORM = F.layer_norm


def layer_norm(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """In float32 under autocast, as CUDA's rules say and the CPU's do not."""
    if not torch.is_autocast_enabled("cpu"):
        return _PLAIN_LAYER_NORM(input, *args, **kwargs)

    def widen(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) else value

    with torch.autocast("cpu", enabled=False):
        return _PLAIN_LAYER_NORM(
            input.float(), *map(widen, args), **{k: widen(v) for k, v in kwargs.items()}
        )
