"""reward-score: scores image files with one reward or several, or waits until they take work."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward_api.batch import ScoreBatch
    from reward_api.client import AsyncRewardClient

_EXIT_OK, _EXIT_FAILED, _EXIT_USAGE = 0, 1, 2

_EPILOG = """\
examples:
  reward-score --reward http://localhost:8101 sign.png --prompt 'a sign that says "open"'
  reward-score --reward ocr=http://a:8101,http://b:8101 --reward jpeg=grpc://c:9108 *.png --json
  reward-score --reward http://localhost:8101 --wait --timeout 60

exit status: 0 everything was scored (or is ready), 1 something was not, 2 wrong usage
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not arguments.images and not arguments.wait:
        parser.error("give images to score, or --wait")
    prompts = arguments.prompt or [""]
    if len(prompts) not in (1, max(1, len(arguments.images))):
        parser.error(
            f"{len(prompts)} prompts for {len(arguments.images)} images: give 1 or as many"
        )
    if not 0 < arguments.timeout < math.inf:
        parser.error(f"--timeout {arguments.timeout}: give a number of seconds above 0")
    metadata = _metadata(parser, arguments.metadata, len(arguments.images))
    files = [_read(parser, path) for path in arguments.images]
    rewards = dict(_reward(text) for text in arguments.reward)
    if len(rewards) < len(arguments.reward):
        parser.error("two rewards have the same name: give them names as in --reward NAME=URL")

    import asyncio  # the client takes a moment to import; --help should not

    from reward_api.client import AsyncRewardClient
    from reward_api.errors import AuthenticationFailed, InvalidRequest, RewardError

    try:
        clients = {
            name: AsyncRewardClient(
                urls, token=arguments.token, timeout_s=arguments.timeout, on_error="nan"
            )
            for name, urls in rewards.items()
        }
    except ValueError as error:
        parser.error(str(error))
    try:
        return asyncio.run(_run(clients, arguments, files, prompts, metadata))
    except (InvalidRequest, AuthenticationFailed) as error:
        hint = "; give the token with --token" if isinstance(error, AuthenticationFailed) else ""
        sys.stderr.write(f"reward-score: {error}{hint}\n")
        return _EXIT_USAGE
    except RewardError as error:
        can_wait = error.retryable and not arguments.wait
        hint = "; is the service up? --wait waits for it" if can_wait else ""
        sys.stderr.write(f"reward-score: {error}{hint}\n")
        return _EXIT_FAILED
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_FAILED
    except KeyboardInterrupt:
        return 130


