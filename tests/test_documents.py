"""What the documents say is run and compared: commands, links, pictures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import ROOT, environment, fixed_ports

DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(
        part.startswith(".") or part in ("runs", "golden") for part in path.relative_to(ROOT).parts
    )
)
# Blocks marked `sh` are run; `console` marks what is only shown (long, or needs Docker or a GPU).
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A `python` block that begins with a comment `# NAME.py` is that file, for the commands.
FILE = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED_TEST = re.compile(r"`(?:tests/)?([\w/]+\.py)?(?:::(test_\w+))?`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def documents_with_commands() -> Iterator[Path]:
    for path in DOCUMENTS:
        # proto/README.md needs services of its own: tests/proto runs its commands
        if path.parent.name != "proto" and BLOCK.search(path.read_text(encoding="utf-8")):
            yield path


def runnable(line: str) -> str:
    """A server that a reader would leave running is started in the background, until it is ready."""
    port = re.search(r"--http-port (\d+)", line)
    if not line.startswith("reward-serve ") or port is None or line.endswith("&"):
        return line
    return f"{line} &\nreward-score --reward http://127.0.0.1:{port[1]} --wait"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = LINK.findall(path.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert not missing


@pytest.mark.parametrize("document", ["security.md", "reliability.md"])
def test_the_tests_that_a_document_names_exist(document: str) -> None:
    """As `folder/file.py`, `folder/file.py::test` or, of the file before, `::test`."""
    named = NAMED_TEST.findall((ROOT / "docs" / document).read_text(encoding="utf-8"))
    assert len(named) > 10
    text = ""
    for file, test in named:
        if file and (test or "/" in file):
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in text, f"{file}::{test}"


@pytest.mark.system
@pytest.mark.timeout(900)  # with the wait for the ports
@pytest.mark.parametrize("path", list(documents_with_commands()), ids=name)
def test_commands_run(path: Path, tmp_path: Path) -> None:
    """Runs a document's `sh` blocks as one script in a copy of the checkout's layout."""
    for entry in ROOT.iterdir():
        if entry.name not in ("runs", ".git"):
            (tmp_path / entry.name).symlink_to(entry)
    text = path.read_text(encoding="utf-8")
    for file, content in FILE.findall(text):
        (tmp_path / file).write_text(content, encoding="utf-8")
    blocks = "\n".join(BLOCK.findall(text))
    commands = "\n".join(runnable(line) for line in blocks.splitlines())
    # the services end before the script does, so that the next document finds the ports free
    script = f"set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n{commands}"
    bin_folder = str(Path(sys.executable).parent)
    with fixed_ports():
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment(PATH=bin_folder + os.pathsep + os.environ["PATH"]),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
