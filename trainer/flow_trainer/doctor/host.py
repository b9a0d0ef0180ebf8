"""Doctor: the machine around the device."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from flow_trainer.doctor.checks import Check
from flow_trainer.models.kernels import compiles, has_compiler
from flow_trainer.parallel.world import pick_device
from flow_trainer.recipe import Recipe

GB = 1e9
SHARED_MEMORY = 1e9
"""Bytes that NCCL takes of /dev/shm for a node's channels, with room: some 30 MB per pair of GPUs."""
LEAST_FREE = 1e9
"""Bytes for logs, temporary files and the compiler; weights that are there already take none."""
GPUS_PER_NODE = 8
QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""By CUDA's major version: the first driver with which its minor versions run (NVIDIA's table of CUDA's
minor version compatibility)."""
DRIVER_FILE = Path("/proc/driver/nvidia/version")


def check_host(recipe: Recipe, gpus: int = 1) -> Iterator[Check]:
    """Cores, shared memory, free disk, driver, compiler: what of them can be known from here."""
    processes = min(gpus, GPUS_PER_NODE)
    # torchrun gives each of several processes one thread unless told otherwise
    threads = int(os.environ.get("OMP_NUM_THREADS", "1")) if gpus > 1 else torch.get_num_threads()
    yield check_cores(_cores(), threads, processes)
    if gpus > 1:
        yield check_shared_memory(gpus, Path("/dev/shm"))
    yield check_free(_cache_folders())
    device = pick_device(recipe.device)
    if device.type != "cuda":
        return
    yield check_driver(_driver(), torch.version.cuda)
    if recipe.model.compile == "auto" and not has_compiler():
        yield Check(
            "compiler",
            True,
            "no C compiler or no Triton: model.compile = auto is off, at about two thirds of the speed on "
            "paper; apt install gcc libc6-dev",
        )
    elif compiles(recipe.model, device):
        yield Check("compiler", True, "the transformer's blocks are compiled in the first epoch")


def check_cores(cores: int, threads: int, processes: int) -> Check:
    """`threads` of torch in each of `processes` on one node's `cores`."""
    message = f"{cores} cores, {processes} x {threads} threads of torch"
    if threads * processes <= 2 * cores:
        return Check("cores", True, message)
    fair = max(1, cores // processes)
    return Check("cores", False, f"{message} fight over them: export OMP_NUM_THREADS={fair}")


def check_shared_memory(gpus: int, path: Path) -> Check:
    """NCCL's processes of a node exchange through /dev/shm; containers give it 64 MB unless told."""
    if not path.is_dir():
        return Check("shared memory", True, f"there is no {path} to look at")
    size = shutil.disk_usage(path).total
    if size >= SHARED_MEMORY:
        return Check("shared memory", True, f"{size / GB:.1f} GB in {path} for {gpus} GPUs")
    return Check(
        "shared memory",
        False,
        f"{size / 1e6:.0f} MB in {path} are too few for NCCL between {gpus} GPUs: docker run "
        "--shm-size=8g (or --ipc=host), in Kubernetes an emptyDir of medium Memory",
    )


def check_free(folders: dict[str, Path]) -> Check:
    """Room where weights, compiled kernels and temporary files go."""
    free = {name: shutil.disk_usage(_existing(path)).free for name, path in folders.items()}
    tight = {name: left for name, left in free.items() if left < LEAST_FREE}
    said = ", ".join(f"{left / GB:.1f} GB in {name}" for name, left in free.items())
    if not tight:
        return Check("free disk", True, said)
    names = ", ".join(f"{name} ({folders[name]})" for name in tight)
    return Check("free disk", False, f"{said}: make room in {names}, or point it elsewhere")


def check_driver(driver: int | None, cuda: str | None) -> Check:
    """`driver`: major version of NVIDIA's; `cuda`: what torch was built with."""
    if driver is None or cuda is None:
        return Check("driver", True, "its version is not to be read here")
    oldest = OLDEST_DRIVER.get(int(cuda.split(".")[0]))
    found = f"driver {driver}, torch {torch.__version__} for CUDA {cuda}"
    if oldest is None or driver >= oldest:
        return Check("driver", True, found)
    return Check(
        "driver",
        False,
        f"{found}, which needs {oldest} or newer: update the driver, or install a torch for an older CUDA",
    )


def _driver() -> int | None:
    try:
        text = DRIVER_FILE.read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\b(\d{3})\.\d+", text)
    return int(found[1]) if found else None


def _cores() -> int:
    """Those that this process may use, a container's share of the time included, which torch's own number
    of threads does not know."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = QUOTA_FILE.read_text(encoding="ascii").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup, or "max": no quota
        return cores


def _cache_folders() -> dict[str, Path]:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    compiled = os.environ.get("TORCHINDUCTOR_CACHE_DIR", os.environ.get("TMPDIR", "/tmp"))
    return {"HF_HOME": home, "the compiler's cache": Path(compiled)}


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())
