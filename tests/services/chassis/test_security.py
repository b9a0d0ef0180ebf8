"""Tokens and TLS on both ports."""

import asyncio
import shutil
import ssl
import subprocess
from typing import Any

import grpc
import httpx
import pytest
from conftest import packed_request, raw_request
from grpc_health.v1 import health_pb2, health_pb2_grpc

from reward_api.wire.convert import request_to_proto
from reward_api.wire.framing import encode_request
from reward_api.wire.messages import Image, Item, ScoreRequest
from reward_api.wire.v1 import reward_pb2, reward_pb2_grpc

TOKEN = "s3cret-token"


def _post_arguments(request):
    headers, parts = encode_request(request)
    return {"content": b"".join(map(bytes, parts)), "headers": headers}


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", TOKEN, "Basic " + TOKEN, "é"])
async def test_http_without_the_token(serve, authorization):
    running = await serve(token=TOKEN)
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    for path in ("/v1/metadata", "/metrics", "/docs", "/openapi.json", "/nope"):
        response = await running.http.get(path, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["reason"] == "AUTH"
    assert (await running.http.post("/v1/score", headers=headers)).status_code == 401
    for path in ("/livez", "/readyz"):
        assert (await running.http.get(path)).status_code == 200


async def test_http_with_the_token(serve, caplog):
    running = await serve(token=TOKEN)
    running.http.headers["Authorization"] = f"Bearer {TOKEN}"
    response = await running.http.post("/v1/score", **_post_arguments(raw_request(0)))
    assert response.status_code == 200
    assert (await running.http.get("/metrics")).status_code == 200
    assert TOKEN not in caplog.text


async def test_a_large_body_with_a_wrong_token_hears_of_it(serve):
    running = await serve(token=TOKEN)
    response = await running.http.post("/v1/score", content=bytes(5_000_000))
    assert response.status_code == 401


async def test_grpc(serve):
    running = await serve(token=TOKEN)
    stub: Any = reward_pb2_grpc.RewardServiceStub(running.channel)
    for metadata in ((), (("authorization", "Bearer wrong"),)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetMetadata(reward_pb2.GetMetadataRequest(), metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert dict(caught.value.trailing_metadata())["reward-reason"] == "AUTH"
    right = (("authorization", f"Bearer {TOKEN}"),)
    answer = await stub.Score(request_to_proto(packed_request("a", "b")), metadata=right)
    assert len(answer.results) == 2
    health: Any = health_pb2_grpc.HealthStub(running.channel)
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A CA, and a server's and a client's certificate signed by it."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl(
        *["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca"],
        *["-days", "2", "-addext", "keyUsage=critical,keyCertSign"],
    )
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for name in ("server", "client"):
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        openssl(
            *["x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"],
            *["-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-extfile", "names"],
        )
    return folder


def _tls_settings(folder, *, mutual=False):
    files = {"tls_cert_file": folder / "server.pem", "tls_key_file": folder / "server.key"}
    return files | ({"tls_client_ca_file": folder / "ca.pem"} if mutual else {})


def _https(running, folder, *, client=False):
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    if client:
        context.load_cert_chain(folder / "client.pem", folder / "client.key")
    return httpx.AsyncClient(
        base_url=f"https://127.0.0.1:{running.http.base_url.port}", verify=context
    )


def _credentials(folder, *, client=False):
    return grpc.ssl_channel_credentials(
        (folder / "ca.pem").read_bytes(),
        (folder / "client.key").read_bytes() if client else None,
        (folder / "client.pem").read_bytes() if client else None,
    )


async def test_tls_on_both_ports(serve, certificates):
    running = await serve(**_tls_settings(certificates))
    async with _https(running, certificates) as client:
        response = await client.post("/v1/score", **_post_arguments(raw_request(0)))
        assert response.status_code == 200
    async with grpc.aio.secure_channel(running.grpc_target, _credentials(certificates)) as channel:
        stub: Any = reward_pb2_grpc.RewardServiceStub(channel)
        assert (await stub.GetMetadata(reward_pb2.GetMetadataRequest())).name == "fake"


async def test_tls_with_a_body_that_is_received_into_its_buffer(serve, certificates):
    running = await serve(**_tls_settings(certificates))
    picture = Image(data=bytes(300 * 400 * 3), height=300, width=400)
    request = ScoreRequest(items=[Item(image=picture)] * 4)
    async with _https(running, certificates) as client:
        for _ in range(2):
            response = await client.post("/v1/score", **_post_arguments(request))
            assert [r["score"]["value"] for r in response.json()["results"]] == [0.0] * 4


async def test_mutual_tls_refuses_strangers(serve, certificates):
    running = await serve(**_tls_settings(certificates, mutual=True))
    async with _https(running, certificates, client=True) as client:
        assert (await client.get("/v1/metadata")).status_code == 200
    async with _https(running, certificates) as client:
        with pytest.raises(httpx.TransportError):
            await client.get("/v1/metadata")
    credentials = _credentials(certificates, client=True)
    async with grpc.aio.secure_channel(running.grpc_target, credentials) as channel:
        stub: Any = reward_pb2_grpc.RewardServiceStub(channel)
        assert (await stub.GetMetadata(reward_pb2.GetMetadataRequest())).name == "fake"
    async with grpc.aio.secure_channel(running.grpc_target, _credentials(certificates)) as channel:
        stub: Any = reward_pb2_grpc.RewardServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError):
            await asyncio.wait_for(stub.GetMetadata(reward_pb2.GetMetadataRequest()), 5)
