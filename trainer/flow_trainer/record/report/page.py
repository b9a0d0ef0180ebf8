"""The report's page: what of the runs is said, and where it is written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from flow_trainer.errors import ConfigError
from flow_trainer.record.report import charts
from flow_trainer.record.report.groups import Group, differences, group_runs, scores_differ_by
from flow_trainer.record.report.legend import signs
from flow_trainer.record.report.panels import PARTS, Panels
from flow_trainer.record.report.pictures import before_and_after, through_training
from flow_trainer.record.report.runs import RunRecord, read_run

FILE = "report.html"


@dataclass(frozen=True, slots=True)
class Row:
    """Of the table of results; texts, a dash for what is not known."""

    group: Group
    seeds: str
    epochs: str
    before: str
    after: str
    each: Sequence[str]
    """Held-out scores by seed, where there are several runs."""
    validation: str
    """Best score; of one run with its epoch."""
    validation_each: Sequence[str]
    """Best scores and their epochs by seed, where there are several runs."""
    epoch_s: str
    wait: str
    images_per_second: str
    train_time: str
    alarms: int


def write_report(*folders: Path, out: Path | None = None) -> Path:
    """Writes one HTML file about one or several runs, from what they have logged so far: RUN/report.html
    for one, for several report.html in the folder that they have in common. Raises ConfigError when a
    folder is none of a run."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    unique = list({folder.resolve(): folder for folder in folders}.values())
    runs = [read_run(folder) for folder in unique]
    groups = group_runs(runs)
    panels = Panels(groups)
    per_point = _per_point(runs, panels)
    sections = panels.sections()
    notes: list[str] = []
    blocks, pairs = through_training(groups, notes), before_and_after(groups, notes)
    environment = Environment(
        loader=PackageLoader("flow_trainer.record.report"),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = lambda value: "–" if value is None else f"{value:.3f}"
    html = environment.get_template("report.html").render(
        title=groups[0].label if len(groups) == 1 else f"{len(groups)} recipes compared",
        lead=_lead(groups),
        groups=groups,
        looks=[charts.Look(group.style) for group in groups],
        variables=charts.css_variables(),
        headline=_headline(groups),
        rows=[_row(group) for group in groups],
        sections=sections,
        signs={section.title: signs(section, groups, per_point) for section in sections},
        nothing_of=panels.nothing_of(),
        parts=list(PARTS.values()),
        alarms=[
            (group, run, alarm) for group in groups for run in group.runs for alarm in run.alarms
        ],
        blocks=blocks,
        columns=max((len(s.cells) for block in blocks for s in block.strips), default=1),
        pairs=pairs,
        notes=[*_notes(groups), *notes],
        differences=differences(groups),
        recipes=[(g.label, json.dumps(g.recipe.model_dump(), indent=2)) for g in groups],
        runs=[(group, run) for group in groups for run in group.runs],
    )
    path = out or _place(unique)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def _place(folders: Sequence[Path]) -> Path:
    if len(folders) == 1:
        return folders[0] / FILE
    parents = [str(folder.resolve().parent) for folder in folders]
    try:
        common = Path(os.path.commonpath(parents))
    except ValueError:  # on different drives
        raise ConfigError("the runs have no folder in common: name the file with --out") from None
    return common / FILE


def summary_table(summary: Mapping[str, Any]) -> str:
    """A run's summary.json as aligned plain text."""

    def score(key: str) -> str:
        value = summary.get(key)
        return "–" if value is None else f"{value:.3f}"

    steps = f"{summary.get('train_steps')} steps in training, {summary.get('eval_steps')} here"
    facts = [
        ("held-out score before", f"{score('heldout_before')}  ({steps})"),
        ("held-out score after", score("heldout_after")),
        ("diversity of a prompt's images", _change(summary, "heldout_diversity")),
        ("best validation", f"{score('best_validation')} at epoch {summary.get('best_epoch')}"),
        ("epochs", str(summary.get("epochs"))),
        ("training time", f"{summary.get('train_wall_seconds', 0):.0f} s"),
        ("waiting for rewards", f"{100 * summary.get('reward_wait_fraction', 0):.2f} % of it"),
        ("seed", str(summary.get("seed"))),
    ]
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts)


def _change(summary: Mapping[str, Any], key: str) -> str:
    before, after = summary.get(f"{key}_before"), summary.get(f"{key}_after")
    return "–" if before is None or after is None else f"{before:.3f} before, {after:.3f} after"


def _lead(groups: Sequence[Group]) -> str:
    if len(groups) > 1:
        count = sum(len(group.runs) for group in groups)
        return f"Flow-GRPO, {count} runs of {len(groups)} recipes"
    (group,) = groups
    what = "run" if len(group.runs) == 1 else f"{len(group.runs)} runs"
    return f"Flow-GRPO {what} of {group.recipe.name}, {_seeds(group)}, {_epochs(group)} epochs"


