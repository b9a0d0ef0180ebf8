"""One name per setting in environment, flag and metadata; precedence; errors that name the fix."""

import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from fake_scorer import FakeSettings
from pydantic import Field

from reward_services import __main__ as entry
from reward_services import __version__
from reward_services.chassis.cli import SettingsError, env_name, parse_settings, unknown_variables
from reward_services.chassis.scorer import ScorerSettings
from reward_services.chassis.settings import ServiceSettings, resolve_device

ROOT = Path(__file__).parents[3]


def _parse(*argv, **environ):
    return parse_settings("fake", FakeSettings, argv, environ)


def test_flags_win_over_environment_over_defaults():
    settings, own = _parse()
    assert (settings.max_batch_items, own.delay_ms) == (32, 0)
    environ = {"REWARD_MAX_BATCH_ITEMS": "8", "REWARD_FAKE_DELAY_MS": "7"}
    settings, own = _parse(**environ)
    assert (settings.max_batch_items, own.delay_ms) == (8, 7)
    settings, own = _parse("--max-batch-items", "4", "--delay-ms", "6", **environ)
    assert (settings.max_batch_items, own.delay_ms) == (4, 6)


class Smaller(ScorerSettings):
    service_defaults: ClassVar = {"max_batch_items": 16}


def test_a_reward_has_defaults_of_its_own_for_the_service(capsys):
    settings, _ = parse_settings("smaller", Smaller, [], {})
    assert settings.max_batch_items == 16
    settings, _ = parse_settings("smaller", Smaller, [], {"REWARD_MAX_BATCH_ITEMS": "5"})
    assert settings.max_batch_items == 5
    with pytest.raises(SystemExit):
        parse_settings("smaller", Smaller, ["--help"], {})
    assert "REWARD_MAX_BATCH_ITEMS; default: 16" in " ".join(capsys.readouterr().out.split())


def test_switches_and_none():
    settings, own = _parse("--reflection", "--grpc-port", "none", "--needs-prompt")
    assert settings.reflection
    assert settings.grpc_port is None
    assert own.needs_prompt
    settings, own = _parse(
        "--no-reflection", REWARD_REFLECTION="true", REWARD_FAKE_API_KEY="none", REWARD_TOKEN=""
    )
    assert not settings.reflection
    assert own.api_key is None
    assert settings.token is None


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--max-batch-items", "many"], ["--max-batch-items", "REWARD_MAX_BATCH_ITEMS"]),
        (["--max-batch-items", "0"], ["--max-batch-items", "greater than or equal to 1"]),
        (["--delay-ms", "x"], ["--delay-ms", "REWARD_FAKE_DELAY_MS"]),
        (["--http-port", "none", "--grpc-port", "none"], ["nothing to serve"]),
        (["--tls-cert-file", "c.pem"], ["tls_key_file"]),
        (["--tls-client-ca-file", "c.pem"], ["tls_cert_file"]),
        (["--token", "a", "--token-file", "b"], ["not both"]),
        (["--host", "0.0.0.0"], ["REWARD_TOKEN_FILE", "--insecure-no-auth"]),
    ],
)
def test_wrong_settings_say_how_to_fix_them(argv, words):
    with pytest.raises(SettingsError) as caught:
        _parse(*argv)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "argv", [["--token", "t"], ["--insecure-no-auth"], ["--token-file", "some-file"]]
)
def test_binding_other_addresses_needs_a_token_or_consent(argv):
    settings, _ = _parse("--host", "0.0.0.0", *argv)
    assert not settings.is_loopback
    assert settings.effective_readiness_delay_s == 5.0


def test_a_reward_may_not_reuse_a_name_of_the_service():
    class Clashing(ScorerSettings):
        device: str = Field(default="x")

    with pytest.raises(SettingsError, match="device"):
        parse_settings("fake", Clashing, [], {})


def test_unknown_variables_name_the_nearest():
    environ = {
        "REWARD_MAX_QUEUE_ITEM": "1",
        "REWARD_FAKE_DELAY": "1",
        "REWARD_OCR_SCORE": "exact",
        "REWARD_ZZZ": "",
        "REWARD_HOST": "::1",
        "PATH": "",
    }
    assert unknown_variables("fake", FakeSettings, environ, ["ocr", "fake"]) == {
        "REWARD_MAX_QUEUE_ITEM": "REWARD_MAX_QUEUE_ITEMS",
        "REWARD_FAKE_DELAY": "REWARD_FAKE_DELAY_MS",
        "REWARD_ZZZ": None,
    }


def test_tokens_stay_secret(tmp_path):
    settings, _ = _parse("--token", "s3cret")
    assert settings.read_token() == "s3cret"
    assert "s3cret" not in repr(settings)
    file = tmp_path / "token"
    file.write_text("from-file\n")
    assert ServiceSettings(token_file=file).read_token() == "from-file"
    file.write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        ServiceSettings(token_file=file).read_token()


def test_every_limit_is_in_the_metadata_under_its_own_name():
    limits = ServiceSettings().limits()
    fields = {name for name in ServiceSettings.model_fields if name.startswith("max_")}
    assert set(limits) == fields | {"default_timeout_ms"}
    assert limits["max_request_bytes"] == 64 * 2**20


def test_every_setting_is_described_in_the_readme():
    text = (ROOT / "services" / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(REWARD_[A-Z_]+)` \| `([^`]*)` \|", text, re.MULTILINE))
    expected = {
        env_name(name): "none" if field.default is None else str(field.default)
        for name, field in ServiceSettings.model_fields.items()
    }
    assert rows == expected


def test_the_device_is_taken_as_said_or_found():
    assert resolve_device("cuda:1") == "cuda:1"
    assert resolve_device("auto") in ("cpu", "cuda")


def test_the_version_is_the_distributions():
    assert f'\nversion = "{__version__}"\n' in (ROOT / "pyproject.toml").read_text()


def test_help_lists_every_setting_of_service_and_reward(capsys):
    with pytest.raises(SystemExit) as caught:
        _parse("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name in [*ServiceSettings.model_fields, *FakeSettings.model_fields]:
        assert "--" + name.replace("_", "-") in text
    assert "REWARD_FAKE_DELAY_MS" in text


def test_the_command_lists_rewards_and_names_the_nearest(capsys):
    assert entry.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == entry.rewards()
    assert entry.main(["no-such-reward"]) == 2
    assert "no reward 'no-such-reward'" in capsys.readouterr().err
    assert entry.main([]) == 2
    assert entry.main(["--help"]) == 0


def test_reading_settings_loads_neither_servers_nor_models():
    code = (
        "import sys; from reward_services.run import run;"
        "from reward_services.chassis.scorer import Scorer;"
        "status = run('fake', Scorer, ['--http-port', 'x'], {}); assert status == 2;"
        "heavy = {'torch', 'fastapi', 'grpc', 'uvicorn', 'PIL'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    path = f"{ROOT / 'proto'}:{ROOT / 'services'}"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path}
    )
    assert result.returncode == 0, result.stderr
    assert "REWARD_HTTP_PORT" in result.stderr
