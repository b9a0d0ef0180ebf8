"""What every section of a recipe is: typed, complete, and closed to unknown keys."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic reads true as 1."""
        field = cls.model_fields[str(info.field_name)]
        if isinstance(value, bool) and not _takes_bool(field.annotation):
            raise ValueError(f"{str(value).lower()} is no value of this setting")
        return value


def _takes_bool(annotation: Any) -> bool:
    return annotation in (bool, Any) or any(map(_takes_bool, get_args(annotation)))
