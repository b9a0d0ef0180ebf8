"""A small reward service on both protocols around a FakeReward: on a thread of its own, or, run as
a script, in a process of its own that tests can freeze and kill.

It speaks the contract as the chassis does, and nothing more; the chassis has its own tests.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response

from reward_api.errors import Reason, RewardError, error_for
from reward_api.testing import FakeReward
from reward_api.wire import convert
from reward_api.wire.framing import LENGTH_HEADER, decode_json, decode_request
from reward_api.wire.messages import Problem
from reward_api.wire.v1 import reward_pb2 as pb

CODES = {code.value[0]: code for code in grpc.StatusCode}
BATCH = np.random.default_rng(0).integers(0, 256, (12, 16, 8, 3), np.uint8)
"""Twelve different pictures."""


class Service:
    """`reward` decides the answers; `headers` and `calls` tell what arrived."""

    def __init__(self, reward=None, token=None, tls=None):
        self.reward = reward or FakeReward()
        self.token = token
        self.tls = tls
        self.headers = []
        self.connections = set()
        self.http_port = self.grpc_port = 0
        self._started = threading.Event()

    @property
    def urls(self):
        s = "s" if self.tls else ""
        return {
            "http": f"http{s}://localhost:{self.http_port}",
            "grpc": f"grpc{s}://localhost:{self.grpc_port}",
        }

    def start(self):
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()))
        self._thread.start()
        assert self._started.wait(20)

    def stop(self):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def serve(self, announce=False):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        sock = socket.create_server(("127.0.0.1", self.http_port))
        # asyncio sets it on accepted sockets only when the protocol number is given.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.http_port = sock.getsockname()[1]
        files = (
            {} if self.tls is None else {"ssl_certfile": self.tls[0], "ssl_keyfile": self.tls[1]}
        )
        http = QuietServer(uvicorn.Config(self.app(), log_level="warning", lifespan="off", **files))
        serving = asyncio.create_task(http.serve(sockets=[sock]))
        server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 * 2**20)])
        server.add_generic_rpc_handlers(self.handlers())
        address = f"127.0.0.1:{self.grpc_port}"
        if self.tls is None:
            self.grpc_port = server.add_insecure_port(address)
        else:
            pair = (Path(self.tls[1]).read_bytes(), Path(self.tls[0]).read_bytes())
            self.grpc_port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        await server.start()
        while not http.started:
            await asyncio.sleep(0.005)
        self._started.set()
        if announce:
            sys.stdout.write(f"{self.http_port} {self.grpc_port}\n")
            sys.stdout.flush()
        await self._stop.wait()
        await server.stop(0)
        http.should_exit = http.force_exit = True
        await serving

    def check(self, headers):
        self.headers.append(dict(headers))
        if self.token and headers.get("authorization") != f"Bearer {self.token}":
            raise error_for(Reason.AUTH, "wrong token")

    def app(self):
        app = FastAPI()

        @app.exception_handler(RewardError)
        async def problem(_: Request, error: RewardError):
            after = error.retry_after_s
            body = Problem(
                title="problem",
                status=error.http_status,
                detail=error.message,
                reason=error.reason,
                retry_after_ms=None if after is None else round(after * 1000),
            )
            return Response(body.model_dump_json(), error.http_status)

        @app.post("/v1/score")
        async def score(request: Request):
            self.check(request.headers)
            self.connections.add(request.client)
            body, length = await request.body(), request.headers.get(LENGTH_HEADER)
            message = decode_request(body, int(length)) if length else decode_json(body)
            response = await self.reward.score(message, timeout_s=60)
            return Response(response.model_dump_json(exclude_none=True))

        @app.get("/v1/metadata")
        async def metadata(request: Request):
            self.check(request.headers)
            return await self.reward.metadata(timeout_s=1)

        @app.get("/readyz")
        async def readyz(response: Response):
            response.status_code = 200 if self.reward.is_ready else 503
            return {} if self.reward.is_ready else {"reason": "loading"}

        return app

    def handlers(self):
        def answering(answer):
            async def handle(data, context):
                try:
                    self.check(dict(context.invocation_metadata()))
                    return await answer(data)
                except RewardError as error:
                    trailers = [("reward-reason", str(error.reason))]
                    if error.retry_after_s is not None:
                        pushback = str(round(error.retry_after_s * 1000))
                        trailers.append(("grpc-retry-pushback-ms", pushback))
                    await context.abort(CODES[error.grpc_code], error.message, tuple(trailers))

            return grpc.unary_unary_rpc_method_handler(handle)

        async def score(data):
            message = convert.request_from_proto(pb.ScoreRequest.FromString(data))
            response = await self.reward.score(message, timeout_s=60)
            return convert.response_to_proto(response).SerializeToString()

        async def metadata(_):
            about = await self.reward.metadata(timeout_s=1)
            return convert.metadata_to_proto(about).SerializeToString()

        async def health(_):
            return b"\x08\x01" if self.reward.is_ready else b"\x08\x02"

        reward = {"Score": answering(score), "GetMetadata": answering(metadata)}
        return (
            grpc.method_handlers_generic_handler("reward.v1.RewardService", reward),
            grpc.method_handlers_generic_handler(
                "grpc.health.v1.Health", {"Check": answering(health)}
            ),
        )


class QuietServer(uvicorn.Server):
    """Leaves the signals of the process alone."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield


@pytest.fixture
def serve():
    """Starts services on threads: `service = serve(FakeReward(...))`."""
    running = []

    def start(*arguments, **options):
        service = Service(*arguments, **options)
        service.start()
        running.append(service)
        return service

    yield start
    for service in running:
        service.stop()


@pytest.fixture
def service(serve):
    return serve()


class Replica:
    """A service in a process of its own."""

    def __init__(self, *flags):
        command = [sys.executable, __file__, *flags]
        path = os.pathsep.join(p for p in sys.path if p)
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        assert self.process.stdout is not None
        self.http_port, self.grpc_port = map(int, self.process.stdout.readline().split())
        self.urls = {
            "http": f"http://127.0.0.1:{self.http_port}",
            "grpc": f"grpc://127.0.0.1:{self.grpc_port}",
        }

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def spawn():
    """Starts services in processes: `replica = spawn("--delay", "0.1")`."""
    running = []

    def start(*flags):
        replica = Replica(*flags)
        running.append(replica)
        return replica

    yield start
    for replica in running:
        replica.kill()
        replica.process.stdout.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--revision", default="fake-1")
    parser.add_argument("--http-port", type=int, default=0)
    parser.add_argument("--grpc-port", type=int, default=0)
    arguments = parser.parse_args()
    service = Service(FakeReward(revision=arguments.revision, delay_s=arguments.delay))
    service.http_port, service.grpc_port = arguments.http_port, arguments.grpc_port
    asyncio.run(service.serve(announce=True))


if __name__ == "__main__":
    main()
