"""What metadata is accepted, and what is said about the rest."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from reward_api.errors import ItemFailure, Reason
from reward_services.geneval.classes import CLASSES
from reward_services.geneval.prompt_metadata import metadata_schema, parse_metadata

GOLDEN = Path(__file__).parents[2] / "golden"
CUP = {"class": "cup", "count": 1}


def line(*include: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"tag": "any", "include": list(include), **more}


def test_the_classes_are_geneval_s():
    assert (
        list(CLASSES) == json.loads((GOLDEN / "geneval_evaluate.json").read_text())["class_names"]
    )
    digest = hashlib.sha256("".join(f"{name}\n" for name in CLASSES).encode()).hexdigest()
    assert digest.startswith("608f6a0e5c8c")


def test_a_full_line_is_read():
    parsed = parse_metadata(
        line(CUP, {"class": "dog", "count": 2, "color": "red", "position": ["left of", 0]})
        | {"exclude": [{"class": "dog", "count": 3}], "prompt": "not read"}
    )
    assert parsed.include[1].name == "dog"
    assert parsed.include[1].position == ("left of", 0)
    assert parsed.exclude[0].count == 3


@pytest.mark.parametrize(
    ("metadata", "reason", "says"),
    [
        ({}, Reason.MISSING_METADATA, "metadata.tag is missing"),
        ({"include": [CUP]}, Reason.MISSING_METADATA, "metadata.tag is missing"),
        ({"tag": "counting"}, Reason.MISSING_METADATA, "metadata.include is missing"),
        (line(), Reason.MISSING_METADATA, "metadata.include is missing"),
        (line(CUP, exclude=3), Reason.SCHEMA, "metadata.exclude: "),
        ({"tag": 3, "include": [CUP]}, Reason.SCHEMA, "metadata.tag: "),
        ({"tag": "any", "include": "cup"}, Reason.SCHEMA, "metadata.include: "),
        (line({"class": "cup"}), Reason.SCHEMA, "metadata.include[0].count: "),
        (line(CUP | {"count": 0}), Reason.SCHEMA, "greater than or equal to 1"),
        (line(CUP | {"count": 1.5}), Reason.SCHEMA, "metadata.include[0].count: "),
        (line(CUP | {"count": True}), Reason.SCHEMA, "metadata.include[0].count: "),
        (line(CUP | {"count": "1"}), Reason.SCHEMA, "metadata.include[0].count: "),
        (line(CUP | {"colour": "red"}), Reason.SCHEMA, "metadata.include[0].colour: "),
        (line(CUP | {"color": "teal"}), Reason.SCHEMA, "one of red, orange, yellow"),
        (line(CUP | {"class": "mouse"}), Reason.SCHEMA, "did you mean 'computer mouse'?"),
        (line(CUP | {"class": "{x}"}), Reason.SCHEMA, "'{x}' is none of the 80 objects"),
        (line(*[CUP] * 33), Reason.SCHEMA, "metadata.include: List should have at most 32 items"),
        (line(CUP, exclude=[CUP | {"count": 0}]), Reason.SCHEMA, "metadata.exclude[0].count: "),
        (
            line(CUP, CUP | {"position": ["left of", 1]}),
            Reason.SCHEMA,
            "metadata.include[1].position: 1 is not the index of an earlier clause",
        ),
        (
            line(CUP | {"position": ["left of", 0]}),
            Reason.SCHEMA,
            "metadata.include[0].position: 0",
        ),
        (line(CUP, CUP | {"position": ["left of", -1]}), Reason.SCHEMA, "include[1].position[1]: "),
        (
            line(CUP, CUP | {"position": ["left of", "0"]}),
            Reason.SCHEMA,
            "include[1].position[1]: ",
        ),
        (line(CUP, CUP | {"position": ["beside", 0]}), Reason.SCHEMA, "'left of', 'right of'"),
        (line(CUP, CUP | {"position": "left of"}), Reason.SCHEMA, "metadata.include[1].position: "),
    ],
)
def test_what_is_wrong_is_said_where_it_is(metadata, reason, says):
    with pytest.raises(ItemFailure) as caught:
        parse_metadata(metadata)
    assert caught.value.reason == reason
    assert says in caught.value.message


def test_many_mistakes_give_a_short_message():
    with pytest.raises(ItemFailure) as caught:
        parse_metadata(line(*[{"class": "unicorn", "count": 0}] * 30))
    assert len(caught.value.message) < 400


def test_the_schema_names_the_fields():
    schema = json.loads(metadata_schema())
    assert schema["required"] == ["tag", "include"]
    clause = schema["$defs"]["Clause"]["properties"]
    assert list(clause) == ["class", "count", "color", "position"]
    assert clause["class"]["enum"] == list(CLASSES)
    assert clause["count"]["minimum"] == 1
