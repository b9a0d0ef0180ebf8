"""Curates 2,000 made images with the OCR and JPEG services, killed once on the way.

    python benchmarks/curation.py [--count 2000] [--side 128] [--out FOLDER]
    python benchmarks/curation.py --tiny FOLDER [--count 2000]

Draws signs with right and wrong captions, noise, near-copies, broken, small and captionless files;
measures what the services score by themselves; runs `flow-grpo curate`, kills it with SIGKILL half way
and runs it again; checks every count, and prints them beside the rates. Needs the extra `demo`.
`--tiny` only draws signs for the tiny model: FOLDER/images, a fifth of their captions wrong, and
FOLDER/pairs.jsonl, the right word over another in the same colours.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import string
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reward_api import AsyncRewardClient, RewardClient

RULES = ("ocr>=0.9", "jpeg>=-0.02")
KINDS = {
    "a sign, its caption right": 0.66,
    "a sign, its caption wrong": 0.15,
    "noise around a sign": 0.08,
    "a JPEG copy of an earlier sign": 0.06,
    "no caption": 0.02,
    "broken": 0.015,
    "too small": 0.015,
}


def words(seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    while True:
        yield "".join(rng.choices(string.ascii_uppercase, k=rng.randint(4, 6)))


def sign(word: str, side: int, rng: np.random.Generator) -> Image.Image:
    """Dark letters on a light, uneven wall, somewhat larger than `side`."""
    width, height = side * 5 // 4, side * 9 // 8
    light = rng.integers(170, 250, (3, 4, 3)).astype(np.uint8)
    image = Image.fromarray(light).resize((width, height), Image.Resampling.BICUBIC)
    font = ImageFont.load_default(side * int(rng.integers(16, 22)) // 100)
    ink = tuple(rng.integers(0, 80, 3).tolist())
    where = (width / 2 + rng.integers(-4, 5), height * rng.uniform(0.35, 0.65))
    ImageDraw.Draw(image).text(where, word, font=font, fill=ink, anchor="mm")
    return image


def noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, float) + rng.normal(0, 40, (image.height, image.width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_set(folder: Path, count: int, side: int) -> Counter[str]:
    """Images and captions; returns how many there are of each kind."""
    rng, fresh = np.random.default_rng(0), words(0)
    kinds = rng.choice(list(KINDS), count, p=list(KINDS.values()))
    folder.mkdir()
    signs: list[tuple[Image.Image, str]] = []
    made: Counter[str] = Counter()
    for number, kind in enumerate(kinds):
        kind = str(kind) if signs else next(iter(KINDS))
        word = next(fresh)
        image, path = sign(word, side, rng), folder / f"{number:05d}.png"
        caption = f'a sign that says "{word}"'
        if kind == "a sign, its caption right":
            signs.append((image, caption))
        elif kind == "a sign, its caption wrong":
            caption = f'a sign that says "{next(fresh)}"'
        elif kind == "noise around a sign":
            image = noisy(image, rng)
        elif kind == "a JPEG copy of an earlier sign":
            image, caption = signs[int(rng.integers(len(signs)))]
            path = path.with_suffix(".jpg")
        elif kind == "too small":
            image = image.resize((side // 2, side // 2))
        image.save(path, quality=60)  # of JPEG; PNG has none
        if kind == "broken":
            path.write_bytes(path.read_bytes()[:200])
        if kind != "no caption":
            path.with_suffix(".txt").write_text(caption + "\n")
        made[kind] += 1
    return made


@dataclass
class Service:
    name: str
    url: str

    def scored(self) -> int:
        """Images that went through the model, by the service's own count."""
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            found = re.search(r"^reward_batch_items_sum ([\d.e+]+)", answer.read().decode(), re.M)
        return int(float(found[1])) if found else 0


@contextmanager
def services(folder: Path) -> Iterator[list[Service]]:
    started = []
    try:
        for name in ("ocr", "jpeg"):
            ports = folder / f"{name}.json"
            command = [sys.executable, "-m", "reward_services", name, "--http-port", "0"]
            command += ["--grpc-port", "0", "--port-file", str(ports)]
            log = (folder / f"{name}.log").open("w")
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        found = []
        for name in ("ocr", "jpeg"):
            while not (folder / f"{name}.json").exists():
                time.sleep(0.1)
            port = json.loads((folder / f"{name}.json").read_text())["http_port"]
            found.append(Service(name, f"http://127.0.0.1:{port}"))
            with RewardClient(found[-1].url) as client:
                client.wait_ready(120)
        yield found
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def rate(url: str, side: int, count: int) -> float:
    """Images per second that a service scores for a client that only sends: batches of 32, four at a
    time, made before the clock starts."""
    import asyncio

    rng, fresh = np.random.default_rng(9), words(9)
    drawn = [(word, sign(word, side, rng)) for word, _ in zip(fresh, range(count), strict=False)]
    images = np.stack([np.asarray(image.resize((side, side))) for _, image in drawn])
    prompts = [f'a sign that says "{word}"' for word, _ in drawn]

    async def send() -> float:
        async with AsyncRewardClient(url, timeout_s=600) as client:
            await client.score(images[:8], prompts[:8])
            gate, started = asyncio.Semaphore(4), time.monotonic()

            async def one(start: int) -> None:
                async with gate:
                    await client.score(images[start : start + 32], prompts[start : start + 32])

            await asyncio.gather(*(one(start) for start in range(0, count, 32)))
            return count / (time.monotonic() - started)

    return asyncio.run(send())


