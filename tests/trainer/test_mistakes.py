"""No mistake of a user ends in a traceback: one line that names what is wrong, and status 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from flow_trainer.__main__ import main
from flow_trainer.loop.train import train
from flow_trainer.recipe import parse_recipe
from processes import Service, environment
from recipes import write_recipe

Mistake = tuple[list[str], str]
"""Arguments, RECIPE, RUN, FILE, GONE and DIR in them replaced; and a piece of the line that follows."""

SET = [
    ("model.height=1024", "at most 16 pixels"),
    ("model.height=9", "must be multiples"),
    ("model.height=-8", "model.height"),
    ("model.height=nan", "model.height"),
    ("model.family=flux", "StableDiffusion3Pipeline"),
    ("model.family=sdxl", "model.family"),
    ("model.path=GONE", "model.path"),
    ("model.path=FILE", "model.path"),
    ("model.adapter=DIR", "model.tuning = lora"),
    ("model=3", "model"),
    ("device=cuda", "sees no GPU"),
    ("device=tpu", "use auto, cpu or cuda"),
    ("device=mps", "use auto, cpu or cuda"),
    ("prompts.train=GONE.txt", "no such file"),
    ("prompts.train=DIR", "neither"),
    ("prompts.train=prompts.csv", "neither"),
    ("rewards.bright.url=127.0.0.1:8101", "expected http://host:port"),
    ("rewards.bright.url=[]", "name at least one address"),
    ("rewards.bright.url=['ftp://x']", "expected http://host:port"),
    ("rewards.bright.url=3", "rewards.bright.url"),
    ("rewards.bright.weight=nan", "rewards.bright.weight: Input should be a finite number"),
    ("rewards.bright.weight=inf", "rewards.bright.weight: Input should be a finite number"),
    ("rewards.bright.clip=[nan, 1.0]", "rewards.bright.clip"),
    ("rewards.bright.token_env=NOT_SET", "set that variable"),
    ("update.learning_rate=inf", "update.learning_rate: Input should be a finite number"),
    ("update.learning_rate=fast", "update.learning_rate"),
    ("advantage.clip=nan", "advantage.clip"),
    ("schedule.epochs=2", "schedule"),
    ("learning_rate=1", "did you mean update.learning_rate"),
    ("epochs.x=1", "epochs is a value"),
    ("=1", "write --set section.key=value"),
    ("epochs", "write --set section.key=value"),
    ("epochs=true", "true is no value of this setting"),
    ("name=''", "name: String should match"),
    ("name=../x", "name: String should match"),
    ("name=a/b", "name: String should match"),
    ("prompts.train=table.txt", "header of a table"),
]
TRAIN: list[Mistake] = [
    (["train", "RECIPE", "--out", "FILE"], "--out"),
    (["train", "RECIPE", "--out", "FILE/below"], "--out"),
    (["train", "RECIPE", "--out", "RUN"], "continue it with --resume"),
    *[
        (
            ["train", "RECIPE", "--resume", "--out", f"RUN/{inside}"],
            "lies in the run RUN: name that",
        )
        for inside in ("checkpoints/epoch_00001", "checkpoints", "images")
    ],
    (["train", "RECIPE", "--resume", "--out", "RUN", "--set", "model.path=DIR"], "model.path"),
    (["train", "RECIPE", "--resume", "--out", "RUN", "--set", "seed=9"], "seed = 9 was 3"),
    (["train", "RECIPE", "--dry-run", "--gpus", "64"], "start fewer processes"),
]
EVALUATE: list[Mistake] = [
    (["evaluate", "RECIPE", "--split", "validation"], "no prompts.validation"),
    (["evaluate", "RECIPE", "--split", "train", "--checkpoint", "GONE"], "is not a checkpoint"),
    (["evaluate", "RECIPE", "--split", "train", "--checkpoint", "FILE"], "is not a checkpoint"),
    (["evaluate", "RECIPE", "--split", "train", "--checkpoint", "RUN"], "epoch_N"),
    (["evaluate", "RECIPE", "--split", "train", "--out", "FILE"], "--out"),
    (["evaluate", "RECIPE", "--split", "train", "--prompts", "ocr=FILE"], "--suite"),
    (["evaluate", "RECIPE", "--split", "train", "--seed", "7"], "--suite"),
    (["evaluate", "RECIPE", "--split", "train", "--against", "base"], "--suite"),
    (["evaluate", "RECIPE", "--suite", "nope"], "the suites are"),
    (["evaluate", "RECIPE", "--suite", "ocr", "--prompts", "ocr=GONE.txt"], "no such file"),
]
OTHER: list[Mistake] = [
    *[([command, "GONE.toml"], "no recipe") for command in ("train", "evaluate", "doctor")],
    *[([command, "DIR"], "cannot be read") for command in ("train", "evaluate", "doctor")],
    *[([command, "NOISE"], "cannot be read") for command in ("train", "evaluate", "doctor")],
    *[([command, "LIST"], "it holds a list") for command in ("train", "evaluate", "doctor")],
    (["report", "GONE"], "is no folder: name one that `flow-grpo train` has made"),
    (["report", "FILE"], "is no folder: name one that `flow-grpo train` has made"),
    (["report", "DIR"], "is it a run folder"),
    (["prompts", "ocr", "--count", "0"], "ask for 1 or more"),
    (["prompts", "ocr", "--count", "2", "--out", "DIR"], "DIR"),
    (["prompts", "ocr", "--count", "2", "--out", "FILE"], "--force"),
    (["prompts", "ocr", "--count", "2", "--out", "FILE/x.jsonl"], "FILE"),
    (["prompts", "geneval", "--training", "5", "--samples", "3"], "--samples"),
    (["prompts", "ocr", "--count", "2", "--out", "DIR/x.csv"], "name the file so"),
    (["plan", "GONE.toml"], "no recipe"),
    (["plan", "DIR"], "cannot be read"),
    (["recipes", "GONE"], "name the folder"),
    (["recipes", "FILE"], "name the folder"),
    (["curate", "GONE", "--reward", "a=http://127.0.0.1:9"], "no folder or file"),
    (["curate", "FILE", "--reward", "a=http://127.0.0.1:9"], "neither a folder"),
    (["curate", "DIR", "--reward", "a=http://127.0.0.1:9"], "holds no images"),
    (["curate", "DIR", "--reward", "a=x"], "expected http://host:port"),
    (["curate", "DIR", "--reward", "a=http://127.0.0.1:9", "--keep", "a>=nan"], "not a number"),
    (["curate", "DIR"], "--reward NAME=URL"),
    (["demo", "--recipe", "GONE.toml"], "no recipe"),
    (["demo", "--out", "FILE"], "no demo's folder"),
    (["demo", "--out", "FULL"], "no demo's folder"),
]


@pytest.fixture
def places(tmp_path: Path, recipe_data: dict[str, Any]) -> dict[str, str]:
    data = {**recipe_data, "scoring": {"timeout_s": 1.0}}
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "noise.toml").write_bytes(bytes(range(128, 256)))
    (tmp_path / "file").write_text("x")
    (tmp_path / "dir").mkdir()
    (tmp_path / "prompts.csv").write_text("prompt\nred\n")
    (tmp_path / "table.txt").write_text("prompt,tag\nred,x\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    return {
        "RECIPE": str(write_recipe(tmp_path, data)),
        "LIST": str(tmp_path / "list.json"),
        "NOISE": str(tmp_path / "noise.toml"),
        "FILE": str(tmp_path / "file"),
        "GONE": str(tmp_path / "gone"),
        "DIR": str(tmp_path / "dir"),
        "FULL": str(tmp_path / "full"),
        "RUN": str(tmp_path / "run"),
    }


def put(text: str, places: dict[str, str]) -> str:
    for name, path in places.items():
        text = text.replace(name, path)
    return text


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that fails prints on standard error."""
    assert main(arguments) == 2, arguments
    error = capsys.readouterr().err
    assert error.startswith("flow-grpo: "), error
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 4, error
    return error


