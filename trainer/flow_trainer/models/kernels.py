"""What computes the transformer: attention kernels and compilation. Both are set on the module itself,
which rollout and replay share, so that the ratio of an unchanged policy stays 1."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from diffusers.models.attention_dispatch import attention_backend
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flow_trainer.errors import ConfigError
from flow_trainer.recipe import Model
from flow_trainer.recipe.model import RAGGED

OF_TORCH = {
    "native_flash": SDPBackend.FLASH_ATTENTION,
    "native_cudnn": SDPBackend.CUDNN_ATTENTION,
    "native_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "native_math": SDPBackend.MATH,
}
"""Kernels of torch's scaled_dot_product_attention."""
COMPILE: dict[str, Any] = {"dynamic": False, "options": {"emulate_precision_casts": True}}
"""Shapes are never made dynamic, and values between fused operations are rounded as without compiling:
otherwise the kernels of a forward with and of one without gradients would round differently."""
SHAPES = 64
"""Variants of a block that may be compiled: by batch size, with and without gradient and adapter."""
STATES = ("hidden_states", "encoder_hidden_states")
"""What diffusers' blocks hand to attention, as far as linear layers take it."""


def use_attention(transformer: Any, name: str) -> None:
    """Computes attention with the kernel `name` of model.attention. Raises ConfigError when it is not
    installed, or not to be had in this transformer."""
    if name == "native":
        return
    modules = transformer.modules()
    if any(hasattr(getattr(m, "processor", None), "_attention_backend") for m in modules):
        try:
            with attention_backend("native"):  # restores diffusers' choice for other models
                transformer.set_attention_backend(f"_{name}" if name in OF_TORCH else name)
        except (RuntimeError, ValueError, ImportError) as error:
            raise ConfigError(f"model.attention = {name!r}: {error}") from error
    elif name in OF_TORCH:
        processors = transformer.attn_processors.items()
        chosen = {key: _OneKernel(p, OF_TORCH[name]) for key, p in processors}
        transformer.set_attn_processor(chosen)
    else:
        raise ConfigError(
            f"model.attention = {name!r}: diffusers computes the attention of "
            f"{type(transformer).__name__} with torch alone; use native or {', '.join(OF_TORCH)}"
        )


class _OneKernel:
    """An attention processor confined to one of torch's kernels. It holds inside the block, hence also
    when checkpointing repeats a forward in the backward."""

    def __init__(self, processor: Any, kernel: SDPBackend) -> None:
        self._processor = processor
        self._kernel = kernel

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(self._kernel):
            return self._processor(*args, **kwargs)


def cast_once(transformer: nn.Module) -> None:
    """Has attention cast its inputs itself, once.

    Autocast leaves what layer_norm gives in float32, and casts it anew for every linear layer that takes
    it: up to seven times a block, each time with a copy for the backward. The numbers are the same.
    """
    for module in transformer.modules():
        if hasattr(module, "to_q"):
            module.register_forward_pre_hook(_cast, with_kwargs=True)
        if isinstance(module, BaseTunerLayer):
            # peft would widen them again to the adapter's float32, which autocast undoes
            module.cast_input_dtype_enabled = False  # type: ignore[assignment]


def _cast(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def cast(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        kind = value.device.type
        return (
            value.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else value
        )

    return tuple(map(cast, args)), {k: cast(v) if k in STATES else v for k, v in kwargs.items()}


def compiles(config: Model, device: torch.device) -> bool:
    """What model.compile means on `device`. Blocks are compiled for one length of text, so that of a
    family whose texts differ auto is no."""
    if config.compile != "auto":
        return config.compile
    is_gpu = device.type == "cuda" and torch.cuda.is_available()
    return is_gpu and config.family not in RAGGED and has_compiler()


def has_compiler() -> bool:
    """Triton builds the launcher of every kernel with a C compiler."""
    names = (os.environ.get("CC"), "gcc", "clang", "cc")
    return find_spec("triton") is not None and any(shutil.which(name) for name in names if name)


def compile_blocks(transformer: nn.Module, *, or_eagerly: bool = False) -> None:
    """Compiles every transformer block, at its first call, in place: names of parameters stay.

    Blocks of one kind share a compilation, which takes a fraction of the whole model's time. Where the
    compiler fails, its error is raised; with `or_eagerly` it becomes a RuntimeWarning, and blocks compute
    as they would without.
    """
    import torch._dynamo  # takes two seconds

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    how = {"dynamic": COMPILE["dynamic"], "backend": _CompilerOrNone()} if or_eagerly else COMPILE
    for child in transformer.children():
        if isinstance(child, nn.ModuleList):
            for block in child:
                block.compile(**how)


class _CompilerOrNone:
    """A backend of torch.compile: that of COMPILE until it fails once, then none."""

    def __init__(self) -> None:
        self._compiler = torch._dynamo.lookup_backend(COMPILE.get("backend", "inductor"))
        self._options = {"config_patches": COMPILE["options"]} if "options" in COMPILE else {}
        self._failed = False

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        if not self._failed:
            try:
                return self._compiler(graph, inputs, **self._options)
            except Exception as error:  # there is no list of the ways in which a compiler fails
                self._failed = True
                why = str(error).strip().partition("\n")[0]
                warnings.warn(
                    "model.compile = auto goes on without compiled blocks, at about two thirds of the "
                    f"speed: the compiler failed with {type(error).__name__}: {why}. model.compile = true "
                    "ends with the whole error, false asks for none",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return graph.forward


def run_eagerly(transformer: nn.Module) -> None:
    """Takes `compile_blocks` back: blocks compute as they did before it."""
    for module in transformer.modules():
        if module._compiled_call_impl is not None:
            module._compiled_call_impl = None  # what Module.compile sets; torch has no way back
