"""The container files against the tools that will read them; no engine is needed."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from compose_stack import BASE, CI, GPU, TOKEN, Stack
from processes import ROOT

TOOLS = Path(os.environ["TEST_CONTAINERS"])
OVERRIDES = [
    combination
    for size in range(4)
    for combination in itertools.combinations((GPU, TOKEN, CI), size)
]
PROFILES = ["", "gpu", "train", "observe", "*"]


def tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [TOOLS / name, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("overrides", OVERRIDES, ids=lambda names: "+".join(names) or "base")
def test_every_combination_of_files_and_profiles_is_valid(
    stack: Stack, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARD_TOKEN_FILE", "docker/observe/no_token")
    for profile in PROFILES:
        chosen = ("--profile", profile) if profile else ()
        run = stack.compose(*chosen, "config", "--quiet", files=(*BASE, *overrides))
        assert run.returncode == 0


def test_a_token_is_not_forgotten(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWARD_TOKEN_FILE", raising=False)
    run = stack.compose("config", "--quiet", files=(*BASE, TOKEN), check=False)
    assert run.returncode != 0
    assert "the file with the token" in run.stderr


@pytest.mark.parametrize("name", [*BASE, GPU, TOKEN, CI])
def test_compose_files_follow_the_schema(name: str, tmp_path: Path) -> None:
    # The schema knows no YAML tags.
    plain = tmp_path / "compose.yml"
    plain.write_text(re.sub(r"!(override|reset)\b", "", (ROOT / name).read_text()))
    run = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", plain)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docker").glob("*.Dockerfile")), ids=lambda p: p.name
)
def test_dockerfiles_pass_hadolint(path: Path) -> None:
    run = tool("hadolint", "--failure-threshold", "info", path)
    assert run.returncode == 0, run.stdout


@pytest.fixture(scope="module", params=["cpu", "gpu", "train"])
def manifests(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    run = tool("kubectl", "kustomize", f"docker/k8s/overlays/{request.param}")
    assert run.returncode == 0, run.stderr
    return list(yaml.safe_load_all(run.stdout))


@pytest.mark.parametrize("version", ["1.32", "1.37"])
def test_manifests_are_valid(manifests: list[dict[str, Any]], version: str, tmp_path: Path) -> None:
    # A custom resource, whose schema comes with the Prometheus operator.
    own = [manifest for manifest in manifests if manifest["kind"] != "ServiceMonitor"]
    assert len(own) >= len(manifests) - 1
    path = tmp_path / "manifests.yaml"
    path.write_text(yaml.safe_dump_all(own))
    run = tool("kubernetes-validate", "--strict", "--kubernetes-version", version, path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Couldn't find schema" not in run.stdout + run.stderr


def test_selectors_find_the_pods_that_they_are_meant_for(manifests: list[dict[str, Any]]) -> None:
    by_name = {(m["kind"], m["metadata"]["name"]): m for m in manifests}
    deployments = [name for kind, name in by_name if kind == "Deployment"]
    assert deployments
    for name in deployments:
        pods = by_name["Deployment", name]["spec"]["template"]
        labels = pods["metadata"]["labels"].items()
        spread = pods["spec"]["topologySpreadConstraints"][0]["labelSelector"]
        network = by_name["NetworkPolicy", name]["spec"]
        selectors = [
            by_name["Service", name]["spec"]["selector"],
            by_name["PodDisruptionBudget", name]["spec"]["selector"]["matchLabels"],
            network["podSelector"]["matchLabels"],
            spread["matchLabels"],
        ]
        for selector in selectors:
            assert selector["reward"] == name.removesuffix("-reward")
            assert selector.items() <= labels
        # Callers are other pods: the reward's own label must not have slipped in.
        assert "matchLabels" not in network["ingress"][0]["from"][0]["podSelector"]
        scaled = by_name["HorizontalPodAutoscaler", name]["spec"]["scaleTargetRef"]
        assert scaled["name"] == name
