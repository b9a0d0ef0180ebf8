"""`flow-grpo curate`: scores a set of image-text pairs, and writes what passes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self

from flow_trainer.curation.desk import Desk
from flow_trainer.curation.gather import Crop, gather, ordered
from flow_trainer.curation.ledger import Ledger
from flow_trainer.curation.page import Panel, outcomes, panel, shown_rows, thumbnail, write_page
from flow_trainer.curation.readiness import await_ready
from flow_trainer.curation.rules import Rule, parse_rules
from flow_trainer.curation.selection import SPLITS, Decision, Selection
from flow_trainer.curation.writing import Encoder, FolderWriter, ParquetWriter, Writer
from flow_trainer.dataset.hub import HUB
from flow_trainer.dataset.open import open_source
from flow_trainer.dataset.pairs import Pair, Source
from flow_trainer.errors import ConfigError, OutageError
from flow_trainer.recipe.rewards import Reward, parse_rewards
from flow_trainer.record.lock import sole_curation
from flow_trainer.record.meter import Meter
from reward_api import DeadlineExceeded, Overloaded, RewardClient, RewardError, Unavailable

THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for."""

    source: str
    out: Path
    crop: Crop
    keep: Sequence[str] = ()
    rewards: Sequence[str] = ()
    caption: str | None = None
    image: str | None = None
    validation: float = 0.05
    test: float = 0.05
    distance: int | None = 4
    format: str = "folder"
    quality: int | None = None
    limit: int | None = None
    timeout_s: float = 600.0
    encoding: str = "raw"
    token: str | None = None
    ready_s: float = 10.0
    """How long a reward that does not answer is waited for; one that loads is waited for without end."""
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Curated:
    """What came of it."""

    counts: dict[str, int]
    """Images by split or first reason."""
    unscored: dict[str, int]
    """Usable images without a score, by reward."""
    lines: list[str]
    """For people."""

    @property
    def kept(self) -> int:
        return sum(self.counts.get(split, 0) for split in SPLITS)

    @property
    def whole(self) -> bool:
        """Something is kept, and every usable image has its scores."""
        return self.kept > 0 and not self.unscored


def curate(request: Request) -> Curated:
    """Leaves in `request.out`: journal.jsonl, curation.html, summary.json and, but for a dry run,
    dropped.jsonl and the set in data/. Raises ConfigError, OutageError, RewardError."""
    rules = parse_rules(request.keep)
    services = parse_rewards(request.rewards)
    rewards = list(dict.fromkeys([*services, *(rule.reward for rule in rules)]))
    if not rewards:
        raise ConfigError(
            "name what to score by: --reward NAME=URL, and thresholds as --keep 'NAME>=0.5'"
        )
    source = open_source(request.source, request.caption, request.image)
    total = min(len(source), request.limit or len(source))
    if total == 0:
        raise ConfigError(f"{source.name} holds no images")
    with sole_curation(request.out), ThreadPoolExecutor(THREADS) as pool:
        _check_identity(request)
        ledger = Ledger(request.out / "journal.jsonl")
        started, before = time.monotonic(), _count_scores(ledger, rewards)
        _score(request, source, total, rewards, services, ledger, pool)
        seconds = time.monotonic() - started
        scored = _count_scores(ledger, rewards) - before
        _check_rules(rules, ledger)
        selection, thumbnails = _select(request, source, total, rewards, rules, ledger, pool)
        columns = [*rewards, *dict.fromkeys(r.column for r in rules if "." in r.column)]
        panels = [panel(c, ledger.column(c), rules, selection, thumbnails) for c in columns]
        return _report(request, selection, panels, ledger, scored, seconds)


def _check_identity(request: Request) -> None:
    """A folder's scores are of one source in one size. Raises ConfigError."""
    crop = request.crop
    own = {
        "source": request.source
        if request.source.startswith(HUB)
        else str(Path(request.source).resolve()),
        "size": [crop.width, crop.height],
    }
    path = request.out / "curation.json"
    if not path.exists():
        _check_free(request)
        path.write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
        return
    known = json.loads(path.read_text(encoding="utf-8"))
    if known != own:
        key = next(key for key in own if known.get(key) != own[key])
        raise ConfigError(
            f"{request.out} holds a curation with {key} {known.get(key)}, not {own[key]}: pass another "
            "--out"
        )


