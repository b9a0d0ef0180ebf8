"""The health check of a container, against real services."""

import subprocess
import sys

import pytest

from processes import BRIGHTNESS, environment
from reward_services.chassis.probe import DEFAULT_PORTS
from reward_services.chassis.settings import ServiceSettings


def probe(**variables):
    return subprocess.run(
        [sys.executable, "-m", "reward_services", "--probe"],
        env=environment(**variables),
        capture_output=True,
        text=True,
    )


def test_default_ports_are_those_of_the_service():
    for protocol, port in DEFAULT_PORTS.items():
        assert ServiceSettings.model_fields[f"{protocol}_port"].default == port


def test_asking_imports_nothing_heavy():
    program = "import sys; from reward_services.__main__ import main; main(['--probe']); \
print([name for name in ('numpy', 'pydantic', 'grpc') if name in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(REWARD_HTTP_PORT="1"),
        capture_output=True,
        text=True,
    )
    assert run.stdout == "[]\n"


@pytest.mark.system
def test_probe(services):
    service = services.start(BRIGHTNESS)
    http, grpc = (url.rpartition(":")[2] for url in (service.http, service.grpc))
    assert probe(REWARD_HTTP_PORT=http).returncode == 0
    assert probe(REWARD_HTTP_PORT="none", REWARD_GRPC_PORT=grpc).returncode == 0
    service.stop()
    for variables in (
        {"REWARD_HTTP_PORT": http},
        {"REWARD_HTTP_PORT": "none", "REWARD_GRPC_PORT": grpc},
    ):
        failed = probe(**variables)
        assert failed.returncode == 1
        assert failed.stderr.startswith("not ready: ")


@pytest.mark.system
def test_probe_of_a_service_that_leaves(services):
    service = services.start(BRIGHTNESS, REWARD_READINESS_DELAY_S="60")
    port = service.http.rpartition(":")[2]
    service.process.terminate()
    while (done := probe(REWARD_HTTP_PORT=port)).returncode == 0:
        """The signal is on its way."""
    assert "draining" in done.stderr
    service.stop()  # the second signal ends it at once
