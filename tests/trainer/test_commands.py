"""The commands as a user types them: what they print, and their exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flow_trainer.__main__ import main
from flow_trainer.recipe import load_recipe
from flow_trainer.record.report.runs import read_metrics
from processes import Service
from run_folders import make_run

TOML = """
name = "tiny"
epochs = 1
device = "cpu"
[model]
path = "{model}"
height = 8
width = 8
guidance = 1.0
max_sequence_length = 0
tuning = "lora"
lora_rank = 2
[prompts]
train = "{prompts}"
heldout = "{prompts}"
[sampling]
num_steps = 4
prompts_per_epoch = 2
group_size = 4
micro_batch = 4
[rewards.brightness]
url = "{url}"
[scoring]
timeout_s = 5
[evaluation]
every = 0
num_steps = 4
[logging]
tensorboard = false
"""


@pytest.fixture
def write_recipe(tmp_path: Path, pipeline_folder: Path, prompts_file: Path) -> Callable[[str], str]:
    def write(url: str) -> str:
        path = tmp_path / "recipe.toml"
        path.write_text(TOML.format(model=pipeline_folder, prompts=prompts_file, url=url))
        load_recipe(path)
        return str(path)

    return write


def last_json(text: str) -> dict[str, Any]:
    return json.loads(text[text.index("{") :])


def test_doctor_says_what_is_well(
    brightness: Service, write_recipe: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", write_recipe(brightness.http)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"ok    {name}"
        for name in (
            "prompts",
            "sizes",
            "reward brightness",
            "weights",
            "device",
            "disk",
            "cores",
            "free disk",
            "memory",
            "arithmetic",
            "model",
            "prompt cache",
            "ratio",
            "precision",
        )
    ]
    assert "score brightness in [0.0, 1.0], revision 1" in lines[2]
    assert "3 golden steps on cpu" in lines[9]


def test_doctor_names_what_is_not_and_goes_on(
    write_recipe: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe("http://127.0.0.1:9")
    assert main(["doctor", recipe, "--set", "sampling.prompts_per_epoch=50"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  prompts: 5 training prompts are fewer than sampling.prompts_per_epoch = 50" in out
    assert "FAIL  reward brightness: http://127.0.0.1:9" in out
    assert "ok    ratio" in out


def test_train_evaluate_report(
    brightness: Service,
    write_recipe: Callable[[str], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe, run = write_recipe(brightness.grpc), tmp_path / "run"
    assert main(["train", recipe, "--out", str(run)]) == 0
    assert last_json(capsys.readouterr().out)["epochs"] == 1
    checkpoint = run / "checkpoints" / "epoch_00001"
    assert (checkpoint / "adapter" / "pytorch_lora_weights.safetensors").exists()
    out = tmp_path / "evaluation"
    flags = ["--checkpoint", str(checkpoint), "--steps", "3", "--images", "2", "--out", str(out)]
    assert main(["evaluate", recipe, *flags]) == 0
    summary = last_json(capsys.readouterr().out)
    assert summary["images"] == 10
    assert summary["failed"] == 0
    assert 0 < summary["score"] < 1
    assert (out / "images.png").exists()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    html = (run / "report.html").read_text()
    assert "Rollout reward" in html
    assert "red, epoch 1" in html
    page = tmp_path / "pages" / "two.html"
    other = make_run(tmp_path / "other-7", seed=7)
    assert main(["report", str(run), str(other), "--out", str(page)]) == 0
    assert "2 recipes compared" in page.read_text()
    assert main(["report", str(run), str(out)]) == 2
    assert f"{out} holds no recipe.json: is it a run folder?" in capsys.readouterr().err
    # A reward with the name of a quantity that is watched keeps a figure of its own.
    (row,) = [r for r in read_metrics(run) if r["kind"] == "train"]
    assert row["rewards.brightness"] == row["reward"] != row["brightness"]


def test_mistakes_are_one_line_and_status_2(
    write_recipe: Callable[[str], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe("http://127.0.0.1:9")
    for arguments, message in (
        (["train", recipe, "--set", "update.betaa=1"], "did you mean beta"),
        (["train", str(tmp_path / "no.toml")], "no recipe"),
        (["report", str(tmp_path)], "is it a run folder"),
        (["evaluate", recipe, "--split", "validation"], "no prompts.validation"),
        (
            ["train", recipe, "--set", "scoring.timeout_s=1", "--out", str(tmp_path / "r")],
            "not ready",
        ),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


@pytest.mark.parametrize("command", ["train", "evaluate", "doctor", "report", "demo"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert "usage: flow-grpo" in capsys.readouterr().out
