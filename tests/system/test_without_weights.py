"""A service whose weights cannot be had: one clear line, an exit status, and little memory."""

import subprocess
import sys

import pytest

from processes import environment
from reward_services.__main__ import rewards

EMBEDDED = {"jpeg", "ocr"}  # nothing to download
LIMIT_MIB = 300


# The command, and the most memory it ever had: of a child's rusage a part is the parent's.
SERVE = """
import sys
from pathlib import Path
from reward_services.__main__ import main
status = main([sys.argv[1], "--http-port", "0", "--grpc-port", "0"])
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
sys.exit(status)
"""


@pytest.mark.system
@pytest.mark.parametrize("reward", sorted(set(rewards()) - EMBEDDED))
def test_start_up_without_weights(reward, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SERVE, reward],
        env=environment(HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    critical = [line for line in done.stderr.splitlines() if "CRITICAL" in line]
    assert len(critical) == 1, done.stderr
    assert f"loading {reward} failed" in critical[0]
    assert "Traceback" not in done.stderr
    kib = int(done.stdout.split()[-1])
    assert 0 < kib < LIMIT_MIB * 1024
