"""Everything a run writes while it goes: metrics.jsonl and audit.jsonl always, TensorBoard by
default, Weights & Biases when asked for; rich progress on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flow_trainer.errors import ConfigError
from flow_trainer.recipe import Logging, Recipe

LOG_FILES = ("metrics.jsonl", "audit.jsonl")
PROMPTS_KEY = "prompts"
"""Of a picture under RUN/images: a PNG text chunk, a JSON list."""
GRID_GAP = 2
"""White pixels around each image of a grid."""


class RunLog:
    """Opens the log files of a run; `offsets` (from a checkpoint) cut what a killed run wrote after
    its last checkpoint, so that a resumed run logs every epoch once."""

    def __init__(
        self, run: Path, recipe: Recipe, *, offsets: Mapping[str, int] | None = None
    ) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._run = run
        # First: it is the one that may refuse.
        self._wandb = _wandb(run, recipe, resumed=offsets is not None)
        self._files = {}
        for name in LOG_FILES:
            path = run / name
            with path.open("ab") as file:
                file.truncate(min((offsets or {}).get(name, 0), file.tell()))
            self._files[name] = path.open("a", encoding="utf-8")
        self._tensorboard = _tensorboard(run, recipe.logging)
        self.console = Console(stderr=True, highlight=False)
        self._progress = _progress(self.console)
        self._task = self._progress.add_task("train", total=recipe.epochs, note="", phase="")
        self._started = time.perf_counter()

    def offsets(self) -> dict[str, int]:
        """Bytes written so far, all of them durable."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def metrics(self, kind: str, epoch: int, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl; numbers also go to TensorBoard and W&B under `kind/name`."""
        self._write("metrics.jsonl", {"kind": kind, "epoch": epoch, **values})
        scalars = {f"{kind}/{k}": v for k, v in values.items() if isinstance(v, (int, float))}
        if self._tensorboard is not None:
            for name, value in scalars.items():
                self._tensorboard.add_scalar(name, value, epoch)
        if self._wandb is not None:
            self._wandb.log({**scalars, "epoch": epoch})

    def audit(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """One line per sample: prompt, scores, sub-scores, revision, advantage, image hash."""
        for row in rows:
            self._write("audit.jsonl", row)

    def images(
        self, name: str, epoch: int, grid: np.ndarray, prompts: Sequence[str] = ()
    ) -> Path | None:
        """Saves a grid (H, W, 3) uint8 under RUN/images and shows it in TensorBoard and W&B. `prompts`
        of a grid that has one column for each are kept in the file."""
        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        path = self._run / "images" / f"{name}_{epoch:05d}.png"
        path.parent.mkdir(exist_ok=True)
        said = PngInfo()
        said.add_itxt(PROMPTS_KEY, json.dumps(list(prompts)))
        Image.fromarray(grid).save(path, pnginfo=said)
        if self._tensorboard is not None:
            self._tensorboard.add_image(name, grid, epoch, dataformats="HWC")
        if self._wandb is not None:
            self._wandb.log_image(name, grid, epoch)
        return path

    def say(self, message: str) -> None:
        self.console.print(message)

    def start(self, epoch: int) -> None:
        self._started = time.perf_counter()
        self._first = epoch
        if self.console.is_terminal:
            self._progress.update(self._task, completed=epoch)
            self._progress.start()

    def phase(self, text: str, *, long: bool = False) -> None:
        """What is going on within an epoch, on a terminal: epochs of large models take minutes. What
        takes `long` and comes outside an epoch's own time is a line elsewhere too."""
        if self.console.is_terminal:
            self._progress.update(self._task, phase=text)
            self._progress.start()
        elif long:
            self.say(text)

    def advance(self, epoch: int, total: int, note: str) -> None:
        """Epoch `epoch` (1-based) of `total` is done."""
        self._progress.update(self._task, completed=epoch, note=note)
        if not self.console.is_terminal:
            elapsed = time.perf_counter() - self._started
            left = elapsed / max(epoch - self._first, 1) * (total - epoch)
            self.say(f"epoch {epoch}/{total}  {note}  eta {left:.0f}s")

    def close(self) -> None:
        self._progress.stop()
        for file in self._files.values():
            file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        # allow_nan=False: a NaN in the log would be a failure that looks like a number
        self._files[name].write(json.dumps(row, allow_nan=False) + "\n")
        self._files[name].flush()


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[phase]}"),
        console=console,
    )


def _tensorboard(run: Path, config: Logging) -> Any:
    if not config.tensorboard:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run / "tensorboard"))


class _Wandb:
    """Weights & Biases; imported only when the recipe names a project."""

    def __init__(self, run: Path, recipe: Recipe, *, resumed: bool) -> None:
        try:
            import wandb
        except ImportError:
            raise ConfigError(
                "logging.wandb_project is set but wandb is not installed: "
                "pip install 'flow-rewards[wandb]'"
            ) from None
        self._wandb = wandb
        project = recipe.logging.wandb_project
        try:
            self._run = wandb.init(
                project=project,
                name=run.name,
                dir=str(run),
                config=recipe.model_dump(exclude={"rewards"}),
                resume="allow",
                id=_wandb_id(run, resumed),
            )
        except wandb.Error as error:  # no login, no way there, a name that it does not take
            why = str(error).partition("\n")[0]
            raise ConfigError(f"logging.wandb_project = {project}: {why}") from error
        # Epochs that a killed run had logged after its last checkpoint come again, at their old place.
        self._run.define_metric("*", step_metric="epoch")

    def log(self, values: Mapping[str, Any]) -> None:
        self._run.log(dict(values))

    def log_image(self, name: str, grid: np.ndarray, epoch: int) -> None:
        self._run.log({name: self._wandb.Image(grid), "epoch": epoch})

    def finish(self) -> None:
        self._run.finish()


def _wandb(run: Path, recipe: Recipe, *, resumed: bool) -> _Wandb | None:
    return _Wandb(run, recipe, resumed=resumed) if recipe.logging.wandb_project else None


def _wandb_id(run: Path, resumed: bool) -> str:
    """The run's own: folders of one name, here or on another machine, are different runs, and so is
    what starts anew in an old folder."""
    path = run / "wandb_id"
    if resumed and path.exists() and (known := path.read_text().strip()):
        return known
    found = uuid.uuid4().hex
    path.write_text(found + "\n")
    return found


def image_grid(images: np.ndarray, columns: int, scale: int = 1) -> np.ndarray:
    """(N, H, W, 3) uint8 to one picture, row by row, on white; `scale` repeats pixels."""
    n, height, width, _ = images.shape
    gap = GRID_GAP
    rows = -(-n // columns)
    cell_h, cell_w = height * scale + gap, width * scale + gap
    grid = np.full((rows * cell_h + gap, columns * cell_w + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * cell_h, gap + i % columns * cell_w
        big = image.repeat(scale, 0).repeat(scale, 1)
        grid[top : top + height * scale, left : left + width * scale] = big
    return grid
