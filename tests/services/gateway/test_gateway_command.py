"""`reward-gateway` as a process: its mistakes, its token, TLS to its callers and to the rewards."""

import base64
import contextlib
import io
import shutil
import socket
import ssl
import subprocess
import sys

import httpx
import pytest
from PIL import Image as pillow

from processes import environment
from reward_services.gateway.__main__ import main
from reward_services.gateway.options import make_parser, parse

ONE = ["--reward", "a=http://a:1"]
MISTAKES = [
    ([], "--reward"),
    (["--reward", "http://a:1"], "expected NAME=URL"),
    (["--reward", "a=b"], "expected http://host:port"),
    (["--reward", "a="], "expected NAME=URL"),
    ([*ONE, "--reward", "a=http://b:1"], "same name"),
    ([*ONE, "--alias", "x"], "expected ALIAS=NAME"),
    ([*ONE, "--alias", "x=b"], "there is no reward of this name"),
    ([*ONE, "--host", "0.0.0.0"], "--token-file"),
    ([*ONE, "--http-port", "70000"], "--http-port"),
    ([*ONE, "--http-port", "none"], "--http-port"),
    ([*ONE, "--http-port", "-1"], "--http-port"),
    ([*ONE, "--timeout", "nan"], "--timeout"),
    ([*ONE, "--timeout", "fast"], "invalid number of seconds value: 'fast'"),
    ([*ONE, "--max-request-bytes", "1e9"], "invalid number of bytes value: '1e9'"),
    ([*ONE, "--max-held-bytes", "0"], "--max-held-bytes"),
    ([*ONE, "--token-file", "missing"], "--token-file missing: there is no such file"),
    ([*ONE, "--token-file", "."], "--token-file .: there is no such file"),
    ([*ONE, "--token-file", "empty"], "the token is empty"),
    ([*ONE, "--upstream-token-file", "noise"], "--upstream-token-file noise"),
    ([*ONE, "--tls-cert-file", "noise"], "--tls-cert-file and --tls-key-file belong together"),
    ([*ONE, "--tls-client-ca-file", "noise"], "needs --tls-cert-file"),
    ([*ONE, "--tls-cert-file", "no.pem", "--tls-key-file", "noise"], "--tls-cert-file no.pem"),
    ([*ONE, "--tls-cert-file", "noise", "--tls-key-file", "noise"], "noise and noise are no"),
    ([*ONE, "--upstream-ca-file", "no.pem"], "--upstream-ca-file no.pem"),
    (["--reward", "a=https://a:1", "--upstream-ca-file", "noise"], "noise holds no certificate"),
    ([*ONE, "--upstream-key-file", "noise"], "belong together"),
    ([*ONE, "--rewrd", "x"], "--rewrd"),
    ([*ONE, "--host", "no.such.host.invalid", "--insecure-no-auth"], "no.such.host.invalid"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise").write_bytes(bytes(range(128, 256)))
    (tmp_path / "empty").write_text("\n")
    try:
        status = main(arguments)
    except SystemExit as caught:
        status = caught.code
    said = capsys.readouterr().err
    assert status == 2
    assert message in said
    assert "Traceback" not in said


def test_a_taken_port_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main([*ONE, "--http-port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"--http-port: cannot listen on 127.0.0.1:{port}" in said
    assert "--next-free-port" not in said  # it has no such flag


def test_a_variable_is_checked_as_its_flag_is(capsys, monkeypatch):
    monkeypatch.setenv("REWARD_GATEWAY_TIMEOUT", "soon")
    with pytest.raises(SystemExit) as caught:
        main(ONE)
    assert caught.value.code == 2
    assert "--timeout" in capsys.readouterr().err


def test_variables_stand_for_every_flag(monkeypatch):
    for name, value in {
        "REWARD": "a=http://a:1,http://b:1 ocr=grpc://c:2",
        "ALIAS": "x=a",
        "HTTP_PORT": "0",
        "HOST": "0.0.0.0",
        "INSECURE_NO_AUTH": "true",
    }.items():
        monkeypatch.setenv(f"REWARD_GATEWAY_{name}", value)
    options = parse(make_parser(None), [])
    assert options.rewards == {"a": ["http://a:1", "http://b:1"], "ocr": ["grpc://c:2"]}
    assert options.aliases == {"x": "a"}
    assert (options.host, options.http_port) == ("0.0.0.0", 0)


@contextlib.contextmanager
def running(folder, *flags):
    """The URL of a gateway whose folder is `folder`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "reward_services.gateway", "--http-port", "0", *flags],
        env=environment(),
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[1]
    finally:
        process.terminate()
        assert process.wait(30) == 0
        process.stdout.close()


def asked(reward):
    file = io.BytesIO()
    pillow.new("RGB", (8, 8), "red").save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    return {
        "requests": [{"history": [{"text": "a", "image_b64": text}], "required_rewards": [reward]}]
    }


@pytest.mark.system
def test_the_command(tmp_path):
    (tmp_path / "token").write_text("secret")
    flags = ["--reward", "ocr=http://127.0.0.1:1", "--token-file", "token", "--timeout", "0.5"]
    with (
        running(tmp_path, *flags) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=30) as client,
    ):
        assert client.get("/livez").status_code == 200
        assert client.get("/rewards").status_code == 401
        client.auth = ("any", "secret")
        assert client.get("/rewards").json() == {"rewards": ["ocr"]}
        answer = client.post("/score", json=asked("ocr")).json()
        assert answer["results"] == [{}]
        assert "CONNECTION" in answer["errors"][0]["ocr"]
        metrics = client.get("/metrics").text
        assert 'reward_gateway_requests_total{code="401",route="/rewards"} 1.0' in metrics


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A folder with own.pem and own.key for 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout own.key -out own.pem "
        "-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.system
def test_tls_to_the_callers_and_to_the_rewards(certificate, services):
    own = ["--tls-cert-file", str(certificate / "own.pem"), "--tls-key-file"]
    own.append(str(certificate / "own.key"))
    service = services.start("-m", "reward_services", "jpeg", *own, wait_ready=False)
    reward = ["--reward", "jpeg=" + service.http.replace("http:", "https:"), "--timeout", "5"]
    trusted = ssl.create_default_context(cafile=certificate / "own.pem")
    with (
        running(certificate, *own, *reward, "--upstream-ca-file", "own.pem") as url,
        httpx.Client(base_url=url, trust_env=False, timeout=30, verify=trusted) as client,
    ):
        assert url.startswith("https://")
        answer = client.post("/score", json=asked("jpeg")).json()
        assert answer["errors"] == [{}]
        assert client.get("/readyz").json()["rewards"] == {"jpeg": "ready"}
        with pytest.raises(httpx.ConnectError):  # not without knowing the certificate
            httpx.get(url + "/livez", trust_env=False)
    with (
        running(certificate, *reward) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=30) as client,
    ):
        refused = client.post("/score", json=asked("jpeg"))
        assert refused.status_code == 401
        assert "CERTIFICATE_VERIFY_FAILED" in refused.json()["error"]
