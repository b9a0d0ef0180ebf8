"""A watch on a run: statistics of its samples, the band of their first epochs, and alarms.

Reward hacking shows in the samples before anybody looks at them: they grow darker or brighter, lose or
gain saturation, blur, or become alike. Each quantity has a band from the first epochs; an alarm rings
when the mean of the last few leaves it. Nothing here knows of models, services or files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flow_trainer.record.quantities import QUANTITIES, Quantity

THUMBNAIL = 16
"""Pixels of a side; a group's diversity is measured on thumbnails."""
_SMOOTHED = 3
"""Epochs whose mean is compared with the band."""
_DEVIATIONS = 4.0
"""Half the band's width, in standard deviations of the first epochs."""
_BACK = 0.5
"""How far from the band's middle, in half widths, what left it is back. At the edge itself a quantity that
hovers there would ring again and again: the mean of three epochs varies by a seventh of half the width."""
_MONITOR = Quantity("", "below", relative=0.02)


@dataclass(frozen=True, slots=True)
class Alarm:
    epoch: int
    quantity: str
    value: float
    low: float | None
    high: float | None
    """The band; None where it has no end on that side."""
    message: str

    def as_row(self) -> dict[str, Any]:
        return {
            "quantity": self.quantity,
            "value": self.value,
            "band_low": self.low,
            "band_high": self.high,
            "message": self.message,
        }


def image_statistics(images: Tensor) -> Tensor:
    """(B, 3): brightness, saturation and sharpness, each in 0 to 1, of images (B, H, W, 3) uint8.

    Brightness is the mean luma (Rec. 601), saturation the mean of (max - min) / max over the channels
    as in HSV, sharpness the mean absolute difference of neighbouring lumas.
    """
    pixels = images.float() / 255
    luma = pixels @ pixels.new_tensor([0.299, 0.587, 0.114])
    largest, smallest = pixels.amax(-1), pixels.amin(-1)
    saturation = (largest - smallest) / largest.clamp_min(1e-6)
    steps = [
        luma.diff(dim=dim).abs().flatten(1).mean(1) for dim in (1, 2) if luma.shape[dim] > 1
    ] or [luma.new_zeros(len(luma))]
    sharpness = torch.stack(steps).mean(0)
    return torch.stack([luma.mean((1, 2)), saturation.mean((1, 2)), sharpness], 1)


def thumbnails(images: Tensor) -> Tensor:
    """(B, 16, 16, 3) uint8 of images (B, H, W, 3) uint8: the means of their parts."""
    small = F.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float(), THUMBNAIL)
    return small.permute(0, 2, 3, 1).round().to(torch.uint8)


def latent_norms(x_0: Tensor) -> Tensor:
    """(B,) root mean square of each sample's latent x_0 (B, ...)."""
    return x_0.flatten(1).float().square().mean(1).sqrt()


def group_diversity(small: Tensor, group_size: int) -> float:
    """How far members of a group are from each other: the standard deviation of a pixel over the
    members, root mean square over pixels, mean over groups; 0 for equal images, at most 0.5 or so.
    `small`: thumbnails (P * G, h, w, 3) uint8, prompt-major."""
    pixels = small.float().reshape(-1, group_size, small[0].numel()) / 255
    return float(pixels.var(1, correction=0).mean(1).sqrt().mean())


def embedding_diversity(vectors: Tensor, groups: Tensor) -> float | None:
    """1 - cosine of two members of a group, mean over its pairs, then over groups: 0 for images that the
    model takes for one, at most 2. `vectors`: (N, D) of unit length; `groups`: (N,) whose they are. None
    where no group has two."""
    found = []
    for group in groups.unique():
        own = vectors[groups == group].double()
        count = len(own)
        if count > 1:
            # the cosines of all pairs, both ways round, are what the squared sum has beside count ones
            cosine = (own.sum(0).square().sum() - count) / (count * (count - 1))
            found.append(float(1 - cosine))
    return sum(found) / len(found) if found else None