class _Version(argparse.Action):
    """Asked of the installed package only when somebody wants to know."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("flow-rewards")
        except PackageNotFoundError:  # a checkout that is not installed
            found = "from a checkout"
        sys.stdout.write(f"{parser.prog} {found}\n")
        parser.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="reward-score",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and end")
    parser.add_argument("images", nargs="*", type=Path, help="PNG, JPEG or WebP files")
    parser.add_argument(
        "--reward",
        action="append",
        required=True,
        metavar="[NAME=]URL[,URL]",
        help="a service, http:// or grpc://, with its replicas; repeat for several rewards",
    )
    parser.add_argument(
        "--prompt", action="append", help="once for all images, or once for each in their order"
    )
    parser.add_argument("--metadata", metavar="JSON", help="an object for all images, or a list")
    parser.add_argument("--details", action="store_true", help="ask for evidence, and print it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--wait", action="store_true", help="wait until every reward takes work")
    parser.add_argument(
        "--timeout", type=float, default=120.0, metavar="S", help="seconds (default 120)"
    )
    parser.add_argument(
        "--token", default=os.environ.get("REWARD_TOKEN") or None, help="default: $REWARD_TOKEN"
    )
    return parser


def _reward(text: str) -> tuple[str, list[str]]:
    name, equals, urls = text.partition("=")
    if not equals or "/" in name:
        name, urls = text, text
    return name, urls.split(",")


def _read(parser: argparse.ArgumentParser, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        parser.error(f"{path}: {error.strerror}")


def _metadata(parser: argparse.ArgumentParser, text: str | None, count: int) -> Any:
    try:
        metadata = json.loads(text) if text else None
    except ValueError as error:
        parser.error(f"--metadata is not JSON: {error}")
    except RecursionError:
        parser.error("--metadata is nested too deeply")
    if isinstance(metadata, list) and len(metadata) != count:
        parser.error(
            f"--metadata: {len(metadata)} entries for {count} images: give as many, or one"
        )
    if not isinstance(metadata, dict | list | None):
        parser.error(f"--metadata is {text}: give a JSON object, or a list of objects")
    return metadata


async def _run(
    clients: dict[str, AsyncRewardClient],
    arguments: argparse.Namespace,
    files: list[bytes],
    prompts: list[str],
    metadata: Any,
) -> int:
    import asyncio

    try:
        if arguments.wait:
            await asyncio.gather(*(c.wait_ready(arguments.timeout) for c in clients.values()))
        if not files:
            return _EXIT_OK
        # Asked first because it fails at once where scoring would try again until the timeout.
        about = await asyncio.gather(*(client.metadata() for client in clients.values()))
        batches = await asyncio.gather(
            *(
                client.score(
                    files,
                    prompts * len(files) if len(prompts) == 1 else prompts,
                    [metadata] * len(files) if isinstance(metadata, dict) else metadata,
                    include_details=arguments.details,
                )
                for client in clients.values()
            )
        )
    finally:
        for client in clients.values():
            await client.close()
    # A reward given without a name has its URL for one.
    named = zip(arguments.reward, clients, about, strict=True)
    names = [info.name or key if text == key else key for text, key, info in named]
    return _report(arguments, names, batches)


def _report(arguments: argparse.Namespace, names: list[str], batches: list[ScoreBatch]) -> int:
    paths = [str(path) for path in arguments.images]
    if arguments.json:
        rows = [
            {
                "image": path,
                "rewards": {
                    name: _entry(b, i, arguments.details)
                    for name, b in zip(names, batches, strict=True)
                },
            }
            for i, path in enumerate(paths)
        ]
        sys.stdout.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(_table(paths, names, batches))
        if arguments.details:
            sys.stdout.write(_evidence(paths, names, batches))
    for name, batch in zip(names, batches, strict=True):
        for i, failure in batch.errors.items():
            sys.stderr.write(f"{paths[i]}: {name}: {failure}\n")
    return _EXIT_OK if all(batch.valid.all() for batch in batches) else _EXIT_FAILED


def _entry(batch: ScoreBatch, i: int, with_details: bool) -> dict[str, Any]:
    if i in batch.errors:
        failure = batch.errors[i]
        return {"error": {"reason": failure.reason, "message": failure.message}}
    entry: dict[str, Any] = {"value": float(batch.values[i]), "scores": _sub_scores(batch, i)}
    if with_details:
        entry["details"] = batch.details[i]
    return entry


def _sub_scores(batch: ScoreBatch, i: int) -> dict[str, float]:
    return {name: float(v[i]) for name, v in batch.scores.items() if v[i] == v[i]}


def _table(paths: list[str], names: list[str], batches: list[ScoreBatch]) -> str:
    """Scores to the right, one reward per column; "-" where there is none."""
    rows = [["image", *names]]
    for i, path in enumerate(paths):
        cells = [f"{b.values[i]:.4f}" if b.valid[i] else "-" for b in batches]
        rows.append([path, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if c == 0 else cell.rjust(width)
            for c, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _evidence(paths: list[str], names: list[str], batches: list[ScoreBatch]) -> str:
    lines = []
    for name, batch in zip(names, batches, strict=True):
        for i, path in enumerate(paths):
            evidence = {**_sub_scores(batch, i), **(batch.details[i] or {})}
            if batch.valid[i] and evidence:
                lines.append(f"{path}: {name}: {json.dumps(evidence, ensure_ascii=False)}\n")
    return "".join(lines)


if __name__ == "__main__":
    sys.exit(main())
