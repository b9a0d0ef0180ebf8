"""Prometheus finds the replicas and reads them; the alerts fire when they should."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from compose_stack import Stack
from processes import ROOT
from reward_api import RewardClient

DASHBOARD = ROOT / "docker/observe/grafana/dashboards/rewards.json"
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


def test_every_panel_of_the_dashboard_shows_something() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    expressions = {target["expr"] for panel in panels for target in panel["targets"]}
    url = "http://127.0.0.1:8102"
    image = (ROOT / "docs" / "sign.png").read_bytes()
    deadline = time.monotonic() + 90
    while expressions:
        assert time.monotonic() < deadline, expressions
        with RewardClient(url, timeout_s=60) as client:
            client.score([image, b"no image"], ["any"] * 2, on_error="nan")
        with pytest.raises(HTTPError, match="415") as refused:
            urlopen(f"{url}/v1/score", data=b"no media type", timeout=10)
        refused.value.close()
        filled = {text.replace("$__rate_interval", "1m"): text for text in expressions}
        expressions -= {
            text
            for expression, text in filled.items()
            if "jpeg" in query(expression.replace("$reward", ".*"))
        }
        time.sleep(1)


def test_the_alerts_fire_when_they_should(stack: Stack) -> None:
    mount = ("--volume", f"{RULES}:/alerts.test.yml:ro", "--entrypoint", "promtool")
    run = stack.compose(
        "run", "--rm", "-T", "--no-deps", *mount, "prometheus", "test", "rules", "/alerts.test.yml"
    )
    assert "SUCCESS" in run.stdout + run.stderr