def _check_free(request: Request) -> None:
    """What a curation clears in OUT/data is its own, and what it writes is not read again as its source.
    Raises ConfigError."""
    if (request.out / "data").exists():
        raise ConfigError(
            f"{request.out / 'data'} is there already, and no curation made it: pass another --out"
        )
    source, out = Path(request.source).resolve(), request.out.resolve()
    if not request.source.startswith(HUB) and out.is_relative_to(source):
        raise ConfigError(
            f"--out {request.out} lies in the source, which would be read with it: pass another --out"
        )


def _pairs(source: Source, request: Request) -> Iterator[Pair]:
    return islice(source, request.limit)


def _score(
    request: Request,
    source: Source,
    total: int,
    rewards: Sequence[str],
    services: Mapping[str, Reward],
    ledger: Ledger,
    pool: ThreadPoolExecutor,
) -> None:
    with ExitStack() as stack:
        clients: dict[str, RewardClient] = {}
        for name, service in services.items():
            clients[name] = stack.enter_context(
                RewardClient(
                    service.urls,
                    token=request.token,
                    timeout_s=request.timeout_s,
                    attempt_timeout_s=request.timeout_s,
                    encoding=request.encoding,
                )
            )
            _check_ready(name, clients[name], request.ready_s)
        asked = [name for name in rewards if name in clients]
        meter = stack.enter_context(Meter("scores", total * len(asked)))
        replicas = {name: len(service.urls) for name, service in services.items()}
        desk = Desk(clients, replicas, ledger, meter)
        try:
            gather(_pairs(source, request), asked, request.crop, ledger, desk, meter, pool)
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            desk.abandon()
            if isinstance(error, KeyboardInterrupt):
                meter.say(
                    f"stopped: {_count_scores(ledger, rewards)} scores are kept, and the same command "
                    "goes on from there"
                )
            raise


def _check_ready(name: str, client: RewardClient, ready_s: float) -> None:
    """Raises OutageError."""

    def say(error: RewardError) -> None:
        print(f"waiting for {name}: {error}", file=sys.stderr, flush=True)

    try:
        await_ready(client, ready_s, say)
        client.metadata()
    except (Unavailable, Overloaded, DeadlineExceeded) as error:
        raise OutageError(
            f"{name} is not ready: {error}; start its service, correct --reward {name}=URL, or wait for "
            "it longer with --wait-ready SECONDS"
        ) from error


def _count_scores(ledger: Ledger, rewards: Sequence[str]) -> int:
    return sum(int((~_missing(ledger, name)).sum()) for name in rewards)


def _missing(ledger: Ledger, column: str) -> Any:
    values = ledger.column(column)
    return values != values


def _check_rules(rules: Sequence[Rule], ledger: Ledger) -> None:
    """Raises ConfigError for a column that no image has."""
    for rule in rules:
        known = ledger.columns(rule.reward)
        if not known:
            raise ConfigError(
                f"--keep {rule}: there is no score of {rule.reward}; start its service and pass --reward "
                f"{rule.reward}=URL"
            )
        if rule.column not in known:
            raise ConfigError(f"--keep {rule}: there is no {rule.column}; use {', '.join(known)}")


def _select(
    request: Request,
    source: Source,
    total: int,
    rewards: Sequence[str],
    rules: Sequence[Rule],
    ledger: Ledger,
    pool: ThreadPoolExecutor,
) -> tuple[Selection, dict[int, str]]:
    """The second pass: decides on every image, writes those that are kept, and takes the thumbnails."""
    selection = Selection(
        ledger,
        rewards,
        rules,
        distance=request.distance,
        validation=request.validation,
        test=request.test,
    )
    columns = [*rewards, *(rule.column for rule in rules)]
    wanted = {row for column in columns for row in shown_rows(ledger.column(column))}
    thumbnails: dict[int, str] = {}
    writer = None if request.dry_run else _open_writer(request, ledger, rewards)

    def prepare(item: tuple[Pair, Decision]) -> bytes | None:
        pair, decision = item
        if decision.row is None:
            return None
        if decision.row in wanted:
            thumbnails[decision.row] = thumbnail(request.crop.read(pair).pixels)
        if writer is None or decision.split is None:
            return None
        return writer.prepare(pair, decision.row, decision.split)

    decided = ((pair, selection.decide(pair)) for pair in _pairs(source, request))
    title = "choosing" if writer is None else "writing"
    with Meter(title, total) as meter, _Dropped(request.out, quiet=writer is None) as dropped:
        for (pair, decision), file in ordered(pool, prepare, decided, 4 * THREADS):
            scores = {} if decision.row is None else ledger.scores(decision.row, rewards)
            if decision.split is None:
                dropped.put(pair, decision, scores)
            elif writer is not None and decision.row is not None:
                writer.put(pair, decision.row, decision.split, scores, file)
            meter.advance(1)
        if writer is not None:
            writer.finish()
    return selection, thumbnails


