"""The public face: names, imports, README."""

import os
import re
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image as pillow

import reward_api
from reward_api.errors import STATUS, Reason, ServerFault, error_for
from reward_api.testing import FakeReward

PROTO = Path(reward_api.__file__).parents[1]
README = (PROTO / "README.md").read_text()


def test_public_names_are_importable_and_sorted():
    assert reward_api.__all__ == sorted(reward_api.__all__)
    assert set(reward_api.__all__) == set(reward_api._MODULES)
    for name in reward_api.__all__:
        assert getattr(reward_api, name).__name__ == name
        assert name in dir(reward_api)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        reward_api.Nothing  # noqa: B018


def modules_after(code):
    result = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        cwd=PROTO,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(result.stdout.split())


def test_import_is_light():
    assert not {"numpy", "grpc", "pydantic"} & modules_after("import reward_api")


def test_the_client_brings_neither_torch_nor_services():
    loaded = modules_after("from reward_api import *\nimport reward_api.testing, reward_api.cli")
    assert "reward_api.client" in loaded
    roots = {name.partition(".")[0] for name in loaded}
    assert not {"torch", "reward_services", "flow_trainer", "fastapi", "grpc"} & roots


def test_modules_are_small():
    for path in (PROTO / "reward_api").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


# README

CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def test_the_error_table_is_that_of_the_code():
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\w+) \| (\w+) \| (\w+) \| .+ \|$", README, re.M)
    assert [row[0] for row in rows] == [str(reason) for reason in Reason]
    for name, http, code, again, raised in rows:
        status, error = STATUS[Reason(name)], error_for(Reason(name), "")
        assert int(http) == status.http, name
        assert code == CODES[status.grpc], name
        retried = "once" if isinstance(error, ServerFault) else "yes"
        assert again == (retried if status.retryable else "no"), name
        assert raised == type(error).__name__, name


def blocks(language):
    found = re.findall(rf"```{language}\n(.*?)```", README, re.S)
    assert found
    return found


@pytest.fixture
def sign(tmp_path):
    pillow.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(tmp_path / "sign.png")
    return tmp_path


@pytest.fixture
def at_service(serve):
    """Rewrites the README's addresses to those of a running service."""
    service = serve(FakeReward(name="ocr"))

    def rewrite(text):
        text = text.replace("http://localhost:8101", service.urls["http"])
        return text.replace("grpc://localhost:9101", service.urls["grpc"])

    return rewrite


def run(command, folder):
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROTO)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


def test_python_examples_run(sign, at_service):
    code = at_service("\n".join(blocks("python")))
    checks = "assert score == 1.0 and scores.valid.all() and later.result().valid.all()"
    run([sys.executable, "-W", "error", "-c", f"{code}\n{checks}"], sign)


def test_shell_examples_run(sign, at_service):
    for block in blocks("sh"):
        command = f"{sys.executable} -m reward_api.cli"
        output = run(["bash", "-euc", at_service(block).replace("reward-score", command)], sign)
        assert "1.0" in output