@dataclass(slots=True)
class Watch:
    """Bands of the first `band_epochs` epochs, and what has left them.

    `see` takes an epoch's metrics; one that is resumed is shown the earlier epochs again. A quantity
    rings once for each time that it goes out: then it is quiet until it is half-way back to the middle of
    its band, or leaves it on the other side.
    """

    band_epochs: int
    monitors: tuple[str, ...] = ()
    """Metrics that must not fall while `reward` rises."""
    history: dict[str, list[float]] = field(default_factory=dict)
    ringing: dict[str, int] = field(default_factory=dict)
    """On which side each is out: 1 above, -1 below."""

    def see(self, epoch: int, metrics: Mapping[str, Any]) -> list[Alarm]:
        """`epoch` counts from 1. The alarms that begin with it."""
        for name in (*QUANTITIES, *self.monitors, "reward"):
            value = metrics.get(name)
            if isinstance(value, (int, float)):
                self.history.setdefault(name, []).append(float(value))
        found = [self._out_of_band(epoch, name, what) for name, what in QUANTITIES.items()]
        found += [self._fallen(epoch, name) for name in self.monitors]
        return [alarm for alarm in found if alarm is not None]

    def band(self, name: str) -> tuple[float, float] | None:
        """The bounds of a quantity; None before its first epochs are over."""
        middle = self._middle(name, QUANTITIES[name])
        if middle is None:
            return None
        mean, reach = middle
        side = QUANTITIES[name].side
        low = float("-inf") if side == "above" else mean - reach
        high = float("inf") if side == "below" else mean + reach
        return low, high

    def _middle(self, name: str, what: Quantity) -> tuple[float, float] | None:
        """A band's middle and half its width."""
        moments = self._moments(name)
        if moments is None:
            return None
        mean, deviation = moments
        return mean, max(_DEVIATIONS * deviation, what.absolute, what.relative * abs(mean))

    def _out_of_band(self, epoch: int, name: str, what: Quantity) -> Alarm | None:
        band, middle, value = self.band(name), self._middle(name, what), self._recent(name)
        if band is None or middle is None or value is None:
            return None
        low, high = band
        if not self._begins(name, value - middle[0], middle[1], out=not low <= value <= high):
            return None
        bound, word = (low, "below") if value < low else (high, "above")
        message = (
            f"{what.title} is {value:.4g}, {word} the {bound:.4g} that its first "
            f"{self.band_epochs} epochs allow"
        )
        return Alarm(epoch, name, value, _finite(low), _finite(high), message)

    def _fallen(self, epoch: int, name: str) -> Alarm | None:
        """A monitor that fell by more than its epochs vary while the trained reward rose likewise."""
        then, now = self._middle(name, _MONITOR), self._recent(name)
        reward_then, reward_now = self._moments("reward"), self._recent("reward")
        if then is None or now is None or reward_then is None or reward_now is None:
            return None
        low = then[0] - then[1]
        rose = reward_now - reward_then[0] > reward_then[1]
        if not self._begins(name, now - then[0], then[1], out=now < low and rose):
            return None
        message = (
            f"{name.removeprefix('monitor.')} fell from {then[0]:.4g} to {now:.4g} while the trained "
            f"reward rose from {reward_then[0]:.4g} to {reward_now:.4g}"
        )
        return Alarm(epoch, name, now, low, None, message)

    def _begins(self, name: str, departure: float, reach: float, *, out: bool) -> bool:
        """Whether what is `departure` from the middle of a band of half width `reach` begins to ring."""
        if self.ringing.get(name, 0) * departure <= _BACK * reach:
            self.ringing.pop(name, None)
        if not out or name in self.ringing:
            return False
        self.ringing[name] = 1 if departure > 0 else -1
        return True

    def _moments(self, name: str) -> tuple[float, float] | None:
        """Mean and standard deviation of the first epochs."""
        first = self.history.get(name, [])[: self.band_epochs]
        if len(first) < self.band_epochs:
            return None
        values = torch.tensor(first, dtype=torch.float64)
        return float(values.mean()), float(values.std())

    def _recent(self, name: str) -> float | None:
        """The mean of the last epochs, none of which made the band."""
        later = self.history.get(name, [])[self.band_epochs :]
        recent = later[-_SMOOTHED:]
        return sum(recent) / _SMOOTHED if len(recent) == _SMOOTHED else None


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def watch_from(rows: Iterable[Mapping[str, Any]], watch: Watch) -> Watch:
    """Shows `watch` the epochs that are in the log already."""
    for row in rows:
        if row.get("kind") == "train":
            watch.see(int(row["epoch"]), row)
    return watch
