"""reward-gateway: several rewards behind one URL."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXIT_USAGE = 2

_EPILOG = """\
example:
  reward-gateway --reward pickscore=http://a:8103,http://b:8103 --reward ocr=grpc://c:9101 \\
      --http-port 8200

The names that UniRL and cosmos-rl give to our rewards are known (unified_reward, clip, image_reward,
gen_eval, hps); --alias adds others. Every flag is also a variable: REWARD_GATEWAY_HTTP_PORT, ...
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    rewards = dict(_pair(parser, "--reward", text, "NAME=URL[,URL]") for text in arguments.reward)
    if len(rewards) < len(arguments.reward):
        parser.error("--reward: two rewards have the same name")
    aliases = dict(_pair(parser, "--alias", text, "ALIAS=NAME") for text in arguments.alias)
    token = _token(parser, "--token-file", arguments.token_file)
    upstream = _token(parser, "--upstream-token-file", arguments.upstream_token_file)
    is_loopback = arguments.host in ("localhost", "::1") or arguments.host.startswith("127.")
    if not (is_loopback or token or arguments.insecure_no_auth):
        parser.error(
            f"--host {arguments.host} lets other machines call: set --token-file, or allow it with "
            "--insecure-no-auth"
        )

    from reward_api.client import AsyncRewardClient
    from reward_services.gateway.rewards import Rewards

    try:
        clients = {
            name: AsyncRewardClient(urls.split(","), token=upstream, timeout_s=arguments.timeout)
            for name, urls in rewards.items()
        }
        found = Rewards(clients, aliases)
    except ValueError as error:
        parser.error(str(error))
    try:
        return asyncio.run(_serve(found, arguments, token))
    except OSError as error:
        sys.stderr.write(f"reward-gateway: {error}\n")
        return EXIT_USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="reward-gateway",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--reward",
        action="append",
        required=True,
        metavar="NAME=URL[,URL]",
        help="a reward and its replicas; repeat for each reward",
    )
    parser.add_argument(
        "--alias", action="append", default=[], metavar="ALIAS=NAME", help="another name for it"
    )
    for flag, kind, default, text in (
        ("--host", str, "127.0.0.1", "address to listen on"),
        ("--http-port", _port, 8200, "HTTP port; 0: any free one"),
        ("--timeout", _seconds, 120.0, "seconds for one batch of one reward, retries included"),
        ("--max-request-bytes", _size, 512 * 2**20, "most bytes in one request"),
        ("--max-held-bytes", _size, 2 * 2**30, "most request bytes held at a time"),
        ("--token-file", Path, None, "file with the token that callers must send"),
        ("--upstream-token-file", Path, None, "file with the token that the rewards want"),
    ):
        variable = "REWARD_GATEWAY_" + flag.lstrip("-").replace("-", "_").upper()
        parser.add_argument(
            flag,
            type=kind,
            default=os.environ.get(variable) or default,
            metavar=flag.rpartition("-")[2].upper(),
            help=f"{text} (default {default}; {variable})",
        )
    parser.add_argument(
        "--insecure-no-auth", action="store_true", help="let other machines call without a token"
    )
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port from 0 to 65535")
    return port


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return seconds


def _size(text: str) -> int:
    size = int(text)
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of bytes above 0")
    return size


def _pair(parser: argparse.ArgumentParser, flag: str, text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value) or "/" in name:
        parser.error(f"{flag} {text}: expected {form}")
    return name, value


def _token(parser: argparse.ArgumentParser, flag: str, path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"{flag} {path}: {getattr(error, 'strerror', None) or error}")
    if not token or not token.isascii():
        parser.error(f"{flag} {path}: the token is empty or not ASCII")
    return token


async def _serve(rewards: Any, arguments: argparse.Namespace, token: str | None) -> int:
    import uvicorn

    from reward_services.chassis.auth import TokenCheck
    from reward_services.chassis.http.auth import HttpAuth
    from reward_services.chassis.ports import bind
    from reward_services.gateway.app import Bodies, create_app

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    host: str = arguments.host
    sock = bind(
        lambda port: socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ),
        host,
        arguments.http_port,
        "--http-port",
        next_free=False,
    )
    app = create_app(rewards, Bodies(arguments.max_request_bytes, arguments.max_held_bytes))
    served: Any = HttpAuth(app, TokenCheck(token)) if token else app
    config = uvicorn.Config(
        served, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False
    )
    server = uvicorn.Server(config)
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"listening http://{shown}:{sock.getsockname()[1]}\n")
    sys.stdout.flush()
    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(server._serve(sockets=[sock]))  # signals are handled here
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, setattr, server, "should_exit", True)
    try:
        await serving
    finally:
        app.state.queue.close()
        await rewards.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
