"""mmdet with or without mmcv's compiled operators.

`mmcv.ops`, which mmdet imports as a whole, needs the extension module `mmcv._ext`: a build of 18 minutes
for each pair of torch and CUDA. Mask2Former calls a single operator of it, multi-scale deformable
attention, and mmcv brings that one in plain PyTorch too, as the path it takes on a CPU. So:

- with the extension (package `mmcv`, built with operators) everything stays as mmcv does it;
- without it (package `mmcv-lite`) a stand-in takes its place, whose every function raises when it is
  called, and the plain path is taken on every device;
- an extension built without CUDA counts for a CPU only: on a GPU the plain path is taken.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_EXTENSION = "mmcv._ext"


def compiled_ops() -> bool:
    """Whether mmcv's compiled deformable attention is used on a GPU; call `make_importable` first."""
    return importlib.import_module("mmcv.ops.multi_scale_deform_attn").IS_CUDA_AVAILABLE


def make_importable() -> None:
    """Makes `mmcv.ops`, and so mmdet, importable in this process. Idempotent."""
    if importlib.util.find_spec(_EXTENSION) is None:
        sys.modules[_EXTENSION] = _stand_in()
    attention: Any = importlib.import_module("mmcv.ops.multi_scale_deform_attn")
    if not _built_with_cuda():
        # The flag that sends tensors on a GPU to the compiled operator.
        attention.IS_CUDA_AVAILABLE = False


def _built_with_cuda() -> bool:
    extension = importlib.import_module(_EXTENSION)
    # mmcv's extension answers with a version, or "not available".
    return not _is_stand_in(extension) and extension.get_compiling_cuda_version()[:1].isdigit()


def _stand_in() -> ModuleType:
    module = ModuleType(_EXTENSION, "Stands in for mmcv's compiled operators.")
    # Whoever asks importlib or pkgutil for the module is answered from its spec.
    module.__spec__ = ModuleSpec(_EXTENSION, loader=None)
    module.__getattr__ = _missing_operator
    return module


def _is_stand_in(module: ModuleType) -> bool:
    return getattr(module, "__getattr__", None) is _missing_operator


def _missing_operator(name: str) -> Callable[..., Any]:
    if name.startswith("__"):
        raise AttributeError(name)

    def operator(*arguments: Any, **options: Any) -> Any:
        raise NotImplementedError(
            f"mmcv's operator {name} is compiled and mmcv-lite has none: "
            "install mmcv with operators to use it"
        )

    return operator
