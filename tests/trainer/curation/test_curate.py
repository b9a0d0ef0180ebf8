"""`flow-grpo curate` end to end: drawn images, real services, files on disk."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flow_trainer.__main__ import main
from flow_trainer.curation.selection import split_of
from processes import EVIDENCE, MARKS, Service, Services, environment

SIDE = 32
Curate = Callable[..., int]


def draw(brightness: int, seed: int) -> Image.Image:
    """Of about this mean, with a soft pattern of its own."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 40, (10, 12))
    spots = (brightness + coarse - coarse.mean()).clip(0, 255).astype(np.uint8)
    return Image.fromarray(spots).resize((48, 40), Image.Resampling.BICUBIC).convert("RGB")


def fill(folder: Path, count: int, first: int = 0) -> None:
    """Images 48 x 40, the later the brighter, captioned by their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        value = 60 + 140 * (number - first) // max(count - 1, 1)
        draw(value, number).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"picture {number}\n")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    fill(tmp_path / "photos", 40)
    return tmp_path / "photos"


@pytest.fixture
def bright(services: Services, tmp_path: Path) -> Service:
    return services.start(MARKS, "bright", "mean,is_bright", MARKS_LOG=str(tmp_path / "asked"))


@pytest.fixture
def curate(photos: Path, bright: Service, tmp_path: Path) -> Curate:
    def run(*arguments: str, source: Path | str = photos) -> int:
        where = ("--out", str(tmp_path / "out"), "--resolution", str(SIDE))
        return main(
            ["curate", str(source), "--reward", f"bright={bright.http}", *where, *arguments]
        )

    return run


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def kept(out: Path) -> list[dict[str, Any]]:
    found = []
    for listing in sorted((out / "data").glob("*/metadata.jsonl")):
        for row in rows(listing):
            row["split"] = listing.parent.name
            row["pixels"] = np.asarray(Image.open(listing.parent / row["file_name"]))
            found.append(row)
    return found


def wait_for_work(process: subprocess.Popen[str], log: Path) -> None:
    """Returns when the service has scored some image."""
    while not log.exists() or "picture" not in log.read_text():
        assert process.poll() is None
        time.sleep(0.02)


def asked(tmp_path: Path) -> Counter[str]:
    """How often the service scored which caption; its own warm-up aside."""
    lines = (tmp_path / "asked").read_text().splitlines()
    return Counter(line for line in lines if "warm up" not in line)


def test_what_passes_is_written_as_it_was_scored_and_the_rest_has_a_reason(
    curate: Curate, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    (photos / "broken.txt").write_text("a broken file")
    draw(128, 900).save(photos / "mute.png")
    draw(128, 901).resize((10, 10)).save(photos / "small.png")
    (photos / "small.txt").write_text("a small one")
    copy = Image.open(photos / "039.png").resize((96, 80))
    copy.save(photos / "twin.jpg", quality=80)
    (photos / "twin.txt").write_text("the same again")
    assert curate("--keep", "bright>=0.5") == 0
    found = kept(tmp_path / "out")
    scores = {row["source"]: row["scores"]["bright"] for row in found}
    assert len(found) == len(scores) > 10
    for row in found:
        assert row["pixels"].shape == (SIDE, SIDE, 3)
        assert row["scores"]["bright"] == pytest.approx(row["pixels"].mean() / 255)
        assert row["scores"]["bright"] >= 0.5
        assert (row["width"], row["height"]) == (48, 40)
        assert row["split"] == split_of(row["prompt"], 0.05, 0.05)
    dropped = {row["image"]: row for row in rows(tmp_path / "out" / "dropped.jsonl")}
    assert len(dropped) + len(found) == 44
    assert "unreadable" in dropped["broken.png"]["reasons"][0]
    assert dropped["mute.png"]["reasons"] == ["no caption"]
    assert dropped["small.png"]["reasons"] == ["too small: 10 x 10 pixels"]
    assert dropped["twin.jpg"]["reasons"] == ["near-duplicate: 039.png"]
    assert dropped["000.png"]["reasons"][0].startswith("not bright>=0.5: 0.2")
    assert dropped["000.png"]["scores"]["bright"] < 0.5
    shown = capsys.readouterr().out
    assert f"{len(found)} of 44 image-text pairs are kept" in shown
    assert asked(tmp_path).total() == 41  # what cannot be used is not sent


def test_other_thresholds_need_no_new_scores_and_leave_no_old_files(
    curate: Curate, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert curate("--dry-run") == 0
    assert not (out / "data").exists()
    assert not (out / "dropped.jsonl").exists()
    assert asked(tmp_path).total() == 40
    assert curate("--keep", "bright>0.4", "--keep", "bright<0.6") == 0
    few = {row["source"] for row in kept(out)}
    assert curate("--keep", "bright.is_bright>=1") == 0
    assert {row["source"] for row in kept(out)} != few
    assert all(row["scores"]["bright.is_bright"] == 1 for row in kept(out))
    images = [path.name for path in (out / "data").rglob("*.png")]
    assert sorted(images) == sorted(row["file_name"] for row in kept(out))
    assert asked(tmp_path).total() == 40
    # and no service at all
    where = ["--out", str(out), "--resolution", str(SIDE), "--keep", "bright>=0.5"]
    assert main(["curate", str(tmp_path / "photos"), *where]) == 0


def test_new_images_and_other_captions_are_scored_and_nothing_else(
    curate: Curate, photos: Path, tmp_path: Path
) -> None:
    assert curate("--dry-run") == 0
    fill(photos, 3, first=100)
    (photos / "007.txt").write_text("another caption")
    assert curate("--dry-run") == 0
    twice = asked(tmp_path) - Counter({f"picture {n}": 1 for n in range(40)})
    assert twice == Counter(["picture 100", "picture 101", "picture 102", "another caption"])


def test_a_failed_score_is_said_and_asked_for_again(
    curate: Curate, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "039.txt").write_text("broken for the service")
    assert curate("--keep", "bright>=0") == 1
    assert "1 have no score of bright, e.g. 039.png: MODEL_ERROR" in capsys.readouterr().out
    dropped = {row["image"]: row["reasons"] for row in rows(tmp_path / "out" / "dropped.jsonl")}
    assert dropped["039.png"][0].startswith("no score of bright: MODEL_ERROR")
    assert "039.png" not in {row["source"] for row in kept(tmp_path / "out")}
    assert curate("--keep", "bright>=0", "--duplicates", "3") == 1
    again = asked(tmp_path)["broken for the service"]
    assert again >= 1
    assert asked(tmp_path).total() == 39 + again


def test_nothing_kept_is_said(curate: Curate, capsys: pytest.CaptureFixture[str]) -> None:
    assert curate("--keep", "bright>2") == 1
    assert "nothing passes" in capsys.readouterr().out


def test_the_page_is_one_file_with_every_threshold(curate: Curate, tmp_path: Path) -> None:
    assert curate("--dry-run", "--keep", "bright>=0.5", "--keep", "bright.is_bright>=1") == 0
    page = (tmp_path / "out" / "curation.html").read_text()
    assert "<h2>bright</h2>" in page
    assert "<h2>bright.is_bright</h2>" in page
    assert "bright&gt;=0.5" in page
    assert page.count("<svg") == 2
    assert "var(--kept)" in page
    assert page.count("data:image/jpeg") >= 7
    assert not re.search(r"""(src|href)=["']?(https?:)?//|url\(""", page.replace("url(#", ""))


