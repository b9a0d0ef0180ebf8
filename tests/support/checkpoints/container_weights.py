"""Tiny random checkpoints for the containers of tests: `container_weights.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from geneval_clip import write_open_clip
from mask2former_checkpoint import write_checkpoint


def main(folder: Path) -> None:
    write_open_clip(folder / "geneval-clip")
    write_checkpoint(folder / "geneval-detector")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
