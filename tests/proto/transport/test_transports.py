"""The two wires against a real server: same answers, same errors."""

import asyncio
import math
import subprocess
from dataclasses import replace

import pytest

from reward_api.errors import (
    AuthenticationFailed,
    InvalidRequest,
    ItemFailure,
    Overloaded,
    Reason,
    ServerFault,
    Unavailable,
    error_for,
)
from reward_api.testing import FakeReward
from reward_api.transport.base import Credentials, parse_url
from reward_api.transport.open import open_transport
from reward_api.wire.messages import Image, Item, ItemScore, PackedImages, ScoreRequest

PIXELS = bytes(range(12))
REQUEST = ScoreRequest(
    request_id="r-1",
    items=[
        Item(id="a", prompt="naïve 🎨", image=Image(data=PIXELS, height=2, width=2)),
        Item(id="b", image=Image(data=b"not an image"), metadata={"n": 1, "box": [0.5, None]}),
        Item(id="c"),
    ],
    priority=1,
    include_details=True,
)
WIRES = ["http", "grpc"]


def rich_score(image, prompt, metadata):
    details = {"prompt": prompt, "shape": list(image.shape)}
    return ItemScore(value=image.mean(), scores={"red": image[..., 0].mean()}, details=details)


@pytest.fixture
async def connect():
    """Transports to services: `transport = connect(service, "http")`."""
    opened = []

    def open_(service, wire, **options):
        opened.append(open_transport(parse_url(service.urls[wire]), Credentials(**options)))
        return opened[-1]

    yield open_
    for transport in opened:
        await transport.close()


async def test_http_equals_grpc_equals_in_process(serve, connect):
    reward = FakeReward(rich_score)
    service = serve(reward)
    expected = await reward.score(REQUEST, timeout_s=5)
    assert expected.results[0].score == ItemScore(
        value=5.5, scores={"red": 4.5}, details={"prompt": "naïve 🎨", "shape": [2, 2, 3]}
    )
    assert [r.error and r.error.reason for r in expected.results[1:]] == [Reason.IMAGE_DECODE] * 2
    for wire in WIRES:
        transport = connect(service, wire)
        assert await transport.score(REQUEST, timeout_s=5) == expected
        assert await transport.metadata(timeout_s=5) == await reward.metadata(timeout_s=5)
    assert reward.requests == [REQUEST] * 3


@pytest.mark.parametrize("wire", WIRES)
async def test_packed_images_arrive(service, connect, wire):
    packed = PackedImages(data=PIXELS, count=2, height=1, width=2)
    request = ScoreRequest(items=[Item(), Item()], packed_images=packed)
    response = await connect(service, wire).score(request, timeout_s=5)
    assert [round(255 * r.score.value, 6) for r in response.results] == [2.5, 8.5]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("retry_after_s", [None, 0.25])
async def test_errors_keep_their_reason_and_hint(service, connect, wire, retry_after_s):
    transport = connect(service, wire)
    for reason in Reason:
        sent = error_for(reason, "what happened", retry_after_s=retry_after_s)
        service.reward.fail_next(sent)
        with pytest.raises(type(sent)) as caught:
            await transport.score(REQUEST, timeout_s=5)
        assert caught.value.reason is reason
        assert caught.value.message == "what happened"
        assert caught.value.retry_after_s == retry_after_s


async def test_negative_pushback_means_never(service, connect):
    service.reward.fail_next(error_for(Reason.QUEUE_FULL, "go away", retry_after_s=-1))
    with pytest.raises(Overloaded) as caught:
        await connect(service, "grpc").score(REQUEST, timeout_s=5)
    assert caught.value.retry_after_s == math.inf


@pytest.mark.parametrize("wire", WIRES)
async def test_tokens(serve, connect, wire):
    service = serve(token="secret")
    for options in ({}, {"token": "wrong"}):
        with pytest.raises(AuthenticationFailed):
            await connect(service, wire, **options).score(REQUEST, timeout_s=5)
    response = await connect(service, wire, token="secret").score(REQUEST, timeout_s=5)
    assert len(response.results) == 3


@pytest.mark.parametrize("wire", WIRES)
async def test_readiness(service, connect, wire):
    transport = connect(service, wire)
    await transport.ready(timeout_s=5)
    service.reward.is_ready = False
    with pytest.raises(Unavailable) as caught:
        await transport.ready(timeout_s=5)
    assert caught.value.reason is Reason.LOADING


async def test_http_headers(service, connect):
    await connect(service, "http", token="t").score(REQUEST, timeout_s=5)
    headers = service.headers[0]
    assert headers["authorization"] == "Bearer t"
    assert headers["x-request-id"] == "r-1"
    assert headers["x-reward-timeout-ms"] == "5000"
    assert headers["x-reward-priority"] == "1"
    assert headers["host"] == f"localhost:{service.http_port}"


async def test_http_connections_are_kept(serve, connect):
    service = serve(FakeReward(delay_s=0.05))
    transport = connect(service, "http")
    for _ in range(3):
        await transport.score(REQUEST, timeout_s=5)
    assert len(service.connections) == 1
    await asyncio.gather(*(transport.score(REQUEST, timeout_s=5) for _ in range(3)))
    assert len(service.connections) == 3


