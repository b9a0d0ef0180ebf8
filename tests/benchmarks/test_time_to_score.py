"""benchmarks/time_to_score.py: its rows are recipes of one budget; a short real run; table and picture."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from shutil import rmtree
from types import ModuleType
from typing import Any, get_args

import pytest
from PIL import Image

from flow_trainer.doctor.estimate import forwards
from flow_trainer.recipe import load_recipe, save_resolved
from flow_trainer.recipe.update import OnChosenSamples, OnFinishedSamples, OnTrajectories
from processes import PATHS, ROOT

SHORT = (
    "sampling.prompts_per_epoch=2",
    "sampling.group_size=4",
    "sampling.num_steps=4",
    "sampling.window.size=2",
    "evaluation.num_steps=6",
    "evaluation.images_per_prompt=2",
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
        assert recipe.prompts.heldout == recipe.prompts.validation, "the untrained model's row"
        assert str(recipe.prompts.validation).endswith("tiny_words_heldout.txt")
        tried = score.tuning_runs(Path("runs"), name, score.TUNING_BUDGETS[0])
        assert len(tried) == 5, "the same budget of tuning for each"
        assert score.OBJECTIVES[name].chosen in ((), *score.OBJECTIVES[name].tried)
        for tuning in tried.values():
            recipe = load_recipe(score.RECIPE, tuning.settings)
            assert recipe.seed not in score.SEEDS
            assert recipe.prompts.heldout == recipe.prompts.validation
            assert str(recipe.prompts.validation).endswith("tiny_words_validation.txt")
    known = {*get_args(OnTrajectories), *get_args(OnFinishedSamples), *get_args(OnChosenSamples)}
    assert used == known


def test_rates_that_win_a_short_run_have_to_win_a_longer_one(
    score: ModuleType, outcome: ModuleType, tmp_path: Path
) -> None:
    results = score.Results(tmp_path / "results.jsonl", score.start_of_all())
    first = score.tuning_runs(tmp_path, "dpo", score.TUNING_BUDGETS[0])
    as_it_is, faster, fastest, other, last = first.values()

    def end(run: Any, value: float) -> None:
        point = outcome.Point(1, 1.0, 1.0, value, 0.3, 1.6)
        results.add(run.of, outcome.Outcome(41, 14, "budget", [point]))

    for run, value in ((as_it_is, 0.5), (faster, 0.58), (fastest, 0.56), (other, 0.55)):
        end(run, value)
    assert score.second_round(tmp_path, "dpo", results) == {}, "the first is not finished"
    end(last, 0.4)
    again = score.second_round(tmp_path, "dpo", results)
    assert list(again) == ["forward.preference=30", "update.learning_rate=6e-4"]
    recipe = load_recipe(score.RECIPE, again["forward.preference=30"].settings)
    cost = recipe.epochs * recipe.images_per_epoch * forwards(recipe).total
    assert cost == pytest.approx(score.TUNING_BUDGETS[1], rel=0.04)
    end(other, 0.65)
    assert score.second_round(tmp_path, "dpo", results) == {}, "no rate is ahead"


def test_what_is_chosen_won_its_tuning(score: ModuleType) -> None:
    """By the lines of the repository."""
    results = score.Results(ROOT / "docs" / "time-to-score.jsonl", score.start_of_all())
    for name, row in score.OBJECTIVES.items():
        runs = score.second_round(Path("runs"), name, results)
        runs = runs or score.tuning_runs(Path("runs"), name, score.TUNING_BUDGETS[0])
        best, *faster = score.winners(runs, results)
        assert (" ".join(row.chosen) or "as it is") == (faster[0] if faster else best), name


def test_other_settings_have_another_folder(score: ModuleType) -> None:
    """What a run left must not be taken for one with settings that came later."""
    runs = [
        score.run_of(Path("runs"), "nft", 42, budget, (0.9,))
        for budget in (score.BUDGET, score.BUDGET // 2, score.BUDGET)
    ]
    first, other, again = (run.folder for run in runs)
    assert first == again != other
    assert first.name.startswith("nft-42-")


def test_a_run_ends_where_it_need_not_go_on(outcome: ModuleType) -> None:
    assert outcome.ends([], (0.8, 0.9)) is None
    assert outcome.ends([0.5, 0.85], (0.8, 0.9)) is None
    assert outcome.ends([0.5, 0.91], (0.8, 0.9)) == "reached"
    assert outcome.ends([0.7, 0.5, 0.8], (0.9,)) is None
    assert outcome.ends([0.7, 0.5, 0.54], (0.9,)) == "fell"
    assert outcome.ends([0.7, *[0.69] * (outcome.STALL - 1)], (0.9,)) is None
    assert outcome.ends([0.7, *[0.69] * outcome.STALL], (0.9,)) == "stalled"


def finish(score: ModuleType, outcome: ModuleType, runs: Path, seed: int, last: float) -> None:
    """Leaves what a run of `nft` with evaluations every second epoch would, which reached 0.8 at the
    fourth epoch, and `last` at the sixth; its line is in results.jsonl."""
    run = score.run_of(runs, "nft", seed, score.BUDGET, (0.8, 0.9))
    run.folder.mkdir(parents=True)
    save_resolved(load_recipe(score.RECIPE, run.settings), run.folder / "recipe.json")
    looks = {0: (0.4, 0.5), 2: (0.6, 0.375), 4: (0.8, 0.25), 6: (last, 0.125)}
    rows = []
    for epoch in range(7):
        kind = "heldout_before" if epoch == 0 else "validation"
        if epoch > 0:
            rows.append({"kind": "train", "epoch": epoch, "epoch_cpu_s": 10.0 + seed})
        if epoch in looks:
            seen = dict(zip(("score", "image_diversity"), looks[epoch], strict=True))
            rows.append({"kind": kind, "epoch": epoch, "jpeg.incompressibility_kb": 1.5, **seen})
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = outcome.read_outcome(run.folder, "budget")
    score.Results(runs / "results.jsonl", score.start_of_all()).add(run.of, found)


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
    other.add(of, found)
    starts = [json.loads(line)["start"] for line in path.read_text().splitlines()]
    assert starts == [score.start_of_all(), "another"]


def test_the_table_and_the_picture_have_what_is_finished(
    score: ModuleType, outcome: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(score, outcome, tmp_path, 42, last=0.9)
    finish(score, outcome, tmp_path, 44, last=0.7)
    for folder in tmp_path.glob("nft-*"):
        rmtree(folder)  # the lines are enough
    picture = tmp_path / "curves.png"
    arguments = ["--report", "--runs", str(tmp_path), "--picture", str(picture)]
    arguments += ["--results", str(tmp_path / "results.jsonl")]
    assert score.main([*arguments, "--thresholds", "0.8", "0.9", "--only", "clip", "nft"]) == 0
    header, rule, untrained, clip, nft = capsys.readouterr().out.splitlines()
    assert {line.count("|") for line in (header, rule, untrained, clip, nft)} == {header.count("|")}
    assert "| 0.400 | 0.500 (0.500 to 0.500) | 1.50 (1.50 to 1.50) |" in untrained
    assert set(clip.split("|")[2:-1]) == {" – "}
    # 26 forwards of 128 images and four epochs of 52 and 54 s; then six
    assert "| 212 (208 to 216); 13 (13 to 13) | 1 of 2: 312; 20 |" in nft
    # one run where it reached 0.9, the other where it reached 0.8
    assert "42: 0.900, 44: 0.800 | 0.188 (0.125 to 0.250) | 1.50 (1.50 to 1.50) |" in nft
    with Image.open(picture) as drawn:
        assert drawn.width > drawn.height > 200


@pytest.mark.system
@pytest.mark.timeout(600)
def test_a_short_real_run_ends_at_its_threshold(
    score: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([PATHS, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(score, "COMMON", (*score.COMMON, *SHORT))
    monkeypatch.setattr(score, "EVALUATION_COST", 2 * 56)  # every second epoch
    results = tmp_path / "results.jsonl"

    def measure(runs: str, *thresholds: str) -> tuple[str, Path]:
        """The row of sft in the table; its folder."""
        arguments = ["--only", "sft", "--seeds", "42", "--budget", "560", "--results", str(results)]
        arguments += ["--picture", str(tmp_path / "curves.png"), "--thresholds", *thresholds]
        assert score.main([*arguments, "--runs", str(tmp_path / runs)]) == 0
        [folder] = (tmp_path / runs).glob("sft-42-*")
        return capsys.readouterr().out.splitlines()[-1], folder

    # the first is what the untrained model has nearly always
    row, run = measure("whole", "0.05", "1.01")
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[2:5] == ["7", "0; 0", "0 of 1"], (
        "four steps sampled; of a quarter of the samples four levels trained, with a backward"
    )
    assert not (run / "checkpoints").exists()
    measure("early", "0.05")
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    whole, early = (line["outcome"] for line in lines)
    assert [whole["ended"], early["ended"]] == ["budget", "reached"]
    assert [point["epoch"] for point in whole["curve"]] == [0, 2, 4, 6, 8, 10]
    assert len(early["curve"]) < 6, "it did not go on to its budget"
    assert all(point["diversity"] > 0 and point["kilobytes"] > 0 for point in whole["curve"])
    assert whole["curve"][0] == early["curve"][0]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")}
    assert measure("whole", "0.05", "1.01") == (row, run), "the same command again trains nothing"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json*")} == before
