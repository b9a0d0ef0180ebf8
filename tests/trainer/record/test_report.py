"""The report's page: what a person reads on it and sees in its curves."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest

from flow_trainer.recipe import load_recipe, save_resolved
from flow_trainer.record.report import write_report
from run_folders import alarm, append, make_run

GUARD = {"update": {"objective": "guard", "clip_range": 2e-4}}
SVG = "{http://www.w3.org/2000/svg}"
USE = "{http://www.w3.org/1999/xlink}href"


def page(*folders: Path) -> str:
    return write_report(*folders).read_text(encoding="utf-8")


def panels(html: str) -> dict[str, ElementTree.Element]:
    """The curves by their titles."""
    figures = re.findall(r'<figure class="chart[^"]*"><h3>(.*?)</h3>(<svg.*?</svg>)</figure>', html)
    assert len(figures) == html.count('<figure class="chart')
    return {unescape(title): ElementTree.fromstring(svg) for title, svg in figures}


def rows(html: str, table: str = "results") -> list[list[str]]:
    """The cells of a table, header first, as text."""
    found = html[html.index(f'<table class="{table}">') :]
    found = found[: found.index("</table>")]
    return [
        [text(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", found, re.DOTALL)
    ]


def text(html: str) -> str:
    html = re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def seen(html: str) -> str:
    """The page as text, without its styles and curves."""
    return text(html[html.index("<main>") :])


def lines(svg: ElementTree.Element, color: str = "s0") -> list[list[tuple[float, float]]]:
    """Points of the curves in a group's colour; the signs on them are not clipped one by one."""
    clipped = [path for path in svg.iter(f"{SVG}path") if path.get("clip-path")]
    paths = [path for path in clipped if f"stroke: var(--{color})" in path.get("style", "")]
    numbers = [re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", p.get("d", "")) for p in paths]
    return [[(float(x), float(y)) for x, y in found] for found in numbers if len(found) > 1]


def marks(svg: ElementTree.Element, kind: str) -> list[tuple[str, tuple[float, float]]]:
    """Titles and places."""
    found = []
    for group in svg.iter(f"{SVG}g"):
        if group.get("class") == f"mark {kind}":
            use = next(group.iter(f"{SVG}use"), None)
            place = (0.0, 0.0) if use is None else (float(use.get("x", 0)), float(use.get("y", 0)))
            found.append((group.findtext(f"{SVG}title", ""), place))
    return found


def damage(run: Path, epoch: int, change: Callable[[str], str]) -> None:
    """Changes the line of an epoch."""
    path = run / "metrics.jsonl"
    found = path.read_text().splitlines(keepends=True)
    number = next(n for n, line in enumerate(found) if f'"train", "epoch": {epoch},' in line)
    found[number] = change(found[number].rstrip()) + "\n"
    assert found != path.read_text().splitlines(keepends=True)
    path.write_text("".join(found))


def test_a_run_is_a_page_of_curves_with_units(tmp_path: Path) -> None:
    run = make_run(tmp_path / "spelling-1")
    html = page(run)
    assert (run / "report.html").exists()
    assert "<h1>spelling</h1>" in html
    assert "Flow-GRPO run of tiny, seed 1, 20 epochs" in html
    assert "0.310 held-out score before 0.710 after 2 min of training" in seen(html)
    header, row = rows(html)
    values = dict(zip(header, row, strict=True))
    assert values["recipe"] == "spelling"
    assert values["best validation"].endswith("(epoch 15)")
    assert values["alarms"] == "0"
    assert values["time of an epoch, s"] == "7.5"
    assert values["waiting for rewards, %"] == "6.7"
    assert values["training time"] == "2 min"
    found = panels(html)
    assert {
        "Rollout reward (training prompts, sampled as trained)",
        "Validation score (ODE, averaged weights) and held-out score",
        "Diversity inside groups",
        "Largest gradient before the clip",
        "Time of an epoch",
        "Where the time goes",
        "Peak memory",
    } <= found.keys()
    assert "Reward ocr" not in found  # alone, it is the reward
    labels = [element.text for element in found["Peak memory"].iter(f"{SVG}text")]
    assert {"epoch", "GB", "0.00"} <= set(labels)
    assert "samples without a score" in seen(html)  # 0 throughout: said, not drawn
    assert "Samples without a score" not in found
    assert "What differs" not in html
    assert "band: lowest" not in html


def test_the_file_asks_for_nothing_and_follows_the_scheme(tmp_path: Path) -> None:
    html = page(make_run(tmp_path / "run-1"))
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert not re.search(r"<script|<link|@import|url\((?!#)", html)
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    for svg in panels(html).values():
        colors = set(re.findall(r"#[0-9a-f]{6}\b", ElementTree.tostring(svg, encoding="unicode")))
        assert colors <= {"#000000"}, colors  # all others are variables


def test_seeds_are_one_curve_with_a_band(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"plain-{seed}", seed=seed) for seed in (1, 2, 3)]
    elsewhere = {"rewards": {"ocr": {"url": "http://10.0.0.9:1"}}, "checkpoints": {"every": 3}}
    runs.append(make_run(tmp_path / "other" / "plain-4", seed=4, recipe=elsewhere))
    html = page(*runs)
    _, *found = rows(html)
    assert [row[:2] for row in found] == [["plain", "1, 2, 3, 4"]]
    assert "0.725 1: 0.710, 2: 0.720, 3: 0.730, 4: 0.740" in found[0]
    assert (tmp_path / "report.html").exists()
    assert "line: mean of the seeds; band: lowest to highest" in html
    reward = panels(html)["Rollout reward (training prompts, sampled as trained)"]
    assert len(lines(reward)) == 1
    assert "fill-opacity" in ElementTree.tostring(reward, encoding="unicode")
    assert "What differs" not in html


