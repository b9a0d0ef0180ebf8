"""Which curves a report has: a panel for every metric that the runs logged, in sections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from flow_trainer.record.quantities import QUANTITIES
from flow_trainer.record.report import charts
from flow_trainer.record.report.groups import Group
from flow_trainer.record.report.runs import Column, Mark, RunRecord
from flow_trainer.record.report.series import Curve, curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 1500
"""Of a panel, all groups together: the file stays small, however long the runs."""
POINTS_EACH = (60, 300)
"""Least and most of a group."""
MOST_BANDS = 8
"""Groups whose bands can still be told apart."""
LABEL = 18
"""Letters of a group's label beside a bar."""

Metric = tuple[str, str]
"""Title and unit."""

UPDATES: dict[str, Metric] = {
    "group_std": ("Spread inside groups", "standard deviation"),
    "zero_std_ratio": ("Groups of equal rewards", "share of groups"),
    "kl": ("KL to the reference", "KL per element"),
    "approx_kl": ("KL to the policy that sampled", "estimate per element"),
    "clip_fraction": ("Clipped ratios", "share of trained steps"),
    "masked_fraction": ("Masked steps", "share of trained steps"),
    "grad_norm": ("Largest gradient before the clip", "norm"),
    "ratio_error": ("Error of the on-policy ratio", "|ratio − 1|"),
    "learning_rate": ("Learning rate", "per update"),
}
SAMPLES: dict[str, Metric] = {
    "brightness": ("Brightness", "0 to 1"),
    "saturation": ("Saturation", "0 to 1"),
    "sharpness": ("Sharpness", "mean step, 0 to 1"),
    "diversity": ("Diversity inside groups", "0 to 1"),
    "embedding_diversity": ("Diversity of embeddings inside groups", "1 − cosine"),
    "latent_norm": ("Norm of the latents", "root mean square"),
}
SAMPLES |= {
    name: (what.title, "")
    for name, what in QUANTITIES.items()
    if name not in {**SAMPLES, **UPDATES}
}
TIMES: dict[str, Metric] = {
    "epoch_s": ("Time of an epoch", "seconds"),
    "reward_wait_s": ("Waiting for rewards", "seconds per epoch"),
    "images_per_second": ("Images", "per second"),
    "mfu": ("Model FLOPs utilisation", "share of the devices' peak"),
    "peak_memory_gb": ("Peak memory", "GB"),
    "reward_bytes": ("Sent to rewards", "MB per epoch"),
}
PARTS = {"sample_s": "sampling", "reward_wait_s": "waiting for rewards", "update_s": "updates"}
"""Of an epoch's time."""
TROUBLE: dict[str, Metric] = {
    "failed": ("Samples without a score", "samples per epoch"),
    "dropped_groups": ("Groups left out", "groups per epoch"),
    "staleness": ("Age of the weights that sampled", "epochs"),
    "skipped_updates": ("Updates skipped for overflow", "per epoch"),
}
SCALES = {"reward_bytes": 1e-6}
"""What a metric is multiplied with to have its unit."""
NOT_SHOWN = {"updates", "window", "images"}


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    svg: str
    wide: bool = False
    has_validation: bool = False
    has_heldout: bool = False


@dataclass(slots=True)
class Section:
    title: str
    panels: list[Panel] = field(default_factory=list)
    folded: bool = False
    """Only its title is seen until somebody opens it."""

    @property
    def has_validation(self) -> bool:
        return any(panel.has_validation for panel in self.panels)

    @property
    def has_heldout(self) -> bool:
        return any(panel.has_heldout for panel in self.panels)


