"""benchmarks/time_to_score.py: its rows are recipes of one budget; a short real run; table and picture."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from types import ModuleType
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from flow_trainer.doctor.estimate import forwards
from flow_trainer.recipe import load_recipe, save_resolved
from flow_trainer.recipe.update import OnChosenSamples, OnFinishedSamples, OnTrajectories
from flow_trainer.record.runlog import image_grid
from processes import PATHS, ROOT

SHORT = (
    "sampling.prompts_per_epoch=2",
    "sampling.group_size=4",
    "sampling.num_steps=4",
    "sampling.window.size=2",
    "evaluation.num_steps=6",
    "evaluation.images_per_prompt=1",
)


@pytest.fixture(scope="module")
def score() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield import_module("time_to_score")


@pytest.fixture(scope="module")
def outcome(score: ModuleType) -> ModuleType:
    return import_module("score.outcome")


def test_every_objective_is_there_and_costs_the_budget(score: ModuleType) -> None:
    used = set()
    for name in score.OBJECTIVES:
        run = score.run_of(Path("runs"), name, 43, score.BUDGET, score.THRESHOLDS)
        recipe = load_recipe(score.RECIPE, run.settings)
        used.add(recipe.update.objective)
        cost = recipe.epochs * recipe.images_per_epoch * forwards(recipe).total
        assert cost == pytest.approx(score.BUDGET, rel=0.04), name
        assert recipe.seed == 43
        assert recipe.checkpoints.every == recipe.evaluation.every
        assert str(recipe.prompts.validation).endswith("tiny_words_heldout.txt")
        tried = score.tuning_runs(Path("runs"), name, score.TUNING_BUDGET)
        assert len(tried) == 5, "the same budget of tuning for each"
        assert score.OBJECTIVES[name].chosen in ((), *score.OBJECTIVES[name].tried)
        for tuning in tried.values():
            recipe = load_recipe(score.RECIPE, tuning.settings)
            assert recipe.seed not in score.SEEDS
            assert str(recipe.prompts.validation).endswith("tiny_words_validation.txt")
    known = {*get_args(OnTrajectories), *get_args(OnFinishedSamples), *get_args(OnChosenSamples)}
    assert used == known


def test_a_run_ends_where_it_need_not_go_on(outcome: ModuleType) -> None:
    assert outcome.ends([], (0.8, 0.9)) is None
    assert outcome.ends([0.5, 0.85], (0.8, 0.9)) is None
    assert outcome.ends([0.5, 0.91], (0.8, 0.9)) == "reached"
    assert outcome.ends([0.7, 0.5, 0.8], (0.9,)) is None
    assert outcome.ends([0.7, 0.5, 0.54], (0.9,)) == "fell"


def finish(score: ModuleType, outcome: ModuleType, runs: Path, seed: int, last: float) -> None:
    """Leaves what a run of `nft` with evaluations every second epoch would, which reached 0.8 at the
    fourth epoch, and `last` at the sixth; its line is in results.jsonl."""
    run = score.run_of(runs, "nft", seed, score.BUDGET, (0.8, 0.9))
    run.folder.mkdir(parents=True)
    recipe = load_recipe(score.RECIPE, run.settings)
    save_resolved(recipe, run.folder / "recipe.json")
    rows = []
    for epoch, score_now in zip(range(1, 7), (0, 0.6, 0, 0.8, 0, last), strict=True):
        rows.append({"kind": "train", "epoch": epoch, "epoch_cpu_s": 10.0 + seed})
        if epoch % 2 == 0:
            rows.append({"kind": "validation", "epoch": epoch, "score": score_now})
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for epoch in outcome.first_epochs(run.folder, (0.8, 0.9)).values():
        folder = outcome.look_folder(run.folder, epoch)
        folder.mkdir(parents=True)
        images = np.zeros((8, recipe.model.height, recipe.model.width, 3), np.uint8)
        images[0] = 255
        Image.fromarray(image_grid(images, 8)).save(folder / "images.png")
        said = {"score": 0.81, "jpeg.incompressibility_kb": 1.5, "images": 8}
        (folder / "summary.json").write_text(json.dumps(said))
    found = outcome.read_outcome(run.folder, run.thresholds, "budget")
    score.Results(runs / "results.jsonl", score.start_of_all()).add_outcome(run.of, found)


def test_lines_of_runs_from_another_checkpoint_do_not_count(
    score: ModuleType, outcome: ModuleType, tmp_path: Path
) -> None:
    finish(score, outcome, tmp_path, 42, last=0.9)
    of = score.run_of(tmp_path, "nft", 42, score.BUDGET, (0.8, 0.9)).of
    path = tmp_path / "results.jsonl"
    found = score.Results(path, score.start_of_all()).outcome(of)
    assert found is not None
    other = score.Results(path, "another")
    assert other.outcome(of) is None
    assert other.machines() == []
    other.add_outcome(of, found)
    starts = [json.loads(line)["start"] for line in path.read_text().splitlines()]
    assert starts == [score.start_of_all(), "another"]


def test_the_table_and_the_picture_have_what_is_finished(
    score: ModuleType, outcome: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(score, outcome, tmp_path, 42, last=0.9)
    finish(score, outcome, tmp_path, 44, last=0.7)
    rmtree(tmp_path / "nft-42")  # the line is enough
    picture = tmp_path / "curves.png"
    arguments = ["--report", "--runs", str(tmp_path), "--picture", str(picture)]
    arguments += ["--results", str(tmp_path / "results.jsonl")]
    assert score.main([*arguments, "--thresholds", "0.8", "0.9", "--only", "clip", "nft"]) == 0
    header, rule, clip, nft = capsys.readouterr().out.splitlines()
    assert header.count("|") == rule.count("|") == clip.count("|") == nft.count("|")
    assert set(clip.split("|")[2:-1]) == {" – "}
    # 26 forwards of 128 images and four epochs of 52 and 54 s; then six
    assert "| 212 (208 to 216); 13 (13 to 13) | 1 of 2: 312; 20 |" in nft
    # the first prompt has one white image of four: three of six pairs differ by 1; the second none
    assert "42: 0.900, 44: 0.800 | 0.250 (0.250 to 0.250) | 1.50 (1.50 to 1.50) |" in nft
    with Image.open(picture) as drawn:
        assert drawn.width > drawn.height > 200


@pytest.mark.system
@pytest.mark.timeout(600)
def test_a_short_real_run_ends_at_its_threshold_and_is_looked_at(
    score: ModuleType,
    outcome: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([PATHS, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(score, "COMMON", (*score.COMMON, *SHORT))
    monkeypatch.setattr(score, "EVALUATION_COST", 2 * 48)  # every second epoch
    for module in (score, outcome):
        monkeypatch.setattr(module, "IMAGES", 2)
    # what the untrained model does nearly always: the first evaluation of five is enough
    arguments = ["--only", "sft", "--seeds", "42", "--budget", "480", "--thresholds", "0.05", "0.1"]
    arguments += ["--runs", str(tmp_path), "--picture", str(tmp_path / "curves.png")]
    results = tmp_path / "results.jsonl"
    arguments += ["--results", str(results)]
    assert score.main(arguments) == 0
    untrained, sft = capsys.readouterr().out.splitlines()[2:]
    assert "untrained" in untrained
    run = tmp_path / "sft-42"
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["of"][0] for line in lines] == ["base-42", "sft-42"]
    assert lines[1]["outcome"]["ended"] == "reached"
    assert not (run / "summary.json").exists(), "it did not go on to its budget"
    assert not (run / "checkpoints").exists()
    cells = [cell.strip() for cell in sft.split("|")]
    assert cells[2] == "6", "four steps sampled, one trained with its backward"
    assert cells[3] == cells[4] != "0 of 1"
    assert "–" not in sft
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")}
    assert score.main(arguments) == 0, "the same command again trains nothing"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")} == before
