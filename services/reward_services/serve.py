"""One reward as a process: open both ports, load, warm up, serve, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec

from reward_services.chassis import logs
from reward_services.chassis.auth import TokenCheck
from reward_services.chassis.batching.isolation import summary
from reward_services.chassis.grpc.app import GrpcFront
from reward_services.chassis.http.server import HttpFront
from reward_services.chassis.ports import PortError
from reward_services.chassis.scorer import Scorer
from reward_services.chassis.service import RewardService, State
from reward_services.chassis.settings import ServiceSettings, SettingError
from reward_services.chassis.threads import SWITCH_S
from reward_services.dialects import GRPC_HANDLERS, HTTP_ROUTERS

logger = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_START_FAILED = 1
EXIT_USAGE = 2
EXIT_DEVICE_LOST = 3

# Once nothing is left to answer: time for the last bytes to leave.
_FLUSH_S = 2.0
_DEPENDENCY_S = 2.0
_MAX_MESSAGE = 2000


class StartFailed(Exception):
    """The service could not start; the message is the one line that says why. `status` is 2 where
    another setting would help, 1 where only another time or place does."""

    def __init__(self, message: str, status: int = EXIT_START_FAILED) -> None:
        super().__init__(message)
        self.status = status


def serve(name: str, scorer: Scorer, settings: ServiceSettings) -> int:
    """Runs the service until SIGTERM or SIGINT; returns the exit status of the process."""
    logs.configure(settings.log_level, settings.log_format, name)
    sys.setswitchinterval(SWITCH_S)
    if not sys.stderr.isatty():  # bars of downloads and loading are no log lines
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_Process(name, scorer, settings).run())
    except StartFailed as error:
        logger.critical("%s", error)
        logger.debug("the cause", exc_info=error.__cause__)
        return error.status


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop


class _Process:
    def __init__(self, name: str, scorer: Scorer, settings: ServiceSettings) -> None:
        self._name = name
        self._scorer = scorer
        self._settings = settings

    async def run(self) -> int:
        stop = _stop_on_signals()
        service = RewardService(self._name, self._scorer, self._settings)
        http, grpc = await self._open(service)
        try:
            loading = asyncio.create_task(service.start())
            await _first(loading, stop)
            if stop.done():
                logger.info("stopped while loading")
                return EXIT_OK
            await self._loaded(loading)
            # What is loaded stays: a full collection need not walk it, while nobody is answered.
            gc.collect()
            gc.freeze()
            if grpc:
                await grpc.set_serving(True)
            self._say(f"ready {' '.join(self._urls)}")
            watch = asyncio.create_task(self._watch_dependency(service, grpc))
            await _first(service.device_lost, stop)
            watch.cancel()
            if grpc:
                await grpc.set_serving(False)
            if service.device_lost.done():
                logger.critical("device lost: %s", summary(service.device_lost.result()))
                await service.wait_idle(_FLUSH_S)
                return EXIT_DEVICE_LOST
            await self._drain(service)
            return EXIT_OK
        finally:
            fronts = [front for front in (http, grpc) if front]
            await asyncio.gather(*(front.stop(_FLUSH_S) for front in fronts))
            service.close()

    async def _open(self, service: RewardService) -> tuple[HttpFront | None, GrpcFront | None]:
        settings = self._settings
        http = grpc = None
        http_port = grpc_port = None
        try:
            _check_files(settings)
            token = settings.read_token()
            check = TokenCheck(token) if token else None
            if settings.http_port is not None:
                http = HttpFront(service, check, HTTP_ROUTERS)
                http_port = await http.start()
            if settings.grpc_port is not None:
                grpc = GrpcFront(service, check, GRPC_HANDLERS)
                grpc_port = await grpc.start()
            self._publish(http_port, grpc_port)
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            await asyncio.gather(*(front.stop(0) for front in (http, grpc) if front))
            if isinstance(error, PortError):
                raise StartFailed(str(error), EXIT_USAGE) from error
            raise StartFailed(f"cannot open the ports: {_whole(error)}", EXIT_USAGE) from error
        return http, grpc

    def _publish(self, http_port: int | None, grpc_port: int | None) -> None:
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        secure = "s" if self._settings.tls_cert_file else ""
        self._urls = []
        if http_port is not None:
            self._urls.append(f"http{secure}://{host}:{http_port}")
        if grpc_port is not None:
            self._urls.append(f"grpc{secure}://{host}:{grpc_port}")
        logger.info("listening, not ready yet: %s", " ".join(self._urls))
        path = self._settings.port_file
        if path is not None:
            ports = {"http_port": http_port, "grpc_port": grpc_port, "pid": os.getpid()}
            partial = path.with_name(path.name + ".partial")
            partial.write_text(json.dumps(ports), encoding="utf-8")
            partial.replace(path)  # readers see all of it or nothing

    async def _loaded(self, loading: asyncio.Task[None]) -> None:
        try:
            await loading
        except Exception as error:
            is_setting = isinstance(error, (SettingError, ImportError, FileNotFoundError))
            raise StartFailed(
                f"loading {self._name} failed: {_whole(error)} (--log-level debug tells more)",
                EXIT_USAGE if is_setting else EXIT_START_FAILED,
            ) from error

    async def _watch_dependency(self, service: RewardService, grpc: GrpcFront | None) -> None:
        while service.has_dependency:
            await asyncio.sleep(_DEPENDENCY_S)
            if not await service.check_dependency():
                continue
            is_ready = service.state is State.READY
            if grpc:
                await grpc.set_serving(is_ready)
            if is_ready:
                logger.info("ready again")
            else:
                logger.warning("not ready: what the reward depends on does not answer")

    async def _drain(self, service: RewardService) -> None:
        delay_s = self._settings.effective_readiness_delay_s
        service.announce_drain()
        logger.info("draining", extra={"inflight": service.inflight, "delay_s": delay_s})
        await asyncio.sleep(delay_s)
        service.refuse_new_calls()
        if not await service.wait_idle(self._settings.drain_s):
            logger.error("%d calls were not finished in time", service.inflight)

    def _say(self, line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _check_files(settings: ServiceSettings) -> None:
    """OpenSSL's and gRPC's own errors do not name the file. Raises FileNotFoundError."""
    for field in ("token_file", "tls_cert_file", "tls_key_file", "tls_client_ca_file"):
        path = getattr(settings, field)
        if path is not None and not path.is_file():
            flag = "--" + field.replace("_", "-")
            raise FileNotFoundError(f"{flag} {path}: there is no such file; name one that exists")


def _whole(error: BaseException) -> str:
    """The message in one line, with its fix, which stands at the end: only what is longer than any
    message of ours loses its middle."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if len(text) <= _MAX_MESSAGE:
        return text
    return f"{text[: _MAX_MESSAGE // 2]} ... {text[-_MAX_MESSAGE // 2 :]}"


def _stop_on_signals() -> asyncio.Future[None]:
    """Resolved by the first SIGTERM or SIGINT; the second ends the process at once."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()

    def on_signal(number: int) -> None:
        if stop.done():
            os._exit(128 + number)
        stop.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop


async def _first(*futures: asyncio.Future) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