def test_recipes_stand_beside_each_other_with_what_differs(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "plain-1", seed=1),
        make_run(tmp_path / "plain-2", seed=2),
        make_run(tmp_path / "guarded-1", recipe=GUARD, train=lambda epoch: {"kl": 1e-4 * epoch}),
    ]
    html = page(*runs)
    assert "<h1>2 recipes compared</h1>" in html
    assert rows(html, "differences") == [
        ["key", "plain", "guarded"],
        ["update.objective", "clip", "guard"],
        ["update.clip_range", "0.0001", "0.0002"],
    ]
    found = panels(html)
    reward = found["Rollout reward (training prompts, sampled as trained)"]
    assert len(lines(reward, "s0")) == len(lines(reward, "s1")) == 1
    # only one of them has a KL term
    assert not lines(found["KL to the reference"], "s0")
    assert lines(found["KL to the reference"], "s1")


def test_other_rewards_and_files_are_a_word_each_and_scores_do_not_compare(tmp_path: Path) -> None:
    files = {"train": "/data/words/train.txt", "heldout": "/data/words/heldout.txt"}
    second = {"url": "http://127.0.0.1:1"}
    recipe = {
        "prompts": {**files, "heldout": "/data/signs/heldout.txt"},
        "rewards": {"ocr": second, "jpeg": {**second, "monitor": True}, "pickscore": second},
    }
    first = make_run(tmp_path / "a-1", recipe={"prompts": files})
    html = page(first, make_run(tmp_path / "c-1", recipe=recipe))
    assert rows(html, "differences")[1:] == [
        ["prompts.heldout", "words/heldout.txt", "signs/heldout.txt"],
        ["rewards.jpeg", "–", "monitor"],
        ["rewards.pickscore", "–", "weight 1"],
    ]
    assert (
        "do not compare: they differ in trained rewards (ocr; ocr, pickscore), held-out prompts "
        "(words/heldout.txt; signs/heldout.txt)"
    ) in seen(html)
    alike = make_run(tmp_path / "d-1", recipe={"prompts": files, **GUARD})
    assert "do not compare" not in seen(page(first, alike))


def test_the_scores_of_every_seed_are_named(tmp_path: Path) -> None:
    header, row = rows(page(make_run(tmp_path / "a-1"), make_run(tmp_path / "a-2", seed=2)))
    values = dict(zip(header, row, strict=True))
    assert re.fullmatch(
        r"0\.\d{3} ?1: 0\.\d{3} \(15\), 2: 0\.\d{3} \(\d+\)", values["best validation"]
    )


def test_runs_of_one_folder_name_are_told_apart(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a" / "run-1"),
        make_run(tmp_path / "b" / "run-1", recipe=GUARD),
        make_run(tmp_path / "b" / "run-2", seed=2, recipe=GUARD),
    ]
    names = [row[0] for row in rows(page(*runs))[1:]]
    assert names == [
        "run: objective = clip, clip_range = 0.0001",
        "run: objective = guard, clip_range = 0.0002",
    ]


