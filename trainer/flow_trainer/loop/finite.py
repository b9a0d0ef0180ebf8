"""NaN and Inf stop a run with tensor, step and sample named, before they reach a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from flow_trainer.errors import NonFiniteError

ADVICE = "lower update.learning_rate, or use model.dtype = float32; the last checkpoint is intact"


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


class StepWatch:
    """The same for an update: it looks at every replay's tensors and judges once, at the end."""

    def __init__(self) -> None:
        self._seen: list[tuple[Sequence[int], Tensor, list[str], Tensor]] = []

    def see(self, tensors: Mapping[str, Tensor], rows: Sequence[int], steps: Tensor) -> None:
        """`tensors` have sample-major rows, len(steps) / len(rows) steps of each sample of `rows`."""
        flags = [torch.isfinite(t.detach()).reshape(len(t), -1).all(1) for t in tensors.values()]
        self._seen.append((rows, steps, list(tensors), torch.stack(flags)))

    def check(self) -> None:
        """Raises NonFiniteError for the first tensor with a row that is not finite, in the order in
        which they were seen; forgets them otherwise."""
        seen, self._seen = self._seen, []
        if not seen or torch.stack([flags.all() for *_, flags in seen]).all():
            return
        rows, steps, names, flags = next(entry for entry in seen if not entry[-1].all())
        number, index = (~flags).nonzero()[0].tolist()
        repeats = len(steps) // len(rows)
        raise NonFiniteError(
            f"the {names[number]} of sample {rows[index // repeats]} at step {int(steps[index])} is "
            f"not finite in the update; {ADVICE}"
        )


def gradient_error(parameters: Mapping[str, nn.Parameter], update: int) -> NonFiniteError:
    """Names the first parameter whose gradient is not finite."""
    bad = [n for n, p in parameters.items() if p.grad is not None and not p.grad.isfinite().all()]
    where = f"the gradient of {bad[0]} ({len(bad)} in all)" if bad else "the gradients' norm"
    return NonFiniteError(f"{where} is not finite in update {update}; {ADVICE}")


def vanished_error(update: int, dtype: torch.dtype, scale: float) -> NonFiniteError:
    """For a loss whose gradient is lost on its way through the network."""
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float16:
        fix = f" below the smallest number of float16 at loss scale {scale:g}; use model.dtype = float32"
    else:
        fix = "; look for a detached or frozen part of the model"
    return NonFiniteError(
        f"the gradient norm is 0 in update {update} although advantages are not: the gradient is lost "
        f"in the network, which computes in {name}{fix}"
    )
