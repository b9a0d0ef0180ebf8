"""Steps `versions` and `nccl`: what the machine has, and collectives of a group of one."""

from __future__ import annotations

import platform
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.distributed as dist
from step import Write
from torch import nn

PACKAGES = ("diffusers", "transformers", "peft", "accelerate", "triton", "open_clip_torch", "mmdet")
MEGABYTES = 75
"""Of an adapter's gradient."""


def device(shrunk: bool) -> torch.device:
    """Raises RuntimeError where a GPU is asked for and there is none."""
    if shrunk:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no GPU: use --shrunk (make SHRUNK=1)")
    return torch.device("cuda:0")


def versions(name: str, shrunk: bool, write: Write) -> None:
    from torch.cuda import nccl as collectives

    place = device(shrunk)
    found: dict[str, Any] = {
        "device": "CPU",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {package: _version(package) for package in PACKAGES},
    }
    if place.type == "cuda":
        properties = torch.cuda.get_device_properties(place)
        found |= {
            "device": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
            "nccl": ".".join(map(str, collectives.version())),
        }
    write(found)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def nccl(name: str, shrunk: bool, write: Write) -> None:
    """An all-reduce of a gradient, a barrier on gloo beside it, and a sharded layer's step."""
    from flow_trainer.parallel.sharding import make_mesh, shard

    place = device(shrunk)
    backend = "nccl" if place.type == "cuda" else "gloo"
    with tempfile.NamedTemporaryFile() as file:
        dist.init_process_group(
            backend, init_method=f"file://{file.name}.store", rank=0, world_size=1
        )
    status: Any = dist.new_group(backend="gloo")
    dist.barrier(group=status)
    gradient = torch.ones(MEGABYTES * 2**18, device=place)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        dist.all_reduce(gradient)
        float(gradient[0])
        seconds.append(time.perf_counter() - began)
    model = nn.Sequential(nn.ModuleList([nn.Linear(64, 64)])[0]).to(place)
    shard(model, make_mesh("full", place.type, 1, 1))
    model(torch.ones(2, 64, device=place)).sum().backward()
    sharded = all(p.grad is not None for p in model.parameters())
    dist.destroy_process_group()
    write({"backend": backend, "all_reduce_ms": min(seconds) * 1e3, "sharded_step": sharded})