class _Dropped:
    """dropped.jsonl: an image a line, with its reasons and scores; it appears when it is whole."""

    def __init__(self, out: Path, *, quiet: bool) -> None:
        self._path = out / "dropped.jsonl"
        self._quiet = quiet
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        if not self._quiet:
            self._file = self._path.with_suffix(".partial").open("w", encoding="utf-8")
        return self

    def put(self, pair: Pair, decision: Decision, scores: dict[str, float]) -> None:
        if self._file is not None:
            line = {"image": pair.key, "prompt": pair.prompt, "reasons": decision.reasons}
            self._file.write(json.dumps({**line, "scores": scores}, ensure_ascii=False) + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            if kind is None:
                Path(self._file.name).replace(self._path)


def _open_writer(request: Request, ledger: Ledger, rewards: Sequence[str]) -> Writer:
    encoder = Encoder(request.crop, ledger, request.quality)
    folder = request.out / "data"
    if request.format == "folder":
        return FolderWriter(folder, encoder)
    columns = [column for reward in rewards for column in ledger.columns(reward)]
    return ParquetWriter(folder, encoder, columns)


def _report(
    request: Request,
    selection: Selection,
    panels: Sequence[Panel],
    ledger: Ledger,
    scored: int,
    seconds: float,
) -> Curated:
    """Writes page and summary."""
    counts = dict(outcomes(selection.counts))
    page = request.out / "curation.html"
    crop = request.crop
    facts = [
        ("source", request.source),
        ("size", f"{crop.width} x {crop.height} pixels, resized to cover, cropped in the middle"),
        ("rules", ", ".join(request.keep) or "none"),
        (
            "near-duplicates",
            "kept" if request.distance is None else f"within {request.distance} bits",
        ),
        *([("scores of this run", f"{scored} in {seconds:.0f} s")] if scored else []),
        *((f"revisions of {n}", ", ".join(sorted(r))) for n, r in ledger.revisions.items()),
    ]
    write_page(page, name=request.source, panels=panels, selection=selection, facts=facts)
    summary = {
        "source": request.source,
        "size": [crop.width, crop.height],
        "rules": list(request.keep),
        "counts": counts,
        "failing_rules": dict(selection.failing),
        "without_scores": dict(selection.unscored),
        "revisions": {name: sorted(found) for name, found in ledger.revisions.items()},
        "scored_now": scored,
        "seconds": round(seconds, 2),
        "dry_run": request.dry_run,
    }
    text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    (request.out / "summary.json").write_text(text, encoding="utf-8")
    lines = _lines(request, counts, selection, ledger, page)
    return Curated(counts, dict(selection.unscored), lines)


def _lines(
    request: Request,
    counts: Mapping[str, int],
    selection: Selection,
    ledger: Ledger,
    page: Path,
) -> list[str]:
    total = sum(counts.values())
    kept = sum(counts.get(split, 0) for split in SPLITS)
    width = max(map(len, counts), default=0)
    lines = [f"{kept} of {total} image-text pairs are kept"]
    lines += [f"  {name:<{width}}  {count:>8}" for name, count in counts.items()]
    for name, count in selection.unscored.items():
        lines.append(
            f"{count} have no score of {name}, e.g. {selection.example[name]}; the same command asks "
            "again"
        )
    for name, found in ledger.revisions.items():
        if len(found) > 1:
            lines.append(
                f"{name} scored them in several revisions ({', '.join(sorted(found))}): for scores that "
                "compare, use another --out"
            )
    if kept == 0:
        lines.append("nothing passes: choose thresholds on the page, or look at dropped.jsonl")
    if not request.dry_run and kept:
        lines.append(f"data: {request.out / 'data'}")
    return [*lines, f"page: {page}"]
