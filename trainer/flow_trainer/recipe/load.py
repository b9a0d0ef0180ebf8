"""From a file to a checked recipe, and back."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from flow_trainer.errors import ConfigError
from flow_trainer.recipe.checks import check_recipe
from flow_trainer.recipe.overrides import apply_override, resolve_paths
from flow_trainer.recipe.recipe import Recipe


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies `--set a.b=c` overrides (values in TOML; bare words are strings).

    TOML, whose relative paths of prompts, and of models that exist as a folder, are taken from the
    recipe's folder; or the resolved recipe.json of a run. Raises ConfigError.
    """
    path = Path(path)
    resolved = path.suffix == ".json"
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = json.loads(text) if resolved else tomllib.loads(text)
    except FileNotFoundError:
        files = (p.name for p in path.parent.glob("*.toml") if p.name != "pyproject.toml")
        known = ", ".join(sorted(files)) or "none"
        raise ConfigError(f"no recipe {path} (recipes there: {known})") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} is no recipe: it holds a {type(data).__name__}, not sections")
    for override in overrides:
        apply_override(data, override)
    if not resolved:
        resolve_paths(data, path.parent)
    return parse_recipe(data, source=str(path))


def parse_recipe(data: dict[str, Any], source: str = "recipe") -> Recipe:
    """Raises ConfigError with a line for everything that is wrong."""
    try:
        recipe = Recipe.model_validate(data)
        check_recipe(recipe)
    except ValidationError as error:
        lines = [_explain(data, detail) for detail in error.errors()]
        raise ConfigError(f"{source}:\n  " + "\n  ".join(lines)) from None
    except ValueError as error:
        raise ConfigError(f"{source}:\n  recipe: {error}") from None
    return recipe


def save_resolved(recipe: Recipe, path: Path) -> None:
    """The complete recipe as JSON, for `load_recipe`; whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(recipe.model_dump(), indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _explain(data: dict[str, Any], detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"]) or "recipe"
    if detail["type"] != "extra_forbidden":
        given = detail.get("input")
        shown = f" (is {given!r})" if isinstance(given, (str, int, float)) else ""
        return f"{where}: {detail['msg'].removeprefix('Value error, ')}{shown}"
    known = _fields_at(detail["loc"][:-1])
    nearest = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.5)
    elsewhere = _sections_with(str(detail["loc"][-1]))
    if elsewhere:
        nearest = [" or ".join(elsewhere)]
    hint = f"did you mean {nearest[0]}?" if nearest else f"known keys: {', '.join(known)}"
    return f"{where}: unknown key; {hint}"


def _sections_with(name: str) -> list[str]:
    """The keys that are called `name` in another section."""
    found = [name] if name in Recipe.model_fields else []
    for section, field in Recipe.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and name in kind.model_fields:
            found.append(f"{section}.{name}")
    return found


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    section: Any = Recipe
    for part in location:
        if get_origin(section) is dict:
            section = get_args(section)[1]
        elif isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[str(part)].annotation
    known = isinstance(section, type) and issubclass(section, BaseModel)
    return list(section.model_fields) if known else []
