"""The least that a transport costs here: bytes in, a few bytes out, nothing read.

`socket`: a plain TCP socket received into one buffer; `grpc`: a grpc.aio server without a message
type. What a service costs beyond its transport's line is its own.
"""

from __future__ import annotations

import argparse
import socket

LENGTH_BYTES = 8
ANSWER = b"ok"
METHOD = "/bare.Bare/Take"


def serve_socket() -> None:
    """Messages of one connection: their length (8 bytes, big-endian), then as many bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"ready bare-socket://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        connection, _ = listener.accept()
    buffer = bytearray()
    with connection:
        while head := connection.recv(LENGTH_BYTES, socket.MSG_WAITALL):
            length = int.from_bytes(head, "big")
            if len(buffer) != length:
                buffer = bytearray(length)
            view = memoryview(buffer)
            while view:
                view = view[connection.recv_into(view) :]
            connection.sendall(ANSWER)


async def serve_grpc() -> None:
    import grpc

    async def take(_: bytes, __: grpc.aio.ServicerContext) -> bytes:
        return ANSWER

    _, service, method = METHOD.split("/")
    handler = grpc.unary_unary_rpc_method_handler(take)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready bare-grpc://127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("socket", "grpc"))
    if parser.parse_args().kind == "socket":
        serve_socket()
    else:
        import uvloop

        uvloop.run(serve_grpc())


if __name__ == "__main__":
    main()
