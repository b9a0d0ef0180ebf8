"""The service as a real process: start, readiness, drain, exit status."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from conftest import raw_request

from reward_api.wire.framing import encode_request

HERE = Path(__file__).parent
ROOT = HERE.parents[2]

pytestmark = pytest.mark.system


class Server:
    def __init__(self, folder, *flags, env=None):
        self.port_file = folder / "ports.json"
        self.log = (folder / "log").open("w+")
        command = [sys.executable, HERE / "fake_scorer.py", "--http-port", "0", "--grpc-port", "0"]
        command += ["--port-file", self.port_file, "--log-format", "json", *flags]
        path = os.pathsep.join([str(ROOT / "proto"), str(ROOT / "services")])
        self.process = subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | {"PYTHONPATH": path} | (env or {}),
        )

    @property
    def url(self):
        ends = time.monotonic() + 30
        while not self.port_file.exists():
            assert self.process.poll() is None, self.logged()
            assert time.monotonic() < ends
            time.sleep(0.02)
        return f"http://127.0.0.1:{json.loads(self.port_file.read_text())['http_port']}"

    def wait_ready(self):
        """The line that says so."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def logged(self):
        self.log.flush()
        return Path(self.log.name).read_text()

    def end(self, timeout=15):
        return self.process.wait(timeout)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self.log.close()


@pytest.fixture
def server(tmp_path):
    servers = []

    def start(*flags, **options):
        servers.append(Server(tmp_path, *flags, **options))
        return servers[-1]

    yield start
    for one in servers:
        one.close()


def _post(url, prompt=""):
    headers, parts = encode_request(raw_request(0, prompt))
    body = b"".join(map(bytes, parts))
    return httpx.post(f"{url}/v1/score", content=body, headers=headers, timeout=20)


@pytest.fixture
def background():
    with ThreadPoolExecutor() as pool:
        yield pool


def _wait_inflight(url):
    ends = time.monotonic() + 15
    while "reward_inflight_requests 1.0" not in httpx.get(f"{url}/metrics").text:
        assert time.monotonic() < ends
        time.sleep(0.02)


def _wait_draining(url):
    ends = time.monotonic() + 15
    while (answer := httpx.get(f"{url}/readyz")).status_code == 200:
        assert time.monotonic() < ends
        time.sleep(0.02)
    assert (answer.status_code, answer.json()["reason"]) == (503, "draining")


@pytest.fixture
def holding(server, background, tmp_path):
    """A server with a call that ends when the file `scored` is there."""
    for stage in ("loaded", "warm"):
        (tmp_path / stage).touch()
    running = server("--stages", tmp_path)
    url = running.url
    running.wait_ready()
    call = background.submit(_post, url, "hold")
    _wait_inflight(url)
    return running, url, call


def test_ports_open_before_loading_and_readiness_follows_warm_up(server, tmp_path):
    running = server("--stages", tmp_path)
    url = running.url
    for state, ended_by in (("loading", "loaded"), ("warming", "warm")):
        while (answer := httpx.get(f"{url}/readyz")).json()["reason"] != state:
            pass
        assert answer.status_code == 503
        assert httpx.get(f"{url}/livez").status_code == 200
        refused = _post(url)
        assert (refused.status_code, refused.json()["reason"]) == (503, "LOADING")
        (tmp_path / ended_by).touch()
    line = running.wait_ready().split()
    assert line[:2] == ["ready", url]
    assert line[2].startswith("grpc://127.0.0.1:")
    assert _post(url).status_code == 200


def test_a_failed_load_is_one_clear_line_and_a_non_zero_exit(server):
    running = server("--load-error", "no weights at weights.bin")
    assert running.end() == 2
    lines = [json.loads(line) for line in running.logged().splitlines()]
    (line,) = [line for line in lines if line["level"] == "critical"]
    assert "no weights at weights.bin" in line["message"]
    assert "Traceback" not in running.logged()


def test_a_taken_port_is_one_clear_line(server, tmp_path):
    url = server().url
    (tmp_path / "second").mkdir()
    second = Server(tmp_path / "second", "--http-port", url.rpartition(":")[2])
    try:
        assert second.end() == 2
        assert "ddress already in use" in second.logged()
    finally:
        second.close()


def test_sigterm_finishes_accepted_work_and_exits_zero(holding, tmp_path):
    running, url, call = holding
    running.process.send_signal(signal.SIGTERM)
    _wait_draining(url)
    refused = _post(url)
    assert (refused.status_code, refused.json()["reason"]) == (503, "DRAINING")
    (tmp_path / "scored").touch()
    assert call.result().status_code == 200
    assert running.end() == 0


def test_the_readiness_delay_still_takes_calls(server):
    running = server("--readiness-delay-s", "2")
    url = running.url
    running.wait_ready()
    running.process.send_signal(signal.SIGTERM)
    _wait_draining(url)
    assert _post(url).status_code == 200
    assert running.end() == 0


def test_a_signal_while_loading_ends_the_process(server, tmp_path):
    running = server("--stages", tmp_path)
    assert httpx.get(f"{running.url}/readyz").json()["reason"] == "loading"
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 0


def test_a_second_signal_during_the_drain(holding):
    running, url, call = holding
    running.process.send_signal(signal.SIGTERM)
    _wait_draining(url)
    running.process.send_signal(signal.SIGTERM)
    assert running.end() == 128 + signal.SIGTERM
    assert isinstance(call.exception(), httpx.TransportError)


@pytest.mark.parametrize("prompt", ["lost", "kill"])
def test_a_lost_device_answers_and_exits_non_zero(server, prompt):
    running = server()
    url = running.url
    running.wait_ready()
    answer = _post(url, prompt)
    assert (answer.status_code, answer.json()["reason"]) == (503, "DEVICE_FAILED")
    assert running.end() == 3


def test_settings_from_the_environment_and_typos(server):
    running = server(
        env={
            "REWARD_MAX_REQUEST_ITEMS": "5",
            "REWARD_FAKE_DELAY_MS": "1",
            "REWARD_MAX_BATCH_ITEM": "3",
        }
    )
    metadata_url = f"{running.url}/v1/metadata"
    running.wait_ready()
    metadata = httpx.get(metadata_url).json()
    assert metadata["limits"]["max_request_items"] == 5
    assert metadata["settings"]["delay_ms"] == "1"
    logged = running.logged()
    assert "REWARD_MAX_BATCH_ITEM is not a setting; did you mean REWARD_MAX_BATCH_ITEMS?" in logged
