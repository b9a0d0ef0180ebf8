"""The report's pictures: what is shown of which prompt and epoch, and in what size."""

from __future__ import annotations

import base64
import io
import re
from html import unescape
from pathlib import Path

import numpy as np
from PIL import Image

from flow_trainer.record.report.groups import group_runs
from flow_trainer.record.report.pictures import (
    CELLS,
    EPOCHS,
    Block,
    before_and_after,
    through_training,
)
from flow_trainer.record.report.runs import read_run
from run_folders import PROMPTS, draw_fixed, keep_heldout, make_run

GUARD = {"update": {"objective": "guard"}}


def blocks(*folders: Path, notes: list[str] | None = None) -> list[Block]:
    groups = group_runs([read_run(folder) for folder in folders])
    return through_training(groups, [] if notes is None else notes)


def image(url: str) -> Image.Image:
    kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", url).groups()  # pyright: ignore
    found = Image.open(io.BytesIO(base64.b64decode(data)))
    assert found.format == kind.upper()
    return found


def test_a_prompt_through_training(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run-1")
    for epoch in range(0, 21):
        draw_fixed(run, epoch)
    (block,) = blocks(run)
    assert [strip.label for strip in block.strips] == list(PROMPTS)
    epochs = [cell.epoch for cell in block.strips[0].cells]
    assert len(epochs) == EPOCHS
    assert (epochs[0], epochs[-1]) == (0, 20)
    # the pixels are those of that prompt and epoch: 40 shades a prompt, one an epoch
    for number, strip in enumerate(block.strips):
        for cell in strip.cells:
            pixels = np.asarray(image(cell.url))
            assert pixels.shape == (16, 32, 3)
            assert (pixels == 40 * number + cell.epoch).all()


def test_recipes_stand_below_each_other_prompt_by_prompt(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "plain-1"),
        make_run(tmp_path / "plain-2", seed=2),
        make_run(tmp_path / "guarded-1", recipe=GUARD),
    ]
    for run in runs:
        draw_fixed(run, 0)
        draw_fixed(run, 20)
    found = blocks(*runs)
    assert [block.title for block in found] == list(PROMPTS)
    assert [strip.label for strip in found[0].strips] == ["plain", "guarded"]
    # other prompts cannot be compared: each recipe by itself
    for epoch in (0, 20):
        draw_fixed(runs[2], epoch, ("a cat", "a dog"))
    assert [block.title for block in blocks(*runs)] == ["plain", "guarded"]


def test_large_pictures_are_made_small_and_many_runs_have_few(tmp_path: Path) -> None:
    runs = [
        make_run(
            tmp_path / f"v{number}-1", recipe={"update": {"learning_rate": 1e-4 * (number + 1)}}
        )
        for number in range(20)
    ]
    for run in runs:
        draw_fixed(run, 0, size=(512, 256))
    found = blocks(*runs)
    cells = [cell for block in found for strip in block.strips for cell in strip.cells]
    assert 20 <= len(cells) <= CELLS
    shown = image(cells[0].url)
    assert (shown.format, shown.size) == ("JPEG", (256, 128))


def test_a_damaged_picture_is_said_and_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run-1")
    for epoch in (0, 10, 20):
        draw_fixed(run, epoch)
    path = run / "images" / "fixed_00010.png"
    path.write_bytes(path.read_bytes()[:80])
    Image.new("RGB", (20, 20)).save(run / "images" / "fixed_00015.png")  # not one of ours
    notes: list[str] = []
    (block,) = blocks(run, notes=notes)
    assert [cell.epoch for cell in block.strips[0].cells] == [0, 20]
    (note,) = notes
    assert note.startswith("run-1: fixed_00010.png cannot be read and is left out")


def test_held_out_prompts_before_and_after(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run-1")
    keep_heldout(run)
    (found,) = before_and_after(group_runs([read_run(run)]), [])
    assert [pair.prompt for pair in found.pairs] == list(PROMPTS)
    first, *_, last = found.pairs
    assert np.asarray(image(first.before)).min() == 0
    assert np.asarray(image(first.after)).min() == 255
    assert first.before_score == 0.1  # of 0, 0.2, ... 1, two images each
    assert last.after_score == 0.9
    notes: list[str] = []
    (run / "heldout" / "after.npz").write_bytes(b"PK nothing")
    assert before_and_after(group_runs([read_run(run)]), notes) == []
    assert "run-1: held-out pictures cannot be read" in notes[0]


def test_the_page_names_every_picture(tmp_path: Path) -> None:
    from flow_trainer.record.report import write_report

    run = make_run(tmp_path / "run-1", epochs=0, ended=False)
    draw_fixed(run, 0, ('a sign that says "A & B"', "a cat"))
    keep_heldout(run)
    html = write_report(run).read_text(encoding="utf-8")
    names = [unescape(name) for name in re.findall(r'<img[^>]* alt="([^"]*)"', html)]
    assert names[:2] == ['a sign that says "A & B", epoch 0', "a cat, epoch 0"]
    assert f"before: {PROMPTS[0]}" in names
    assert f"after: {PROMPTS[-1]}" in names
