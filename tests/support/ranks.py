"""Several processes of the trainer on this machine, as torchrun would start them.

They are forked from one server that has imported everything, so a world of four costs little more
than a world of one.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from processes import PATHS

MODULES = [
    "flow_trainer.loop.train",
    "flow_trainer.models.diffusers_policy",
    "flow_trainer.models.families.sd3",
    "ranks",
]


@dataclass(frozen=True)
class Ranks:
    processes: list[BaseProcess]

    def wait(self, timeout_s: float = 90) -> list[int | None]:
        """Exit statuses, by rank; those that hang are killed."""
        for process in self.processes:
            process.join(timeout_s)
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()
        return [process.exitcode for process in self.processes]


def start(
    size: int,
    run: Callable[..., None],
    *arguments: Any,
    local_size: int | None = None,
    daemon: bool = True,
) -> Ranks:
    """Runs `run` (*arguments) in `size` processes, `local_size` (default: all) on each node. Those
    that are not daemons may start others, and whoever starts them has to see them end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    local_size = local_size or size
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes: list[BaseProcess] = []
    for rank in range(size):
        variables = {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(rank % local_size),
            "LOCAL_WORLD_SIZE": str(local_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        process = context.Process(target=_rank, args=(variables, run, *arguments), daemon=daemon)
        # the fork server, which starts with the first, finds its modules there; other tests must not
        with patch.dict(os.environ, PYTHONPATH=f"{PATHS}{os.pathsep}{Path(__file__).parent}"):
            process.start()
        processes.append(process)
    return Ranks(processes)


def _rank(variables: dict[str, str], run: Callable[..., None], *arguments: Any) -> None:
    import torch

    os.environ.update(variables)
    torch.set_num_threads(1)
    run(*arguments)


def elastic(arguments: list[str], size: int, log: Path) -> None:
    """What `torchrun --standalone --nproc-per-node SIZE --max-restarts 1 -m flow_trainer ARGUMENTS`
    does: torch's own agent starts, watches and restarts the workers, but forks them. Their messages go
    to `log`."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=1,
        monitor_interval=0.1,
        start_method="fork",
    )
    elastic_launch(config, command)(arguments, log)


def command(arguments: list[str], log: Path) -> None:
    """`flow-grpo ARGUMENTS`, what it prints appended to `log`; leaves with its exit status."""
    from flow_trainer.__main__ import main

    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    if status := main(arguments):
        raise SystemExit(status)


def train(data: dict[str, Any], out: Path, resume: bool = False) -> None:
    """`flow-grpo train`, without the parsing; leaving on a signal is a success."""
    from flow_trainer.errors import Interrupted
    from flow_trainer.loop.train import train
    from flow_trainer.recipe import parse_recipe

    try:
        train(parse_recipe(data), out, resume=resume)
    except Interrupted:
        (out / f"stopped-{os.environ['RANK']}").touch()


def train_compiled(data: dict[str, Any], out: Path) -> None:
    """With model.compile; traced and differentiated as ever, but without minutes of a C++ compiler."""
    from flow_trainer.models import kernels

    kernels.COMPILE = {"dynamic": False, "backend": "aot_eager"}
    train(data | {"model": data["model"] | {"compile": True}}, out)