def test_an_alarm_is_a_mark_on_the_curve(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run-1", alarms={12: "diversity"})
    append(run, {**alarm(12, "sharpness"), "message": "it blurs"})
    html = page(run)
    message = "diversity is 0.2, below the 0.4 that its first 4 epochs allow"
    assert f"<li>epoch 12: {message}</li>" in html
    found = panels(html)
    for title, told in (
        ("Diversity inside groups", message),
        ("Sharpness", "it blurs"),
        ("Rollout reward (training prompts, sampled as trained)", f"{message}; it blurs"),
    ):
        ((said, place),) = marks(found[title], "alarm")
        assert said == f"run, seed 1, epoch 12: {told}"
        (curve,) = lines(found[title])
        assert place == pytest.approx(curve[11], abs=0.11)  # of epochs from 1 on
    others = [title for title, svg in found.items() if marks(svg, "alarm")]
    assert len(others) == 3
    assert [row[6] for row in rows(html)] == ["alarms", "2"]


def test_a_monitors_alarm_and_text_that_looks_like_html(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "<i>run-1",
        recipe={
            "rewards": {
                "ocr": {"url": "http://127.0.0.1:1"},
                "taste": {"url": "http://127.0.0.1:2", "monitor": True},
            }
        },
        train=lambda epoch: {"monitor.taste": 5 - 0.1 * epoch},
    )
    append(run, {**alarm(9, "monitor.taste"), "message": "<b>taste</b> fell & fell"})
    html = page(run)
    assert "<b>taste" not in html
    assert "<i>run" not in html
    assert "taste</b> fell & fell" in text(html)
    ((said, _),) = marks(panels(html)["Monitor taste (not trained)"], "alarm")
    assert said.endswith("<b>taste</b> fell & fell")


def test_every_reward_and_source_has_a_panel(tmp_path: Path) -> None:
    sources = {
        "spell": {"train": "words.txt", "rewards": ["ocr"]},
        "small": {"train": "things.txt", "rewards": ["ocr", "jpeg"]},
    }
    rewards = {name: {"url": "http://127.0.0.1:1"} for name in ("ocr", "jpeg")}
    run = make_run(
        tmp_path / "mixed-1",
        recipe={"prompts": {"sources": sources}, "rewards": rewards},
        train=lambda epoch: {
            "ocr": 0.1 * epoch,
            "ocr.exact": 0.05 * epoch,
            "ocr.again": 0.1 * epoch,
            "jpeg": -3.0,
            "spell/reward": 0.2,
            **({"small/reward": 0.3} if epoch % 2 else {}),
            "brand_new": 1.5,
        },
        validation=lambda epoch: {"ocr": 0.4, "spell/score": 0.25},
    )
    html = page(run)
    found = panels(html)
    titles = list(found)
    start = titles.index("Reward ocr")
    assert titles[start : start + 5] == [
        "Reward ocr",
        "ocr: exact",
        "Reward jpeg",
        "Prompts of spell",
        "Prompts of small",
    ]
    assert len(lines(found["Prompts of spell"])) == 2  # rollouts and validation
    assert len(lines(found["Prompts of small"])[0]) == 10
    # a metric that nobody has named here is drawn all the same
    assert "brand_new" in html[html.index("Other metrics") :]


def test_measured_diversity_of_validation_images_is_drawn(tmp_path: Path) -> None:
    title = "Diversity of a validation prompt's images"
    assert title not in panels(page(make_run(tmp_path / "without")))
    falls = make_run(
        tmp_path / "with", validation=lambda epoch: {"image_diversity": 0.4 - 0.01 * epoch}
    )
    (points,) = lines(panels(page(falls))[title])
    assert len(points) == 4
    assert points == sorted(points, key=lambda at: at[1])  # SVG counts from the top: it falls


@pytest.mark.parametrize("ended", [False, True])
def test_what_is_damaged_or_missing_is_said_and_the_rest_shown(tmp_path: Path, ended: bool) -> None:
    run = make_run(tmp_path / "run-1", ended=ended)
    damage(run, 3, lambda line: line[:40])
    damage(run, 10, lambda line: line.replace('"epoch": 10', '"epoch": "ten"'))
    damage(run, 4, lambda line: line.replace('"group_std": 0.1', '"group_std": NaN'))
    damage(run, 6, lambda line: line.replace('"group_std": 0.1', '"group_std": null'))
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "epo')  # killed while it wrote
    html = page(run)
    notes = html[html.index('class="warn"') :]
    assert "run-1: metrics.jsonl: 2 damaged lines left out (" in notes
    assert "run-1: group_std: 1 value not finite, left out" in notes
    assert "run-1: not in metrics.jsonl: epochs 3, 10<" in notes
    assert ("not ended" in notes) is not ended
    assert len(lines(panels(html)["Spread inside groups"])[0]) == 20 - 4


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run-1", epochs=0, ended=False)
    html = page(run)
    assert "run-1: not ended: epoch 0 of 20" in html
    assert not panels(html)
    append(run, {"kind": "train", "epoch": 1, "reward": None, "brightness": 0.5})
    assert list(panels(page(run))) == ["Brightness"]


def test_seeds_that_have_not_come_as_far(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "run-1", seed=1),
        make_run(tmp_path / "run-2", seed=2, epochs=8, ended=False),
    ]
    html = page(*runs)
    assert "not all seeds have come so far" in html
    assert rows(html)[1][:5] == ["run", "1, 2", "20, 8 of 20", "0.310", "0.710 seed 1 only"]
    reward = panels(html)["Rollout reward (training prompts, sampled as trained)"]
    together, alone = lines(reward)
    assert (len(together), len(alone)) == (8, 13)


