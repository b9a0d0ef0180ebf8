"""An OpenAI-compatible engine on loopback that answers by script: real HTTP, no model."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response


@dataclass(frozen=True)
class Reply:
    """One response: the judge's words, or what goes wrong."""

    text: str | None = None
    status: int = 200
    finish_reason: str = "stop"
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: str | None = None
    """The whole body, in place of a chat completion."""
    delay_s: float = 0.0
    hangs_up: bool = False


@dataclass
class ScriptedEngine:
    """`script` maps the text of a request to its replies in order, the last one for good."""

    script: Callable[[str], Sequence[Reply]]
    models: Sequence[str] = ("UnifiedReward-7b-v1.5",)
    key: str = ""
    loading: int = 0
    """This many questions for its models are answered with 503."""
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    _asked: dict[str, int] = field(default_factory=dict)
    _now: int = 0

    def app(self) -> FastAPI:
        app = FastAPI()
        app.get("/v1/models")(self._list_models)
        app.post("/v1/chat/completions")(self._complete)
        return app

    def count(self, text: str) -> int:
        """How often the caption `text` was asked about."""
        return sum(n for asked, n in self._asked.items() if text in asked)

    def _refuses(self, request: Request) -> bool:
        return bool(self.key) and request.headers.get("Authorization") != f"Bearer {self.key}"

    async def _list_models(self, request: Request) -> Response:
        if self._refuses(request):
            return JSONResponse({"error": "no"}, 401)
        if self.loading:
            self.loading -= 1
            return Response(status_code=503)
        data = [{"id": name, "object": "model"} for name in self.models]
        return JSONResponse({"object": "list", "data": data})

    async def _complete(self, request: Request) -> Response:
        if self._refuses(request):
            return JSONResponse({"error": "no"}, 401)
        body = json.loads(await request.body())
        self.requests.append(body)
        reply = self._next(body["messages"][0]["content"][-1]["text"])
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        await asyncio.sleep(reply.delay_s)
        self._now -= 1
        if reply.hangs_up:
            return _HangUp()
        if reply.raw is not None:
            return Response(reply.raw, reply.status, dict(reply.headers))
        message = {"role": "assistant", "content": reply.text}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
        return JSONResponse({"choices": [choice]}, reply.status, dict(reply.headers))

    def _next(self, text: str) -> Reply:
        replies = self.script(text)
        asked = self._asked.get(text, 0)
        self._asked[text] = asked + 1
        return replies[min(asked, len(replies) - 1)]


class _HangUp(Response):
    """Promises a body and closes the connection in the middle of it."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})


@contextmanager
def scripted_engine(
    script: Callable[[str], Sequence[Reply]], port: int = 0, **options: Any
) -> Iterator[ScriptedEngine]:
    """Serves on a port of loopback, any free one by default, until the block ends."""
    engine = ScriptedEngine(script, **options)
    config = uvicorn.Config(
        engine.app(),
        port=port,
        log_level="critical",
        ws="none",
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the engine did not start"
        time.sleep(0.005)
    bound = server.servers[0].sockets[0].getsockname()[1]
    engine.url = f"http://127.0.0.1:{bound}/v1"
    try:
        yield engine
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
