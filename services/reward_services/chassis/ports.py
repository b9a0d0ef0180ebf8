"""Which port a front binds: the one of the settings, or the next free one when that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_TRIES = 100
T = TypeVar("T")


class PortError(OSError):
    """A port cannot be opened; the message names the flag and the way out."""


def bind(
    open_port: Callable[[int], T],
    host: str,
    port: int,
    flag: str,
    *,
    next_free: bool,
    can_do_without: bool = True,
) -> T:
    """What `open_port(port)` gives, for the first port that it can open. Raises PortError; its text
    offers "none" and the next free port only to programs that know them (`can_do_without`)."""
    last = min(65535, port + _TRIES - 1) if next_free and port else port
    error: Exception | None = None
    for candidate in range(port, last + 1):
        try:
            return open_port(candidate)
        except (OSError, RuntimeError) as caught:  # gRPC says RuntimeError
            error = caught
            if isinstance(caught, OSError) and caught.errno is None:
                break
    tried = f"{host}:{port}" if last == port else f"{host}:{port} to {last}"
    others = ", or none to do without, or add --next-free-port" if can_do_without else ""
    raise PortError(
        f"{flag}: cannot listen on {tried} ({_reason(error)}); choose another port with {flag}, "
        f"0 for any free one{others}"
    ) from error


def _reason(error: Exception | None) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:200]
