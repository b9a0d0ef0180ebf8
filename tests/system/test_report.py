"""The report in a real browser: wide and narrow, light and dark."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from browser import Browser
from flow_trainer.record.report import write_report
from run_folders import draw_fixed, keep_heldout, make_run

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        make_run(folder / "plain-1", alarms={12: "diversity"}),
        make_run(folder / "plain-2", seed=2),
        make_run(folder / "guarded-1", recipe={"update": {"objective": "guard"}}),
    ]
    for run in runs:
        for epoch in range(0, 21, 2):
            draw_fixed(run, epoch)
        keep_heldout(run)
    return write_report(*runs)


@pytest.mark.parametrize(("width", "dark"), list(product((1200, 390), (False, True))))
def test_it_fits_is_readable_and_asks_for_nothing(
    browser: Browser, report: Path, width: int, dark: bool
) -> None:
    page = browser.open(report.as_uri(), width=width, height=900, dark=dark)
    outside = [url for url in page.requests if not url.startswith("data:")]
    assert outside == [report.as_uri()]
    assert page.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    broken = "[...document.images].filter((i) => !i.naturalWidth).length"
    assert page.evaluate(broken) == 0
    assert page.text("h1") == "2 recipes compared"
    # letters of the curves: large enough, and far from what is behind them
    letters = "[...document.querySelectorAll('.chart text')].filter((e) => e.checkVisibility())"
    height = page.evaluate(f"Math.min(...{letters}.map((e) => e.getBoundingClientRect().height))")
    assert height >= 8
    for part in (f"{letters}[0]", "document.querySelector('.caption')"):
        ink = page.evaluate(f"getComputedStyle({part}).{'fill' if 'chart' in part else 'color'}")
        paper = page.evaluate("getComputedStyle(document.querySelector('.chart')).backgroundColor")
        assert contrast(ink, paper) >= 4.5
    strokes = page.evaluate(
        "[...document.querySelectorAll('.legend line')].map((e) => getComputedStyle(e).stroke)"
    )
    assert len(set(strokes)) == 2
    assert min(contrast(line, paper) for line in strokes) >= 3
    page.close()


def contrast(one: str, other: str) -> float:
    """Of two colours `rgb(r, g, b)`, as WCAG 2 defines it."""
    lights = sorted(map(luminance, (one, other)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def luminance(color: str) -> float:
    parts = [float(n) / 255 for n in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
