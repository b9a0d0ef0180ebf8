"""No mistake of a user ends in a traceback: one line that names the field, the value and the way out, and
exit status 2. A table over `reward-serve`; reward-score's is in tests/proto/test_cli.py."""

import contextlib
import importlib
import json
import socket
import subprocess
import sys
import time

import pytest

from processes import environment
from reward_services.__main__ import main, rewards
from reward_services.chassis.cli import SettingsError, parse_settings
from reward_services.chassis.settings import ServiceSettings

SETTINGS = [
    ([], "usage: reward-serve"),
    (["ocrr"], "did you mean ocr"),
    (["nothing-like-it"], "there is no reward"),
    (["../ocr"], "there is no reward"),
    (["jpeg", "--http-port", "abc"], "--http-port (REWARD_HTTP_PORT)"),
    (["jpeg", "--http-port", "70000"], "--http-port (REWARD_HTTP_PORT)"),
    (["jpeg", "--grpc-port", "-1"], "--grpc-port (REWARD_GRPC_PORT)"),
    (["jpeg", "--http-port", "none", "--grpc-port", "none"], "nothing to serve"),
    (["jpeg", "--device", "gpu"], "choose auto, cpu, cuda"),
    (["jpeg", "--device", "cuda:x"], "--device (REWARD_DEVICE)"),
    (["jpeg", "--max-batch-items", "0"], "greater than or equal to 1"),
    (["jpeg", "--priority-aging-s", "nan"], "--priority-aging-s"),
    (["jpeg", "--drain-s", "inf"], "--drain-s"),
    (["jpeg", "--log-level", "loud"], "--log-level"),
    (["jpeg", "--max-request-bytes", "9" * 20], "--max-request-bytes"),
    (["jpeg", "--port-file", ""], "is a folder: name a file"),
    (["jpeg", "--port-file", "/"], "is a folder: name a file"),
    (["jpeg", "--dialects", "oip,opi"], "there is no 'opi'"),
    (["jpeg", "--host", "0.0.0.0"], "REWARD_TOKEN_FILE"),
    (["jpeg", "--host", "0.0.0.0", "--dialects", "pickle", "--insecure-no-auth"], "pickle"),
    (["jpeg", "--tls-cert-file", "x.pem"], "belong together"),
    (["jpeg", "--tls-client-ca-file", "x.pem"], "needs tls_cert_file"),
    (["jpeg", "--token", "a", "--token-file", "b"], "not both"),
    (["jpeg", "--httpport", "1"], "--httpport"),
    (["ocr", "--score", "best"], "--score (REWARD_OCR_SCORE)"),
    (["ocr", "--min-confidence", "2"], "--min-confidence"),
    (["ocr", "--runtime", "paddle"], "set engine=paddleocr too"),
    (["unifiedreward", "--family", "v3"], "--family"),
]


@pytest.mark.parametrize(("arguments", "message"), SETTINGS)
def test_a_wrong_setting(arguments, message, capsys):
    try:
        status = main(arguments)
    except SystemExit as error:  # argparse's own
        status = error.code
    said = capsys.readouterr()
    assert status == 2
    assert message in said.err + said.out
    assert "Traceback" not in said.err


OWN_FILES = [
    ("none.py", None, "there is no file none.py"),
    ("folder.py/x", "", "there is no file folder.py"),
    ("My-Reward.py", "", "My-Reward.py: the file's name is the reward's"),
    ("mine.py", "def f(:", "mine.py:1: invalid syntax"),
    (
        "mine.py",
        "import no_such_package",
        "No module named 'no_such_package', which mine.py imports",
    ),
    ("mine.py", "x = 1", "mine.py has no SCORER"),
    ("mine.py", "SCORER = 1", "mine.py has no SCORER"),
    (
        "mine.py",
        "from reward_services.chassis.scorer import Scorer as SCORER",
        "mine.py: Scorer lacks info, load, score",
    ),
]


