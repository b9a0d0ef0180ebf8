"""Suites end to end: a minuscule model, real services, tables."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ranks
from flow_trainer.__main__ import main
from flow_trainer.errors import ConfigError
from flow_trainer.evaluation.published import PUBLISHED
from flow_trainer.evaluation.sources import parse_sources, suite_prompts
from flow_trainer.evaluation.suites import SUITES, find_suites
from processes import MARKS, Service, Services, environment
from recipes import write_recipe

Evaluate = Callable[..., int]


@pytest.fixture
def geneval(services: Services, tmp_path: Path) -> Service:
    return services.start(MARKS, "geneval", "flow_grpo,official", MARKS_LOG=str(tmp_path / "asked"))


@pytest.fixture
def recipe_path(recipe_data: dict[str, Any], tmp_path: Path) -> Path:
    recipe_data["sampling"]["micro_batch"] = 8
    recipe_data["rewards"] = {"nobody": {"url": "http://127.0.0.1:9"}}
    recipe_data["scoring"] = {"timeout_s": 5.0}
    return write_recipe(tmp_path, recipe_data)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Twelve of GenEval's lines, two of each task."""
    assert SUITES["geneval"].make is not None
    kept: dict[str, list[dict[str, Any]]] = {}
    for prompt in SUITES["geneval"].make():
        rows = kept.setdefault(str(prompt.metadata["tag"]), [])
        if len(rows) < 2:
            rows.append({**prompt.metadata, "prompt": prompt.text})
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for rows in kept.values() for row in rows))
    return path


@pytest.fixture
def evaluate(recipe_path: Path, tmp_path: Path) -> Callable[..., int]:
    def run(*arguments: str) -> int:
        steps = ("--steps", "2", "--wait-ready", "0.5", "--out", str(tmp_path / "out"))
        return main(["evaluate", str(recipe_path), *steps, *arguments])

    return run


def table(tmp_path: Path, name: str) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / f"{name}.json").read_text())


