"""What every source of image-text pairs gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flow_trainer.errors import ConfigError

CAPTIONS = ("prompt", "caption", "text", "prompts")
"""Where a data set keeps its captions when nobody says; case does not matter."""
IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")
"""Where it keeps its images."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An image that is not read yet, and its caption."""

    key: str
    """Its name in the source: a path, or the number of its row."""
    prompt: str | None
    """None: there is no caption."""
    stamp: str
    """Another one when the image may have changed."""
    read: Callable[[], bytes]
    """The image's file. Raises OSError."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What rewards read beside the caption."""

    @property
    def version(self) -> int:
        """64 bits of all that decides its scores."""
        told = json.dumps([self.stamp, self.prompt, dict(self.metadata)], sort_keys=True)
        return digest64(told)


class Source(Protocol):
    """A set of image-text pairs. It can be walked any number of times, always in the same order, and
    holds no image."""

    name: str

    def __len__(self) -> int:
        """About how many there are: all that a progress bar needs."""
        ...

    def __iter__(self) -> Iterator[Pair]: ...


def digest64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def find_column(
    names: Sequence[str], wanted: str | None, usual: Sequence[str], what: str, where: str
) -> str:
    """The column of that name, or else the first with a usual one. Raises ConfigError."""
    if wanted is not None:
        if wanted in names:
            return wanted
        raise ConfigError(f"{where} has no column {wanted!r}; it has {', '.join(names)}")
    lower = {name.lower(): name for name in reversed(names)}
    found = next((lower[name] for name in usual if name in lower), None)
    if found is None:
        raise ConfigError(
            f"{where}: no column for the {what} was recognised; it has {', '.join(names)}: name it "
            f"with --{what}"
        )
    return found


def as_caption(value: Any) -> str | None:
    return value.strip() if isinstance(value, str) and value.strip() else None


def as_metadata(value: Any, where: str) -> Mapping[str, Any]:
    """Of a column `metadata`: an object, or JSON of one. Raises ConfigError."""
    if value is None or value == "":
        return {}
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, Mapping):
        raise ConfigError(f"{where}: metadata must be a JSON object, not {str(value)[:40]!r}")
    return {key: inner for key, inner in found.items() if inner is not None}