@pytest.mark.parametrize(("file", "text", "message"), OWN_FILES)
def test_a_file_that_is_no_reward(file, text, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if text is not None:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    assert main([file.partition("/")[0], "--http-port", "0"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("reward-serve: ")
    assert message in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "module", ["reward_api.cli", "reward_services", "reward_services.gateway", "flow_trainer"]
)
def test_every_command_says_its_version(module):
    command = [sys.executable, "-m", module, "--version"]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert len(run.stdout.splitlines()) == 1
    assert run.stdout.startswith(("reward-", "flow-grpo "))


BAD = ["", "nan", "inf", "-1", "x", "[]", "1e400", "ünï", "a\nb", "9" * 20, "/no/such", "none"]


@pytest.mark.parametrize("name", rewards())
def test_every_setting_takes_a_value_or_names_itself(name):
    """A walk over all settings of all rewards, as flags and as variables."""
    own = importlib.import_module(f"reward_services.{name}.scorer").SCORER.Settings
    for field in [*own.model_fields, *(ServiceSettings.model_fields if name == "jpeg" else ())]:
        flag = f"--{field.replace('_', '-')}"
        variable = (
            f"REWARD_{field}" if field in ServiceSettings.model_fields else f"REWARD_{name}_{field}"
        )
        for value in BAD:
            for argv, environ in (([f"{flag}={value}"], {}), ([], {variable.upper(): value})):
                said = _refusal(name, own, argv, environ)
                assert said is None or flag in said or field in said, (argv, environ)


def _refusal(name, own, argv, environ):
    try:
        parse_settings(name, own, argv, environ)
    except SettingsError as error:
        return str(error)
    except SystemExit as left:  # argparse's own, which names the flag
        return argv[0].partition("=")[0] if left.code == 2 else "ended"


def test_a_wrong_variable(monkeypatch, capsys):
    monkeypatch.setenv("REWARD_HTTP_PORT", "http")
    assert main(["jpeg"]) == 2
    assert "--http-port (REWARD_HTTP_PORT)" in capsys.readouterr().err


def _serve(folder, *arguments, **variables):
    """Exit status and the lines of the log."""
    run = subprocess.run(
        [sys.executable, "-m", "reward_services", *arguments],
        env=environment(HF_HUB_OFFLINE="1", HF_HOME=str(folder / "hub"), **variables),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "Traceback" not in run.stderr
    return run.returncode, run.stderr


@contextlib.contextmanager
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield str(taken.getsockname()[1])


OPENING = [
    (["--token-file", "missing"], "--token-file missing: there is no such file"),
    (["--token-file", "."], "there is no such file"),
    (["--port-file", "no/such/folder/ports.json"], "no/such/folder"),
    (
        ["--tls-cert-file", "missing.pem", "--tls-key-file", "missing.pem"],
        "--tls-cert-file missing.pem",
    ),
    (["--host", "no.such.host.invalid", "--insecure-no-auth"], "no.such.host.invalid"),
]


@pytest.mark.system
@pytest.mark.parametrize(("flags", "message"), OPENING)
def test_a_setting_that_only_opening_finds(tmp_path, flags, message):
    status, said = _serve(tmp_path, "jpeg", "--http-port", "0", "--grpc-port", "0", *flags)
    assert (status, message in said) == (2, True), said


@pytest.mark.system
@pytest.mark.parametrize("flag", ["--http-port", "--grpc-port"])
def test_a_taken_port_names_the_flag_and_the_way_out(tmp_path, flag):
    other = {"--http-port": "--grpc-port", "--grpc-port": "--http-port"}[flag]
    with taken_port() as port:
        status, said = _serve(tmp_path, "jpeg", flag, port, other, "0")
    assert status == 2
    assert f"{flag}: cannot listen on 127.0.0.1:{port}" in said
    assert f"choose another port with {flag}" in said
    assert "--next-free-port" in said


@pytest.mark.system
def test_the_next_free_port_is_taken_when_asked_for(tmp_path):
    with taken_port() as http:
        flags = ["--http-port", http, "--grpc-port", "0", "--next-free-port"]
        ports_file = tmp_path / "own.json"
        command = [sys.executable, "-m", "reward_services", "jpeg", *flags]
        process = subprocess.Popen(
            [*command, "--port-file", str(ports_file)], env=environment(), cwd=tmp_path
        )
        try:
            deadline = time.monotonic() + 60
            while not ports_file.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert json.loads(ports_file.read_text())["http_port"] > int(http)
        finally:
            process.terminate()
            assert process.wait(30) == 0


@pytest.mark.system
def test_missing_weights_are_told_with_the_whole_way_out(tmp_path):
    status, said = _serve(tmp_path, "pickscore", "--http-port", "0", "--grpc-port", "0")
    assert status == 2
    assert "allow the download, fill the cache (HF_HOME), or name a local folder" in said
