import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pillow

from reward_api import cli
from reward_api.errors import ItemFailure, Reason
from reward_api.testing import FakeReward
from reward_api.wire.messages import ItemScore


def score(image, prompt, metadata):
    if prompt == "fail":
        raise ItemFailure(Reason.PROMPT_TARGET, "scripted")
    return ItemScore(
        value=image.mean() / 255, scores={"red": 1.0}, details={"tag": metadata.get("tag")}
    )


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, grey in (("black.png", 0), ("white.png", 255)):
        pillow.fromarray(np.full((4, 4, 3), grey, np.uint8)).save(name)
    return ["black.png", "white.png"]


@pytest.fixture
def ocr(serve):
    return serve(FakeReward(score, name="ocr"))


def test_a_table(ocr, serve, files, capsys):
    other = serve(FakeReward(lambda *_: -12.5, name="other"))
    rewards = ["--reward", ocr.urls["http"], "--reward", f"mine={other.urls['grpc']}"]
    assert cli.main([*rewards, *files, "--prompt", "a prompt"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "image         ocr      mine",
        "black.png  0.0000  -12.5000",
        "white.png  1.0000  -12.5000",
    ]
    assert [item.prompt for item in ocr.reward.requests[0].items] == ["a prompt"] * 2


def test_a_failed_item(ocr, files, capsys):
    arguments = ["--reward", ocr.urls["http"], *files, "--prompt", "fail", "--prompt", "x"]
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "image         ocr",
        "black.png       -",
        "white.png  1.0000",
    ]
    assert captured.err == "black.png: ocr: PROMPT_TARGET: scripted\n"


def test_json(ocr, files, capsys):
    arguments = ["--reward", ocr.urls["grpc"], *files, "--prompt", "x", "--prompt", "fail"]
    assert cli.main([*arguments, "--json", "--details", "--metadata", '{"tag": "t"}']) == 1
    value = {"value": 0.0, "scores": {"red": 1.0}, "details": {"tag": "t"}}
    error = {"error": {"reason": "PROMPT_TARGET", "message": "scripted"}}
    assert json.loads(capsys.readouterr().out) == [
        {"image": "black.png", "rewards": {"ocr": value}},
        {"image": "white.png", "rewards": {"ocr": error}},
    ]


def test_details(ocr, files, capsys):
    metadata = json.dumps([{"tag": "é"}, None])
    arguments = ["--reward", ocr.urls["http"], *files, "--details", "--metadata", metadata]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[3:] == [
        'black.png: ocr: {"red": 1.0, "tag": "é"}',
        'white.png: ocr: {"red": 1.0, "tag": null}',
    ]


def test_wait(service, capsys):
    assert cli.main(["--reward", service.urls["http"], "--wait"]) == 0
    service.reward.is_ready = False
    assert cli.main(["--reward", service.urls["grpc"], "--wait", "--timeout", "0.2"]) == 1
    said = capsys.readouterr().err
    assert "not ready" in said
    assert "--wait waits for it" not in said  # it was given


def test_nothing_answers(files, capsys):
    assert cli.main(["--reward", "http://127.0.0.1:1", *files]) == 1
    assert "is the service up?" in capsys.readouterr().err


def test_token(serve, files, capsys, monkeypatch):
    service = serve(token="secret")
    arguments = ["--reward", service.urls["http"], *files]
    assert cli.main(arguments) == 2
    assert "AUTH" in capsys.readouterr().err
    assert cli.main([*arguments, "--token", "secret"]) == 0
    monkeypatch.setenv("REWARD_TOKEN", "secret")
    assert cli.main(arguments) == 0
    monkeypatch.setenv("REWARD_TOKEN", "")  # as compose passes on a variable that is not set
    assert cli.main(arguments) == 2
    assert "AUTH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--reward"),
        (["--reward", "http://a"], "give images to score, or --wait"),
        (["--reward", "http://a", "missing.png"], "missing.png: No such file"),
        (["--reward", "a:8101", "black.png"], "expected http://host:port"),
        (["--reward", "http://a", "black.png", "--metadata", "{"], "not JSON"),
        (
            ["--reward", "http://a", "black.png", "--prompt", "1", "--prompt", "2"],
            "2 prompts for 1",
        ),
        (["--reward", "x=http://a", "--reward", "x=http://b", "black.png"], "same name"),
        (["--reward", "", "black.png"], "expected http://host:port"),
        (["--reward", "x=", "black.png"], "expected http://host:port"),
        (["--reward", "http://a:99999", "black.png"], "expected http://host:port"),
        (["--reward", "http://me:pw@a:1", "black.png"], "the token is an option"),
        (["--reward", "grpc://a", "black.png"], "gRPC needs the port"),
        (["--reward", "http://a", "."], "Is a directory"),
        (["--reward", "http://a", "black.png", "--timeout", "0"], "--timeout 0.0"),
        (["--reward", "http://a", "black.png", "--timeout", "nan"], "--timeout nan"),
        (["--reward", "http://a", "black.png", "--timeout", "soon"], "--timeout"),
        (["--reward", "http://a", "black.png", "--token", "two words"], "the token must be"),
        (["--reward", "http://a", "black.png", "--metadata", "3"], "give a JSON object"),
        (["--reward", "http://a", "black.png", "--metadata", "[{}, {}]"], "2 entries for 1 images"),
        (["--reward", "http://a", "black.png", "--metadata", "[" * 100_000], "nested too deeply"),
        (["--reward", "http://a", "black.png", "--colour"], "--colour"),
    ],
)
def test_wrong_usage(files, arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


WRONG_CALLS = [
    (["--metadata", '{"n": NaN}'], "metadata[0]['n'] is nan"),
    (["--metadata", "[3, 4]"], "metadata[0] is a int"),
    (["--prompt", "\udcff"], "prompts[0] is not valid Unicode"),
    (["--metadata", '{"n": 123456789012345678901234567890}'], "send it as a str"),
]


@pytest.mark.parametrize(("flags", "message"), WRONG_CALLS)
def test_what_only_the_client_finds_is_wrong_usage_too(ocr, files, flags, message, capsys):
    assert cli.main(["--reward", ocr.urls["http"], *files, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['reward-score', '--help']\n"
        "from reward_api.cli import main\n"
        "try: main()\n"
        "except SystemExit: assert not {'numpy', 'grpc', 'pydantic'} & set(sys.modules)\n"
    )
    proto = Path(cli.__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=proto, capture_output=True, text=True, check=True
    )
    assert "exit status" in result.stdout
