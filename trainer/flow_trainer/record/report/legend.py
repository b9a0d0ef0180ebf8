"""What the signs on the curves mean, as far as a report has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flow_trainer.record.report.groups import Group
from flow_trainer.record.report.panels import MOST_BANDS, Section

Sign = tuple[str, str]
"""Content of a 14 x 12 <svg>, and what it means."""

BAND = '<rect y="1" width="14" height="10" fill="var(--soft)" opacity="0.35"/>'
LINE = '<path d="M0 6H14" stroke="var(--soft)" stroke-width="2"/>'
CIRCLE = '<circle cx="7" cy="6" r="4" fill="none" stroke="var(--soft)" stroke-width="1.5"/>'
DIAMOND = '<path d="M7 1 12 6 7 11 2 6Z" fill="var(--soft)"/>'
TRIANGLE = '<path d="M7 0 14 12H0Z" fill="var(--alarm)"/>'
DOTS = '<path d="M0 6H14" stroke="var(--soft)" stroke-width="2" stroke-dasharray="2 2"/>'
POST = '<path d="M7 0V12" stroke="var(--soft)" stroke-width="2" stroke-dasharray="2 2"/>'


def signs(section: Section, groups: Sequence[Group], per_point: int) -> list[Sign]:
    return list(_signs(section, groups, per_point))


def _signs(section: Section, groups: Sequence[Group], per_point: int) -> Iterator[Sign]:
    drawn = "".join(panel.svg for panel in section.panels)
    several = any(len(group.runs) > 1 for group in groups)
    covered = {(True, True): "seeds and epochs", (True, False): "seeds", (False, True): "epochs"}
    if several or per_point > 1:
        line = f"line: mean of the {covered[several, per_point > 1]}"
        line += f", {per_point} to a point" if per_point > 1 else ""
        banded = len(groups) <= MOST_BANDS
        yield (BAND, f"{line}; band: lowest to highest") if banded else (LINE, line)
    if any(len({run.epochs for run in group.runs}) > 1 for group in groups):
        yield DOTS, "not all seeds have come so far"
    if section.has_validation:
        yield CIRCLE, "validation"
    if section.has_heldout:
        yield DIAMOND, "held-out, before and after"
    if 'class="mark alarm"' in drawn:
        yield TRIANGLE, "alarm"
    if 'class="mark change"' in drawn:
        yield POST, "resumed with another recipe"
