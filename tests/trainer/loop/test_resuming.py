"""Going on with a run: damage falls back, changes are refused or said, and one trainer works at a time."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from flow_trainer.errors import ConfigError, StorageError
from flow_trainer.loop.train import train
from flow_trainer.parallel.world import ALONE
from flow_trainer.recipe import parse_recipe
from flow_trainer.recipe.prompts import read_prompts
from flow_trainer.record.lock import sole_trainer
from processes import Service

Train = Callable[..., dict[str, Any]]


@pytest.fixture
def run(recipe_data: dict[str, Any], brightness: Service, tmp_path: Path) -> Train:
    """Trains in tmp_path/NAME with changed sections."""

    def go(name: str = "run", *, resume: bool = False, epochs: int = 2, **sections: Any) -> Any:
        data = {**recipe_data, "epochs": epochs, "rewards": {"bright": {"url": brightness.http}}}
        data["model"] = {**data["model"], "tuning": "lora", "lora_rank": 2, "lora_alpha": 4}
        for section, values in sections.items():
            data[section] = {**data[section], **values} if isinstance(values, dict) else values
        return train(parse_recipe(data), tmp_path / name, resume=resume)

    return go


def weights(folder: Path, epoch: int) -> bytes:
    return (folder / "checkpoints" / f"epoch_{epoch:05d}" / "weights.safetensors").read_bytes()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink], ids=["cut", "one bit", "missing"])
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "checksums.json"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_last_whole_one(
    harm: Callable[[Path], None],
    name: str,
    run: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name == "checksums.json" and harm is not cut:
        pytest.skip("a checkpoint without its checksums is one from before there were any")
    run("whole", epochs=3)
    run("broken", epochs=2)
    harm(tmp_path / "broken" / "checkpoints" / "epoch_00002" / name)
    capsys.readouterr()
    run("broken", epochs=3, resume=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "epoch_00002 is damaged" in said
    assert "resuming after epoch 1" in said
    assert weights(tmp_path / "broken", 3) == weights(tmp_path / "whole", 3)
    logs = [(tmp_path / which / "audit.jsonl").read_text() for which in ("whole", "broken")]
    assert logs[0] == logs[1]


def test_no_whole_checkpoint_is_an_error(run: Train, tmp_path: Path) -> None:
    run(epochs=1)
    for file in tmp_path.glob("run/checkpoints/*/weights.safetensors"):
        cut(file)
    with pytest.raises(ConfigError, match="no checkpoint is whole"):
        run(resume=True)


def test_a_full_disk_leaves_the_checkpoints_before(
    run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("whole")
    real = safetensors.torch.save_file

    def full(tensors: Any, path: Path, *rest: Any) -> None:
        if "epoch_00002" in str(path) and "optimizer" in str(path):
            raise OSError(28, "No space left on device", str(path))
        real(tensors, path, *rest)

    monkeypatch.setattr("flow_trainer.record.tensor_files.save_file", full)
    with pytest.raises(StorageError, match=r"epoch_00002 could not be written.*No space left"):
        run("full")
    assert not list(tmp_path.glob("full/checkpoints/.*"))
    monkeypatch.undo()
    run("full", resume=True)
    assert weights(tmp_path / "full", 2) == weights(tmp_path / "whole", 2)


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"model": {"lora_alpha": 64}}, "model.lora_alpha = 64 was 4"),
        ({"model": {"lora_rank": 8}}, "model.lora_rank = 8 was 2"),
        ({"seed": 9}, "seed = 9 was 3"),
        ({"model": {"width": 16}}, "model.width = 16 was 8"),
        ({"ema": {"enabled": False}}, "ema.enabled = False was True"),
    ],
)
def test_another_run_is_not_resumed(sections: Any, named: str, run: Train, tmp_path: Path) -> None:
    run(epochs=1)
    before = (tmp_path / "run" / "recipe.json").read_text()
    with pytest.raises(ConfigError, match=named):
        run(resume=True, **sections)
    assert (tmp_path / "run" / "recipe.json").read_text() == before


def test_other_prompts_are_refused_wherever_they_lie(run: Train, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red\ngreen\nblue\n")
    run(epochs=1, prompts={"train": str(prompts)})
    moved = prompts.rename(tmp_path / "moved.txt")
    run(epochs=1, prompts={"train": str(moved)}, resume=True)
    moved.write_text("red\nblue\ngreen\n")
    with pytest.raises(ConfigError, match=r"prompts\.train holds other prompts"):
        run(prompts={"train": str(moved)}, resume=True)


def test_other_evaluation_prompts_are_said_and_begin_a_best_of_their_own(
    run: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A best score on the validation prompts before is no measure for those now."""
    prompts = {name: str(tmp_path / f"{name}.txt") for name in ("validation", "heldout")}
    for path in prompts.values():
        Path(path).write_text("red\n")
    evaluation = {"every": 1, "images_per_prompt": 1, "heldout_images_per_prompt": 1}
    run(epochs=1, prompts=prompts, evaluation=evaluation)
    state = tmp_path / "run" / "checkpoints" / "epoch_00001" / "state.json"
    assert json.loads(state.read_text())["best_epoch"] is not None
    capsys.readouterr()
    run(resume=True, epochs=1, prompts=prompts, evaluation=evaluation)
    assert "other prompts" not in capsys.readouterr().err
    Path(prompts["validation"]).write_text("blue\n")
    run(resume=True, epochs=2, prompts=prompts, evaluation=evaluation)
    said = " ".join(capsys.readouterr().err.split())
    assert "from here on prompts.validation holds other prompts" in said
    assert "prompts.heldout" not in said
    state = tmp_path / "run" / "checkpoints" / "epoch_00002" / "state.json"
    assert json.loads(state.read_text())["best_epoch"] == 2


