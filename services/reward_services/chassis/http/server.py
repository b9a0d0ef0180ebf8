"""The HTTP port: uvicorn on a socket of ours, started and stopped like the gRPC port."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import uvicorn
from fastapi import APIRouter

from reward_services.chassis.auth import TokenCheck
from reward_services.chassis.http.app import ScoreFirst, create_app
from reward_services.chassis.http.auth import HttpAuth, uvicorn_tls
from reward_services.chassis.http.protocol import HttpProtocol
from reward_services.chassis.ports import bind
from reward_services.chassis.service import RewardService

_BACKLOG = 2048
# Longer than clients keep idle connections, so that they close first and do not race with us.
_KEEP_ALIVE_S = 75


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the process's business


class HttpFront:
    """The HTTP server of one service."""

    def __init__(
        self, service: RewardService, check: TokenCheck | None, dialects: Mapping[str, APIRouter]
    ) -> None:
        app: Any = ScoreFirst(create_app(service, dialects))
        self._settings = service.settings
        self._config = uvicorn.Config(
            HttpAuth(app, check) if check else app,
            http=HttpProtocol,
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            **uvicorn_tls(service.settings),
        )
        self._server = _Server(self._config)
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Binds and serves; returns the port. Raises OSError."""
        host, port = self._settings.host, self._settings.http_port
        assert port is not None
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = bind(
            lambda port: socket.create_server((host, port), family=family, backlog=_BACKLOG),
            host,
            port,
            "--http-port",
            next_free=self._settings.next_free_port,
        )
        sock.setblocking(False)
        self._config.load()
        self._serving = asyncio.create_task(self._server.serve(sockets=[sock]))
        while not self._server.started:
            if self._serving.done():
                await self._serving
                raise OSError(f"HTTP could not start on {host}:{port}")
            await asyncio.sleep(0.01)
        return sock.getsockname()[1]

    async def stop(self, grace_s: float) -> None:
        """Closes the port; answers that are being sent have `grace_s` seconds."""
        self._config.timeout_graceful_shutdown = math.ceil(grace_s)
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
