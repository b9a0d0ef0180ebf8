"""NaN and Inf stop a run with tensor, step and sample named, before they reach a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flow_trainer.errors import NonFiniteError

ADVICE = "lower update.learning_rate, or use model.dtype = bfloat16; the last checkpoint is intact"


class FiniteWatch:
    """Looks at a micro-batch's tensors as they come, and judges at the end: a look leaves a flag per
    row on the device, so that sampling never waits for it."""

    def __init__(self, rows: range, epoch: int) -> None:
        self._rows = rows
        self._epoch = epoch
        self._flags: dict[str, Tensor] = {}

    def see(self, name: str, tensor: Tensor) -> None:
        """`tensor` (B, ...) has the micro-batch's rows."""
        self._flags[name] = torch.isfinite(tensor).reshape(len(tensor), -1).all(1)

    def check(self) -> None:
        """Raises NonFiniteError for the first tensor that is not finite."""
        if torch.stack(list(self._flags.values())).all():
            return
        name, flags = next((n, f) for n, f in self._flags.items() if not f.all())
        row = self._rows[int((~flags).nonzero()[0])]
        raise NonFiniteError(
            f"the {name} of sample {row} is not finite in the sampling of epoch {self._epoch + 1}: "
            f"the model diverged or overflows; {ADVICE}"
        )


def check_step(tensors: Mapping[str, Tensor], rows: range, steps: Tensor) -> None:
    """Raises NonFiniteError for the first of `tensors`, in their order, with a row that is not finite.
    Their rows are sample-major, len(steps) / len(rows) steps of each sample of `rows`; the last tensor
    depends on all others and is looked at first, so that the good case costs one look."""
    if torch.isfinite(list(tensors.values())[-1]).all():
        return
    repeats = len(steps) // len(rows)
    for name, tensor in tensors.items():
        bad = ~torch.isfinite(tensor.detach()).reshape(len(tensor), -1).all(1)
        if bad.any():
            index = int(bad.nonzero()[0])
            raise NonFiniteError(
                f"the {name} of sample {rows[index // repeats]} at step {int(steps[index])} is not "
                f"finite in the update; {ADVICE}"
            )


def check_gradients(norm: Tensor, parameters: Mapping[str, nn.Parameter], update: int) -> None:
    """Raises NonFiniteError, with the first parameter concerned, unless the gradients' `norm` is
    finite."""
    if torch.isfinite(norm):
        return
    bad = [n for n, p in parameters.items() if p.grad is not None and not p.grad.isfinite().all()]
    where = f"the gradient of {bad[0]} ({len(bad)} in all)" if bad else "the gradients' norm"
    raise NonFiniteError(f"{where} is not finite in update {update}; {ADVICE}")
