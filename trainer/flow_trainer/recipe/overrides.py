"""`--set section.key=value`, and paths that a recipe names relative to itself."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flow_trainer.errors import ConfigError


def apply_override(data: dict[str, Any], override: str) -> None:
    """Sets section.key of `data`; the value is TOML, a bare word a string. Raises ConfigError."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {override}: write --set section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = key.strip().split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
    data[last] = value


def resolve_paths(data: dict[str, Any], folder: Path) -> None:
    """Makes relative paths of prompts and data, and of models and adapters that exist as a folder,
    absolute in `folder`."""
    model, prompts = data.get("model"), data.get("prompts")
    if isinstance(model, dict) and isinstance(model.get("path"), str):
        _resolve(model, ("path", "adapter"), folder, only_folders=True)
    if isinstance(image_text := data.get("data"), dict):
        hub = str(image_text.get("images")).startswith("hf:")
        _resolve(image_text, ("pairs",) if hub else ("images", "pairs"), folder)
    if not isinstance(prompts, dict):
        return
    sources = prompts.get("sources")
    named = sources.values() if isinstance(sources, dict) else ()
    for source in (prompts, *(source for source in named if isinstance(source, dict))):
        _resolve(source, ("train", "validation", "heldout"), folder)
        _resolve(source, ("teacher",), folder, only_folders=True)


def _resolve(
    section: dict[str, Any], keys: Iterable[str], folder: Path, *, only_folders: bool = False
) -> None:
    for key in keys:
        value = section.get(key)
        if isinstance(value, str) and (not only_folders or (folder / value).is_dir()):
            section[key] = str((folder / value).resolve())
