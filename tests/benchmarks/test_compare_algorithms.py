"""benchmarks/compare_algorithms.py: its variants are recipes of one cost; its table and curves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from flow_trainer.doctor.estimate import forwards
from flow_trainer.recipe import Recipe, load_recipe, save_resolved
from processes import PATHS, ROOT

BASE_SCORE = 0.4


@pytest.fixture(scope="module")
def compare() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield import_module("compare_algorithms")


def recipe_of(compare: ModuleType, variant: str, seed: int) -> Recipe:
    return load_recipe(compare.RECIPE, compare.overrides(variant, seed, compare.BUDGET))


def finish(compare: ModuleType, runs: Path, variant: str, seed: int) -> None:
    """Leaves what a finished run and its base evaluation would, of 4 epochs."""
    folder = compare.train_job(runs, variant, seed, compare.BUDGET).folder
    (folder / "heldout").mkdir(parents=True)
    save_resolved(recipe_of(compare, variant, seed), folder / "recipe.json")
    rows = []
    for epoch in range(1, 5):
        rows.append({"kind": "train", "epoch": epoch, "epoch_cpu_s": 10.0})
        if epoch % 2 == 0:
            rows.append({"kind": "validation", "epoch": epoch, "score": 0.1 * epoch + 0.4})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"seed": seed, "epochs": 4, "heldout_before": 0.5, "heldout_after": seed / 100}
    summary["train_wall_seconds"] = 55.5
    (folder / "summary.json").write_text(json.dumps(summary))
    prompts = np.repeat(["a", "b"], 3)
    for name, spread in (("before", 255), ("after", 0)):
        images = np.zeros((6, 2, 2, 3), np.uint8)
        images[::3] = spread
        np.savez(folder / "heldout" / f"{name}.npz", images=images, prompts=prompts)
    base = compare.base_job(runs, seed).folder
    base.mkdir(exist_ok=True)
    (base / "summary.json").write_text(json.dumps({"score": BASE_SCORE}))


def test_variants_are_recipes_that_cost_the_same(compare: ModuleType) -> None:
    for variant in compare.VARIANTS:
        recipe = recipe_of(compare, variant, 43)
        cost = recipe.epochs * recipe.images_per_epoch * forwards(recipe).total
        assert cost == pytest.approx(compare.BUDGET, rel=0.04), variant
        assert recipe.seed == 43
        assert recipe.update.warmup_updates == pytest.approx(0.1 * recipe.num_updates, abs=1)
    assert recipe_of(compare, "Flow-GRPO, KL", 42).update.beta > 0
    assert recipe_of(compare, "DiffusionNFT", 42).update.forward_process


def test_an_outcome_is_read_from_a_run_folder(compare: ModuleType, tmp_path: Path) -> None:
    finish(compare, tmp_path, "fast window", 42)
    found = compare.read_outcomes(tmp_path, ["fast window"], [42, 43], compare.BUDGET)
    (outcome,) = found["fast window"]
    per_epoch = 128 * outcome.forwards_per_image
    assert outcome.forwards_per_image == 22  # 10 sampled, 4 trained at three each
    assert outcome.cpu_s == 40
    assert [p.forwards for p in outcome.curve] == [0, 2 * per_epoch, 4 * per_epoch]
    assert [p.cpu_s for p in outcome.curve] == [0, 20, 40]
    assert [p.score for p in outcome.curve] == pytest.approx([BASE_SCORE, 0.6, 0.8])
    # of three images of a prompt, one is white: two of three pairs differ, by 1
    assert outcome.diversity_before == pytest.approx(2 / 3)
    assert outcome.diversity_after == 0


def test_the_table_and_the_picture_have_what_is_finished(
    compare: ModuleType, tmp_path: Path
) -> None:
    for seed in (42, 44):
        finish(compare, tmp_path, "GRPO-Guard", seed)
    found = compare.read_outcomes(
        tmp_path, ["fast window", "GRPO-Guard"], compare.SEEDS, compare.BUDGET
    )
    header, rule, fast, guard = compare.table(found).splitlines()
    assert header.count("|") == rule.count("|") == fast.count("|") == guard.count("|")
    assert "–" in fast
    assert "0.500 | **0.430** (42: 0.420, 44: 0.440) | 0.667 | 0.000 | 40 | 56 |" in guard
    compare.draw(found, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > picture.height > 200


def test_jobs_that_are_done_are_skipped_and_failures_are_named(
    compare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", PATHS)
    done = compare.Job(tmp_path / "done", ("report", "nowhere"))
    done.folder.mkdir()
    (done.folder / "summary.json").write_text("{}")
    fails = compare.Job(tmp_path / "fails", ("train", str(tmp_path / "no-recipe.toml")))
    assert compare.run_jobs([done, fails], "http://127.0.0.1:1", 2) == [fails]
    assert "no recipe" in (fails.folder / "log.txt").read_text()
    assert not (done.folder / "log.txt").exists()


def test_an_exception_ends_what_runs(
    compare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", PATHS)
    waits = compare.base_job(tmp_path, 42)  # for a service that is not there
    (tmp_path / "file").touch()
    impossible = compare.Job(tmp_path / "file" / "run", ("report", "nowhere"))
    with pytest.raises(NotADirectoryError):
        compare.run_jobs([waits, impossible], "http://127.0.0.1:1", 2)
    alive = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path) in read(path)]
    assert alive == []


def read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it ended while we looked
