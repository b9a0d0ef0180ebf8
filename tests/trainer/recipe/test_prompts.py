"""Prompt files, and which prompts an epoch trains on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flow_trainer.algorithm.window import window
from flow_trainer.errors import ConfigError
from flow_trainer.recipe.prompts import epoch_prompts, read_prompts

SHAPE = (2, 4, 4)


def draw(kind: str, epoch: int = 0, seed: int = 0, **changes: int | None) -> range:
    arguments = {"num_steps": 10, "size": 3, "lo": 1, "hi": 8, "every": 2, "stride": 1, **changes}
    return window(kind, epoch=epoch, seed=seed, **arguments)  # type: ignore[arg-type]


def test_epoch_prompts_are_distinct_fair_and_repeatable() -> None:
    epochs = [epoch_prompts(10, 4, epoch, 0) for epoch in range(20)]
    assert all(len(set(indices)) == 4 for indices in epochs)
    assert epochs == [epoch_prompts(10, 4, epoch, 0) for epoch in range(20)]
    counts = np.bincount([index for indices in epochs for index in indices], minlength=10)
    assert counts.min() >= 6
    assert epochs != [epoch_prompts(10, 4, epoch, 1) for epoch in range(20)]
    with pytest.raises(ConfigError, match="only 3"):
        epoch_prompts(3, 4, 0, 0)


def test_prompt_files(tmp_path: Path) -> None:
    text = tmp_path / "p.txt"
    text.write_bytes('\ufeffa sign that says "ONE"\n\n  two \n'.encode())
    assert [p.text for p in read_prompts(text)] == ['a sign that says "ONE"', "two"]
    lines = tmp_path / "p.jsonl"
    lines.write_text('{"prompt": "a", "tag": "x"}\n{"prompt": "b", "metadata": {"k": 1}}\n')
    assert [dict(p.metadata) for p in read_prompts(lines)] == [{"tag": "x"}, {"k": 1}]


def test_prompts_break_at_line_feeds_alone(tmp_path: Path) -> None:
    for name, line in (("p.txt", "{}"), ("p.jsonl", '{{"prompt": "{}"}}')):
        path = tmp_path / name
        text = "\r\n".join(map(line.format, ("one\u2028more", "two\x85more")))
        path.write_bytes(text.encode())
        assert [p.text for p in read_prompts(path)] == ["one\u2028more", "two\x85more"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n \n", "no prompts"),
        ("b.jsonl", '{"prompt": "a"}\n{bad', r"b\.jsonl:2"),
        ("c.jsonl", '["a"]', r'c\.jsonl:1: expected an object with a "prompt"'),
        ("d.jsonl", '{"prompt": "a", "metadata": 3}', "must be an object"),
        ("e.txt", None, "cannot read"),
        ("f.txt", "prompt,tag\na cat,x\n", "header of a table"),
        ("g.txt", "Prompt\na cat\n", "header of a table"),
        ("h.jsonl", '{"prompt": "a", "metadata": {"x": NaN}}', "NaN is no JSON value"),
        ("i.jsonl", '{"prompt": "\\ud800"}', "no Unicode"),
        ("j.jsonl", "[" * 100_000, r"j\.jsonl:1: nested too deeply"),
        ("k.txt", "röt\n".encode("latin-1"), "can't decode byte 0xf6"),
        ("l.txt", "red\n".encode("utf-16"), "can't decode byte 0xff"),
    ],
)
def test_bad_prompt_files_name_the_line(
    tmp_path: Path, name: str, content: str | bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        read_prompts(tmp_path / name)
