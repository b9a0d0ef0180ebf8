"""The machine around the device: what is found, and the fix where it will not do."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flow_trainer.doctor import host
from flow_trainer.doctor.host import (
    check_cores,
    check_driver,
    check_free,
    check_host,
    check_shared_memory,
)
from flow_trainer.recipe import parse_recipe


def test_this_host(recipe_data: dict[str, Any]) -> None:
    found = {check.name: check for check in check_host(parse_recipe(recipe_data), gpus=2)}
    assert list(found) == ["cores", "shared memory", "free disk"]  # no GPU: no driver, no compiler
    assert f"2 x {os.environ['OMP_NUM_THREADS']} threads" in found["cores"].message


def test_more_threads_than_cores() -> None:
    assert check_cores(cores=16, threads=16, processes=1).ok
    assert check_cores(cores=96, threads=1, processes=8).ok
    fight = check_cores(cores=16, threads=16, processes=8)
    assert not fight.ok
    assert "export OMP_NUM_THREADS=2" in fight.message
    assert "OMP_NUM_THREADS=1" in check_cores(cores=2, threads=96, processes=8).message


def test_a_containers_share_of_the_cores_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpu.max"
    monkeypatch.setattr(host, "QUOTA_FILE", file)
    whole = host._cores()
    file.write_text("max 100000\n")
    assert host._cores() == whole
    file.write_text("100000 100000\n")
    assert host._cores() == 1
    file.write_text("50000 100000\n")
    assert host._cores() == 1


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=64e6)
    monkeypatch.setattr(host.shutil, "disk_usage", lambda path: usage)
    few = check_shared_memory(8, tmp_path)
    assert not few.ok
    assert few.message.startswith("64 MB in ")
    assert "--shm-size" in few.message
    usage.total = 8e9
    assert check_shared_memory(8, tmp_path).ok
    assert check_shared_memory(8, tmp_path / "none").ok


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(free=2e8)
    monkeypatch.setattr(host.shutil, "disk_usage", lambda path: usage)
    full = check_free({"HF_HOME": tmp_path / "not" / "there"})
    assert not full.ok
    assert "0.2 GB in HF_HOME" in full.message
    assert str(tmp_path / "not" / "there") in full.message
    usage.free = 2e10
    assert check_free({"HF_HOME": tmp_path}).ok


@pytest.mark.parametrize(
    ("driver", "cuda", "ok"),
    [(580, "13.0", True), (575, "13.0", False), (525, "12.8", True), (470, "12.8", False)],
)
def test_the_driver_runs_torchs_cuda(driver: int, cuda: str, ok: bool) -> None:
    check = check_driver(driver, cuda)
    assert check.ok is ok
    assert ok or "update the driver" in check.message


def test_a_driver_that_cannot_be_read_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_driver(None, "13.0").ok
    file = tmp_path / "version"
    monkeypatch.setattr(host, "DRIVER_FILE", file)
    assert host._driver() is None
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 2025\n")
    assert host._driver() == 580
    file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.183.01  Release\n"
    )
    assert host._driver() == 535
