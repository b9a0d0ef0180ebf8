"""What the image should show: a line of GenEval's metadata, checked."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from reward_api.errors import ItemFailure, Reason
from reward_services.geneval.classes import CLASSES
from reward_services.geneval.colors import COLORS

Relation = Literal["left of", "right of", "above", "below"]

_MAX_CLAUSES = 32  # the benchmark has two
_MAX_PROBLEMS = 3  # in one message


def _known_class(name: str) -> str:
    if name in CLASSES:
        return name
    longer = [known for known in CLASSES if known.endswith(f" {name}")]  # COCO's "mouse"
    similar = longer or difflib.get_close_matches(name, CLASSES, n=1)
    hint = f"; did you mean {similar[0]!r}?" if similar else ""
    raise PydanticCustomError(
        "class",
        "{name} is none of the 80 objects that the detector knows{hint}",
        {"name": repr(name), "hint": hint},
    )


def _known_color(name: str) -> str:
    if name in COLORS:
        return name
    raise PydanticCustomError("color", "must be one of {colors}", {"colors": ", ".join(COLORS)})


ClassName = Annotated[
    str, AfterValidator(_known_class), Field(json_schema_extra={"enum": list(CLASSES)})
]
Color = Annotated[
    str, AfterValidator(_known_color), Field(json_schema_extra={"enum": list(COLORS)})
]
Count = Annotated[int, Field(ge=1)]


class _Line(BaseModel):
    # Strict: JSON has the right types, and "2" or true as a count is a mistake.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )


class Clause(_Line):
    """Objects that must be there."""

    name: ClassName = Field(alias="class")
    """which object"""
    count: Count
    """how many of it"""
    color: Color | None = None
    """the color of all of them"""
    position: Annotated[
        tuple[Relation, Annotated[int, Field(ge=0)]] | None, Field(strict=False)
    ] = None
    """[relation, index of an earlier clause]: where they lie, seen from the objects of that clause"""


class Exclusion(_Line):
    """Objects that must not be there in this number, or more."""

    name: ClassName = Field(alias="class")
    """which object"""
    count: Count
    """how many are too many"""


class PromptMetadata(_Line):
    """A line of GenEval's metadata. Further keys (the prompt itself) are not read."""

    model_config = ConfigDict(extra="ignore")

    tag: Annotated[str, Field(min_length=1)]
    """the task: single_object, two_object, counting, colors, position or color_attr. For "counting"
    the detector must be surer (0.9 instead of 0.3)"""
    include: Annotated[list[Clause], Field(min_length=1, max_length=_MAX_CLAUSES)]
    """what must be there"""
    exclude: Annotated[list[Exclusion], Field(max_length=_MAX_CLAUSES)] = []
    """what must not be there; read by `official` only"""

    @model_validator(mode="after")
    def _positions_look_back(self) -> PromptMetadata:
        for index, clause in enumerate(self.include):
            if clause.position is not None and clause.position[1] >= index:
                raise PydanticCustomError(
                    "group",
                    "include[{index}].position: {group} is not the index of an earlier clause; put "
                    "the object of reference before the one that is placed",
                    {"index": index, "group": clause.position[1]},
                )
        return self


def parse_metadata(metadata: Mapping[str, Any]) -> PromptMetadata:
    """The checked metadata of an item.

    Raises ItemFailure: MISSING_METADATA without `tag` or `include`, SCHEMA for what is wrong in it.
    """
    absent = [key for key in ("tag", "include") if not metadata.get(key)]
    if absent:
        raise ItemFailure(
            Reason.MISSING_METADATA,
            f"metadata.{absent[0]} is missing: send the prompt's line of GenEval's metadata, such as "
            '{"tag": "counting", "include": [{"class": "cat", "count": 2}]}',
        )
    try:
        return PromptMetadata.model_validate(metadata)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        text = "; ".join(map(_problem, problems[:_MAX_PROBLEMS]))
        raise ItemFailure(Reason.SCHEMA, text) from None


def _problem(error: ErrorDetails) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    return f"metadata{path}{'.' if error['type'] == 'group' else ': '}{error['msg']}"


def metadata_schema() -> str:
    """JSON Schema of what `parse_metadata` accepts, but for the rule that positions look back."""
    return json.dumps(PromptMetadata.model_json_schema(by_alias=True))
