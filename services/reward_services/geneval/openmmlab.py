"""What this service takes from mmengine and mmcv, imported without yapf.

mmengine imports yapf, which lays out the text of configurations that are written. yapf keeps tables in
a cache below the home folder and puts the file there before its content: of several processes that
start together after an installation, one may read it empty and end with an EOFError (yapf 0.43), and
if the writer dies at that moment, so does every later one. The layout of a text is not worth that.
"""

import sys
from types import ModuleType
from typing import Any


def _replace_yapf() -> None:
    if "yapf" in sys.modules:
        return
    modules: dict[str, Any] = {
        name: ModuleType(name, "Stands in for yapf: leaves text as it is.")
        for name in ("yapf", "yapf.yapflib", "yapf.yapflib.yapf_api")
    }
    modules["yapf"].__version__ = "0.43.0"  # mmengine asks which arguments are known
    modules["yapf.yapflib.yapf_api"].FormatCode = lambda text, **_: (text, False)
    sys.modules.update(modules)


_replace_yapf()

from mmcv import imrescale  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402

__all__ = ["Config", "DefaultScope", "imrescale"]