def test_what_may_change_is_said_and_kept(
    run: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(epochs=1)
    capsys.readouterr()
    run(resume=True, update={"learning_rate": 1e-2})
    said = " ".join(capsys.readouterr().err.split())
    assert "from here on epochs = 2 was 1" in said
    assert "update.learning_rate = 0.01 was 0.001" in said
    before = json.loads((tmp_path / "run" / "recipe_until_epoch_00001.json").read_text())
    assert before["update"]["learning_rate"] == 1e-3
    run(resume=True, update={"learning_rate": 1e-2})
    assert "nothing is left to train: epochs = 2" in " ".join(capsys.readouterr().err.split())


def test_resuming_nothing_says_so(run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run("new", epochs=1, resume=True)
    assert "starting from the beginning" in " ".join(capsys.readouterr().err.split())


def test_a_run_killed_after_its_first_checkpoint_logs_every_row_once(
    run: Train, tmp_path: Path, prompts_file: Path
) -> None:
    prompts = {"heldout": str(prompts_file)}
    run("whole", epochs=1, prompts=prompts)
    run("killed", epochs=1, prompts=prompts)
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "epoch_00001")
    run("killed", epochs=1, prompts=prompts, resume=True)
    kinds = [
        [
            json.loads(line)["kind"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "killed")
    ]
    assert kinds[0] == kinds[1]
    assert kinds[0].count("heldout_before") == 1


def _hold(folder: Path, ready: Any, leave: Any) -> None:
    with sole_trainer(folder, ALONE):
        ready.set()
        leave.wait(60)


def test_two_trainers_on_one_folder_are_refused(run: Train, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "run", ready, leave))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(ConfigError, match=rf"in use by another trainer \(process {other.pid}"):
            run(epochs=1)
    finally:
        other.kill()
        other.join()
    run(epochs=1)  # the lock ends with its holder


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Stands for the library, which wants an account; `ids` are those of the runs that were opened."""
    stub = types.ModuleType("wandb")

    class Opened:
        def define_metric(self, name: str, step_metric: str) -> None: ...
        def log(self, values: Any) -> None: ...
        def finish(self) -> None: ...

    def init(**options: Any) -> Opened:
        if "/" in options["project"]:
            raise stub.Error("Invalid project name\nand more")
        stub.ids.append(options["id"])
        return Opened()

    for name, value in {"init": init, "ids": [], "Error": type("Error", (Exception,), {})}.items():
        setattr(stub, name, value)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    return stub


def test_wandb_runs_have_ids_of_their_own(
    run: Train, wandb: types.ModuleType, tmp_path: Path
) -> None:
    logging = {"wandb_project": "x"}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    run("a/ocr", epochs=1, logging=logging)
    run("b/ocr", epochs=1, logging=logging)
    run("a/ocr", epochs=2, logging=logging, resume=True)
    (tmp_path / "a/ocr/wandb_id").write_text("")  # killed while it was written
    run("a/ocr", epochs=3, logging=logging, resume=True)
    first, second, resumed, last = wandb.ids
    assert first == resumed
    assert len({first, second, last, ""}) == 4


def test_what_wandb_refuses_is_one_line(run: Train, wandb: types.ModuleType) -> None:
    """No login, no way to its server, a project's name that it does not take."""
    with pytest.raises(ConfigError, match=r"^logging.wandb_project = a/b: Invalid project name$"):
        run(epochs=1, logging={"wandb_project": "a/b"})


def test_progress_of_older_checkpoints_loads(run: Train, tmp_path: Path) -> None:
    run(epochs=1)
    folder = tmp_path / "run" / "checkpoints" / "epoch_00001"
    state = json.loads((folder / "state.json").read_text())
    del state["prompts"], state["evaluated"]
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "checksums.json").unlink()
    run(resume=True)


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson"])
def test_json_lines_are_known_by_any_case(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"prompt": "a sign", "metadata": {"tag": "x"}}\n')
    (prompt,) = read_prompts(tmp_path / name)
    assert (prompt.text, dict(prompt.metadata)) == ("a sign", {"tag": "x"})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '["a cat"]', "neither"),
        ("a.csv", "prompt\na cat\n", "neither"),
        ("a", "a cat\n", "without a suffix"),
        ("a.txt", '{"prompt": "a cat"}\n', r"a\.txt:1: JSON in a \.txt"),
        ("a.txt", '[\n "a cat"\n]\n', r"a\.txt:1: JSON in a \.txt"),
    ],
)
def test_prompts_in_another_form_are_refused(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_prompts(tmp_path / name)
