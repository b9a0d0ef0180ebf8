"""The judge in an engine of its own: vLLM, SGLang, or what else speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import random
import time
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np

from reward_api.errors import ItemFailure, Reason
from reward_services.chassis.settings import SettingError
from reward_services.unifiedreward.engine import Answer, picture
from reward_services.unifiedreward.settings import UnifiedRewardSettings

# A line per request and attempt, of which there is at least one per item.
logging.getLogger("httpx").setLevel(logging.WARNING)

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 10.0
_POLL_S = 1.0
_CHECK_TIMEOUT_S = 10.0

_REASONS = {
    429: Reason.QUEUE_FULL,
    502: Reason.CONNECTION,
    503: Reason.CONNECTION,
    504: Reason.CONNECTION,
}


class EngineError(RuntimeError):
    """The engine cannot be used; the message says what to change."""


class EngineSettingError(EngineError, SettingError):
    """Another setting would help: the key, the model's name or the URL."""


class HttpEngine:
    """Asks the questions of a batch at once, each with retries; of all parallel batches together, at most
    `concurrency` at a time.

    Connections live as long as one batch: beside generation a new one costs nothing, and nothing is
    left open that nobody closes.
    """

    def __init__(self, settings: UnifiedRewardSettings, model: str) -> None:
        """Asks the engine which models it serves. Raises EngineError."""
        assert settings.engine_url is not None
        self._settings = settings
        self._window = settings.concurrency // settings.parallel_batches
        self._url = settings.engine_url.rstrip("/")
        key = settings.api_key
        self._headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        self._is_far = self._url.startswith("https:")
        # Reading the certificate store takes longer than a small batch: once, and only for TLS.
        self._verify = httpx.create_ssl_context() if self._is_far else False
        served = asyncio.run(self._wait_for_models(settings.engine_wait_s))
        self.identity = self._model = _pick(model, served, self._url)

    def question(self, image: np.ndarray, text: str) -> bytes:
        """The body of the request."""
        content = [
            {"type": "image_url", "image_url": {"url": self._data_url(image)}},
            {"type": "text", "text": text},
        ]
        request: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": self._settings.max_tokens,
        }
        return json.dumps(request).encode()

    def answer(self, questions: Sequence[bytes]) -> list[Answer | ItemFailure]:
        return asyncio.run(self._answer_all(questions))

    def is_available(self) -> bool:
        return asyncio.run(self._is_up())

    async def _is_up(self) -> bool:
        async with self._client(_CHECK_TIMEOUT_S) as client:
            try:
                return (await client.get(f"{self._url}/models")).status_code < 500
            except httpx.RequestError:
                return False

    def _data_url(self, image: np.ndarray) -> str:
        file = io.BytesIO()
        # The engine is near: time counts more than bytes.
        picture(image, self._settings.image_size).save(file, format="PNG", compress_level=1)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"

    def _client(self, timeout_s: float | None) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=self._window)
        return httpx.AsyncClient(
            headers=self._headers,
            verify=self._verify,
            trust_env=self._is_far,  # a proxy does not know an engine on this machine or network
            timeout=timeout_s,
            limits=limits,
        )

    async def _answer_all(self, questions: Sequence[bytes]) -> list[Answer | ItemFailure]:
        window = asyncio.Semaphore(self._window)
        async with self._client(timeout_s=None) as client:
            return await asyncio.gather(*(self._ask(client, window, q) for q in questions))

    async def _ask(
        self, client: httpx.AsyncClient, window: asyncio.Semaphore, question: bytes
    ) -> Answer | ItemFailure:
        limit_s = self._settings.timeout_s
        async with window:
            try:
                async with asyncio.timeout(limit_s):
                    return await self._persist(client, question)
            except TimeoutError:
                return ItemFailure(Reason.DEADLINE, f"the engine took longer than {limit_s:g} s")
            except ItemFailure as failure:
                return failure

    async def _persist(self, client: httpx.AsyncClient, question: bytes) -> Answer:
        """Asks until there is an answer or no attempt is left. Raises ItemFailure."""
        delay_s = _FIRST_DELAY_S
        for attempts_left in range(self._settings.retries, -1, -1):
            try:
                return await self._attempt(client, question)
            except ItemFailure as failure:
                if not failure.retryable or not attempts_left:
                    raise
                pause_s = failure.retry_after_s or delay_s * random.uniform(0.5, 1.5)
            await asyncio.sleep(pause_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self, client: httpx.AsyncClient, question: bytes) -> Answer:
        try:
            response = await client.post(
                f"{self._url}/chat/completions",
                content=question,
                headers={"Content-Type": "application/json"},
            )
        except httpx.RequestError as error:
            raise ItemFailure(
                Reason.CONNECTION, f"the engine is not reachable: {_named(error)}"
            ) from error
        if response.status_code != 200:
            raise _refusal(response)
        return _answer(response)

    async def _wait_for_models(self, wait_s: float) -> list[str]:
        """Names of what the engine serves, as soon as it answers. Raises EngineError."""
        give_up_at = time.monotonic() + wait_s
        async with self._client(_CHECK_TIMEOUT_S) as client:
            while True:
                try:
                    response = await client.get(f"{self._url}/models")
                    if response.status_code < 500:
                        return self._models(response)
                    problem = f"status {response.status_code}"
                except httpx.RequestError as error:
                    problem = _named(error)
                if time.monotonic() >= give_up_at:
                    raise EngineError(
                        f"no engine answers at {self._url} ({problem}): start it, or raise engine_wait_s"
                    )
                await asyncio.sleep(min(_POLL_S, max(0.0, give_up_at - time.monotonic())))

    def _models(self, response: httpx.Response) -> list[str]:
        if response.status_code in (401, 403):
            raise EngineSettingError(f"set api_key: the engine at {self._url} refuses access")
        try:
            return [entry["id"] for entry in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            raise EngineSettingError(
                f"{self._url}/models is no list of models (status {response.status_code}): the "
                "engine's URL ends in /v1"
            ) from None


def _pick(model: str, served: Sequence[str], url: str) -> str:
    """The served name of the model: engines call one by its name, its repository or its folder."""
    for name in served:
        if name.rpartition("/")[2] == model.rpartition("/")[2]:
            return name
    raise EngineSettingError(
        f"set model: {url} serves {', '.join(served) or 'nothing'}, not {model}"
    )


def _answer(response: httpx.Response) -> Answer:
    try:
        choice = response.json()["choices"][0]
        text = choice["message"]["content"] or ""
        return Answer(text.strip(), is_cut=choice.get("finish_reason") == "length")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise ItemFailure(
            Reason.MODEL_ERROR, f"the engine's reply is no chat completion: {_start(response)}"
        ) from None


def _refusal(response: httpx.Response) -> ItemFailure:
    """429 and 5xx may pass with time; another status is this item's fault, or the settings'."""
    status = response.status_code
    reason = _REASONS.get(status, Reason.INTERNAL if status >= 500 else Reason.MODEL_ERROR)
    message = f"the engine answers with status {status}: {_start(response)}"
    return ItemFailure(reason, message, retry_after_s=_retry_after_s(response))


def _retry_after_s(response: httpx.Response) -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None


def _start(response: httpx.Response) -> str:
    return " ".join(response.text[:200].split())


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