@pytest.mark.parametrize("wire", WIRES)
async def test_proxies_of_the_environment_are_not_used(service, connect, wire, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert len((await connect(service, wire).score(REQUEST, timeout_s=5)).results) == 3


@pytest.mark.parametrize("wire", WIRES)
async def test_nobody_listens(wire):
    transport = open_transport(parse_url(f"{wire}://127.0.0.1:1"), Credentials())
    with pytest.raises(Unavailable) as caught:
        await transport.score(REQUEST, timeout_s=5)
    assert caught.value.reason is Reason.CONNECTION
    await transport.close()


@pytest.mark.parametrize("wire", WIRES)
async def test_large_messages_pass(service, connect, wire):
    """gRPC's defaults end at 4 MiB."""
    image = Image(data=bytes(8 * 2**20), height=2**11, width=2**12, channels=1)
    request = ScoreRequest(items=[Item(image=image)])
    response = await connect(service, wire).score(request, timeout_s=30)
    assert response.results[0].score.value == 0.0


# Servers that misbehave, on a bare socket.


@pytest.fixture
async def raw_server():
    """`url = await raw_server(handler)`, where handler takes (reader, writer)."""
    servers = []

    async def start(handle):
        async def handle_and_close(reader, writer):
            try:
                await handle(reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_server(handle_and_close, "127.0.0.1", 0)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()


async def score_at(url, request=REQUEST):
    transport = open_transport(parse_url(url), Credentials())
    try:
        return await transport.score(request, timeout_s=5)
    finally:
        await transport.close()


async def test_an_early_refusal_is_heard_over_the_broken_body(raw_server):
    """The server answers after the headers and closes; the body is still on its way."""

    async def refuse(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
        await writer.drain()

    url = await raw_server(refuse)
    image = Image(data=bytes(32 * 2**20), height=2**12, width=2**13, channels=1)
    with pytest.raises(InvalidRequest, match="answered 413: big") as caught:
        await score_at(url, ScoreRequest(items=[Item(image=image)]))
    assert caught.value.reason is Reason.REQUEST_TOO_LARGE


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (b"", Unavailable, Reason.CONNECTION),
        (b"SSH-2.0-OpenSSH_9.6\r\n", Unavailable, Reason.CONNECTION),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort", Unavailable, Reason.CONNECTION),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", ServerFault, Reason.INTERNAL),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", ServerFault, Reason.INTERNAL),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n<html>", Unavailable, Reason.CONNECTION),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", InvalidRequest, Reason.MODEL_NOT_FOUND),
        (b"HTTP/1.1 418 Teapot\r\n\r\n", InvalidRequest, Reason.INVALID_REQUEST),
    ],
)
async def test_strange_answers(raw_server, answer, kind, reason):
    async def reply(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await reader.read(65536)
        writer.write(answer)
        await writer.drain()

    with pytest.raises(kind) as caught:
        await score_at(await raw_server(reply))
    assert caught.value.reason is reason


async def test_retry_after_of_a_proxy(raw_server):
    async def reply(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await reader.read(65536)
        writer.write(b"HTTP/1.1 429 Slow\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()

    with pytest.raises(Overloaded) as caught:
        await score_at(await raw_server(reply))
    assert caught.value.retry_after_s == 7


async def test_an_idle_connection_that_the_server_closed_is_not_used(raw_server):
    served = []

    async def once(reader, writer):
        served.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()

    transport = open_transport(parse_url(await raw_server(once)), Credentials())
    for _ in range(3):
        await transport.ready(timeout_s=5)
        await asyncio.sleep(0.05)
    assert len(served) == 3
    await transport.close()


async def test_what_follows_an_answer_is_not_the_next_answer(raw_server):
    statuses = [b"200 OK", b"503 Stale"], [b"200 OK"]
    connections = iter(statuses)

    async def reply(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        answers = (b"HTTP/1.1 %b\r\ncontent-length: 2\r\n\r\n{}" % s for s in next(connections))
        writer.write(b"".join(answers))
        await writer.drain()
        await reader.read()

    transport = open_transport(parse_url(await raw_server(reply)), Credentials())
    for _ in statuses:
        await transport.ready(timeout_s=5)
    assert next(connections, None) is None
    await transport.close()


async def test_a_cancelled_call_closes_its_connection(raw_server):
    gone = asyncio.Event()

    async def watch(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        while await reader.read(65536):
            pass
        gone.set()

    url = await raw_server(watch)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await score_at(url)
    await asyncio.wait_for(gone.wait(), 5)


# TLS


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """A certificate for localhost that is its own authority: (certificate, key)."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {key} -out {certificate} "
        "-subj /CN=localhost -addext subjectAltName=DNS:localhost".split(),
        check=True,
        capture_output=True,
    )
    return certificate, key


@pytest.mark.parametrize("wire", WIRES)
async def test_tls(serve, connect, authority, wire):
    service = serve(tls=authority)
    transport = connect(service, wire, ca_file=authority[0])
    large = Image(data=bytes(3 * 2**20), height=2**10, width=2**10)
    for image in (Image(data=PIXELS, height=2, width=2), large):
        request = ScoreRequest(items=[Item(image=image)])
        response = await transport.score(request, timeout_s=20)
        assert response.results[0].score is not None


@pytest.mark.parametrize("wire", WIRES)
async def test_tls_at_a_resolved_address_checks_the_name(serve, authority, wire):
    service = serve(tls=authority)
    target = parse_url(service.urls[wire].replace("://", "+dns://", 1)).at("127.0.0.1")
    credentials = Credentials(ca_file=authority[0])
    transport = open_transport(target, credentials)
    await transport.ready(timeout_s=10)
    await transport.close()
    stranger = open_transport(replace(target, host="elsewhere"), credentials)
    with pytest.raises((AuthenticationFailed, Unavailable)):
        await stranger.ready(timeout_s=10)
    await stranger.close()


async def test_an_unknown_authority_is_no_reason_to_retry(serve, connect, authority):
    with pytest.raises(AuthenticationFailed, match="certificate verify failed"):
        await connect(serve(tls=authority), "http").ready(timeout_s=10)


# URLs


def test_item_failures_are_not_call_failures():
    assert not isinstance(error_for(Reason.IMAGE_DECODE, ""), ItemFailure)
