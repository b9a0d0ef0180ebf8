"""`reward-serve --probe`: is the service on this machine ready? For container health checks, which
run every few seconds: only the standard library over HTTP, gRPC only where there is no HTTP. Nor does it
import the settings, which take ten times as long as the question."""

from __future__ import annotations

import http.client
import ssl
import sys
from collections.abc import Mapping
from typing import Any

# Those of ServiceSettings.
DEFAULT_PORTS = {"http": 8100, "grpc": 9100}
_TIMEOUT_S = 4.0


def probe(environ: Mapping[str, str]) -> int:
    """0 when the service that the environment describes takes work, else 1 with a line that says
    why not. Not for services that demand client certificates."""
    try:
        problem = _grpc_problem(environ) if _port(environ, "http") is None else _http(environ)
    except (OSError, ValueError, http.client.HTTPException) as error:
        problem = str(error) or type(error).__name__
    if problem:
        sys.stderr.write(f"not ready: {problem}\n")
    return 1 if problem else 0


def _port(environ: Mapping[str, str], protocol: str) -> int | None:
    text = environ.get(f"REWARD_{protocol.upper()}_PORT") or str(DEFAULT_PORTS[protocol])
    return None if text.lower() == "none" else int(text)


def _http(environ: Mapping[str, str]) -> str:
    port = _port(environ, "http")
    if environ.get("REWARD_TLS_CERT_FILE"):
        # The certificate names the service as others see it, not this loopback.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=_TIMEOUT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        return "" if response.status == 200 else response.read().decode()
    finally:
        connection.close()


def _grpc_problem(environ: Mapping[str, str]) -> str:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{_port(environ, 'grpc')}") as channel:
        check: Any = health_pb2_grpc.HealthStub(channel).Check  # pyright: ignore
        try:
            answer = check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            return str(error)
    serving = health_pb2.HealthCheckResponse.SERVING
    return "" if answer.status == serving else "gRPC health says NOT_SERVING"
