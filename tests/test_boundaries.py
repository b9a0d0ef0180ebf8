"""The shape of the repository: what every reward brings, how long a file is, how full a folder. Who
may import whom is in pyproject.toml, and `make check` holds it."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import ROOT, environment

PACKAGES = {"reward_api": "proto", "reward_services": "services", "flow_trainer": "trainer"}
SERVICES = ROOT / "services" / "reward_services"
REWARDS = sorted(
    path.parent.name for path in SERVICES.glob("*/scorer.py") if path.parent.name != "chassis"
)


def sources(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.py")) if "_pb2" not in path.name]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def test_imports_are_absolute_and_the_client_never_knows_torch() -> None:
    for package, root in PACKAGES.items():
        for path in sources(ROOT / root / package):
            found = {name.partition(".")[0] for name in imports(path)}
            assert package != "reward_api" or "torch" not in found, path


def test_every_reward_is_under_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    rewards = contracts["contracts"][3]["layers"][0]
    assert [name.strip() for name in rewards.split("|")] == REWARDS


def test_roots_are_not_packages() -> None:
    for root in PACKAGES.values():
        assert not (ROOT / root / "__init__.py").exists()


@pytest.mark.parametrize("reward", REWARDS)
def test_a_reward_is_complete(reward: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert reward in extras
    assert (SERVICES / reward / "README.md").is_file()
    assert f"\n  {reward}:\n" in (ROOT / "docker-compose.yml").read_text()
    assert f"`{reward}`" in (ROOT / "services" / "README.md").read_text()


def test_files_and_functions_stay_readable() -> None:
    for root in (*PACKAGES.values(), "tests", "benchmarks", "docker"):
        for path in sources(ROOT / root):
            text = path.read_text(encoding="utf-8")
            assert text.count("\n") <= 400, f"{path.relative_to(ROOT)} is longer than 400 lines"
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    length = (node.end_lineno or node.lineno) - node.lineno + 1
                    assert length <= 80, f"{path.relative_to(ROOT)}: {node.name} has {length} lines"


def test_rooms_stay_small() -> None:
    for folder in (*PACKAGES.values(), "tests", "benchmarks"):
        for room in {path.parent for path in sources(ROOT / folder)}:
            files = [path for path in sources(room) if path.parent == room]
            assert len(files) <= 17, f"{room.relative_to(ROOT)} has {len(files)} files: divide it"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("reward_api", {"torch", "reward_services", "flow_trainer"}),
        ("reward_api.cli", {"torch", "reward_services", "flow_trainer"}),
        ("flow_trainer.__main__", {"torch", "diffusers", "transformers", "grpc", "numpy"}),
        ("reward_services.__main__", {"torch", "fastapi", "grpc", "onnxruntime"}),
    ],
)
def test_imports_stay_light(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    ).stdout
    assert not heavy & set(output.split())
