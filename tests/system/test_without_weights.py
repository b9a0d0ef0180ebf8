"""A service whose weights cannot be had: one clear line, an exit status, and little memory."""

import os
import subprocess
import sys

import pytest

from processes import environment
from reward_services.__main__ import rewards

EMBEDDED = {"jpeg", "ocr"}  # nothing to download
LIMIT_MIB = 300


@pytest.mark.system
@pytest.mark.parametrize("reward", sorted(set(rewards()) - EMBEDDED))
def test_start_up_without_weights(reward, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "reward_services", reward, "--http-port", "0", "--grpc-port", "0"],
        env=environment(HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1"),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    log = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen need not wait any more
    process.stderr.close()

    assert process.returncode == 1
    critical = [line for line in log.splitlines() if "CRITICAL" in line.upper()]
    assert len(critical) == 1, log
    assert f"loading {reward} failed" in critical[0]
    assert "Traceback" not in log
    assert usage.ru_maxrss < LIMIT_MIB * 1024