def test_geneval_has_the_papers_shape(
    evaluate: Evaluate,
    geneval: Service,
    few: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("--suite", "geneval", "--prompts", f"geneval={few}")
    assert evaluate(*arguments, "--reward", f"geneval={geneval.http}", "--keep-images") == 0
    shown = capsys.readouterr().out
    result = table(tmp_path, "geneval")
    assert list(result["columns"].values()) == [
        "overall",
        "single",
        "two",
        "counting",
        "colors",
        "position",
        "attr",
    ]
    (row,) = result["rows"]
    each = dict.fromkeys(list(result["columns"])[1:], 8)
    assert row["scored"] == {"overall": 48, **each}
    tasks = [row["values"][key]["mean"] for key in list(result["columns"])[1:]]
    assert row["values"]["overall"]["mean"] == pytest.approx(np.mean(tasks))
    assert result["missing"] == {}
    assert re.search(r"\| paper: SD3.5-M \+ Flow-GRPO +\| 0.95 +\| 1.00", shown)
    assert "not sampled as the paper's figures were: steps 2 for 40, size 8 x 8" in shown
    assert len(list((tmp_path / "out").rglob("*.png"))) == 48
    # a second time, nothing is drawn or asked for again
    asked = (tmp_path / "asked").read_text()
    assert evaluate(*arguments, "--reward", f"geneval={geneval.http}") == 0
    assert (tmp_path / "asked").read_text() == asked
    assert table(tmp_path, "geneval")["rows"] == result["rows"]


def test_the_published_order_of_rows_does_not_matter_but_their_repetition_is_dropped(
    few: Path, tmp_path: Path
) -> None:
    twice = tmp_path / "twice.jsonl"
    twice.write_text(few.read_text() * 4)
    assert suite_prompts(SUITES["geneval"], str(twice)) == suite_prompts(
        SUITES["geneval"], str(few)
    )


def test_another_model_is_compared_under_the_same_noise(
    evaluate: Evaluate, services: Services, tmp_path: Path, recipe_path: Path
) -> None:
    scorer = services.start(MARKS, "pickscore", "pickscore_26,pickscore")
    prompts = tmp_path / "captions.txt"
    prompts.write_text("red\ngreen\nbroken glass\nblue\n")
    run = tmp_path / "run"
    flags = ["--set", f"rewards.nobody.url={scorer.http}", "--set", "epochs=1"]
    assert main(["train", str(recipe_path), *flags, "--out", str(run)]) == 0
    checkpoint = run / "checkpoints" / "epoch_00001"
    suites = ("--suite", "pickscore", "--prompts", f"pickscore={prompts}")
    against = ("--checkpoint", str(checkpoint), "--against", "base")
    assert evaluate(*suites, *against, "--reward", f"pickscore={scorer.http}") == 0
    result = table(tmp_path, "pickscore")
    trained, base, difference = result["rows"]
    assert [row["scored"]["pickscore"] for row in result["rows"]] == [3, 3, 3]
    assert difference["values"]["pickscore"]["mean"] == pytest.approx(
        trained["values"]["pickscore"]["mean"] - base["values"]["pickscore"]["mean"]
    )
    assert any("3 of 4 scores, e.g." in note for note in result["notes"])
    tasks = table(tmp_path, "tasks")
    assert tasks["columns"]["pickscore"] == "PickScore"
    assert tasks["missing"]["OCR"] == "add --suite ocr"
    assert tasks["rows"][0]["values"]["pickscore"] == trained["values"]["pickscore"]
    assert evaluate(*suites, "--against", "base") == 2


def test_what_does_not_answer_is_a_named_hole(
    evaluate: Evaluate,
    services: Services,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    judge = services.start(MARKS, "unifiedreward", "flow_grpo,strict")
    prompts = tmp_path / "bench.txt"
    prompts.write_text("red\ngreen\n")
    arguments = ("--suite", "drawbench", "--prompts", f"drawbench={prompts}")
    assert evaluate(*arguments) == 2
    assert "no reward aesthetic: start its service" in capsys.readouterr().err
    dead = ("--reward", "aesthetic=http://127.0.0.1:9")
    assert evaluate(*arguments, *dead, "--reward", f"judge={judge.http}") == 0
    result = table(tmp_path, "drawbench")
    assert set(result["missing"]) == {"Aesthetic", "DeQA", "ImgRwd", "PickScore"}
    assert result["missing"]["Aesthetic"].startswith("does not answer: ")
    assert result["rows"][0]["values"]["unifiedreward"]["mean"] in np.arange(11) / 2
    # the reward that was missing is filled in later, and the others are not asked again
    aesthetic = services.start(MARKS, "aesthetic", "aesthetic")
    extra = ("--reward", f"aesthetic={aesthetic.http}", "--reward", f"judge={judge.http}")
    assert evaluate(*arguments, *extra) == 0
    later = table(tmp_path, "drawbench")
    assert later["rows"][0]["scored"]["aesthetic"] == 10
    assert set(later["missing"]) == {"DeQA", "ImgRwd", "PickScore"}


@pytest.mark.system
def test_a_killed_evaluation_goes_on_image_by_image(
    services: Services, recipe_path: Path, few: Path, tmp_path: Path
) -> None:
    slow = services.start(MARKS, "geneval", "flow_grpo,official", MARKS_PAUSE_S="0.03")

    def arguments(out: str) -> list[str]:
        flags = ["--suite", "geneval", "--prompts", f"geneval={few}", "--steps", "2"]
        reward = ["--reward", f"geneval={slow.http}", "--out", str(tmp_path / out)]
        recipe = ["--set", "sampling.micro_batch=4", "--set", f"rewards.nobody.url={slow.http}"]
        return ["evaluate", str(recipe_path), *recipe, *flags, *reward]

    command = [sys.executable, "-m", "flow_trainer", *arguments("out")]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (found := list((tmp_path / "out").rglob("scores-*.jsonl"))):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = found[0].read_text()
    assert 0 < kept.count("\n") < 48
    with found[0].open("a") as file:
        file.write('{"image": 5, "rew')  # as a kill may leave it
    assert main(arguments("out")) == 0
    assert found[0].read_text().startswith(kept)
    lines = found[0].read_text().splitlines()
    images = [json.loads(line)["image"] for line in lines if line.endswith("}")]
    assert sorted(images) == list(range(48))
    assert main(arguments("whole")) == 0
    resumed, whole = (
        json.loads((tmp_path / name / "geneval.json").read_text()) for name in ("out", "whole")
    )
    assert resumed["rows"] == whole["rows"]


def test_prompts_that_must_be_fetched_say_where(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("a photo of a dog\n")
    for arguments, message in (
        (["--suite", "ocr"], "flow-grpo prompts ocr --split test"),
        (["--suite", "drawbench"], "dataset/drawbench/test.txt"),
        (["--suite", "genevall"], "the suites are geneval, "),
        (["--suite", "geneval", "--prompts", f"geneval={plain}"], "has no GenEval metadata"),
        (["--suite", "geneval", "--prompts", "other=x"], "write SUITE=FILE"),
        (["--suite", "geneval", "--reward", "geneval"], "write NAME=URL"),
        (["--suite", "geneval", "--checkpoint", str(tmp_path)], "neither a checkpoint nor"),
        (["--suite", "geneval", "--against", "/no/such"], "no checkpoint /no/such"),
    ):
        assert evaluate(*arguments) == 2
        assert message in capsys.readouterr().err


def test_sizes_are_the_published_ones() -> None:
    made = {s.name: suite_prompts(s, None) for s in SUITES.values() if s.make is not None}
    images = {name: len(prompts) * SUITES[name].images_per_prompt for name, prompts in made.items()}
    assert images == {"geneval": 2212, "unseen-objects": 1024, "unseen-counting": 960}
    tags = [prompt.metadata["tag"] for prompt in made["unseen-objects"]]
    assert {tag: 4 * tags.count(tag) for tag in set(tags)} == {
        "single_object": 80,
        "two_object": 192,
        "counting": 188,
        "colors": 188,
        "position": 188,
        "color_attr": 188,
    }
    assert made["unseen-counting"][0].text == "a photo of five persons"


def test_names_and_sources_are_checked() -> None:
    assert [suite.name for suite in find_suites(["ocr,geneval", "ocr"])] == ["ocr", "geneval"]
    with pytest.raises(ConfigError, match="no suite"):
        find_suites([""])
    assert parse_sources(["ocr=a=b"]) == {"ocr": "a=b"}


def test_every_published_figure_has_a_column() -> None:
    assert len(PUBLISHED) == 17
    first = PUBLISHED[0]
    assert (first.source, first.values["overall"]) == ("arXiv 2505.05470, Table 1", 0.63)
    for row in PUBLISHED:
        if row.table != "tasks":
            suite = SUITES[row.table]
            known = {"overall"} | {group.key for group in suite.groups}
            assert set(row.values) <= known


@pytest.mark.system
@pytest.mark.timeout(300)
def test_two_processes_measure_what_one_does(
    evaluate: Evaluate, geneval: Service, recipe_path: Path, few: Path, tmp_path: Path
) -> None:
    reward = ("--reward", f"geneval={geneval.http}", "--set", f"rewards.nobody.url={geneval.http}")
    arguments = ("--suite", "geneval", "--prompts", f"geneval={few}", *reward)
    assert evaluate(*arguments) == 0
    flags = ["evaluate", str(recipe_path), "--steps", "2", "--out", str(tmp_path / "two")]
    log = tmp_path / "log"
    assert ranks.start(2, ranks.command, [*flags, *arguments], log).wait() == [0, 0]
    alone, both = (
        json.loads((tmp_path / name / "geneval.json").read_text()) for name in ("out", "two")
    )
    assert both["rows"] == alone["rows"]
    files = sorted((tmp_path / "two").rglob("scores-*.jsonl"))
    assert [file.read_text().count("\n") for file in files] == [24, 24]
