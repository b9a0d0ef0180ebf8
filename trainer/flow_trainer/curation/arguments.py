"""The command line of `flow-grpo curate`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

_EXAMPLES = """\
examples:
  flow-grpo curate photos --reward aesthetic=http://gpu1:8105 --dry-run
  flow-grpo curate photos --reward aesthetic=http://gpu1:8105,http://gpu2:8105 \\
    --keep 'aesthetic>=5.5' --out curated
  flow-grpo curate hf:OWNER/NAME@train#caption --reward imagereward=http://gpu1:8107 \\
    --keep 'imagereward>=0.3' --format parquet

exit status: 0 done, 1 nothing is kept, or some images have no score (the same command asks again),
2 wrong usage
"""


def add_curate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "source",
        help="a folder of images with .txt captions beside them or a metadata.jsonl, a parquet file or "
        "a folder of them, or hf:OWNER/NAME@SPLIT#CAPTION",
    )
    parser.add_argument(
        "--reward",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="a reward service, or NAME=URL,URL for replicas (repeatable); $REWARD_TOKEN is its token",
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="RULE",
        help="'NAME>=X' or with >, <=, <; NAME.SUB for a sub-score (repeatable; all must hold). Other "
        "rules later need no new scores",
    )
    parser.add_argument("--out", type=Path, help="(default: curated/NAME of the source)")
    parser.add_argument(
        "--dry-run", action="store_true", help="score and draw the page; write no images"
    )
    parser.add_argument(
        "--resolution",
        type=_size,
        default=(512, 512),
        metavar="PIXELS",
        help="side, or WIDTHxHEIGHT: resized to cover it, cropped in the middle (default: 512)",
    )
    parser.add_argument(
        "--upscale", action="store_true", help="enlarge smaller images in place of dropping them"
    )
    parser.add_argument("--caption", metavar="COLUMN", help="the captions' column")
    parser.add_argument("--image", metavar="COLUMN", help="the images' column (parquet, hf:)")
    parser.add_argument(
        "--validation",
        type=_share,
        default=0.05,
        metavar="SHARE",
        help="of the captions (default: 0.05)",
    )
    parser.add_argument(
        "--test", type=_share, default=0.05, metavar="SHARE", help="of the captions (default: 0.05)"
    )
    parser.add_argument(
        "--duplicates",
        type=_distance,
        default=4,
        metavar="BITS",
        help="drop images whose perceptual hash differs from a kept one's in so many of 64 bits or "
        "fewer, 0 to 8, or off (default: 4)",
    )
    parser.add_argument("--format", choices=["folder", "parquet"], default="folder")
    parser.add_argument(
        "--jpeg", type=_quality, metavar="QUALITY", help="write JPEG (default: PNG, lossless)"
    )
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N pairs")
    _add_service_arguments(parser)


def _add_service_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=600.0,
        metavar="S",
        help="seconds for a batch of 32, retries included (default: 600)",
    )
    parser.add_argument(
        "--wait-ready",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="for a reward that does not answer yet; one that loads is waited for (default: 10)",
    )
    parser.add_argument(
        "--encoding",
        choices=["raw", "png", "jpeg"],
        default="raw",
        help="how images travel; jpeg is lossy (default: raw)",
    )


def run_curate(arguments: argparse.Namespace) -> int:
    from flow_trainer.curation.gather import Crop
    from flow_trainer.curation.run import Request, curate
    from flow_trainer.errors import ConfigError

    if arguments.validation + arguments.test >= 1:
        raise ConfigError("--validation and --test take all there is: let them sum to less than 1")
    width, height = arguments.resolution
    curated = curate(
        Request(
            source=arguments.source,
            out=arguments.out or Path("curated") / _name(arguments.source),
            keep=arguments.keep,
            rewards=arguments.reward,
            crop=Crop(width, height, arguments.upscale),
            caption=arguments.caption,
            image=arguments.image,
            validation=arguments.validation,
            test=arguments.test,
            distance=arguments.duplicates,
            format=arguments.format,
            quality=arguments.jpeg,
            limit=arguments.limit,
            timeout_s=arguments.timeout,
            encoding=arguments.encoding,
            ready_s=arguments.wait_ready,
            token=os.environ.get("REWARD_TOKEN") or None,
            dry_run=arguments.dry_run,
        )
    )
    print("\n".join(curated.lines))
    return 0 if curated.whole else 1


def _name(source: str) -> str:
    plain = source.removeprefix("hf:").partition("#")[0].replace("@", "-")
    return Path(plain).stem or "set"


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return _positive(width), _positive(height or width)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _share(text: str) -> float:
    return _number(text, 0.0, 1.0, "a share from 0 to below 1")


def _seconds(text: str) -> float:
    return _number(text, 1e-3, float("inf"), "a number of seconds")


def _number(text: str, least: float, below: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value < below:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def _quality(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a quality from 1 to 100")
    return int(text)


def _distance(text: str) -> int | None:
    if text == "off":
        return None
    if not text.isdecimal() or int(text) > 8:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 0 to 8 nor off")
    return int(text)