@pytest.mark.parametrize(("override", "message"), SET)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_wrong_values_are_named(
    command: str,
    override: str,
    message: str,
    places: dict[str, str],
    brightness: Service,
    capsys: pytest.CaptureFixture[str],
) -> None:
    split = ["--split", "train"] if command == "evaluate" else ["--out", places["DIR"]]
    url = f"rewards.bright.url={brightness.http}"
    arguments = [command, places["RECIPE"], *split, "--set", url, "--set", put(override, places)]
    assert put(message, places) in said(arguments, capsys)


@pytest.mark.parametrize(("arguments", "message"), [*TRAIN, *EVALUATE, *OTHER])
def test_mistakes_are_one_line_and_status_2(
    arguments: list[str],
    message: str,
    places: dict[str, str],
    recipe_data: dict[str, Any],
    brightness: Service,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = {**recipe_data, "epochs": 1, "rewards": {"bright": {"url": brightness.http}}}
    if any(argument.startswith("RUN") for argument in arguments):
        train(parse_recipe(data), Path(places["RUN"]))
        capsys.readouterr()
    given = [put(argument, places) for argument in arguments]
    if given[0] in ("train", "evaluate"):
        given += ["--set", f"rewards.bright.url={brightness.http}"]
    assert put(message, places) in said(given, capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        *[["train", "r.toml", "--dry-run", "--gpus", v] for v in ("0", "-1", "nan", "1.5", "")],
        *[["evaluate", "r.toml", "--steps", v] for v in ("0", "-1", "nan", "x")],
        ["evaluate", "r.toml", "--images", "0"],
        ["evaluate", "r.toml", "--seed", "x"],
        ["evaluate", "r.toml", "--split", "nope"],
        ["train", "r.toml", "--out", ""],
        ["evaluate", "r.toml", "--checkpoint", " "],
        ["report", "x", "--out", ""],
        ["prompts", "ocr", "--count", "x"],
        ["prompts", "ocr", "--split", "nope"],
        ["prompts", "nope"],
        ["curate", "x", "--resolution", "0"],
        ["curate", "x", "--validation", "nan"],
        ["curate", "x", "--limit", "-1"],
        ["curate", "x", "--timeout", "inf"],
        ["demo", "--seed", "x"],
        ["train"],
        ["nope"],
        [],
    ],
    ids=" ".join,
)
def test_values_that_no_option_takes(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert ": error: " in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "override",
    ["device=cuda", "model.height=1024", "model.family=flux", "update.learning_rate=1e-4"],
)
def test_doctor_fails_a_line_and_ends(
    override: str, places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", places["RECIPE"], "--set", override]) == 1
    captured = capsys.readouterr()
    assert "FAIL  " in captured.out
    assert captured.err == ""


@pytest.mark.parametrize("damage", ["cut", "nan", "other rank"])
def test_checkpoints_that_cannot_be_evaluated_are_named(
    damage: str,
    places: dict[str, str],
    recipe_data: dict[str, Any],
    brightness: Service,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = {**recipe_data, "epochs": 1, "rewards": {"bright": {"url": brightness.http}}}
    data["model"] = {**data["model"], "tuning": "lora", "lora_rank": 2}
    train(parse_recipe(data), tmp_path / "run")
    recipe = str(write_recipe(tmp_path, data))
    capsys.readouterr()
    folder = tmp_path / "run" / "checkpoints" / "epoch_00001"
    arguments = ["evaluate", recipe, "--split", "train", "--checkpoint", str(folder)]
    file = folder / "ema.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:500])
        expected = f"{folder} is damaged (ema.safetensors has 500 of"
    elif damage == "nan":
        save_file({name: value * float("nan") for name, value in load_file(file).items()}, file)
        (folder / "checksums.json").unlink()
        expected = "not finite"
    else:
        (tmp_path / "run" / "recipe.json").unlink()
        arguments += ["--set", "model.lora_rank=3"]
        expected = "model.lora_rank"
    assert expected in said(arguments, capsys)


def test_a_report_of_a_killed_run_has_its_whole_lines(
    recipe_data: dict[str, Any], brightness: Service, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    data = {**recipe_data, "epochs": 1, "rewards": {"bright": {"url": brightness.http}}}
    train(parse_recipe(data), run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "epo')
    assert main(["report", str(run)]) == 0
    assert "<svg" in (run / "report.html").read_text()


def test_without_the_trainers_packages_their_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
    )
    paths = os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])
    (tmp_path / "recipe.toml").write_text("")
    for arguments in (
        ["report", "x"],
        ["doctor", str(Path(__file__).parents[2] / "trainer/recipes/tiny_sd3_ocr.toml")],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "flow_trainer", *arguments],
            env=environment(PYTHONPATH=paths),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        if "doctor" in arguments:
            assert done.stderr == (
                "flow-grpo: torch is not installed: pip install 'flow-rewards[trainer]'\n"
            )
