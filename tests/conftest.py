"""One thread per process: on small machines a second OpenMP thread only spins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import BRIGHTNESS, Service, Services

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of input/output pairs made by running the original code; its README says how."""
    return GOLDEN


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    """Starts real reward services; what a test leaves running is stopped."""
    services = Services(tmp_path)
    yield services
    services.stop()


@pytest.fixture(scope="session")
def brightness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests that only ask it; who stops or configures one starts it with `services`."""
    services = Services(tmp_path_factory.mktemp("brightness"))
    yield services.start(BRIGHTNESS)
    services.stop()
