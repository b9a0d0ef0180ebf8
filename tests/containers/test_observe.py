"""Prometheus finds the replicas and reads them; the alerts fire when they should."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from compose_stack import Stack
from processes import ROOT

RULES = ROOT / "tests/containers/alerts.test.yml"


@pytest.fixture(scope="module", autouse=True)
def running(stack: Stack) -> Iterator[None]:
    image = stack.compose("config", "--images", "prometheus").stdout.split()
    (name,) = [line for line in image if line.startswith("prom/")]
    if name not in stack.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split():
        stand_in = str(ROOT / "docker/ci/prometheus.Dockerfile")
        stack.docker("build", "--tag", name, "--file", stand_in, str(ROOT / "docker/ci"))
    stack.build("gateway", "jpeg", "ocr")
    stack.up("ocr", "jpeg", "prometheus")
    yield
    stack.down()


def query(expression: str) -> dict[str, float]:
    """Value by reward."""
    address = "http://127.0.0.1:9090/api/v1/query?" + urlencode({"query": expression})
    with urlopen(address, timeout=10) as response:
        found = json.load(response)["data"]["result"]
    return {series["metric"].get("reward", ""): float(series["value"][1]) for series in found}


def test_prometheus_finds_every_replica(stack: Stack) -> None:
    stack.up("--scale", "ocr=2", "--no-recreate", "ocr")
    deadline = time.monotonic() + 90
    while (ready := query("sum by (reward) (reward_ready)")) != {"ocr": 2, "jpeg": 1}:
        assert time.monotonic() < deadline, ready
        time.sleep(1)
    assert query('up{job="gateway"}') == {"": 1}
    assert query('count by (reward) (reward_build_info{version!=""})') == {"ocr": 2, "jpeg": 1}


def test_the_alerts_fire_when_they_should(stack: Stack) -> None:
    mount = ("--volume", f"{RULES}:/alerts.test.yml:ro", "--entrypoint", "promtool")
    run = stack.compose(
        "run", "--rm", "-T", "--no-deps", *mount, "prometheus", "test", "rules", "/alerts.test.yml"
    )
    assert "SUCCESS" in run.stdout + run.stderr