def _seeds(group: Group) -> str:
    seeds = ", ".join(map(str, group.seeds))
    return f"seed{'s' if len(group.runs) > 1 else ''} {seeds}"


def _epochs(group: Group) -> str:
    """Of the runs: `50`, or `12, 30 of 50` where some have not ended."""
    wanted = str(group.recipe.epochs)
    done = [str(run.epochs) for run in group.runs]
    if all(text == wanted for text in done):
        return wanted
    return f"{', '.join(dict.fromkeys(done))} of {wanted}"


def _headline(groups: Sequence[Group]) -> tuple[float, float, str] | None:
    """Held-out score before and after, and the time of training, of a single recipe that has them."""
    if len(groups) > 1:
        return None
    before, after = (_ends(groups[0], kind) for kind in ("heldout_before", "heldout_after"))
    if not before or not after:
        return None
    seconds = mean(_train_seconds(run) for run in groups[0].runs)
    return mean(before), mean(after), duration(seconds)


def _ends(group: Group, kind: str) -> list[float]:
    found = [run.last(kind, "score") for run in group.runs]
    return [value for value in found if value is not None]


def _train_seconds(run: RunRecord) -> float:
    return float(run.column("train", "epoch_s")[1].sum())


def _row(group: Group) -> Row:
    runs = group.runs
    before, after = _ends(group, "heldout_before"), _ends(group, "heldout_after")
    best = {run.recipe.seed: found for run in runs if (found := _best(run)) is not None}
    seconds = sum(map(_train_seconds, runs))
    waited = sum(float(run.column("train", "reward_wait_s")[1].sum()) for run in runs)
    speeds = [speed for run in runs if (speed := run.mean("train", "images_per_second"))]
    epochs = sum(len(run.column("train", "epoch_s")[0]) for run in runs)
    return Row(
        group=group,
        seeds=", ".join(map(str, group.seeds)),
        epochs=_epochs(group),
        before=_mean(before),
        after=_mean(after),
        each=_each(group, "heldout_after"),
        validation=_mean([score for score, _ in best.values()])
        + (f" (epoch {best[runs[0].recipe.seed][1]})" if best and len(runs) == 1 else ""),
        validation_each=[f"{seed}: {score:.3f} ({at})" for seed, (score, at) in best.items()]
        if len(runs) > 1
        else [],
        epoch_s=f"{seconds / epochs:.3g}" if epochs else "–",
        wait=f"{100 * waited / seconds:.1f}" if seconds else "–",
        images_per_second=f"{mean(speeds):.3g}" if speeds else "–",
        train_time=duration(seconds / len(runs)) if seconds else "–",
        alarms=sum(len(run.alarms) for run in runs),
    )


def _each(group: Group, kind: str) -> list[str]:
    """The scores behind a mean one by one, or whose it is where other runs have none."""
    if len(group.runs) == 1:
        return []
    found = [
        (r.recipe.seed, score) for r in group.runs if (score := r.last(kind, "score")) is not None
    ]
    if len(found) == 1:
        return [f"seed {found[0][0]} only"]
    return [f"{seed}: {score:.3f}" for seed, score in found]


def _best(run: RunRecord) -> tuple[float, int] | None:
    """The best validation score and its epoch."""
    epochs, scores = run.column("validation", "score")
    if not len(scores):
        return None
    return float(scores.max()), int(epochs[scores.argmax()])


def _mean(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" if values else "–"


def duration(seconds: float) -> str:
    """`42 s`, `8 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _per_point(runs: Sequence[RunRecord], panels: Panels) -> int:
    """Epochs that a point of the longest curve stands for."""
    longest = max((run.epochs for run in runs), default=0)
    return -(-longest // panels.points) if longest > panels.points else 1


def _notes(groups: Sequence[Group]) -> list[str]:
    """What a reader has to know of each run before believing its curves."""
    notes = []
    if apart := scores_differ_by(groups):
        notes.append(f"scores of these recipes do not compare: they differ in {', '.join(apart)}")
    for group in groups:
        for run in group.runs:
            said = list(run.notes)
            if not run.finished:
                said.insert(0, f"not ended: epoch {run.epochs} of {run.recipe.epochs}")
            said += [change.message for change in run.changes]
            notes += [f"{run.folder.resolve().name}: {text}" for text in said]
        notes += [f"{group.label}: {text}" for text in _mixed(group)]
    return notes


def _mixed(group: Group) -> list[str]:
    """What else differs between the runs of one recipe, so that their scores may not compare."""
    found = []
    for what in ("rewards", "versions"):
        named = [dict(run.summary.get(what) or {}) for run in group.runs if run.summary]
        for key in dict.fromkeys(key for values in named for key in values):
            values = dict.fromkeys(str(values.get(key, "–")) for values in named)
            if len(values) > 1:
                word = "revisions of reward" if what == "rewards" else "versions of"
                found.append(f"its runs have different {word} {key}: {', '.join(values)}")
    return found
