"""How curves are drawn here, in reports and in the figures of documents: matplotlib, one look, colours
that follow a page's light or dark scheme."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from flow_trainer.record.report.series import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = (
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff8a3d"),
    ("#009e73", "#2fc79a"),
    ("#b8518f", "#e58fc0"),
    ("#c98500", "#f0b429"),
    ("#7a5fc8", "#a996f0"),
    ("#8a5a3c", "#c89b7b"),
    ("#4f5d6e", "#aab6c4"),
)
"""Of groups, on light and on dark: Okabe and Ito's hues, as dark or light as lines need."""
DASHES: tuple[tuple[float, ...] | None, ...] = (None, (5, 1.6), (1.2, 1.4), (6, 1.4, 1.2, 1.4))
"""Of every eight groups more."""
MOST_CIRCLES = 60
COLORS = {
    "ink": ("#1c2430", "#e6e9ee"),
    "soft": ("#5b6675", "#9aa4b2"),
    "line": ("#dde2e8", "#39414d"),
    "alarm": ("#c1121f", "#ff6b6b"),
    "part0": ("#3b6ea8", "#6fa8dc"),
    "part1": ("#e0b03f", "#e9c46a"),
    "part2": ("#8fa3b8", "#77889b"),
    "kept": ("#2f7fb8", "#5aa9dd"),
    "out": ("#c3ccd6", "#7a8796"),
    "mark": ("#b0382a", "#f08a7b"),
    **{f"s{number}": pair for number, pair in enumerate(SERIES)},
}
"""By the name of their CSS variable: on light and on dark."""

_NAMED = {light: f"var(--{name})" for name, (light, _) in COLORS.items()}
_OURS = re.compile("|".join(_NAMED))
_DECIMALS = re.compile(r"(\d+\.\d)\d\d+")
_GENERIC_ID = re.compile(r' id="[A-Za-z0-9.]+_\d+"')
_FONT = re.compile(r' font-family: [^;"]*;?')


@dataclass(frozen=True, slots=True)
class Look:
    """Of one group's curves."""

    number: int = 0

    @property
    def name(self) -> str:
        """Of the CSS variable."""
        return f"s{self.number % len(SERIES)}"

    @property
    def color(self) -> str:
        return SERIES[self.number % len(SERIES)][0]

    @property
    def dashes(self) -> tuple[float, ...] | None:
        return DASHES[self.number // len(SERIES) % len(DASHES)]


def new_axes(
    x: str, y: str, *, width: float, height: float, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """An empty figure in inches, its axes beside each other, labelled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    found = list(figure.subplots(1, columns, sharey=True, squeeze=False)[0])
    for axes in found:
        axes.set_xlabel(x, color=COLORS["soft"][0], fontsize=8.5)
        axes.grid(color=COLORS["line"][0], linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(COLORS["line"][0])
        axes.tick_params(
            colors=COLORS["line"][0], labelcolor=COLORS["soft"][0], labelsize=8.5, length=2.5
        )
        axes.margins(x=0.02)
    found[0].set_ylabel(y, color=COLORS["soft"][0], fontsize=8.5)
    return figure, found


def count_in_epochs(axes: Axes) -> None:
    """Ticks of the horizontal axis at whole numbers only; those of the other as they are read best."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-3, 5))


def draw_curve(
    axes: Axes, curve: Curve, look: Look, *, band: bool = True, label: str | None = None
) -> None:
    """The mean as a line, dotted where some runs have ended; the band from lowest to highest."""
    if band and curve.has_band:
        axes.fill_between(curve.x, curve.low, curve.high, color=look.color, alpha=0.2, linewidth=0)
    together = curve.x <= curve.common
    later = curve.x >= curve.x[together][-1] if together.any() else ~together
    marker = "." if len(curve.x) == 1 else None
    (line,) = axes.plot(
        curve.x[together],
        curve.mean[together],
        color=look.color,
        linewidth=1.6,
        label=label,
        marker=marker,
    )
    if look.dashes is not None:
        line.set_dashes(look.dashes)
    if later.sum() > 1:
        axes.plot(curve.x[later], curve.mean[later], ":", color=look.color, linewidth=1.6)


def draw_validation(axes: Axes, curve: Curve, look: Look) -> None:
    """Circles on a thin line, as long as they can be told apart."""
    axes.plot(
        curve.x,
        curve.mean,
        "o-" if len(curve.x) <= MOST_CIRCLES else "-",
        color=look.color,
        linewidth=0.9,
        markersize=3.6,
        markerfacecolor="none",
    )
    if curve.has_band:
        axes.vlines(curve.x, curve.low, curve.high, color=look.color, linewidth=0.9, alpha=0.6)


def draw_point(axes: Axes, x: float, values: Sequence[float], look: Look) -> None:
    """A diamond at the mean of the runs' values, with a line from the lowest to the highest."""
    mean = sum(values) / len(values)
    if len(values) > 1:
        axes.vlines([x], min(values), max(values), color=look.color, linewidth=1.2)
    axes.plot([x], [mean], "D", color=look.color, markersize=5, clip_on=False)


def draw_alarm(axes: Axes, x: float, y: float, name: str, look: Look) -> None:
    """A triangle with a rim in the group's colour; `name` is the key of its title for `as_svg`."""
    mark = axes.scatter(
        [x],
        [y],
        s=46,
        marker="^",
        color=COLORS["alarm"][0],
        edgecolors=look.color,
        linewidths=1.2,
        zorder=5,
    )
    mark.set_gid(name)


def draw_change(axes: Axes, x: float, name: str, look: Look) -> None:
    """A vertical line where a run went on with another recipe; `name` as for `draw_alarm`."""
    axes.axvline(x, color=look.color, linestyle=(0, (1, 2)), linewidth=1.2).set_gid(name)


def draw_bars(
    axes: Axes, labels: Sequence[str], parts: Sequence[Sequence[float]], colors: Sequence[str]
) -> None:
    """Horizontal bars, the first on top; each is its parts in a row. `parts` (P, N), `colors` (P,)
    names in COLORS."""
    places = list(range(len(labels)))
    start = [0.0] * len(labels)
    for values, color in zip(parts, colors, strict=True):
        axes.barh(places, values, left=start, height=0.62, color=COLORS[color][0])
        start = [a + b for a, b in zip(start, values, strict=True)]
    axes.set_yticks(places, labels, color=COLORS["ink"][0])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def as_svg(figure: Figure, titles: Mapping[str, str], *, name: str) -> str:
    """An <svg> element to stand in a page that has COLORS as CSS variables. `titles`: what is said of
    the marks with these names; the name up to its dash is their class. `name` tells the element's
    definitions from those of others in the page."""
    import matplotlib

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt" ', "", svg, count=1)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", _tidy, svg)
    svg = re.sub(r"\n\s*", " ", svg)
    for key, title in titles.items():
        kind = key.partition("-")[0]
        marked = f'<g class="mark {kind}"><title>{escape(title)}</title>'
        svg = svg.replace(f'<g id="{key}">', marked, 1)
    return svg


def _tidy(tag: re.Match[str]) -> str:
    """Of one tag: colours by name, lengths to a tenth of a point, no font and id of matplotlib's own."""
    text = _GENERIC_ID.sub("", _FONT.sub("", tag[0]))
    return _OURS.sub(lambda color: _NAMED[color[0]], _DECIMALS.sub(r"\1", text))


def css_variables() -> dict[str, str]:
    """Declarations of COLORS for `light` and for `dark`."""
    return {
        scheme: " ".join(f"--{name}: {pair[number]};" for name, pair in COLORS.items())
        for number, scheme in enumerate(("light", "dark"))
    }
