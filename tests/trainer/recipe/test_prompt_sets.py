"""Prompt files: the benchmark's byte for byte, a training mixture without it, and texts to render."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flow_trainer.__main__ import main
from flow_trainer.errors import ConfigError
from flow_trainer.recipe.prompt_sets import as_lines, geneval, ocr, write_rows
from flow_trainer.recipe.prompt_sets.geneval import Sample
from flow_trainer.recipe.prompts import read_prompts

Command = Callable[..., str]


@pytest.fixture(scope="module")
def published(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "geneval_prompts.json").read_text())


@pytest.fixture
def prompts(capsys: pytest.CaptureFixture[str]) -> Command:
    """`flow-grpo prompts ...`: what it prints."""

    def run(*arguments: str | Path) -> str:
        assert main(["prompts", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    return run


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_benchmark_is_reproduced_for_every_seed(published: dict[str, Any]) -> None:
    assert len(published["runs"]) == 6
    for run in published["runs"]:
        rows = geneval.benchmark(run["seed"], run["n"])
        assert Counter(row["tag"] for row in rows) == run["by_tag"]
        assert [rows[number] for number, _ in run["some_lines"]] == [
            row for _, row in run["some_lines"]
        ]
        assert sha256(as_lines(rows).encode()) == run["metadata_sha256"]
        prompts = "".join(f"{row['prompt']}\n" for row in rows)
        assert sha256(prompts.encode()) == run["prompts_sha256"]


def test_articles_and_plurals(published: dict[str, Any]) -> None:
    assert [form["class"] for form in published["forms"]] == list(geneval.CLASSES)
    for form in published["forms"]:
        assert geneval.with_article(form["class"]) == form["with_article"]
        assert geneval.plural(form["class"]) == form["plural"]


def test_the_command_writes_the_published_files(
    prompts: Command, published: dict[str, Any], tmp_path: Path
) -> None:
    run = published["runs"][0]
    assert sha256(prompts("geneval").encode()) == run["metadata_sha256"]
    path = tmp_path / "new" / "geneval.jsonl"
    assert prompts("geneval", "--out", path) == f"553 prompts in {path}\n"
    assert sha256(path.read_bytes()) == run["metadata_sha256"]
    assert [file.name for file in path.parent.iterdir()] == ["geneval.jsonl"]
    prompts("geneval", "--out", path.with_suffix(".txt"))
    assert sha256(path.with_suffix(".txt").read_bytes()) == run["prompts_sha256"]


def test_the_trainer_reads_the_metadata(prompts: Command, tmp_path: Path) -> None:
    path = tmp_path / "geneval.jsonl"
    prompts("geneval", "--out", path)
    read = read_prompts(path)
    assert len(read) == 553
    assert read[0].text == "a photo of a bench"
    assert read[0].metadata == {"tag": "single_object", "include": [{"class": "bench", "count": 1}]}
    counting = next(prompt for prompt in read if prompt.metadata["tag"] == "counting")
    (asked,), (excluded,) = counting.metadata["include"], counting.metadata["exclude"]
    assert excluded == {"class": asked["class"], "count": asked["count"] + 1}


def test_a_line_of_each_tag() -> None:
    orange, person = geneval.CLASSES.index("orange"), geneval.CLASSES.index("person")
    assert geneval.line(Sample("position", (orange, person), (2,))) == {
        "tag": "position",
        "include": [
            {"class": "person", "count": 1},
            {"class": "orange", "count": 1, "position": ["above", 0]},
        ],
        "prompt": "a photo of an orange above a person",
    }
    assert geneval.line(Sample("color_attr", (orange, 2), (1, 8))) == {
        "tag": "color_attr",
        "include": [
            {"class": "orange", "count": 1, "color": "orange"},
            {"class": "car", "count": 1, "color": "black"},
        ],
        "prompt": "a photo of an orange orange and a black car",
    }


def test_the_mixture_has_the_published_numbers() -> None:
    assert geneval.shares(50_000) == {
        "position": 20588,
        "counting": 14706,
        "color_attr": 8824,
        "colors": 2941,
        "two_object": 2941,
    }
    for count in range(1, 60):
        assert sum(geneval.shares(count).values()) == count


def scene_of(row: dict[str, Any]) -> Any:
    """What the picture shows, read from the metadata alone."""
    opposite = {"left of": "right of", "above": "below"}
    include = row["include"]
    if row["tag"] == "position":
        reference, moved = include[0]["class"], include[1]["class"]
        relation = include[1]["position"][0]
        if relation in opposite:
            reference, moved, relation = moved, reference, opposite[relation]
        return reference, relation, moved
    return row["tag"], frozenset(json.dumps(clause) for clause in include)


def test_a_training_set_leaves_the_benchmark_out() -> None:
    tested = {scene_of(row) for row in geneval.benchmark()}
    rows = geneval.training(20_000, seed=1)
    assert len(rows) == 20_000
    assert Counter(row["tag"] for row in rows) == geneval.shares(20_000)
    assert not tested & {scene_of(row) for row in rows}
    by_tag = {
        tag: Counter(row["prompt"] for row in rows if row["tag"] == tag) for tag in geneval.MIXTURE
    }
    assert {tag: max(counts.values()) for tag, counts in by_tag.items()} == {
        "position": 1,
        "counting": 37,  # 5882 draws from 160
        "color_attr": 1,
        "colors": 2,  # 1176 draws from 696
        "two_object": 1,
    }
    assert len(by_tag["counting"]) == 160
    assert set(by_tag["counting"].values()) == {36, 37}
    assert [row["tag"] for row in rows[:20]] != sorted(row["tag"] for row in rows[:20])
    pairs = [row for row in rows if row["tag"] == "two_object"]
    orders = [geneval.CLASSES.index(row["include"][0]["class"]) for row in pairs]
    assert 15 < sum(orders) / len(orders) < 64  # first objects come from the whole list


def test_a_training_set_depends_on_its_seed_alone() -> None:
    assert geneval.training(300, seed=1) == geneval.training(300, seed=1)
    assert geneval.training(300, seed=1) != geneval.training(300, seed=2)
    lines = [geneval.line(Sample("two_object", (3, 5))), geneval.line(Sample("two_object", (5, 3)))]
    assert lines[0] != lines[1]
    assert geneval.scene(Sample("two_object", (5, 3))) == Sample("two_object", (3, 5))
    assert geneval.scene(Sample("position", (5, 3), (1,))) == Sample("position", (3, 5), (0,))
    assert geneval.scene(Sample("color_attr", (5, 3), (1, 2))) == Sample(
        "color_attr", (3, 5), (2, 1)
    )


def quoted(row: dict[str, Any]) -> str:
    prompt = row["prompt"]
    assert prompt.count('"') == 2
    assert prompt.isascii()
    return prompt.split('"')[1]


def test_texts_to_render_are_new_and_of_the_right_length() -> None:
    rows = ocr.prompts("train", 3000, seed=5)
    assert all(row.keys() == {"prompt"} for row in rows)
    texts = [quoted(row).replace(" ", "").lower() for row in rows]
    assert len(set(texts)) == 3000
    lengths = sorted(map(len, texts))
    assert lengths[0] >= 3
    assert 12 <= lengths[1500] <= 18
    assert lengths[-1] <= 35
    scenes = {row["prompt"].replace(quoted(row), "") for row in rows}
    assert len(scenes) > 2500
    assert rows == ocr.prompts("train", 3000, seed=5)
    assert rows != ocr.prompts("train", 3000, seed=6)


def test_train_and_test_have_no_noun_in_common() -> None:
    train, test = set(ocr.nouns_of("train")), set(ocr.nouns_of("test"))
    assert not train & test
    assert train | test == set(ocr.NOUNS)
    assert len(ocr.NOUNS) == len(set(ocr.NOUNS))
    assert not set(ocr.NOUNS) & set(ocr.ADJECTIVES)
    absents: dict[ocr.Split, set[str]] = {"train": test, "test": train}
    for split, absent in absents.items():
        words = {
            word.strip("&:.")
            for row in ocr.prompts(split, 1000, seed=3)
            for word in quoted(row).lower().split()
        }
        assert not words & absent


def test_the_default_sizes_can_be_met(prompts: Command) -> None:
    assert len(prompts("ocr").splitlines()) == 20_000
    lines = prompts("ocr", "--split", "test", "--seed", "4").splitlines()
    assert len(lines) == 1000
    assert json.loads(lines[0]).keys() == {"prompt"}


def test_the_trainer_reads_texts_to_render(prompts: Command, tmp_path: Path) -> None:
    path = tmp_path / "ocr.jsonl"
    assert prompts("ocr", "--count", "7", "--out", path) == f"7 prompts in {path}\n"
    assert [dict(prompt.metadata) for prompt in read_prompts(path)] == [{}] * 7


def test_files_are_not_overwritten_unasked(
    prompts: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("mine\n")
    assert main(["prompts", "geneval", "--out", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"flow-grpo: {path} exists: name another file, or overwrite it with --force\n"
    )
    assert path.read_text() == "mine\n"
    prompts("geneval", "--training", "40", "--seed", "9", "--out", path, "--force")
    assert path.read_text() == as_lines(geneval.training(40, seed=9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["geneval", "--training", "0"], "ask for 1 or more"),
        (["geneval", "--training", "5", "--samples", "5"], "--samples belongs to the benchmark"),
        (["geneval", "--samples", "0"], "ask for 1 or more"),
        (["geneval", "--seed", "-1"], "seed"),
        (["ocr", "--count", "0"], "ask for 1 or more"),
        (["ocr", "--split", "test", "--count", "1000000"], "ask for fewer"),
    ],
)
def test_what_cannot_be_made_is_said(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prompts", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("flow-grpo: ")
    assert message in error


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        write_rows([{"prompt": "x"}], tmp_path / "file" / "x.jsonl")


@pytest.mark.parametrize("kind", ["geneval", "ocr"])
def test_help(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["prompts", kind, "--help"])
    assert end.value.code == 0
    assert {"--out", "--seed", "--force"} <= set(capsys.readouterr().out.replace(",", " ").split())
