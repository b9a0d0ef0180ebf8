import platform
import subprocess
import sys

from reward_api import malloc


def test_keep_freed_buffers():
    """In a process of its own: it changes the whole process."""
    code = "from reward_api.malloc import keep_freed_buffers; print(keep_freed_buffers())"
    folder = malloc.__file__.rpartition("/reward_api/")[0]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == str(platform.libc_ver()[0] == "glibc")
