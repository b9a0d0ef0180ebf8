"""What the container files say about the project is true. Starting containers: tests/containers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from processes import ROOT
from reward_api.wire.messages import ScoreRange
from reward_services.chassis.metrics import Metrics

DOCKER = ROOT / "docker"
REWARDS = {path.parent.name for path in (ROOT / "services/reward_services").glob("*/scorer.py")} - {
    "chassis"
}
# A place for a file of one's own.
OWN = "own"
SETTING_OF_COMPOSE = re.compile(r"!(override|reset)\b")


def compose(name: str) -> dict[str, Any]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return yaml.safe_load(SETTING_OF_COMPOSE.sub("", text))


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return compose("docker-compose.yml")["services"]


def test_every_reward_has_a_stanza_an_image_and_its_gpu(services: dict[str, Any]) -> None:
    on_gpu = compose("docker/compose.gpu.yml")["services"]
    with_token = compose("docker/compose.token.yml")["services"]
    for reward in REWARDS:
        stanza = services[reward]
        assert stanza["build"]["args"]["REWARD"] == reward
        assert stanza["image"] == f"flow-rewards/{reward}"
        assert with_token[reward]["environment"]["REWARD_INSECURE_NO_AUTH"] == "false"
        if reward in ("ocr", "jpeg"):
            assert "profiles" not in stanza
        else:
            assert stanza["profiles"] == ["gpu"]
            engine = on_gpu[f"{reward}-engine" if f"{reward}-engine" in on_gpu else reward]
            (gpu,) = engine["gpus"]
            assert gpu["device_ids"][0].startswith("${" + reward.upper() + "_GPU:-")


def test_a_reward_of_ones_own_has_all_that_the_others_have(services: dict[str, Any]) -> None:
    own = services[OWN]
    file = own["environment"]["REWARD"]
    assert f"${{OWN_REWARD:-./own.py}}:{file}:ro" in own["volumes"]
    assert own["profiles"] == [OWN]
    assert compose("docker/compose.token.yml")["services"][OWN]["secrets"] == ["reward_token"]
    (gpu,) = compose("docker/compose.gpu.yml")["services"][OWN]["gpus"]
    assert gpu["device_ids"] == ["${OWN_GPU:-0}"]


def test_our_images_are_built_and_never_pulled(services: dict[str, Any]) -> None:
    # Without a policy, compose asks the public registry for the name before it builds.
    ours = {name for name, stanza in services.items() if "build" in stanza}
    assert ours == REWARDS | {OWN, "gateway", "reward-gateway", "trainer"}
    assert all(services[name]["pull_policy"] == "never" for name in ours)


def test_everything_runs_confined(services: dict[str, Any]) -> None:
    for name, stanza in services.items():
        assert stanza["read_only"], name
        assert stanza["cap_drop"] == ["ALL"], name
        assert stanza["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in stanza, name


def test_the_trainers_image_can_compile(services: dict[str, Any]) -> None:
    text = (DOCKER / "trainer.Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"install .*\bgcc libc6-dev\b", text)
    caches = re.findall(r"(?:TORCHINDUCTOR_CACHE_DIR|TRITON_CACHE_DIR)=(\S+)", text)
    assert len(caches) == 2
    # not below /tmp, a tmpfs, which Docker mounts noexec
    assert all(cache.startswith("/compiled/") for cache in caches)
    assert "compiled:/compiled" in services["trainer"]["volumes"]
    assert "/compiled" in (DOCKER / "k8s/trainer/job.yaml").read_text(encoding="utf-8")
    assert "PYTORCH_ALLOC_CONF=expandable_segments:True" in text


def test_ports_are_open_to_this_machine_only_unless_there_is_a_token(
    services: dict[str, Any],
) -> None:
    for name, stanza in services.items():
        assert all(port.startswith("127.0.0.1:") for port in stanza.get("ports", ())), name
        assert name not in REWARDS or "ports" not in stanza
    assert "secrets" in compose("docker/compose.token.yml")


def test_the_gateway_has_two_ports_for_every_reward() -> None:
    text = (DOCKER / "haproxy.cfg").read_text(encoding="utf-8")
    for reward in REWARDS | {OWN}:
        http = re.search(rf"listen {reward}\n    bind :81(\d\d)\n", text)
        grpc = re.search(rf"listen {reward}-grpc\n    bind :91(\d\d) proto h2\n", text)
        assert http is not None, reward
        assert grpc is not None, reward
        assert http[1] == grpc[1]
        assert f"server-template {reward} 16 {reward}:8000\n" in text
        assert f"server-template {reward} 16 {reward}:9000 proto h2" in text
        assert f"| `{reward}` | 81{http[1]} | 91{http[1]} |" in (DOCKER / "README.md").read_text()
    for names in re.findall(r"-m str ([a-z0-9 ]+)", text):
        assert set(names.split()) >= REWARDS | {OWN}


def test_images_get_what_their_extra_needs() -> None:
    def packages(*extras: str) -> set[str]:
        command = [sys.executable, str(DOCKER / "requirements.py"), *extras]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return {re.split(r"[<>=\[;\s]", line)[0] for line in run.stdout.splitlines()}

    assert "torch" not in packages("ocr")
    assert {"rapidocr", "onnxruntime", "fastapi", "grpcio"} <= packages("ocr")
    assert {"torch", "transformers", "fastapi"} <= packages("pickscore")
    assert "fastapi" not in packages("trainer")
    assert {"torch", "diffusers", "peft"} <= packages("trainer")


@pytest.mark.parametrize("script", ["install.sh", "mmcv_ops.sh"])
def test_images_carry_a_bill_of_materials(script: str) -> None:
    """Written last, by whatever changes what is installed."""
    *_, last = (DOCKER / script).read_text().splitlines()
    assert last == "pip inspect > /opt/flow-rewards/packages.json"
    inspect = ["-m", "pip", "--python", sys.executable, "inspect"]
    run = subprocess.run([sys.executable, *inspect], capture_output=True, text=True, check=True)
    found = {entry["metadata"]["name"].lower() for entry in json.loads(run.stdout)["installed"]}
    assert {"pillow", "numpy", "pydantic"} <= found


def test_an_image_without_a_reward_is_refused() -> None:
    command = [sys.executable, str(DOCKER / "requirements.py"), "nonsense"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert "pyproject.toml has no extra 'nonsense'; it has " in run.stderr


@pytest.mark.parametrize("script", ["exit 1\n", None])
def test_without_an_engine_nothing_is_tested_and_nothing_fails(
    script: str | None, tmp_path: Path
) -> None:
    starter = tmp_path / "engine.sh"
    if script is not None:
        starter.write_text(script)
    run = subprocess.run(
        ["bash", str(DOCKER / "ci/run.sh"), sys.executable],
        env={
            **os.environ,
            "DOCKER_HOST": f"unix://{tmp_path}/none",
            "CONTAINERS_ENGINE": str(starter),
        },
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0
    (line,) = run.stderr.splitlines()
    assert line.startswith("*** CONTAINERS ARE NOT TESTED: ")


def exported_metrics() -> set[str]:
    metrics = Metrics("any")
    metrics.describe(ScoreRange(name="any"), version="1", revision="r", device="cpu")
    metrics.observe_call("http", "200", 0.1)
    lines = metrics.exposition().decode().splitlines()
    return {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")} | {
        # Labelled by reason: there once something fails.
        "reward_rejections_total",
        "reward_item_errors_total",
    }


@pytest.mark.parametrize(
    "path",
    [
        DOCKER / "observe/prometheus/alerts.yml",
        DOCKER / "observe/grafana/dashboards/rewards.json",
        DOCKER / "k8s/reward/autoscaler.yaml",
        ROOT / "docs/operating.md",
    ],
    ids=lambda path: path.name,
)
def test_every_metric_asked_for_is_exported(path: Any) -> None:
    asked = set(re.findall(r"\breward_[a-z_]+", path.read_text(encoding="utf-8")))
    assert asked - exported_metrics() <= {"reward_token", "reward_services", "reward_wait_s"}
    assert asked & exported_metrics()


def test_alerts_are_explained() -> None:
    alerts = yaml.safe_load((DOCKER / "observe/prometheus/alerts.yml").read_text())
    explained = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    for rule in alerts["groups"][0]["rules"]:
        assert f"`{rule['alert']}`" in explained


def test_prometheus_looks_at_every_reward() -> None:
    config = yaml.safe_load((DOCKER / "observe/prometheus/prometheus.yml").read_text())
    (discovery,) = config["scrape_configs"][0]["dns_sd_configs"]
    assert set(discovery["names"]) >= REWARDS | {OWN}


def test_dashboard_panels_do_not_overlap() -> None:
    board = json.loads((DOCKER / "observe/grafana/dashboards/rewards.json").read_text())
    places = [tuple(panel["gridPos"][key] for key in "xy") for panel in board["panels"]]
    assert len(set(places)) == len(places) >= 10
