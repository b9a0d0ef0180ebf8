"""Token and TLS of the HTTP port."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from reward_services.chassis.auth import TokenCheck
from reward_services.chassis.http.problems import is_foreign, problem_response

# Probes carry no token and learn nothing but "alive" and "ready".
_OPEN_PATHS = frozenset({"/livez", "/readyz"})
# The page is the same for everybody; what it calls asks for the token.
_PAGE_PATH, _PAGE_METHODS = "/", frozenset({"GET", "HEAD"})


class TlsFiles(Protocol):
    """Settings with the PEM files of a port, or None."""

    @property
    def tls_cert_file(self) -> Path | None: ...
    @property
    def tls_key_file(self) -> Path | None: ...
    @property
    def tls_client_ca_file(self) -> Path | None: ...


class HttpAuth:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, check: TokenCheck) -> None:
        self._app = app
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope):
            given = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
            error = self._check.failure(given)
            if error is not None:
                answer = problem_response(error, with_error=is_foreign(scope["path"]))
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    return path in _OPEN_PATHS or (path == _PAGE_PATH and scope["method"] in _PAGE_METHODS)


def uvicorn_tls(settings: TlsFiles) -> dict[str, Any]:
    if settings.tls_cert_file is None:
        return {}
    client_ca = settings.tls_client_ca_file
    return {
        "ssl_certfile": str(settings.tls_cert_file),
        "ssl_keyfile": str(settings.tls_key_file),
        "ssl_ca_certs": str(client_ca) if client_ca else None,
        "ssl_cert_reqs": ssl.CERT_REQUIRED if client_ca else ssl.CERT_NONE,
    }
