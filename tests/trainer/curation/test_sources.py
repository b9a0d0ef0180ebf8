"""Sources of image-text pairs: every layout gives the same pairs, in one order."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flow_trainer.dataset.open import open_source
from flow_trainer.dataset.pairs import Source
from flow_trainer.dataset.picture import Unusable, read_cropped
from flow_trainer.errors import ConfigError


def png(value: int, size: tuple[int, int] = (12, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def listed(source: Source) -> list[tuple[str, str | None, bytes]]:
    return [(pair.key, pair.prompt, pair.read()) for pair in source]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_a_folder_has_captions_beside_its_images(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name, value in (("z.png", 1), ("b/y.PNG", 2), ("b/c/x.png", 3), ("b/mute.png", 4)):
        (tmp_path / name).write_bytes(png(value))
    (tmp_path / "z.txt").write_text("\ufeffthe last letter \n", encoding="utf-8")
    (tmp_path / "b" / "y.txt").write_text("last but one")
    (tmp_path / "b" / "c" / "x.txt").write_text("  \n")
    (tmp_path / "notes.md").write_text("no image")
    source = open_source(str(tmp_path))
    assert listed(source) == [
        ("z.png", "the last letter", png(1)),
        ("b/mute.png", None, png(4)),
        ("b/y.PNG", "last but one", png(2)),
        ("b/c/x.png", None, png(3)),
    ]
    assert len(source) == 4


def test_a_listing_gives_order_captions_and_metadata(tmp_path: Path) -> None:
    for value, name in enumerate(("one.png", "two.png", "three.png")):
        (tmp_path / name).write_bytes(png(value))
    rows = [
        {"file_name": "two.png", "text": "the second", "metadata": {"tag": "counting"}},
        {"file_name": "gone.png", "text": "not there"},
        {"file_name": "one.png", "text": "the first"},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = list(open_source(str(tmp_path)))
    assert [(pair.key, pair.prompt) for pair in pairs] == [
        ("two.png", "the second"),
        ("gone.png", "not there"),
        ("one.png", "the first"),
        ("three.png", None),
    ]
    assert pairs[0].metadata == {"tag": "counting"}
    with pytest.raises(FileNotFoundError):
        pairs[1].read()


def test_a_listing_cannot_reach_outside(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    line = json.dumps({"file_name": "../secret.png", "text": "x"})
    (tmp_path / "set" / "metadata.jsonl").write_text(line)
    with pytest.raises(ConfigError, match="lies outside"):
        list(open_source(str(tmp_path / "set")))


def test_parquet_has_bytes_or_hugging_faces_struct(tmp_path: Path) -> None:
    rows = [{"image": png(n), "caption": f"number {n}"} for n in range(70)]
    write_parquet(tmp_path / "a.parquet", rows)
    struct = [
        {"image": {"bytes": png(7), "path": "x.png"}, "caption": "seven", "metadata": '{"n": 7}'},
        {"image": {"bytes": None, "path": None}, "caption": "none", "metadata": ""},
    ]
    write_parquet(tmp_path / "b.parquet", struct)
    source = open_source(str(tmp_path))
    pairs = list(source)
    assert len(source) == len(pairs) == 72
    assert pairs[69].key == "a.parquet:69"
    assert (pairs[69].prompt, pairs[69].read()) == ("number 69", png(69))
    assert (pairs[70].read(), pairs[70].metadata) == (png(7), {"n": 7})
    with pytest.raises(FileNotFoundError):
        pairs[71].read()


def test_columns_are_found_or_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.parquet"
    write_parquet(path, [{"photo": png(1), "words": "one"}])
    with pytest.raises(ConfigError, match=r"it has photo, words: name it with --image"):
        open_source(str(path))
    (pair,) = open_source(str(path), caption="words", image="photo")
    assert pair.prompt == "one"


def test_a_hub_data_set_from_its_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    (folder / "one.png").write_bytes(png(1))
    (folder / "metadata.jsonl").write_text('{"file_name": "one.png", "text": "the first"}\n')
    source = open_source(f"hf:{tmp_path / 'set'}")
    assert [(pair.prompt, pair.read()) for pair in source] == [("the first", png(1))]
    versions = [pair.version for pair in source]
    # another process resumes only if it sees the same version
    assert versions == [pair.version for pair in open_source(f"hf:{tmp_path / 'set'}")]


def test_a_changed_image_or_caption_is_another_version(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "a.txt").write_text("one")
    versions = set()
    for change in (lambda: None, lambda: (tmp_path / "a.txt").write_text("two")):
        change()
        (pair,) = open_source(str(tmp_path))
        versions.add(pair.version)
    (tmp_path / "a.png").write_bytes(png(2, (13, 8)))
    (pair,) = open_source(str(tmp_path))
    assert len(versions | {pair.version}) == 3


def test_the_crop_covers_and_is_centred() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    file = io.BytesIO()
    Image.fromarray(wide).save(file, "PNG")
    picture = read_cropped(file.getvalue(), 10, 10)
    assert picture.size == (60, 20)
    assert picture.pixels.shape == (10, 10, 3)
    assert picture.pixels.min() > 230
    with pytest.raises(Unusable, match="too small: 60 x 20"):
        read_cropped(file.getvalue(), 30, 30)
    assert read_cropped(file.getvalue(), 30, 30, upscale=True).pixels.shape == (30, 30, 3)
    with pytest.raises(Unusable, match="unreadable"):
        read_cropped(file.getvalue()[:60], 10, 10)
