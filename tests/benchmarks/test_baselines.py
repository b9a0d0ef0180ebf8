"""benchmarks/baselines: the reward's gradient, variants of one cost, and what is read of finished runs."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from flow_trainer.doctor.estimate import forwards
from flow_trainer.recipe import load_recipe, save_resolved
from flow_trainer.tiny_sd3.signs import render
from processes import PATHS, ROOT, Services
from reward_api import RewardClient
from reward_api.wire.gradients import unpack_gradient

NOBODY = "rewards.legible.url=http://127.0.0.1:1"


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks" / "baselines"))
        yield {name: import_module(name) for name in ("run", "jobs", "legible")}


def test_a_sign_of_the_word_scores_highest_and_the_gradient_is_its_own(
    modules: dict[str, ModuleType],
) -> None:
    legibility = modules["legible"].legibility
    dark, light = (render("FAST", random.Random(seed)) / 255 for seed in (0, 3))
    for image in (dark, light):
        found = {word: legibility(image, word)[0] for word in ("FAST", "FASK", "DROP")}
        assert found["FAST"] > 0.99 > found["FASK"] > found["DROP"]
    noise = np.random.default_rng(0).normal(size=dark.shape)
    image = 0.5 + 0.2 * (dark - dark.mean()) + 0.05 * noise
    _, gradient = legibility(image, "FASK")
    step = 1e-4 * np.random.default_rng(1).normal(size=image.shape)
    difference = legibility(image + step, "FASK")[0] - legibility(image - step, "FASK")[0]
    assert difference / 2 == pytest.approx(float((gradient * step).sum()), rel=1e-4)
    assert legibility(np.full(dark.shape, 0.5), "FAST")[0] == 0


@pytest.mark.system
def test_the_service_sends_that_gradient(
    modules: dict[str, ModuleType], services: Services
) -> None:
    service = services.start(
        "-m", "reward_services", str(ROOT / "benchmarks" / "baselines" / "legible.py")
    )
    image = render("FAST", random.Random(0))
    with RewardClient(service.http, on_error="nan") as client:
        prompts = ['a sign that says "FASK"', "no word"]
        batch = client.score_gradient(np.stack([image, image]), prompts)
    value, gradient = modules["legible"].legibility(image / 255, "FASK")
    assert batch.valid.tolist() == [True, False]
    assert batch.values[0] == pytest.approx(value)
    assert batch.gradients[0] is not None
    np.testing.assert_allclose(
        unpack_gradient(batch.gradients[0]), gradient, atol=2e-3 * abs(gradient).max()
    )


def test_variants_cost_the_same(modules: dict[str, ModuleType]) -> None:
    run = modules["run"]
    for variant in run.VARIANTS:
        recipe = load_recipe(run.RECIPE, run.overrides(variant, 43, run.BUDGET))
        cost = recipe.epochs * recipe.images_per_epoch * forwards(recipe).total
        assert cost == pytest.approx(run.BUDGET, rel=0.06), variant
        assert recipe.update.warmup_updates == pytest.approx(0.1 * recipe.num_updates, abs=1)
        assert recipe.seed == 43
        per_update = recipe.images_per_epoch // recipe.update.updates_per_epoch
        assert per_update == 64


def test_the_table_of_finished_runs(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    run = modules["run"]
    for seed in (42, 43):
        folder = run.train_job(tmp_path, "SFT", seed, run.BUDGET).folder
        (folder / "heldout").mkdir(parents=True)
        recipe = load_recipe(run.RECIPE, run.overrides("SFT", seed, run.BUDGET))
        save_resolved(recipe, folder / "recipe.json")
        lines = [
            {"kind": "train", "epoch": 1, "epoch_cpu_s": 10.0 * (seed - 41)},
            {"kind": "validation", "epoch": 1, "score": 0.5},
            {"kind": "train", "epoch": 2, "epoch_cpu_s": 10.0},
            {"kind": "validation", "epoch": 2, "score": 0.6},
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        prompts = np.repeat(["a", "b"], 2)
        images = np.zeros((4, 2, 2, 3), np.uint8)
        images[::2] = 255
        for name, score in (("before", 0.5), ("after", 0.75)):
            values = np.array([score, score, score, np.nan])
            np.savez(
                folder / "heldout" / f"{name}.npz", images=images, prompts=prompts, values=values
            )
        np.savez(folder / "monitor.npz", before=np.full(4, 0.1), after=np.full(4, 0.2))
    found = dict(run.outcomes(tmp_path, ["SFT", "ReFL"], [42, 43], run.BUDGET))
    header, _, base, sft = run.table(found).splitlines()
    assert header.startswith("| variant | F | epochs | seeds | task")
    assert base.split(" | ")[4] == "**0.500 [0.500, 0.500]**"
    cells = sft.strip("| ").split(" | ")
    assert cells[:4] == ["SFT", "12", "18", "2"]
    assert cells[4] == "**0.750 [0.750, 0.750]** (0.750, 0.750)"
    assert cells[5:] == ["0.200 [0.200, 0.200]", "1.000 [1.000, 1.000]", "25 (20 to 30)"]
    run.draw(found, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 800


def test_jobs_that_are_done_are_skipped_and_failures_are_named(
    modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", PATHS)
    jobs = modules["jobs"]
    done = jobs.Job(tmp_path / "done", ("report", "nowhere"))
    done.folder.mkdir()
    (done.folder / "summary.json").write_text("{}")
    fails = jobs.Job(tmp_path / "fails", ("train", str(tmp_path / "no-recipe.toml")))
    assert jobs.run_jobs([done, fails], NOBODY, 2) == [fails]
    assert "no recipe" in (fails.folder / "log.txt").read_text()
    assert not (done.folder / "log.txt").exists()


def test_an_exception_ends_what_runs(
    modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", PATHS)
    run, jobs = modules["run"], modules["jobs"]
    waits = run.train_job(tmp_path, "SFT", 42, run.BUDGET)  # for a service that is not there
    (tmp_path / "file").touch()
    impossible = jobs.Job(tmp_path / "file" / "run", ("report", "nowhere"))
    with pytest.raises(NotADirectoryError):
        jobs.run_jobs([waits, impossible], NOBODY, 2)
    alive = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path) in read(path)]
    assert alive == []


def read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # it ended while we looked
