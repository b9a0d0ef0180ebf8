"""How many threads libraries may start. Each thread of the prepare pool that calls torch or OpenCV would
otherwise get a team of its own, one thread per core: with 8 on a machine of 96 cores more than 800,
which fight over the cores and run into a container's limit of processes."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

SWITCH_S = 0.001
"""How long a thread of the pool may keep the interpreter while the event loop waits for it. Python's 5 ms
are paid several times per answer, and health answers too."""
LIBRARY_THREADS = 8
"""Most threads of a library that counts for the whole process, as tokenizers' does."""

_PROCESS_WIDE = ("RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def bound_libraries(environ: MutableMapping[str, str] = os.environ) -> None:
    """Before libraries are imported: bounds those that read the environment. What the operator set
    stays, also OMP_NUM_THREADS, which is the number of threads of a model on a CPU."""
    bound = str(min(LIBRARY_THREADS, os.cpu_count() or 1))
    for name in _PROCESS_WIDE:
        environ.setdefault(name, bound)


def bound_device_thread(device: str) -> None:
    """On the device thread, once the model is loaded. A model on a CPU keeps torch's own number of
    threads; beside one on a GPU the CPU has little to do."""
    torch = sys.modules.get("torch")
    if torch is not None and device != "cpu":
        torch.set_num_threads(min(LIBRARY_THREADS, torch.get_num_threads()))
    cv2 = sys.modules.get("cv2")
    if cv2 is not None:
        cv2.setNumThreads(1)  # for the process: its work is done in the pool


def bound_pool_thread() -> None:
    """At the start of a thread of a pool: the pool is what runs in parallel. torch's number is each
    thread's own, so the device thread keeps its."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
