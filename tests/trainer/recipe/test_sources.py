"""Sources of prompts with rewards of their own: what a recipe may say, and what an epoch takes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flow_trainer.errors import ConfigError
from flow_trainer.recipe import load_recipe, parse_recipe
from flow_trainer.recipe import prompts as sources
from flow_trainer.recipe.prompts import Prompt, epoch_prompts, mixed_epoch_prompts, read_split


def mixed(**changes: Any) -> dict[str, Any]:
    return {
        "name": "t",
        "epochs": 1,
        "model": {"path": "m"},
        "prompts": {
            "sources": {
                "objects": {"train": "o.txt", "rewards": ["geneval"], "weight": 2.0},
                "signs": {"train": "s.txt", "rewards": ["ocr", "jpeg"], "weights": [0.5, 0]},
            }
        },
        "rewards": {n: {"url": "http://127.0.0.1:1"} for n in ("geneval", "ocr", "jpeg")},
        **changes,
    }


def test_sources_have_rewards_and_weights_of_their_own() -> None:
    recipe = parse_recipe(mixed())
    assert recipe.source_weights == {"objects": 2 / 3, "signs": 1 / 3}
    terms = {
        source: {name: reward.weight for name, reward in own.items()}
        for source, own in recipe.source_rewards.items()
    }
    assert terms == {"objects": {"geneval": 1.0}, "signs": {"ocr": 0.5, "jpeg": 0.0}}
    alone = parse_recipe(mixed(prompts={"train": "p.txt"}))
    assert alone.source_weights == {"": 1.0}
    assert alone.source_rewards == {"": alone.rewards}


def source(**changes: Any) -> dict[str, Any]:
    sources = mixed()["prompts"]["sources"]
    return {"prompts": {"sources": {**sources, "signs": {**sources["signs"], **changes}}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (source(rewards=["ocr", "clip"]), r"there is no \[rewards.clip\]: add it, or use one of"),
        (source(rewards=["ocr"], weights=None), "rewards.jpeg scores no source's images"),
        (source(rewards=["ocr", "ocr"]), "names a reward twice"),
        (source(rewards=[]), "prompts.sources.signs.rewards"),
        (source(weights=[1.0]), "1 entries for 2 rewards"),
        (source(weight=0), "greater than 0"),
        (source(reward="ocr"), "reward: unknown key; did you mean rewards"),
        ({"prompts": {**mixed()["prompts"], "train": "p.txt"}}, "prompts.train does not go with"),
        ({"prompts": {}}, "name a prompt file"),
    ],
)
def test_what_a_source_lacks_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_recipe(mixed(**changes))


def prompts(**counts: int) -> list[Prompt]:
    return [Prompt(f"{name} {i}", source=name) for name, n in counts.items() for i in range(n)]


def test_an_epoch_takes_of_every_source_what_its_weight_says() -> None:
    found = prompts(a=7, b=11)
    weights = {"a": 0.25, "b": 0.75}
    total: Counter[str] = Counter()
    of_a: list[int] = []
    for epoch in range(28):
        indices = mixed_epoch_prompts(found, weights, 6, epoch, seed=3)
        assert len(set(indices)) == 6
        taken = Counter(found[index].source for index in indices)
        assert 1 <= taken["a"] <= 2
        total += taken
        of_a += [index for index in indices if found[index].source == "a"]
        assert indices == mixed_epoch_prompts(found, weights, 6, epoch, seed=3)
    assert total == {"a": 42, "b": 126}
    assert set(Counter(of_a).values()) == {6}, "all prompts equally often"


def test_one_source_draws_what_it_always_drew() -> None:
    found = [Prompt(str(i)) for i in range(9)]
    for epoch in range(5):
        assert mixed_epoch_prompts(found, {"": 1.0}, 4, epoch, 1) == epoch_prompts(9, 4, epoch, 1)


def test_a_source_with_too_few_prompts_is_named() -> None:
    with pytest.raises(ConfigError, match=r"prompts\.sources\.a has 1 training prompts"):
        mixed_epoch_prompts(prompts(a=1, b=9), {"a": 0.5, "b": 0.5}, 4, 0, 1)


def test_splits_join_the_sources_that_have_one(tmp_path: Path) -> None:
    for name in ("o", "s", "v"):
        (tmp_path / f"{name}.txt").write_text(f"{name}1\n{name}2\n")
    path = tmp_path / "r.toml"
    path.write_text(
        'name = "t"\nepochs = 1\n[model]\npath = "m"\n[rewards.x]\nurl = "http://x"\n'
        '[prompts.sources.a]\ntrain = "o.txt"\nrewards = ["x"]\nvalidation = "v.txt"\n'
        '[prompts.sources.b]\ntrain = "s.txt"\nrewards = ["x"]\n'
    )
    recipe = load_recipe(path)
    train = read_split(recipe.prompts, "train")
    assert [(p.text, p.source) for p in train] == [
        ("o1", "a"),
        ("o2", "a"),
        ("s1", "b"),
        ("s2", "b"),
    ]
    assert {p.source for p in read_split(recipe.prompts, "validation")} == {"a"}
    assert read_split(recipe.prompts, "heldout") == []


def turns_from_the_first(weights: dict[str, float], count: int) -> list[str]:
    """The rule, counted from the first prompt of the run."""
    total, taken, turns = sum(weights.values()), dict.fromkeys(weights, 0), []
    for number in range(1, count + 1):
        turns.append(max(weights, key=lambda n: weights[n] / total * number - taken[n]))
        taken[turns[-1]] += 1
    return turns


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 0.1, "b": 0.7, "c": 1 / 3}])
def test_turns_of_a_late_epoch_are_those_counted_from_the_first(weights: dict[str, float]) -> None:
    expected = turns_from_the_first(weights, 5000)
    # as a resumed run asks for them first, then in order, then again from before
    for start in (3990, 4000, 4010, 4095, 4096, 4097, 0, 1023, 2050):
        before, found = sources._turns(weights, start, 10)
        assert found == expected[start : start + 10]
        assert before == Counter(expected[:start])


def test_an_epoch_costs_no_more_turns_the_later_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    turn = sources._turn
    monkeypatch.setattr(sources, "_turn", lambda *a: taken.append(a[2]) or turn(*a))
    weights = {"a": 2.0, "b": 5.0}
    sources._turns(weights, 50_000, 48)
    taken.clear()
    sources._turns(weights, 50_048, 48)
    assert len(taken) <= sources.MARK_EVERY + 48
