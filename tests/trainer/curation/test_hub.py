"""Data sets of the hub by their name, from a hub on loopback: several shards, splits, a cache."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_hub import data_hub
from processes import MARKS, Services, environment

parquet = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("datasets")
pytestmark = pytest.mark.system

PROMPTS = """
from flow_trainer.evaluation.sources import suite_prompts
from flow_trainer.evaluation.suites import SUITES
print(*(prompt.text for prompt in suite_prompts(SUITES["pickscore"], "hf:owner/set#caption")), sep="|")
"""


def shard(numbers: range) -> bytes:
    """Images 40 x 40 with captions, as the hub's viewers and uploads write them."""
    import pyarrow

    rows = []
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        image = {"bytes": file.getvalue(), "path": f"{number}.png"}
        rows.append({"image": image, "caption": f"picture {number}"})
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    files = {
        f"data/train-{n:05d}-of-00003.parquet": shard(range(5 * n, 5 * n + 5)) for n in range(3)
    }
    files |= {f"data/test-{n:05d}-of-00002.parquet": shard(range(20 + n, 21 + n)) for n in (0, 1)}
    with data_hub({"README.md": b"A set", **files}) as address:
        yield address


@pytest.fixture
def at_hub(hub: str, tmp_path: Path) -> dict[str, str]:
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    return environment(HF_ENDPOINT=hub, **home)


def test_a_set_is_scored_by_its_name_and_again_without_the_hub(
    at_hub: dict[str, str], services: Services, tmp_path: Path
) -> None:
    bright = services.start(MARKS, "bright", "mean")

    def curate(source: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flow_trainer", "curate", source, *arguments]
        sizes = ("--resolution", "32", "--duplicates", "off", "--out", str(tmp_path / "out"))
        return subprocess.run(
            [*command, *sizes], env=at_hub | variables, capture_output=True, text=True, check=False
        )

    reward = ("--reward", f"bright={bright.http}")
    done = curate("hf:owner/set@train", *reward, "--keep", "bright>=0")
    assert done.returncode == 0, done.stderr
    assert "15 of 15 image-text pairs are kept" in done.stdout
    listings = (tmp_path / "out" / "data").glob("*/metadata.jsonl")
    rows = [json.loads(line) for path in listings for line in path.read_text().splitlines()]
    assert {row["prompt"] for row in rows} == {f"picture {n}" for n in range(15)}
    # what the cache holds needs no hub, and is the same set
    again = curate("hf:owner/set@train", "--keep", "bright>=0", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["scored_now"] == 0
    for source, told in [
        ("hf:owner/set@other", "other"),
        ("hf:owner/gone", "gone"),
        ("hf:owner/set@train#text", "has no column 'text'; it has image, caption"),
    ]:
        failed = curate(source, *reward)
        assert failed.returncode == 2
        assert told in failed.stderr.splitlines()[-1]
        assert "Traceback" not in failed.stderr


def test_a_suites_prompts_are_a_split_of_several_files(at_hub: dict[str, str]) -> None:
    said = subprocess.run(
        [sys.executable, "-c", PROMPTS], env=at_hub, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "picture 20|picture 21"
