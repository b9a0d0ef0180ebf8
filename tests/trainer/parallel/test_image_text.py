"""Image-text data on several processes: beside samples, alone, and with sharded weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rank_runs import assert_close, metrics, run

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = []
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 255, (2, 8, 8, 3), np.uint8)
        for name, image in zip(("good", "bad"), pixels, strict=True):
            Image.fromarray(image).save(tmp_path / f"{name}{number}.png")
        names = {"chosen": f"good{number}.png", "rejected": f"bad{number}.png"}
        rows.append({"prompt": f"scene {number}", **names})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_two_processes_divide_the_data_of_a_mixed_run(
    data: dict[str, Any], pairs: Path, tmp_path: Path
) -> None:
    data["data"] = {"pairs": str(pairs), "batch": 5, "levels": 2, "weight": 0.1}
    one, two = (run(size, data, tmp_path / str(size)) for size in (1, 2))
    assert_close(one, two, 2, data)
    for first, second in zip(metrics(one), metrics(two), strict=True):
        assert first["data.loss"] == pytest.approx(second["data.loss"], rel=1e-3)


def test_sharded_weights_learn_from_data_alone_as_whole_ones_do(
    full: dict[str, Any], pairs: Path, tmp_path: Path
) -> None:
    full["data"] = {"pairs": str(pairs), "batch": 5}
    full["update"] = {**full["update"], "objective": "data", "kl": "none", "beta": 0.0}
    one, two = (run(size, full, tmp_path / str(size)) for size in (1, 2))
    assert_close(one, two, 2, full)
