"""What carries one call to one replica of a service: over HTTP, gRPC or within the process.

==============================  =================================================================
URL                             transport
==============================  =================================================================
``http://host:port[/prefix]``   HTTP/1.1 with keep-alive (http.py); ``https://`` with TLS
``grpc://host:port``            gRPC (grpc.py); ``grpcs://`` with TLS
``http+dns://name:port``        every address of the name is a replica of its own (pool.py); also
                                ``https+dns``, ``grpc+dns``, ``grpcs+dns``
==============================  =================================================================

Services are reached directly: proxy settings of the environment are not used.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from reward_api.wire.messages import RewardMetadata, ScoreRequest, ScoreResponse

_SCHEMES = ("http", "https", "grpc", "grpcs")


class Transport(Protocol):
    """The seam between the client and the wire. Every method raises RewardError and nothing else.

    `timeout_s` is told to the service, which drops the work when the time is over; it is the caller
    (pool.py) that stops waiting, by cancellation, which reaches the service too.
    """

    async def score(self, request: ScoreRequest, *, timeout_s: float) -> ScoreResponse: ...

    async def metadata(self, *, timeout_s: float) -> RewardMetadata: ...

    async def ready(self, *, timeout_s: float) -> None:
        """Raises Unavailable when the service does not take work now."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Target:
    """A parsed URL."""

    scheme: str
    host: str
    port: int
    prefix: str = ""
    resolve: bool = False
    """True for ``+dns``: each address of `host` is a replica."""
    address: str = ""
    """One resolved address of `host`; empty: the transport resolves by itself."""

    @property
    def is_grpc(self) -> bool:
        return self.scheme.startswith("grpc")

    @property
    def is_tls(self) -> bool:
        return self.scheme.endswith("s")

    @property
    def authority(self) -> str:
        return f"{_bracketed(self.host)}:{self.port}"

    @property
    def connect_authority(self) -> str:
        return f"{_bracketed(self.address or self.host)}:{self.port}"

    def at(self, address: str) -> Target:
        return replace(self, address=address, resolve=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.connect_authority}{self.prefix}"


def parse_url(url: str) -> Target:
    """Raises ValueError that shows the right form."""
    parts = urlsplit(url)
    scheme, _, option = parts.scheme.partition("+")
    shown = re.sub("//.*@", "//***@", url)  # no password in a message
    hint = f"{shown!r}: expected http://host:port, https://, grpc:// or grpcs://"
    if scheme not in _SCHEMES or option not in ("", "dns") or not re.fullmatch(r"[!-~]+", url):
        raise ValueError(hint)
    if not parts.hostname or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"{hint} (no user, query or fragment; the token is an option)")
    try:
        port = parts.port
    except ValueError:
        raise ValueError(hint) from None
    if port is None and scheme in ("grpc", "grpcs"):
        raise ValueError(f"{hint}; gRPC needs the port")
    prefix = parts.path.rstrip("/")
    if prefix and scheme in ("grpc", "grpcs"):
        raise ValueError(f"{hint}; gRPC has no path")
    return Target(
        scheme=scheme,
        host=parts.hostname,
        port=port or (443 if scheme == "https" else 80),
        prefix=prefix,
        resolve=option == "dns",
    )


@dataclass(frozen=True)
class Credentials:
    """How the client shows who it is, and whom it trusts."""

    token: str | None = None
    ca_file: str | Path | None = None
    """PEM; None: the system's authorities."""
    cert_file: str | Path | None = None
    key_file: str | Path | None = None

    def __post_init__(self) -> None:
        if self.token is not None and not re.fullmatch(r"[\x21-\x7e]+", self.token):
            raise ValueError("the token must be printable ASCII without spaces")
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.token is None else {"authorization": f"Bearer {self.token}"}

    def ssl_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca_file)
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