def test_parquet_is_read_again_with_the_same_images(curate: Curate, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert curate("--keep", "bright>=0.4", "--format", "parquet", "--test", "0.3") == 0
    files = sorted(path.name for path in (out / "data").iterdir())
    assert files == ["test-00000.parquet", "train-00000.parquet", "validation-00000.parquet"]
    shutil.copytree(out / "data", tmp_path / "parquet")
    counts = json.loads((out / "summary.json").read_text())["counts"]
    assert curate("--keep", "bright>=0.4", "--test", "0.3") == 0
    first = kept(out)
    assert counts["train"] == len([row for row in first if row["split"] == "train"])
    # what the parquet files hold is a source like any other
    out.rename(tmp_path / "first")
    assert curate("--keep", "bright>=0.4", source=tmp_path / "parquet") == 0
    again = {row["prompt"]: row for row in kept(out)}
    assert set(again) == {row["prompt"] for row in first}
    for row in first:
        assert np.array_equal(row["pixels"], again[row["prompt"]]["pixels"])


def test_killed_it_goes_on_without_scoring_an_image_twice(
    services: Services, tmp_path: Path
) -> None:
    fill(tmp_path / "photos", 200)
    log = tmp_path / "asked"
    slow = services.start(MARKS, "bright", "mean", MARKS_LOG=str(log), MARKS_PAUSE_S="0.01")
    out = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "flow_trainer", "curate", str(tmp_path / "photos")),
        *("--reward", f"bright={slow.http}", "--keep", "bright>=0.5"),
        *("--out", str(out), "--resolution", str(SIDE)),
    ]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    while (
        not (out / "journal.jsonl").exists() or '"value"' not in (out / "journal.jsonl").read_text()
    ):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "data").exists()
    subprocess.run(command, env=environment(), check=True, capture_output=True)
    scored = [row["image"] for row in rows(out / "journal.jsonl") if "value" in row]
    assert len(scored) == len(set(scored)) == 200
    assert len(kept(out)) + len(rows(out / "dropped.jsonl")) == 200


