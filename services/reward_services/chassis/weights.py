"""Where a reward's weights come from: a folder, a file, or a repository of the Hugging Face hub.

Finding them needs no torch: a service without its weights ends in a moment, small, with one line.
The hub's own variables hold: HF_HOME (the cache, a volume in containers), HF_TOKEN (gated
repositories), HF_HUB_OFFLINE=1 (only what the cache has), HF_ENDPOINT (a mirror).
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reward_services.chassis.settings import SettingError

logger = logging.getLogger(__name__)

_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_DIGITS = 12


class WeightsError(SettingError):
    """The weights are not there, not complete or not allowed; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Files that are on this machine."""

    folder: Path
    identity: str
    """`owner/name@<commit>` of the hub, else `sha256:<digest>` of the files; 12 hex digits each."""
    files: tuple[Path, ...]
    """What the patterns matched, sorted by name."""

    def one(self, pattern: str) -> Path:
        """The only file that matches. Raises WeightsError when there is none, or another."""
        found = [path for path in self.files if path.relative_to(self.folder).match(pattern)]
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "nothing"
            raise WeightsError(f"{self.folder} should hold one file {pattern}, and holds {names}")
        return found[0]


def fetch_weights(source: str, *, files: Sequence[str]) -> Weights:
    """The files of `source` on this machine, downloaded to the hub's cache where need be.

    source: a folder, or one file, or `owner/name[@revision]` of the hub (a folder of that name wins);
        revision: a branch, tag or commit, by default `main`. A commit makes scores repeatable.
    files: glob patterns of what is needed, each of which must match ("model*.safetensors").

    Raises WeightsError.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _local(path.parent, [path.name])
    if path.is_dir():
        return _local(path, files)
    hub_name = _HUB_NAME.fullmatch(source)
    if hub_name is None:
        raise WeightsError(
            f"there is no file or folder {source}, nor is it a hub name owner/name[@revision]"
        )
    name, revision = hub_name.groups()
    return _from_hub(name, revision, files)


def _local(folder: Path, patterns: Iterable[str]) -> Weights:
    found = _matching(folder, patterns)
    return Weights(folder, f"sha256:{_digest(found)}", found)


def _from_hub(name: str, revision: str | None, patterns: Sequence[str]) -> Weights:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    # The library brings a handler of its own, beside that of all our lines.
    logging.getLogger("huggingface_hub").handlers.clear()
    logger.info("weights: %s, revision %s", name, revision or "main")
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError:
        raise WeightsError(
            f"{name} is gated: accept its licence on the hub and set HF_TOKEN to a token that may "
            "read it"
        ) from None
    except RepositoryNotFoundError:
        raise WeightsError(
            f"the hub has no repository {name}, or it is private: check the name, or set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise WeightsError(f"{name} has no revision {revision}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise WeightsError(
            f"{name} is not in the hub's cache and cannot be downloaded ({_first_line(error)}): "
            "allow the download, fill the cache (HF_HOME), or name a local folder"
        ) from error
    # A snapshot's folder bears the name of its commit.
    return Weights(folder, f"{name}@{folder.name[:_DIGITS]}", _matching(folder, patterns))


def _matching(folder: Path, patterns: Iterable[str]) -> tuple[Path, ...]:
    found: set[Path] = set()
    for pattern in patterns:
        matches = [path for path in folder.glob(pattern) if path.is_file()]
        if not matches:
            raise WeightsError(f"{folder} holds no {pattern}")
        found.update(matches)
    return tuple(sorted(found))


def _digest(paths: Iterable[Path]) -> str:
    """Of names and contents: all of them, since the model reads them all anyway."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(path.name.encode())
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:_DIGITS]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