def test_a_resumed_run_says_what_changed_and_counts_an_epoch_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run-1")
    before = load_recipe(run / "recipe.json", ["update.learning_rate=0.5"])
    save_resolved(before, run / "recipe_until_epoch_00010.json")
    append(run, {"kind": "train", "epoch": 11, "reward": 0.99})
    html = page(run)
    said = "resumed after epoch 10 with update.learning_rate = 0.0003 was 0.5"
    assert f"run-1: {said}" in html
    reward = panels(html)["Rollout reward (training prompts, sampled as trained)"]
    ((title, _),) = marks(reward, "change")
    assert title == f"run, seed 1: {said}"
    curve = max(lines(reward), key=len)
    assert len(curve) == 20
    assert min(curve, key=lambda point: point[1]) == curve[10]  # 0.99 is the highest: y points down


def test_other_revisions_of_a_reward_are_said(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run-{seed}", seed=seed) for seed in (1, 2)]
    summary = runs[1] / "summary.json"
    summary.write_text(summary.read_text().replace("abc123", "def456"))
    assert "different revisions of reward ocr: abc123, def456" in page(*runs)
    summary.write_text("{")
    assert "run-2: summary.json cannot be read and is left out" in page(*runs)


def test_a_long_run_stays_a_small_file(tmp_path: Path) -> None:
    def spike(epoch: int) -> dict[str, float]:
        return {"reward": 9.0 if epoch == 3333 else epoch % 7 / 7}

    html = page(make_run(tmp_path / "long-1", recipe={"epochs": 5000}, train=spike))
    assert len(html) < 400_000
    assert "line: mean of the epochs, 17 to a point; band: lowest to highest" in html
    reward = panels(html)["Rollout reward (training prompts, sampled as trained)"]
    (curve,) = lines(reward)
    assert 200 < len(curve) <= 300
    # one epoch of 5,000 is still seen: in the band
    use = next(u for u in reward.iter(f"{SVG}use") if "fill-opacity" in u.get("style", ""))
    band = next(p for p in reward.iter(f"{SVG}path") if f"#{p.get('id')}" == use.get(USE))
    heights = [-float(y) for y in re.findall(r"[ML] -?[\d.]+ (-?[\d.]+)", band.get("d", ""))]
    assert max(heights) > 3 * sorted(heights)[len(heights) // 2]


def test_twenty_recipes_keep_their_own_lines(tmp_path: Path) -> None:
    runs = [
        make_run(
            tmp_path / f"variant{number:02}-1",
            recipe={"update": {"learning_rate": 1e-4 * (number + 1)}},
        )
        for number in range(20)
    ]
    html = page(*runs)
    assert len(html) < 1_500_000
    table = rows(html, "differences")
    assert table[0] == ["recipe", "update.learning_rate"]
    assert [row[0] for row in table[1:]] == [f"variant{number:02}" for number in range(20)]
    assert table[12] == ["variant11", "0.0012"]
    legend = html[html.index('<p class="legend">') :]
    swatches = re.findall(r'<svg width="26".*?<line ([^>]*)/>', legend[: legend.index("</p>")])
    assert len(set(swatches)) == 20
