"""Where hostile inputs go, and how an answer is called."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

JSON = {"content-type": "application/json"}
BINARY = "application/octet-stream"
LENGTH = "inference-header-content-length"
TIMEOUT_S = 60.0
DEADLINE = {"x-reward-timeout-ms": "20000"}


@dataclass
class Target:
    """Where a thread sends to; connections are its own."""

    http: str
    grpc: str
    gateway: str
    guarded: str
    """a service that wants a token, of another process"""
    marker: Path
    """a file that an executed pickle would make"""
    _own: threading.local = field(default_factory=threading.local)

    def channel(self) -> grpc.Channel:
        if not hasattr(self._own, "channel"):
            address = self.grpc.removeprefix("grpc://")
            self._own.channel = grpc.insecure_channel(address)
        return self._own.channel

    def close(self) -> None:
        """The connections of this thread."""
        for connection in self._own.__dict__.pop("http", {}).values():
            connection.close()
        if channel := self._own.__dict__.pop("channel", None):
            channel.close()

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        url: str = "",
    ) -> str:
        """The status, or `closed` where the connection ended without an answer."""
        url = url or self.http
        connections = self._own.__dict__.setdefault("http", {})
        connection = connections.get(url)
        try:
            if connection is None:
                address = url.removeprefix("http://")
                connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
                connections[url] = connection
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            answer.read()
            return str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            if broken := connections.pop(url, None):
                broken.close()
            if isinstance(error, TimeoutError):
                return "no answer"
            return "closed"


def called(call: Callable[[], Any]) -> str:
    try:
        call()
    except grpc.RpcError as error:
        code: Any = error
        return code.code().name
    return "OK"
