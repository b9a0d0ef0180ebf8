"""A transformer that is divided over ranks, read so that none of them ever holds the whole.

The model is built without memory, divided, and then given its values: of every tensor in the checkpoint's
safetensors each rank reads the rows that are its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers.models.modeling_utils import no_init_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from flow_trainer.errors import ConfigError
from flow_trainer.parallel.sharding import fill
from flow_trainer.recipe import Model

FOLDER = "transformer"


class Pieces:
    """The transformer of a pipeline as safetensors on disk, a file or several."""

    def __init__(self, files: list[Path], dtype: torch.dtype) -> None:
        """`dtype`: the type in which the weights are loaded, whatever that of the file."""
        self._dtype = dtype
        self._files: dict[str, Path] = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                self._files.update(dict.fromkeys(opened.keys(), file))

    def has(self, name: str) -> bool:
        return name in self._files

    def check(self, transformer: nn.Module) -> None:
        """Raises ValueError when a weight of the empty `transformer` is missing or of another shape."""
        for name, value in transformer.state_dict().items():
            if name not in self._files:
                if value.is_meta:
                    raise ValueError(f"its {FOLDER} has no {name}")
                continue
            with safe_open(self._files[name], framework="pt") as opened:
                shape = opened.get_slice(name).get_shape()
            if tuple(shape) != tuple(value.shape):
                raise ValueError(f"{name} is {shape}, and {list(value.shape)} by its configuration")

    def fill(self, transformer: nn.Module) -> None:
        """Gives a divided transformer its values, adapters apart. Raises ConfigError."""
        names = {_base(name): name for name in transformer.state_dict()}
        try:
            fill(transformer, {names[n]: n for n in self._files if n in names}, self._read)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"the transformer's weights cannot be read: {error}") from error

    def _read(self, name: str, rows: slice | None) -> Tensor:
        with safe_open(self._files[name], framework="pt") as opened:
            if rows is None:
                return opened.get_tensor(name).to(self._dtype)
            found = opened.get_slice(name)
            if rows.start == rows.stop:
                return torch.empty((0, *found.get_shape()[1:]), dtype=self._dtype)
            return found[rows].to(self._dtype)


def empty_transformer(config: Model, index: dict[str, Any], dtype: torch.dtype) -> Any:
    """(transformer without memory, its Pieces) of the pipeline with this model_index.json; None where
    its weights are not safetensors, or not all of one type. Raises what diffusers raises, ValueError when
    the weights do not fit."""
    kind: Any = getattr(diffusers, index[FOLDER][1], None)
    folder = _folder(config)
    files = _files(folder)
    if kind is None or not files or kind._keep_in_fp32_modules:
        return None
    before = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(no_init_weights())
        stack.enter_context(init_empty_weights())
        stack.callback(torch.set_default_dtype, before)
        torch.set_default_dtype(dtype)
        transformer = kind.from_config(kind.load_config(folder))
    pieces = Pieces(files, dtype)
    pieces.check(transformer)
    for name, buffer in transformer.named_buffers():
        if pieces.has(name):
            buffer.data = buffer.data.to(dtype)
    return transformer, pieces


def _folder(config: Model) -> Path:
    if Path(config.path).is_dir():
        return Path(config.path) / FOLDER
    from huggingface_hub import snapshot_download

    wanted = [f"{FOLDER}/*.json", f"{FOLDER}/*.safetensors"]
    return (
        Path(snapshot_download(config.path, revision=config.revision, allow_patterns=wanted))
        / FOLDER
    )


def _files(folder: Path) -> list[Path]:
    """One file, or those that an index names."""
    single = folder / "diffusion_pytorch_model.safetensors"
    index = single.with_name(f"{single.name}.index.json")
    if index.exists():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in dict.fromkeys(names)]
    return [single] if single.exists() else []


@contextmanager
def standing_in(transformer: nn.Module) -> Iterator[None]:
    """Inside, weights without memory are on the CPU, one number expanded to their shape, so that adapters
    come into being beside them there, as beside any others."""
    empty = [
        (module, name, weight)
        for module in transformer.modules()
        for name, weight in module._parameters.items()
        if weight is not None and weight.is_meta
    ]
    for module, name, weight in empty:
        shape = torch.zeros((), dtype=weight.dtype).expand(weight.shape)
        module._parameters[name] = nn.Parameter(shape, requires_grad=False)
    try:
        yield
    finally:
        for module, name, weight in empty:
            module._parameters[name] = weight


def _base(name: str) -> str:
    """The name that a weight has in the checkpoint, without the adapter around its layer."""
    return name.replace(".base_layer.", ".")