def test_it_waits_for_a_service_that_is_away(services: Services, tmp_path: Path) -> None:
    fill(tmp_path / "photos", 160)
    log = tmp_path / "asked"
    slow = services.start(MARKS, "bright", "mean", MARKS_LOG=str(log), MARKS_PAUSE_S="0.02")
    out = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "flow_trainer", "curate", str(tmp_path / "photos")),
        *("--reward", f"bright={slow.http}", "--timeout", "3"),
        *("--out", str(out), "--resolution", str(SIDE), "--dry-run"),
    ]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        wait_for_work(process, log)
        slow.process.kill()
        slow.process.wait()
        while not process.stderr.readline().startswith("waiting for bright: "):
            assert process.poll() is None
        port = int(slow.http.rpartition(":")[2])
        services.start(MARKS, "bright", "mean", http_port=port, MARKS_LOG=str(log))
        shown, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "160 of 160 image-text pairs are kept" in shown


def test_interrupted_it_says_what_is_kept(services: Services, tmp_path: Path) -> None:
    fill(tmp_path / "photos", 200)
    log = tmp_path / "asked"
    slow = services.start(MARKS, "bright", "mean", MARKS_LOG=str(log), MARKS_PAUSE_S="0.05")
    command = [
        *(sys.executable, "-m", "flow_trainer", "curate", str(tmp_path / "photos")),
        *("--reward", f"bright={slow.http}", "--out", str(tmp_path / "out")),
        *("--resolution", str(SIDE), "--dry-run"),
    ]
    with subprocess.Popen(
        command,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        # tests that a shell runs in its background have it ignored, and their children too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        wait_for_work(process, log)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "the same command goes on from there" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("wire", ["http", "grpc"])
def test_a_reward_that_loads_is_waited_for(
    photos: Path, services: Services, tmp_path: Path, wire: str
) -> None:
    """However long it takes, and beside a replica at which nothing listens."""
    gate = tmp_path / "gate"
    service = services.start(EVIDENCE, wait_ready=False, EVIDENCE_LOAD_GATE=str(gate))
    urls = f"{getattr(service, wire)},http://127.0.0.1:9"
    command = [
        *(sys.executable, "-m", "flow_trainer", "curate", str(photos), "--dry-run"),
        *("--reward", f"found={urls}", "--out", str(tmp_path / "out")),
        *("--resolution", str(SIDE), "--wait-ready", "0.1", "--limit", "3"),
    ]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("waiting for found: ")
        assert "is not ready" in line
        gate.touch()
        rest = process.communicate(timeout=60)[1]
    assert "waiting for" not in rest
    assert process.returncode == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["scored_now"] == 3


def test_a_reward_that_starts_late_is_waited_for_when_asked(
    photos: Path, services: Services, tmp_path: Path
) -> None:
    earlier = services.start(MARKS, "bright", "mean")
    earlier.stop()
    command = [
        *(sys.executable, "-m", "flow_trainer", "curate", str(photos), "--dry-run"),
        *("--reward", f"bright={earlier.http}", "--out", str(tmp_path / "out")),
        *("--resolution", str(SIDE), "--wait-ready", "600", "--limit", "3"),
    ]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("waiting for bright: ")
        services.start(MARKS, "bright", "mean", http_port=int(earlier.http.rpartition(":")[2]))
        process.communicate(timeout=60)
    assert process.returncode == 0


MISTAKES = [
    (["PHOTOS", "--keep", "bright"], "in quotes because > means"),
    (["PHOTOS", "--keep", "bright>=much"], "much is not a number"),
    (["PHOTOS"], "--reward NAME=URL"),
    (["PHOTOS", "--reward", "bright"], "write NAME=URL"),
    (["PHOTOS", "--reward", "bright=ftp://x"], "expected http://host:port"),
    (["PHOTOS", "--reward", "bright=http://127.0.0.1:9"], "bright is not ready"),
    (["PHOTOS", "--keep", "bright>=0.5"], "there is no score of bright"),
    (["gone", "--reward", "a=http://127.0.0.1:9"], "no folder or file gone"),
    (["EMPTY", "--reward", "a=http://127.0.0.1:9"], "holds no images"),
    (["FILE", "--reward", "a=http://127.0.0.1:9"], "neither a folder of images"),
    (["PARQUET", "--reward", "a=http://127.0.0.1:9"], "cannot be read as parquet"),
    (["hf:EMPTY", "--reward", "a=http://127.0.0.1:9"], "cannot be loaded"),
    (["LISTED", "--reward", "a=http://127.0.0.1:9"], "metadata.jsonl:2: 000.png is listed twice"),
    (["FOREIGN", "--reward", "a=http://127.0.0.1:9"], "pass hf:"),
    (["PHOTOS", "--validation", "0.6", "--test", "0.4", "--reward", "a=http://b:1"], "less than 1"),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES)
def test_a_mistake_is_one_line(
    arguments: list[str],
    told: str,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {name: tmp_path / name.lower() for name in ("EMPTY", "LISTED", "FOREIGN", "FILE")}
    for name in ("EMPTY", "LISTED", "FOREIGN"):
        places[name].mkdir()
    draw(100, 0).save(places["LISTED"] / "000.png")
    line = json.dumps({"file_name": "000.png", "text": "one"}) + "\n"
    (places["LISTED"] / "metadata.jsonl").write_text(2 * line)
    (places["FOREIGN"] / "metadata.csv").write_text("file_name,text\n")
    places["FILE"].write_text("text")
    (tmp_path / "noise.parquet").write_bytes(b"noise")
    places |= {"PHOTOS": photos, "PARQUET": tmp_path / "noise.parquet"}
    first = arguments[0]
    for name, path in places.items():
        first = first.replace(name, str(path))
    where = ("--out", str(tmp_path / "out"), "--wait-ready", "0.2")
    assert main(["curate", first, *arguments[1:], *where]) == 2
    errors = capsys.readouterr().err.strip()
    assert told in errors
    assert len(errors.splitlines()) == 1


def test_a_folder_holds_one_set_in_one_size(
    curate: Curate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert curate("--dry-run", "--limit", "3") == 0
    assert curate("--dry-run", "--resolution", "8") == 2
    assert "pass another --out" in capsys.readouterr().err


def test_an_out_folder_of_somebody_else_is_left_alone(
    curate: Curate, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "out" / "data" / "train" / "mine.png"
    theirs.parent.mkdir(parents=True)
    draw(90, 1).save(theirs)
    assert curate() == 2
    assert "no curation made it: pass another --out" in capsys.readouterr().err
    assert curate("--out", str(photos / "curated")) == 2
    assert "lies in the source" in capsys.readouterr().err
    assert theirs.exists()
    assert not (photos / "curated" / "curation.json").exists()
