"""The compose project under a name of its own, for tests on a real engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from processes import PATHS, ROOT

PROJECT = "flow-rewards-test"
BASE = ("docker-compose.yml",)
GPU, TOKEN, CI = "docker/compose.gpu.yml", "docker/compose.token.yml", "docker/ci/compose.ci.yml"
# Calls over both protocols, from inside the network; prints how many were answered.
_LOAD = ROOT / "tests/support/score_for_a_while.py"
# A free-standing tmpfs hides what is mounted under /tmp.
_LOAD_INSIDE = "/score_for_a_while.py"
_BUILD_TIMEOUT_S, _TIMEOUT_S = 1500, 400


@dataclass
class Stack:
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    build_seconds: dict[str, float] = field(default_factory=dict)
    """The first build of each image; a few seconds when its layers were there already."""

    def __post_init__(self) -> None:
        self.variables |= {"TEST_MODELS": str(self.folder), "COMPOSE_PROJECT_NAME": PROJECT}

    def compose(
        self, *arguments: str, files: tuple[str, ...] = BASE, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """`docker compose ...`; a failure shows what it said."""
        named = [word for name in files for word in ("--file", str(ROOT / name))]
        directory = ("--project-directory", str(ROOT))
        return self._run(
            "docker", "compose", *directory, *named, *arguments, check=check, **options
        )

    def docker(self, *arguments: str, check: bool = True) -> str:
        return self._run("docker", *arguments, check=check).stdout.strip()

    def build(self, *services: str, files: tuple[str, ...] = BASE) -> None:
        """One image at a time: CI has two cores."""
        for service in services:
            start = time.monotonic()
            self.compose("build", service, files=files, timeout=_BUILD_TIMEOUT_S)
            self.build_seconds.setdefault(service, time.monotonic() - start)

    def up(self, *services: str, files: tuple[str, ...] = BASE) -> None:
        wait = ("--detach", "--wait", "--wait-timeout", "300", "--no-build")
        self.compose("up", *wait, *services, files=files)

    def containers(self, service: str) -> list[str]:
        """Ids of the running replicas."""
        return self.compose("ps", "--quiet", "--status", "running", service).stdout.split()

    def inspect(self, thing: str) -> dict[str, Any]:
        return json.loads(self.docker("inspect", thing))[0]

    def start_load(self, url: str, seconds: float) -> subprocess.Popen[str]:
        """Scores from a container of the network; ends with 1 when a call is lost."""
        command = ["docker", "compose", "--project-directory", str(ROOT), "run", "--rm", "-T"]
        command += ["--no-deps", "--volume", f"{_LOAD}:{_LOAD_INSIDE}:ro", "--entrypoint", "python"]
        command += ["jpeg", _LOAD_INSIDE, url, str(seconds)]
        return self._start(command)

    def start_load_here(self, url: str, seconds: float) -> subprocess.Popen[str]:
        return self._start([sys.executable, str(_LOAD), url, str(seconds)])

    def mb_above_base(self, service: str) -> float:
        """Size of an image's own layers: the base image of CI is a stand-in with wheels in it."""
        base = "debian:bookworm-slim" if service == "gateway" else "python:3.11-slim-bookworm"
        image = self.inspect(f"flow-rewards/{service}")
        return (image["Size"] - self.inspect(base)["Size"]) / 1e6

    def weights(self) -> Path:
        """Writes tiny random checkpoints, in a process of its own: torch is not needed otherwise."""
        script = ROOT / "tests/support/checkpoints/container_weights.py"
        self._run(sys.executable, str(script), str(self.folder))
        for path in [self.folder, *self.folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        return self.folder

    def leftovers(self) -> list[str]:
        """What `down --volumes` leaves of the project."""
        self.down()
        mine = ("--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}")
        return [
            line
            for kind in (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
            for line in self.docker(*kind, *mine).split()
        ]

    def down(self) -> None:
        everything = ("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "10")
        self.compose(*everything, check=False)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": f"{PATHS}{os.pathsep}{_LOAD.parent}", **self.variables}

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            env=self._environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _run(
        self, *command: str, check: bool = True, timeout: float = _TIMEOUT_S, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        run = subprocess.run(
            command,
            env=self._environment(),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            **options,
        )
        assert run.returncode == 0 or not check, f"{' '.join(command)}\n{run.stdout}{run.stderr}"
        return run
