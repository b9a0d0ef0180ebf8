from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flow_trainer.errors import ConfigError
from flow_trainer.recipe import load_recipe, parse_recipe, save_resolved

RECIPES = sorted((Path(__file__).parents[3] / "trainer" / "recipes").glob("*.toml"))


def minimal(**changes: Any) -> dict[str, Any]:
    return {
        "name": "t",
        "epochs": 1,
        "model": {"path": "m"},
        "prompts": {"train": "p.txt"},
        "rewards": {"ocr": {"url": "http://127.0.0.1:1"}},
        **changes,
    }


def forward(objective: str, **settings: Any) -> dict[str, Any]:
    return {
        "sampling": {"dynamics": "ode2"},
        "update": {"objective": objective},
        "forward": settings,
    }


def scouted(keep: list[int], candidates: int) -> dict[str, Any]:
    return {
        "sampling": {"dynamics": "ode", "candidates": candidates},
        "update": {"objective": "nft", "keep": keep},
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.images_per_epoch == recipe.sampling.prompts_per_epoch * recipe.sampling.group_size
    assert recipe.name == path.stem


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"update\.learning_rat: unknown key; did you mean learning_rate"
    ):
        parse_recipe(minimal(update={"learning_rat": 1e-4}))
    with pytest.raises(ConfigError, match=r"rewards\.ocr\.urls: unknown key; did you mean url\?"):
        parse_recipe(minimal(rewards={"ocr": {"url": "http://x", "urls": []}}))
    with pytest.raises(ConfigError, match=r"zzz: unknown key; known keys: name, seed"):
        parse_recipe(minimal(zzz=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": {"prompts_per_epoch": 5}}, "not a multiple"),
        ({"scoring": {"min_group": 99}}, "every group would be dropped"),
        ({"evaluation": {"diversity": True}}, "images_per_prompt = 2 or more"),
        (
            {"model": {"path": "x", "family": "z_image", "attention": "native_flash"}},
            "cannot mask the texts of z_image.*use native",
        ),
        ({"update": {"beta": 0.1}}, "needs update.kl"),
        ({"sampling": {"window": {"kind": "first", "size": 10}}}, "do not fit"),
        ({"sampling": {"window": {"kind": "random", "hi": 10}}}, "cannot be stochastic"),
        ({"update": {"trained_steps": 10}}, "exceeds the 9 steps"),
        ({"sampling": {"noise_level": 0}}, "greater than 0"),
        ({"sampling": {"dynamics": "cps", "noise_level": 1.2}}, "wrong sign"),
        ({"rewards": {}}, "name at least one"),
        ({"rewards": {"a": {"url": "http://x", "clip": [1, 0]}}}, r"write \[least, largest\]"),
        (
            {
                "rewards": {"a": {"url": "http://x", "normalise": "prompt"}},
                "advantage": {"std": "gdpo"},
            },
            "already",
        ),
        (
            {
                "advantage": {"diversity": 0.5},
                "update": {"objective": "data"},
                "data": {"images": "x"},
            },
            "advantage.diversity is a bonus beside rewards",
        ),
        (
            {"update": {"objective": "nft"}, "sampling": {"window": {"kind": "first", "size": 10}}},
            "do not fit",
        ),
        (forward("nft", skip_steps=10), "leaves no noise level of the first 10 steps"),
        (forward("epg", skip_steps=3, first_steps=3), "leaves no noise level of the first 3"),
        (forward("nft", strength=2.0), "at most 1"),
        ({"sampling": {"candidates": 48}}, "are for update.keep"),
        ({"update": {"keep": [12, 12]}, "sampling": {"candidates": 48}}, "objective on finished"),
        (scouted([8, 8], 48), "must add up to sampling.group_size = 24"),
        (scouted([25, -1], 48), "must add up"),
        (scouted([12, 12], 24), "needs sampling.candidates above"),
        (scouted([12, 12], 48) | {"sampling": {"candidates": 48}}, "use ode or ode2"),
        ({"sampling": {"dynamics": "cps"}, "update": {"step_weight": "noise"}}, "Gaussian steps"),
        (forward("ram", first_steps=11), "exceeds sampling.num_steps"),
        (forward("dgpo", share="times"), 'set forward.share = "pairs"'),
        (forward("crd"), 'set forward.share = "times"'),
        (forward("crd", share="times"), "multiple of sampling.group_size = 24"),
        (
            {**forward("epg", first_steps=4), "update": {"objective": "epg", "trained_steps": 5}},
            "the 4",
        ),
        ({**forward("ram"), "update": {"objective": "ram", "kl": "kl2", "beta": 1}}, "likelihoods"),
        ({"sampling": {"dynamics": "ode"}}, "clip does not go with sampling.dynamics = ode"),
        ({"forward": {"strength": 0.1}}, r"\[forward\] belongs to"),
        (
            {"update": {"objective": "nft"}, "sampling": {"dynamics": "ode", "same_latent": True}},
            "the same image",
        ),
        (
            {
                "update": {"objective": "awm", "kl": "gaussian", "beta": 0.1},
                "sampling": {"dynamics": "ode"},
            },
            "use velocity",
        ),
        (
            {
                "update": {"objective": "awm", "trained_steps": 11},
                "sampling": {"dynamics": "ode"},
            },
            "exceeds the 10 steps",
        ),
        (
            {"update": {"objective": "guard"}, "sampling": {"dynamics": "cps"}},
            "Gaussian log-probabilities",
        ),
        ({"epochs": "many"}, "epochs: Input should be a valid integer"),
        ({"epochs": True}, "true is no value of this setting"),
        ({"update": {"learning_rate": True}}, "update.learning_rate: .*true is no value"),
        ({"sampling": {"window": {"size": False}}}, "window.size: .*false is no value"),
    ],
)
def test_impossible_sizes_are_refused_before_a_model_loads(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_recipe(minimal(**changes))


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(
        'name="t"\nepochs=3\n[model]\npath="m"\n[prompts]\ntrain="p.txt"\n'
        '[rewards.ocr]\nurl="http://a"\n'
    )
    recipe = load_recipe(
        path,
        [
            "update.learning_rate=1e-5",
            "rewards.ocr.url=['http://b', 'http://c']",
            "model.path=org/x",
        ],
    )
    assert recipe.update.learning_rate == 1e-5
    assert recipe.rewards["ocr"].url == ["http://b", "http://c"]
    assert recipe.model.path == "org/x"
    assert recipe.prompts.train == str(tmp_path / "p.txt")
    for bad in ("novalue", "name.x=1"):
        with pytest.raises(ConfigError, match="--set"):
            load_recipe(path, [bad])


def test_missing_recipe_lists_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "there.toml").touch()
    with pytest.raises(ConfigError, match=r"there\.toml"):
        load_recipe(tmp_path / "gone.toml")


def test_resolved_recipe_round_trips(tmp_path: Path) -> None:
    recipe = parse_recipe(minimal(seed=7))
    save_resolved(recipe, tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json") == recipe
    assert load_recipe(tmp_path / "recipe.json", ["seed=8"]).seed == 8


@pytest.mark.parametrize("name", ["recipe.toml", "recipe.json"])
def test_what_is_no_recipe_says_where(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"name"')
    with pytest.raises(ConfigError, match=rf"{name} cannot be read: .*line 1"):
        load_recipe(tmp_path / name)
