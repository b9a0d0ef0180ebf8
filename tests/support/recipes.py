"""Recipes as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_recipe(folder: Path, data: dict[str, Any]) -> Path:
    """TOML is close enough to JSON for flat sections of plain values."""
    lines, tables = [], []
    for key, value in data.items():
        if not isinstance(value, dict):
            lines.append(f"{key} = {json.dumps(value)}")
        elif all(isinstance(inner, dict) for inner in value.values()):
            tables += [(f"{key}.{name}", inner) for name, inner in value.items()]
        else:
            tables.append((key, value))
    for name, values in tables:
        lines += [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in values.items())]
    path = folder / "recipe.toml"
    path.write_text("\n".join(lines))
    return path
