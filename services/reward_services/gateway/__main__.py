"""reward-gateway: several rewards behind one URL."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from reward_services.gateway.options import Options, make_parser, parse

EXIT_USAGE = 2


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__)
    options = parse(parser, argv)
    try:
        from reward_services.gateway.metrics import GatewayMetrics
    except ModuleNotFoundError as error:
        parser.error(f"{error.name} is not installed: pip install 'flow-rewards[serve]'")

    from reward_api.client import AsyncRewardClient
    from reward_services.gateway.rewards import Rewards

    metrics = GatewayMetrics()
    try:
        clients = {
            name: AsyncRewardClient(
                urls,
                token=options.upstream_token,
                ca_file=options.upstream_ca_file,
                cert_file=options.upstream_cert_file,
                key_file=options.upstream_key_file,
                timeout_s=options.timeout,
            )
            for name, urls in options.rewards.items()
        }
        rewards = Rewards(clients, options.aliases, on_batch=metrics.observe_batch)
    except ValueError as error:
        parser.error(str(error))
    try:
        return asyncio.run(_serve(rewards, metrics, options))
    except OSError as error:
        sys.stderr.write(f"reward-gateway: {error}\n")
        return EXIT_USAGE


async def _serve(rewards: Any, metrics: Any, options: Options) -> int:
    import uvicorn

    from reward_services.chassis.auth import TokenCheck
    from reward_services.chassis.http.auth import HttpAuth, uvicorn_tls
    from reward_services.chassis.ports import bind
    from reward_services.gateway.app import Bodies, counted, create_app

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    host = options.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = bind(
        lambda port: socket.create_server((host, port), family=family),
        host,
        options.http_port,
        "--http-port",
        next_free=False,
        can_do_without=False,
    )
    bodies = Bodies(options.max_request_bytes, options.max_held_bytes)
    app = create_app(rewards, bodies, metrics)
    served: Any = HttpAuth(app, TokenCheck(options.token)) if options.token else app
    config = uvicorn.Config(
        counted(served, metrics),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        **uvicorn_tls(options),
    )
    config.load()
    server = uvicorn.Server(config)
    shown = f"[{host}]" if ":" in host else host
    scheme = "https" if options.tls_cert_file else "http"
    sys.stdout.write(f"listening {scheme}://{shown}:{sock.getsockname()[1]}\n")
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