class Panels:
    """Draws the panels of some groups."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups
        least, most = POINTS_EACH
        self.points = min(most, max(least, POINTS // len(groups)))
        self._drawn = 0
        self._keys = list(
            dict.fromkeys(
                key for group in groups for run in group.runs for key in run.keys("train")
            )
        )

    def sections(self) -> list[Section]:
        """Those that have a panel."""
        rewards = list(self._rewards())
        known = {*UPDATES, *SAMPLES, *TIMES, *TROUBLE, *PARTS, *NOT_SHOWN, *self._reward_keys()}
        rest = {key: (key, "") for key in self._keys if key not in known}
        found = [
            Section("Reward", list(self._main())),
            Section("Rewards one by one", rewards),
            Section("Samples", [*self._plain(SAMPLES), *self._validated_diversity()]),
            Section("Updates", list(self._plain({**UPDATES, **TROUBLE}))),
            Section("Time and memory", [*self._time(), *self._plain(TIMES)]),
            Section("Other metrics", list(self._plain(rest)), folded=True),
        ]
        return [section for section in found if section.panels]

    def nothing_of(self) -> list[str]:
        """Titles of metrics that are 0 in every epoch, most of them of what could go wrong."""
        return [
            title.lower()
            for key, (title, _) in {**UPDATES, **TROUBLE}.items()
            if key in self._keys and not self._any(key)
        ]

    def _any(self, key: str) -> bool:
        return any(
            run.column("train", key)[1].any() for group in self._groups for run in group.runs
        )

    def _main(self) -> Iterator[Panel]:
        """The trained reward, where alarms and resumptions are marked too; the validation score."""
        if "reward" not in self._keys:
            return
        yield self._panel(
            "Rollout reward (training prompts, sampled as trained)",
            "mean reward",
            ("train", "reward"),
            wide=True,
            everything=True,
        )
        if self._has("score", "validation", "heldout_before", "heldout_after"):
            yield self._panel(
                "Validation score (ODE, averaged weights) and held-out score",
                "mean score",
                None,
                ("validation", "score"),
                wide=True,
                heldout=True,
            )

    def _has(self, key: str, *kinds: str) -> bool:
        """Whether a run has a line of one of these kinds with this metric."""
        return any(
            len(run.column(kind, key)[0])
            for group in self._groups
            for run in group.runs
            for kind in kinds
        )

    def _validated_diversity(self) -> Iterator[Panel]:
        """With evaluation.diversity."""
        if self._has("image_diversity", "validation"):
            title = "Diversity of a validation prompt's images"
            yield self._panel(title, "0 to 1", None, ("validation", "image_diversity"))

    def _rewards(self) -> Iterator[Panel]:
        """Every reward and sub-score, every source of prompts, every monitor."""
        for name in self._names("trained"):
            main = self._key_of(name)
            if not self._are_equal(main, "reward"):
                yield self._panel(
                    f"Reward {name}", "mean score", ("train", main), ("validation", name)
                )
            for key in self._keys:
                if key.startswith(f"{name}.") and not self._are_equal(key, main):
                    title = f"{name}: {key.removeprefix(f'{name}.')}"
                    yield self._panel(title, "mean", ("train", key), ("validation", key))
        for name in self._sources():
            yield self._panel(
                f"Prompts of {name}",
                "mean reward",
                ("train", f"{name}/reward"),
                ("validation", f"{name}/score"),
            )
        for name in self._names("monitors"):
            key = f"monitor.{name}"
            if key in self._keys:
                yield self._panel(f"Monitor {name} (not trained)", "mean score", ("train", key))

    def _key_of(self, reward: str) -> str:
        """Its own in a row of training, where its name may be that of a quantity that is watched."""
        own = f"rewards.{reward}"
        return own if own in self._keys else reward

    def _names(self, which: str) -> list[str]:
        """Of rewards, over all groups."""
        return list(
            dict.fromkeys(name for group in self._groups for name in getattr(group.recipe, which))
        )

    def _sources(self) -> list[str]:
        return list(
            dict.fromkeys(name for group in self._groups for name in group.recipe.prompts.sources)
        )

    def _reward_keys(self) -> set[str]:
        trained, monitors = self._names("trained"), self._names("monitors")
        return {
            "reward",
            *(f"{name}/reward" for name in self._sources()),
            *(f"monitor.{name}" for name in monitors),
            *(f"rewards.{name}" for name in trained),
            *(key for key in self._keys if key.partition(".")[0] in trained),
        }

    def _are_equal(self, one: str, other: str) -> bool:
        """Their curves would be the same: a reward that is alone and not weighed, the sub-score that a
        reward is."""
        pairs = [
            (run.column("train", one)[1], run.column("train", other)[1])
            for group in self._groups
            for run in group.runs
        ]
        return all(len(a) == len(b) and np.allclose(a, b) for a, b in pairs)

    def _plain(self, metrics: dict[str, Metric]) -> Iterator[Panel]:
        for key, (title, unit) in metrics.items():
            if key in self._keys and (key in TIMES or self._any(key)):
                yield self._panel(title, unit, ("train", key), zero=key in TIMES)

    def _panel(
        self,
        title: str,
        unit: str,
        train: tuple[str, str] | None,
        validation: tuple[str, str] | None = None,
        *,
        wide: bool = False,
        everything: bool = False,
        heldout: bool = False,
        zero: bool = False,
    ) -> Panel:
        """`everything`: marks all alarms and resumptions, not only those of the metric. `zero`: the
        axis begins there."""
        width, height = (4.8, 2.7) if wide else (4.1, 2.3)
        figure, (axes,) = charts.new_axes("epoch", unit, width=width, height=height)
        titles: dict[str, str] = {}
        evaluated = False
        points = 0
        for group in self._groups:
            look = charts.Look(group.style)
            if train and (found := self._curve(group, train)) is not None:
                charts.draw_curve(axes, found, look, band=len(self._groups) <= MOST_BANDS)
            if validation and (found := self._curve(group, validation)) is not None:
                charts.draw_validation(axes, found, look)
                evaluated = True
            if heldout:
                points += _draw_heldout(axes, group, look)
            if train:
                titles |= self._marks(axes, group, look, train, everything, len(titles))
        if zero:
            axes.set_ylim(bottom=0)
        charts.count_in_epochs(axes)
        self._drawn += 1
        svg = charts.as_svg(figure, titles, name=f"panel {self._drawn}")
        return Panel(title, svg, wide, evaluated, points > 0)

    def _curve(self, group: Group, metric: tuple[str, str]) -> Curve | None:
        columns = [run.column(*metric) for run in group.runs]
        scale = SCALES.get(metric[1], 1.0)
        return curve([(epochs, scale * values) for epochs, values in columns], self.points)

    def _marks(
        self,
        axes: Axes,
        group: Group,
        look: charts.Look,
        metric: tuple[str, str],
        everything: bool,
        known: int,
    ) -> dict[str, str]:
        """Draws them; titles by name."""
        titles: dict[str, str] = {}
        for run in group.runs:
            where = f"{group.label}, seed {run.recipe.seed}"
            for epoch, found in _by_epoch(run.alarms, None if everything else metric[1]).items():
                height = _height(run.column(*metric), epoch)
                if height is None and not everything:
                    height = found[0].value
                if height is not None:
                    name = f"alarm-{known + len(titles)}"
                    charts.draw_alarm(axes, epoch, height, name, look)
                    said = "; ".join(alarm.message for alarm in found)
                    titles[name] = f"{where}, epoch {epoch}: {said}"
            for change in run.changes if everything else ():
                name = f"change-{known + len(titles)}"
                charts.draw_change(axes, change.epoch, name, look)
                titles[name] = f"{where}: {change.message}"
        return titles

    def _time(self) -> Iterator[Panel]:
        """Where an epoch's time goes, on average."""
        parts = [[_average(group.runs, key) for group in self._groups] for key in PARTS]
        if any(None in values for values in parts):
            return
        height = 0.8 + 0.3 * len(self._groups)
        figure, (axes,) = charts.new_axes("seconds per epoch (mean)", "", width=4.1, height=height)
        labels = [_short(group.label) for group in self._groups]
        numbers = [[value or 0.0 for value in values] for values in parts]
        charts.draw_bars(axes, labels, numbers, ("part0", "part1", "part2"))
        yield Panel("Where the time goes", charts.as_svg(figure, {}, name="time"))


