"""The base install is the client: a wheel in an empty environment, used from outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from processes import ROOT

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]

CODE = """
import sys
import reward_api
assert "site-packages" in reward_api.__file__, reward_api.__file__
for name in reward_api.__all__:
    getattr(reward_api, name)
from reward_api.testing import FakeReward
heavy = {"torch", "diffusers", "transformers", "fastapi", "reward_services", "flow_trainer"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""


def test_the_client_installs_alone(tmp_path: Path) -> None:
    # what is found must be what was installed
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            list(map(str, command)),
            cwd=tmp_path,
            env=bare,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    venv = tmp_path / "venv"
    python = venv / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    run(*pip, "install", "-q", "--no-compile", "-c", ROOT / "constraints.txt", ROOT)
    run(python, "-c", CODE)
    assert "usage" in run(venv / "bin" / "reward-score", "--help")
    installed = run(*pip, "list", "--format=freeze").splitlines()
    assert len(installed) < 25, installed
