"""Tests that start the real images: `make test-containers`, which sets TEST_CONTAINERS."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from compose_stack import Stack

if "TEST_CONTAINERS" not in os.environ:
    collect_ignore_glob = ["test_*.py"]

_images: dict[str, tuple[float, float]] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures of docker/README.md."""
    for name, (seconds, size) in _images.items():
        terminalreporter.write_line(
            f"image {name}: built in {seconds:.0f} s, {size:.0f} MB above its base image"
        )


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The compose project; whatever tests started of it is gone at the end."""
    stack = Stack(tmp_path_factory.mktemp("containers"))
    stack.down()  # of a run that was killed
    try:
        yield stack
        _images.update(
            {
                name: (seconds, stack.mb_above_base(name))
                for name, seconds in stack.build_seconds.items()
            }
        )
    finally:
        stack.down()


@pytest.fixture(scope="session")
def tiny_weights(stack: Stack) -> Path:
    """Random checkpoints in the published layouts, readable by the containers' user."""
    return stack.weights()
