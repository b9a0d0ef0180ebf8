"""Finding weights: folders, files, and the real hub client against a hub on loopback."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from model_hub import COMMIT, model_hub
from reward_services.chassis.weights import WeightsError, fetch_weights

FILES = {"config.json": b"{}", "model-1.safetensors": b"one", "README.md": b"not asked for"}
PATTERNS = ["config.json", "model*.safetensors"]

# The hub's client reads its variables when it is imported: so a process of its own.
FETCH = """
import json, sys
from reward_services.chassis.weights import WeightsError, fetch_weights
source, *patterns = sys.argv[1:]
try:
    found = fetch_weights(source, files=patterns)
except WeightsError as error:
    print(json.dumps({"error": str(error)}))
else:
    contents = {path.name: path.read_text() for path in found.files}
    print(json.dumps({"identity": found.identity, "files": contents}))
print(json.dumps({"torch": "torch" in sys.modules}))
"""


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def fetch(hub, cache, source="owner/model", patterns=PATTERNS, **environ):
    variables = {"HF_ENDPOINT": hub, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", **environ}
    done = subprocess.run(
        [sys.executable, "-c", FETCH, source, *patterns],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    answer, modules = map(json.loads, done.stdout.splitlines())
    assert modules == {"torch": False}
    return answer


def test_a_folder(folder):
    found = fetch_weights(str(folder), files=PATTERNS)
    assert [path.name for path in found.files] == ["config.json", "model-1.safetensors"]
    whole = hashlib.sha256()
    for name in ("config.json", "model-1.safetensors"):
        whole.update(name.encode() + hashlib.sha256(FILES[name]).digest())
    assert found.identity == f"sha256:{whole.hexdigest()[:12]}"
    assert found.one("*.safetensors") == folder / "model-1.safetensors"


def test_a_file_stands_for_its_folder(folder):
    found = fetch_weights(str(folder / "model-1.safetensors"), files=["*.pt"])
    assert found.files == (folder / "model-1.safetensors",)


def test_other_contents_are_another_identity(folder):
    before = fetch_weights(str(folder), files=PATTERNS).identity
    (folder / "model-1.safetensors").write_bytes(b"two")
    assert fetch_weights(str(folder), files=PATTERNS).identity != before


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{folder}", "holds no *.bin"),
        ("/no/such/folder", "there is no file or folder /no/such/folder"),
        ("just-a-name", "nor is it a hub name"),
    ],
)
def test_what_is_missing_is_named(folder, source, message):
    with pytest.raises(WeightsError) as caught:
        fetch_weights(source.format(folder=folder), files=["*.bin"])
    assert message in str(caught.value)


def test_one_refuses_to_choose(folder):
    (folder / "model-2.safetensors").write_bytes(b"two")
    with pytest.raises(WeightsError, match="should hold one file"):
        fetch_weights(str(folder), files=PATTERNS).one("*.safetensors")


def test_the_hub_then_the_cache_then_offline(tmp_path):
    expected = {
        "identity": f"owner/model@{COMMIT[:12]}",
        "files": {"config.json": "{}", "model-1.safetensors": "one"},
    }
    with model_hub(FILES) as hub:
        assert fetch(hub, tmp_path) == expected
        assert fetch(hub, tmp_path, source=f"owner/model@{COMMIT}") == expected
    assert fetch(hub, tmp_path) == expected  # the hub is gone
    assert fetch(hub, tmp_path, HF_HUB_OFFLINE="1") == expected


def test_refusals_of_the_hub(tmp_path):
    with model_hub(FILES, gated=True) as hub:
        assert "accept its licence" in fetch(hub, tmp_path)["error"]
    with model_hub(FILES) as hub:
        assert "no repository" in fetch(hub, tmp_path, source="owner/other")["error"]
        assert "no revision v9" in fetch(hub, tmp_path, source="owner/model@v9")["error"]
        assert "holds no *.onnx" in fetch(hub, tmp_path, patterns=["*.onnx"])["error"]
    for environ in ({}, {"HF_HUB_OFFLINE": "1"}):
        error = fetch(hub, tmp_path / "empty", **environ)["error"]
        assert "not in the hub's cache" in error
        assert "local folder" in error
        assert "\n" not in error


def test_the_hubs_lines_are_logged_once():
    """Its library has a handler of its own, beside that of the service."""
    script = """
import logging
from reward_services.chassis import logs
from reward_services.chassis.weights import WeightsError, fetch_weights
logs.configure("info", "json", "any")
try:
    fetch_weights("nobody/nothing", files=["config.json"])
except WeightsError:
    logging.getLogger("huggingface_hub.utils._http").warning("said once")
"""
    environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True
    )
    (line,) = [line for line in run.stderr.splitlines() if "said once" in line]
    assert json.loads(line)["level"] == "warning"
