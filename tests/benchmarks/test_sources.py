"""benchmarks/trainer/sources.py: its runs are recipes, and its table reads what they leave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from flow_trainer.recipe import load_recipe
from processes import ROOT

URLS = {"ocr": "http://127.0.0.1:8101", "jpeg": "http://127.0.0.1:8102"}


@pytest.fixture(scope="module")
def sources() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks" / "trainer"))
        yield import_module("sources")


def test_every_run_is_a_recipe(sources: ModuleType, tmp_path: Path) -> None:
    common = (sources.write_numbers(tmp_path), URLS, 42)
    mixed = sources.recipe(*common)
    teacher = sources.only(
        "numbers", sources.recipe(*common, model=sources.ADAPTER, **sources.TEACHER)
    )
    student = sources.recipe(*common, model=sources.ADAPTER, **sources.STUDENT)
    for source in student["prompts"]["sources"].values():
        source["teacher"] = str(tmp_path)
    recipes = {}
    for name, data in {"mixed": mixed, "teacher": teacher, "student": student}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
        recipes[name] = load_recipe(tmp_path / f"{name}.json")
    assert recipes["mixed"].source_weights == {"words": 0.5, "numbers": 0.5}
    assert recipes["teacher"].source_weights == {"numbers": 1.0}
    assert set(recipes["student"].teachers) == {"words", "numbers"}
    train, heldout = ((tmp_path / f"numbers_{split}.txt").read_text() for split in sources.NUMBERS)
    assert not set(train.splitlines()) & set(heldout.splitlines())


def test_the_table_has_the_share_of_what_a_teacher_gained(
    sources: ModuleType, tmp_path: Path
) -> None:
    scores = {
        ("mixed", "before"): (0.5, 1.6),
        ("mixed", "after"): (0.8, 1.5),
        ("teacher-words", "after"): (0.9, 9.0),
        ("teacher-numbers", "after"): (0.0, 1.2),
        ("student", "after"): (0.7, 1.3),
    }
    for (run, name), (ocr, size) in scores.items():
        folder = tmp_path / run / "heldout"
        folder.mkdir(parents=True, exist_ok=True)
        said = {"ocr": ocr, "jpeg.incompressibility_kb": size}
        (folder / f"{name}.json").write_text(json.dumps(said))
    *_, teachers, student, gains = sources.table(tmp_path).splitlines()
    assert teachers == "| teacher of each | 0.900 | 1.200 |"
    assert student == "| student of both | 0.700 | 1.300 |"
    assert gains == "| share of the teacher's gain | 50% | 75% |"
