"""The gateway's HAProxy on loopback: docker/haproxy.cfg itself, with a nameserver of the test's in place of
Docker's. Replicas of a reward have one port and an address each: 127.0.0.1, 127.0.0.2, ..."""

from __future__ import annotations

import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from processes import ROOT

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
A, IN = 1, 1
NO_SUCH_NAME = 3


class Nameserver:
    """Answers A queries from `addresses`, which a test may change; other names do not exist."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                query, sender = self._socket.recvfrom(512)
            except OSError:  # closed
                return
            self._socket.sendto(self._answer(query), sender)

    def _answer(self, query: bytes) -> bytes:
        end = query.index(b"\0", 12) + 5  # the name, its type and class
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        known = self.addresses.get(".".join(labels))
        wanted = struct.unpack(">H", query[end - 4 : end - 2])[0]
        found = known if known and wanted == A else []
        code = NO_SUCH_NAME if known is None else 0
        head = query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(found), 0, 0)
        records = [
            b"\xc0\x0c" + struct.pack(">HHIH", A, IN, 1, 4) + socket.inet_aton(address)
            for address in found
        ]
        return head + query[12:end] + b"".join(records)

    def close(self) -> None:
        self._socket.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Gateway:
    """For the reward `jpeg`, whose replicas listen on the two `replica_ports`."""

    folder: Path
    nameserver: Nameserver = field(default_factory=Nameserver)
    http_port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)
    replica_ports: tuple[int, int] = field(default_factory=lambda: (free_port(), free_port()))

    def log(self) -> str:
        return (self.folder / "haproxy.log").read_text()

    @contextmanager
    def running(self) -> Iterator[None]:
        assert HAPROXY is not None
        config = self.folder / "haproxy.cfg"
        config.write_text(self._configuration(), encoding="utf-8")
        with open(self.folder / "haproxy.log", "wb") as log:
            process = subprocess.Popen([HAPROXY, "-db", "-f", str(config)], stdout=log, stderr=log)
        try:
            while True:
                assert process.poll() is None, self.log()
                with suppress(OSError), socket.create_connection(("127.0.0.1", self.grpc_port)):
                    break
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.wait(10)
            self.nameserver.close()

    def _configuration(self) -> str:
        text = (ROOT / "docker/haproxy.cfg").read_text(encoding="utf-8")
        head = text[: text.index("\nfrontend http")]
        block = re.search(r"listen jpeg\n(.+\n)+listen jpeg-grpc\n(.+\n)+", text)
        assert block is not None
        config = f"{head}\n{block[0]}"
        http, grpc = self.replica_ports
        for old, new in {
            "127.0.0.11:53": f"127.0.0.1:{self.nameserver.port}",
            "connect port 8000": f"connect port {http}",
            "bind :8102": f"bind 127.0.0.1:{self.http_port}",
            "bind :9102": f"bind 127.0.0.1:{self.grpc_port}",
            "jpeg:8000": f"jpeg:{http}",
            "jpeg:9000": f"jpeg:{grpc}",
        }.items():
            assert old in config
            config = config.replace(old, new)
        return config
