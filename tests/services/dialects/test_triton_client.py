"""The published tritonclient, HTTP and gRPC, synchronous and asyncio, against a running service.

It lives in an environment of its own (`make test-triton`), because it wants protobuf < 7.
"""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from processes import ROOT
from reward_services import __version__

PYTHON = ROOT / ".venv-triton" / "bin" / "python"
SCRIPT = Path(__file__).with_name("triton_calls.py")

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="tritonclient is not installed here: make test-triton"
)


async def _call(running, folder):
    """What triton_calls.py found."""
    target = running.url.removeprefix("http://")
    process = await asyncio.create_subprocess_exec(
        *(PYTHON, SCRIPT, target, running.target, folder),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return json.loads(out)


async def test_the_published_client(serve, tmp_path, pixels, files, values):
    np.save(tmp_path / "pixels.npy", pixels)
    (tmp_path / "files").mkdir()
    for i, file in enumerate(files):
        (tmp_path / "files" / f"{i}.png").write_bytes(file)
    running = await serve()
    found = await _call(running, tmp_path)
    for protocol in ("http", "grpc"):
        _check(found[protocol], values)
    for name in ("json", "http_aio", "grpc_aio"):
        assert found[name]["SCORE"] == values, name
    assert {"n": 5} in running.scorer.metadata
    assert await running.counted("oip-http") == {"200": 4, "500": 1, "404": 1}
    assert await running.counted("oip-grpc") == {"OK": 3, "INTERNAL": 1, "NOT_FOUND": 1}


def _check(found, values):
    count = len(values)
    assert found["live"] is found["ready"] is found["model_ready"] is True
    assert found["server"]["name"] == "flow-rewards"
    assert "model_configuration" in found["server"]["extensions"]
    config = found["config"].get("config", found["config"])  # over gRPC it is a member
    assert [tensor["name"] for tensor in config["output"]] == ["SCORE", "length"]
    (statistics,) = found["statistics"]["model_stats"]
    assert statistics["name"] == "judged"
    models = found["index"].get("models") if isinstance(found["index"], dict) else found["index"]
    assert models == [{"name": "judged", "version": __version__, "state": "READY", **models[0]}]
    assert "this service is 'judged'" in found["unknown"]
    assert found["model"]["versions"] == [__version__]
    assert [tensor["name"] for tensor in found["model"]["inputs"]] == [
        "IMAGE",
        "PROMPT",
        "METADATA",
    ]
    assert [tensor["name"] for tensor in found["model"]["outputs"]] == ["SCORE", "length"]
    assert found["raw"] == {"SCORE": values, "length": [1.0] * count}
    assert found["files"] == {"SCORE": values, "length": [2.0] * count}
    assert found["id"] == "a-7"
    assert "1 of 6 items have no score; item 0: MODEL_ERROR" in found["failed_item"]
    assert "judged" in found["wrong_model"]
