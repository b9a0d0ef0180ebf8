"""Regenerates reward_api/wire/v1/*_pb2* from the .proto files beside them; `--check` fails when they are
out of date.

The generator is pinned low on purpose: protobuf refuses generated code that is newer than its
runtime, so what grpcio-tools 1.62.3 (gencode 4.25) makes loads on protobuf 4.25 to 7, and what a
current generator makes loads on protobuf 7 only. It runs in an environment of its own, because it
needs protobuf 4 itself.
"""

from __future__ import annotations

import argparse
import filecmp
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
FOLDER = Path("reward_api/wire/v1")
OUTPUTS = {
    "reward.proto": ("reward_pb2.py", "reward_pb2.pyi", "reward_pb2_grpc.py"),
    "open_inference.proto": ("open_inference_pb2.py", "open_inference_pb2.pyi"),
}
# setuptools: grpcio-tools 1.62 imports pkg_resources, which newer ones dropped.
REQUIREMENTS = ("grpcio-tools==1.62.3", "setuptools<81")


def generator(home: Path) -> Path:
    """The Python of the generator's environment, made on first use."""
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
    return python


def generate(python: Path, out: Path) -> None:
    for proto, outputs in OUTPUTS.items():
        has_service = any(name.endswith("_grpc.py") for name in outputs)
        subprocess.run(
            [
                python,
                "-m",
                "grpc_tools.protoc",
                f"--proto_path={ROOT}",
                f"--python_out={out}",
                f"--pyi_out={out}",
                *([f"--grpc_python_out={out}"] if has_service else []),
                str(ROOT / FOLDER / proto),
            ],
            check=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument(
        "--venv", type=Path, default=ROOT.parent / ".venv-proto", help="generator's environment"
    )
    arguments = parser.parse_args()
    python = generator(arguments.venv)
    if not arguments.check:
        generate(python, ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(python, Path(folder))
        made, committed = Path(folder) / FOLDER, ROOT / FOLDER
        names = [name for outputs in OUTPUTS.values() for name in outputs]
        stale = [n for n in names if not filecmp.cmp(made / n, committed / n, shallow=False)]
    if stale:
        print(f"out of date: {', '.join(stale)}; run: python proto/generate.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
