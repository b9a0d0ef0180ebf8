"""An image is its bytes: a URL or a path in its place is neither fetched nor opened, in no protocol."""

from __future__ import annotations

import asyncio
import base64

import pytest


@pytest.fixture
async def trap():
    """A server that counts who comes, and its URL."""
    visitors: list[object] = []

    async def come(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visitors.append(writer.get_extra_info("peername"))
        writer.close()

    server = await asyncio.start_server(come, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a.png", visitors


def _bodies(text: str) -> list[tuple[str, dict]]:
    turn = {"text": "a", "image_b64": text}
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": [text]}
    return [
        ("/v1/score", {"items": [{"image": {"data": text}}]}),
        ("/compute", {"prompt": ["a"], "image": [text]}),
        ("/score", {"requests": [{"history": [turn], "required_rewards": ["judged"]}]}),
        ("/get_reward", {"query": [text], "prompts": ["a"]}),
        ("/v2/models/judged/infer", {"inputs": [tensor]}),
    ]


async def test_urls_and_paths(serve, trap, tmp_path, files):
    url, visitors = trap
    running = await serve()
    picture = tmp_path / "secret.png"
    picture.write_bytes(files[0])
    encoded = base64.b64encode(url.encode()).decode()
    for text in (url, str(picture), picture.as_uri(), f"data:{url}", encoded, "../../etc/passwd"):
        for path, body in _bodies(text):
            response = await running.http.post(path, json=body)
            assert response.status_code < 500
            words = response.text
            assert "error" in words or "detail" in words, (path, text, words)
            assert '"score":{"value"' not in words.replace(" ", "")
            assert '"rewards":[' not in words.replace(" ", "")
    assert visitors == []