def _draw_heldout(axes: Axes, group: Group, look: charts.Look) -> int:
    """How many points it has drawn."""
    drawn = 0
    for kind in ("heldout_before", "heldout_after"):
        found = [run.column(kind, "score") for run in group.runs]
        ends = [(int(epochs[-1]), float(values[-1])) for epochs, values in found if len(epochs)]
        if ends:
            charts.draw_point(axes, max(e for e, _ in ends), [value for _, value in ends], look)
            drawn += 1
    return drawn


def _by_epoch(alarms: Sequence[Mark], quantity: str | None) -> dict[int, list[Mark]]:
    """Of one quantity, or all of them."""
    found: dict[int, list[Mark]] = {}
    for alarm in alarms:
        if quantity in (None, alarm.what):
            found.setdefault(alarm.epoch, []).append(alarm)
    return found


def _height(column: Column, epoch: int) -> float | None:
    """The run's own value there."""
    epochs, values = column
    at = np.flatnonzero(epochs == epoch)
    return float(values[at[0]]) if len(at) else None


def _average(runs: Sequence[RunRecord], key: str) -> float | None:
    """Mean over the runs' means."""
    found = [mean for run in runs if (mean := run.mean("train", key)) is not None]
    return sum(found) / len(found) if found else None


def _short(label: str) -> str:
    return label if len(label) <= LABEL else label[: LABEL - 1] + "…"
