"""Makes a CUDA build of torchvision importable beside a CPU build of torch.

The registry's Linux wheels of torchvision are CUDA builds: beside a CPU torch their operators do not
load, and `import torchvision` (so transformers, diffusers, open_clip) dies while it describes two of
them. Nothing here calls an operator of torchvision, so describing the two is enough. This is a matter
of such an environment and not of the product: on a CPU index, on macOS and on a GPU the wheels match.

    python tests/support/torchvision_cpu.py    installs itself into the running environment, if it has
                                               such a pair, and says so
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from importlib.abc import MetaPathFinder
from pathlib import Path

_kept_alive = []


class _BeforeTorchvision(MetaPathFinder):
    """Acts on the first import of torchvision, so that other programs pay nothing."""

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name == "torchvision":
            sys.meta_path.remove(self)
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            if spec is not None and spec.submodule_search_locations:
                _describe_missing_operators(Path(next(iter(spec.submodule_search_locations))))
        return None


def _describe_missing_operators(package: Path) -> None:
    import torch

    for library in package.glob("_C*.so"):
        try:
            torch.ops.load_library(library)
            return
        except OSError:  # its CUDA libraries are not here: the case this module is for
            continue
    described = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        described.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept_alive.append(described)


def install() -> None:
    """Where `import torchvision` fails, copies this module into the environment, with a .pth file that
    loads it at start-up."""
    if importlib.util.find_spec("torchvision") is None:
        return
    if not subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True
    ).returncode:
        return
    site = Path(sysconfig.get_paths()["purelib"])
    shutil.copy(__file__, site / "torchvision_cpu.py")
    pth = site / "torchvision_cpu.pth"
    pth.write_text("import torchvision_cpu\n", encoding="utf-8")
    print(f"torchvision is a CUDA build and torch is not: {pth} lets tests import it")


if __name__ == "__main__":
    install()
else:
    sys.meta_path.insert(0, _BeforeTorchvision())
