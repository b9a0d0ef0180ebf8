"""The rewards in their containers, in the order of a working day: up, calls, more replicas, deaths,
tokens, down. The tests build on each other."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from compose_stack import BASE, CI, TOKEN, Stack
from processes import ROOT
from reward_api import RewardClient
from reward_api.errors import AuthenticationFailed

SIGN = ROOT / "docs" / "sign.png"
PROMPT = 'a sign that says "OPEN"'
# What python:3.11-slim-bookworm has, about.
BASE_MB = 130


@pytest.fixture(scope="module", autouse=True)
def running(stack: Stack) -> Iterator[None]:
    stack.build("gateway", "jpeg", "ocr")
    stack.up()
    yield
    stack.down()


def value(url: str, token: str | None = None) -> float:
    with RewardClient(url, timeout_s=60, token=token) as client:
        return client.score([SIGN.read_bytes()], [PROMPT]).values[0]


def finish(load: subprocess.Popen[str]) -> int:
    """The number of items that were scored; fails when a call was lost."""
    output, _ = load.communicate(timeout=180)
    assert load.returncode == 0, output
    return json.loads(output.splitlines()[-1])["items"]


def test_plain_up_starts_what_needs_no_gpu_and_no_downloads(stack: Stack) -> None:
    services = stack.compose("ps", "--services").stdout.split()
    assert sorted(services) == ["gateway", "jpeg", "ocr"]
    for service in services:
        (container,) = stack.containers(service)
        assert stack.inspect(container)["State"]["Health"]["Status"] == "healthy"


def test_the_ocr_image_is_small_and_holds_what_it_needs(stack: Stack) -> None:
    assert stack.mb_above_base("ocr") + BASE_MB < 700
    (container,) = stack.containers("ocr")
    find = "from importlib.util import find_spec; \
print([name for name in ('torch', 'flow_trainer', 'pip') if find_spec(name)])"
    assert stack.docker("exec", container, "python", "-c", find) == "[]"
    assert stack.docker("exec", container, "id", "-u") == "10001"
    assert "command not found" in stack.docker("exec", container, "bash", "-c", "gcc 2>&1 || true")
    assert "Read-only file system" in stack.docker(
        "exec", container, "bash", "-c", "touch /opt/x 2>&1 || true"
    )


def test_an_image_carries_its_bill_of_materials(stack: Stack) -> None:
    (container,) = stack.containers("ocr")
    listed = json.loads(stack.docker("exec", container, "cat", "/opt/flow-rewards/packages.json"))
    found = {p["metadata"]["name"].lower(): p["metadata"]["version"] for p in listed["installed"]}
    assert f"fastapi=={found['fastapi']}" in (ROOT / "constraints.txt").read_text()
    assert "torch" not in found
    assert "opencv-python-headless" in found


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8101", "grpc://127.0.0.1:9101", "http://127.0.0.1:8100/ocr"]
)
def test_this_machine_scores(url: str) -> None:
    assert value(url) == 1.0


def test_the_gateway_routes_by_host_name(stack: Stack) -> None:
    (container,) = stack.containers("jpeg")
    ask = "import sys, http.client as h; c = h.HTTPConnection('gateway', 8100); \
c.request('GET', '/v1/metadata', headers={'Host': sys.argv[1]}); r = c.getresponse(); \
print(r.status, r.read().decode())"
    found = stack.docker("exec", container, "python", "-c", ask, "ocr.localhost:8100")
    assert found.startswith("200")
    assert json.loads(found[4:])["name"] == "ocr"
    unknown = stack.docker("exec", container, "python", "-c", ask, "nonsense.localhost:8100")
    assert unknown == "404 no such reward"


def test_another_container_scores(stack: Stack) -> None:
    for url in ("http://ocr:8000", "grpc://ocr:9000"):
        command = ("run", "--rm", "-T", "--no-deps", "--volume", f"{SIGN}:/sign.png:ro")
        command += ("--entrypoint", "reward-score", "jpeg", "--reward", url, "/sign.png")
        run = stack.compose(*command, "--prompt", PROMPT, "--json")
        assert '"value": 1.0' in run.stdout, run.stdout


def test_a_flag_makes_two_replicas_and_the_client_uses_both(stack: Stack) -> None:
    stack.up("--scale", "ocr=2", "--no-recreate")
    replicas = stack.containers("ocr")
    assert len(replicas) == 2
    count = finish(stack.start_load("http+dns://ocr:8000", 6))
    shares = [items_scored(stack, replica) for replica in replicas]
    assert count > 0
    assert min(shares) > 0.2 * count


def test_a_killed_replica_loses_no_call_and_comes_back(stack: Stack) -> None:
    loads = [
        stack.start_load("http+dns://ocr:8000", 20),
        stack.start_load("grpc+dns://ocr:9000", 20),
        stack.start_load_here("http://127.0.0.1:8101", 20),
    ]
    victim, other = stack.containers("ocr")
    wait_for_items(stack, victim)
    # All processes but the init, as the kernel does it when memory runs out; the engine restarts.
    stack.docker("exec", victim, "bash", "-c", "kill -9 -1", check=False)
    for load in loads:
        assert finish(load) > 0
    stack.up("--scale", "ocr=2", "--no-recreate")
    assert stack.inspect(victim)["RestartCount"] == 1
    assert stack.inspect(other)["RestartCount"] == 0


def test_a_stopped_replica_drains(stack: Stack) -> None:
    loads = [
        stack.start_load("grpc+dns://ocr:9000", 15),
        stack.start_load_here("grpc://127.0.0.1:9101", 15),
    ]
    victim, _ = stack.containers("ocr")
    wait_for_items(stack, victim)
    stack.docker("stop", "-t", "45", victim)
    assert stack.inspect(victim)["State"]["ExitCode"] == 0
    for load in loads:
        assert finish(load) > 0


def test_a_reward_starts_again_under_the_same_address(stack: Stack) -> None:
    stack.compose("restart", "--timeout", "45", "ocr")
    stack.up("--scale", "ocr=1", "--no-recreate")
    assert value("http://127.0.0.1:8101") == 1.0


def test_with_a_token_strangers_are_refused(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o755)
    token = tmp_path / "token"
    token.write_text("a-token-of-tests\n")
    token.chmod(0o644)
    monkeypatch.setenv("REWARD_TOKEN_FILE", str(token))
    monkeypatch.setenv("GATEWAY_ADDRESS", "127.0.0.1")
    stack.up("jpeg", "gateway", files=(*BASE, TOKEN))
    for url in ("http://127.0.0.1:8102", "grpc://127.0.0.1:9102"):
        assert value(url, token="a-token-of-tests") > -1e9
        with pytest.raises(AuthenticationFailed):
            value(url)


def test_geneval_scores_on_a_cpu(stack: Stack, tiny_weights: Path) -> None:
    # Of the rewards with torch it has the most libraries.
    stack.build("geneval")
    stack.up("geneval", files=(*BASE, CI))
    metadata = {"tag": "single_object", "include": [{"class": "bench", "count": 1}]}
    with RewardClient("grpc://127.0.0.1:9103", timeout_s=60) as client:
        batch = client.score([SIGN.read_bytes()], ["a bench"], [metadata])
    assert batch.valid.all()
    assert batch.values[0] <= 1.0
    assert stack.mb_above_base("geneval") + BASE_MB < 1700
    stack.compose("rm", "--stop", "--force", "geneval", files=(*BASE, CI))


def test_the_trainer_trains_against_the_network(stack: Stack) -> None:
    stack.build("trainer")
    stack.up("ocr")
    sizes = {
        "epochs": 3,
        "sampling.prompts_per_epoch": 2,
        "sampling.group_size": 4,
        "sampling.num_steps": 4,
        "sampling.window.size": 2,
        "update.trained_steps": 2,
        "evaluation.every": 0,
        "evaluation.num_steps": 4,
        "evaluation.images_per_prompt": 1,
        "evaluation.heldout_images_per_prompt": 1,
    }
    settings = [word for pair in sizes.items() for word in ("--set", "{}={}".format(*pair))]
    url = ("--set", "rewards.ocr.url=grpc+dns://ocr:9000")
    recipe = ("train", "recipes/tiny_sd3_ocr.toml", "--out", "runs/test", *settings, *url)
    # Two threads on two cores that others use as well are slower than one.
    one_thread = ("--env", "OMP_NUM_THREADS=1")
    run = stack.compose("run", "--rm", "-T", *one_thread, "trainer", *recipe)
    summary = json.loads(run.stdout[run.stdout.index("{") :])
    assert summary["epochs"] == 3
    kept = ("run", "--rm", "-T", "--no-deps", "--entrypoint", "ls", "trainer", "runs/test")
    assert {"metrics.jsonl", "summary.json"} <= set(stack.compose(*kept).stdout.split())


def test_services_and_trainer_do_not_contain_each_other(stack: Stack) -> None:
    find = "import importlib.util as u; print(u.find_spec('reward_services'))"
    command = ("run", "--rm", "-T", "--no-deps", "--entrypoint", "python", "trainer", "-c", find)
    assert stack.compose(*command).stdout.strip() == "None"


def test_down_leaves_nothing(stack: Stack) -> None:
    assert stack.leftovers() == []


def items_scored(stack: Stack, container: str) -> int:
    read = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/metrics').read().decode())"
    text = stack.docker("exec", container, "python", "-c", read)
    scored = [line for line in text.splitlines() if line.startswith("reward_items_total{")]
    return sum(int(float(line.split()[-1])) for line in scored if 'outcome="score"' in line)


def wait_for_items(stack: Stack, container: str) -> None:
    """Until the load has reached this replica: twice, so that calls are under way."""
    start, deadline = items_scored(stack, container), time.monotonic() + 60
    while items_scored(stack, container) < start + 16:
        assert time.monotonic() < deadline
        time.sleep(0.2)