def scores_written(journal: Path) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    if journal.exists():
        for line in journal.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if "value" in row:
                found[row["image"], row["reward"]] += 1
    return found


def curate(folder: Path, out: Path, running: list[Service], side: int) -> list[str]:
    command = [sys.executable, "-m", "flow_trainer", "curate", str(folder), "--out", str(out)]
    for service in running:
        command += ["--reward", f"{service.name}={service.url}"]
    for rule in RULES:
        command += ["--keep", rule]
    return [*command, "--resolution", str(side)]


def draw_tiny(folder: Path, count: int) -> None:
    """Of the words that the tiny model may train on."""
    from flow_trainer.tiny_sd3.signs import render
    from flow_trainer.tiny_sd3.words import PROMPT, splits

    known, rng = splits()[0], random.Random(0)
    (folder / "images").mkdir(parents=True)
    pairs = []
    for number in range(count):
        word, other = rng.sample(known, 2)
        names = {"chosen": f"images/{number:05d}.png", "rejected": f"others/{number:05d}.png"}
        for name, drawn in zip(names.values(), (word, other), strict=True):
            (folder / name).parent.mkdir(exist_ok=True)
            Image.fromarray(render(drawn, random.Random(number))).save(folder / name)
        told = other if rng.random() < 0.2 else word
        caption = (folder / names["chosen"]).with_suffix(".txt")
        caption.write_text(PROMPT.format(word=told) + "\n")
        pairs.append({"prompt": PROMPT.format(word=word), **names})
    lines = (json.dumps(pair) + "\n" for pair in pairs)
    (folder / "pairs.jsonl").write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--out", type=Path, help="(default: a temporary folder)")
    parser.add_argument("--tiny", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.tiny is not None:
        draw_tiny(arguments.tiny, arguments.count)
        return
    base = arguments.out or Path(tempfile.mkdtemp(prefix="curation-"))
    base.mkdir(parents=True, exist_ok=True)
    made = make_set(base / "made", arguments.count, arguments.side)
    with services(base) as running:
        alone = {s.name: rate(s.url, arguments.side, min(256, arguments.count)) for s in running}
        before = {service.name: service.scored() for service in running}
        command = curate(base / "made", base / "out", running, arguments.side)
        journal = base / "out" / "journal.jsonl"
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while scores_written(journal).total() < arguments.count:  # of two rewards: about half
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.2)
        process.kill()
        process.wait()
        first_s, first = time.monotonic() - started, scores_written(journal).total()
        started = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True)
        second_s = time.monotonic() - started
        through = {service.name: service.scored() - before[service.name] for service in running}
        started = time.monotonic()
        again = subprocess.run(command, capture_output=True, text=True)
        third_s = time.monotonic() - started
    summary = json.loads((base / "out" / "summary.json").read_text())
    written = scores_written(journal)
    show(made, alone, written, through)
    print(f"killed after {first_s:.1f} s with {first} scores; the second run took {second_s:.1f} s")
    rest = written.total() - first
    print(f"second run: {rest} scores, {rest / 2 / second_s:.1f} images/s with all it does besides")
    print(f"a third run, with nothing to score: {third_s:.1f} s, exit status {again.returncode}")
    print(f"exit status {done.returncode}\n{done.stdout}")
    print(json.dumps(summary["failing_rules"]))
    print(f"page: {base / 'out' / 'curation.html'}")


def show(
    made: Counter[str],
    alone: dict[str, float],
    written: Counter[tuple[str, str]],
    through: dict[str, int],
) -> None:
    print("made: " + ", ".join(f"{count} {kind}" for kind, count in made.most_common()))
    print("| reward | images/s alone | scores in the journal | images with two | model runs |")
    print("|---|---:|---:|---:|---:|")
    for name, per_s in alone.items():
        own = {image: count for (image, reward), count in written.items() if reward == name}
        twice = sum(count > 1 for count in own.values())
        print(f"| {name} | {per_s:.1f} | {sum(own.values())} | {twice} | {through[name]} |")


if __name__ == "__main__":
    main()
