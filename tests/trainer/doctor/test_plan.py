"""The fake run, and the estimate of memory against what it found of every recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flow_trainer.__main__ import main
from flow_trainer.doctor.plan import per_image, plan, waits
from flow_trainer.errors import ConfigError
from flow_trainer.models.architectures import ARCHITECTURES, inspect
from flow_trainer.models.memory import memory
from flow_trainer.recipe import Recipe, load_recipe
from processes import ROOT

RUNS = json.loads((ROOT / "tests" / "golden" / "fake_epoch.json").read_text())["runs"]
RECIPES = ROOT / "trainer" / "recipes"
SD35M = "stabilityai/stable-diffusion-3.5-medium"


def as_overrides(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["recipes"][0])
def test_the_estimate_is_within_a_tenth_of_the_fake_run(run: dict[str, Any]) -> None:
    recipe = load_recipe(RECIPES / f"{run['recipes'][0]}.toml", as_overrides(run["settings"]))
    m, seen = recipe.model, run["bytes"]
    architecture = inspect(m.path, m.family, m.lora_rank)
    assert architecture is not None
    found = memory(recipe, architecture)
    assert found.transformer == pytest.approx(seen["transformer"], rel=0.02)
    assert found.training_state == pytest.approx(seen["training_state"], rel=0.02)
    assert found.vae == pytest.approx(seen["vae"], rel=0.02)
    for part in ("activations", "decode", "step"):
        assert getattr(found, part) == pytest.approx(seen[part], rel=0.1), part
    assert max(found.activations, found.decode, found.step) >= 0.9 * seen["forward"]


@pytest.fixture
def small(tmp_path: Path) -> Recipe:
    return shrunk("sd35m_ocr_8x8", tmp_path)


def shrunk(recipe: str, tmp_path: Path) -> Recipe:
    """SD3.5-M with three blocks, at 64 x 64 pixels."""
    name, config = ARCHITECTURES[SD35M]
    folder = tmp_path / "transformer"
    folder.mkdir()
    config = {**config, "num_layers": 3, "_class_name": name}
    (folder / "config.json").write_text(json.dumps(config))
    sets = [f"model.path={tmp_path}", "model.height=64", "model.width=64"]
    return load_recipe(RECIPES / f"{recipe}.toml", [*sets, "sampling.micro_batch=2"])


def test_a_fake_run_is_the_programs_own_epoch(small: Recipe) -> None:
    found = plan(small)
    architecture = inspect(small.model.path, "sd3", 32)
    assert architecture is not None
    estimate = memory(small, architecture)
    assert found.transformer == pytest.approx(estimate.transformer, rel=0.05)
    assert found.training_state == pytest.approx(estimate.training_state, rel=1e-4)
    counts = per_image(small, found.sections)
    # 20 forwards sample an image; an update's forward and backward of one step are about two
    forward = counts["sampling forward"]["flops"] / 20
    assert counts["update"]["flops"] / 9 == pytest.approx(2 * 2 * forward, rel=0.2)
    assert counts["frozen forward"]["flops"] / 9 == pytest.approx(2 * forward, rel=0.1)
    assert counts["in all"]["launches"] == pytest.approx(
        sum(part["launches"] for name, part in counts.items() if name != "in all")
    )
    one = small.model_copy(
        update={"sampling": small.sampling.model_copy(update={"micro_batch": 1})}
    )
    assert per_image(one, plan(one).sections)["in all"]["flops"] == pytest.approx(
        counts["in all"]["flops"], rel=0.01
    )
    checkpointed = small.model.model_copy(update={"gradient_checkpointing": True})
    less = plan(small.model_copy(update={"model": checkpointed}))
    assert less.activations < 0.7 * found.activations
    assert less.sections["update"].flops > found.sections["update"].flops


@pytest.mark.parametrize(
    ("name", "fewer"),
    [
        ("z_image_turbo_pickscore_80gb", {"n_layers": 2}),
        ("flux2_klein_pickscore_80gb", {"num_layers": 1, "num_single_layers": 2}),
    ],
)
def test_families_without_pooled_text_have_fake_runs(
    name: str, fewer: dict[str, int], tmp_path: Path
) -> None:
    kind, config = ARCHITECTURES[load_recipe(RECIPES / f"{name}.toml").model.path]
    (tmp_path / "transformer").mkdir()
    file = tmp_path / "transformer" / "config.json"
    file.write_text(json.dumps({**config, **fewer, "_class_name": kind}))
    sizes = ["model.height=64", "model.width=64", "model.max_sequence_length=32"]
    recipe = load_recipe(RECIPES / f"{name}.toml", [f"model.path={tmp_path}", *sizes])
    found = plan(recipe)
    architecture = inspect(str(tmp_path), recipe.model.family, recipe.model.lora_rank)
    assert architecture is not None
    estimate = memory(recipe, architecture)
    for part in ("transformer", "training_state", "vae"):
        assert getattr(found, part) == pytest.approx(getattr(estimate, part), rel=0.02), part
    sections = found.sections
    assert sections["update"].flops > 1.8 * sections["sampling forward"].flops / 2


def test_teachers_are_adapters_of_the_students_shape(tmp_path: Path) -> None:
    recipe = shrunk("sd35m_multi_opd", tmp_path)
    found = plan(recipe)
    architecture = inspect(recipe.model.path, "sd3", 32)
    assert architecture is not None
    assert found.transformer == pytest.approx(memory(recipe, architecture).transformer, rel=0.05)
    assert found.transformer > 3 * 4 * architecture.lora_parameters
    assert found.sections["frozen forward"].calls == 1


def test_image_text_data_is_in_the_fake_run(tmp_path: Path) -> None:
    """Alone, beside samples, and in pairs with a reference."""
    for name in ("alone", "pairs", "beside"):
        (tmp_path / name).mkdir()
    alone = shrunk("sd35m_curated_sft", tmp_path / "alone")
    found = plan(alone)
    counts = per_image(alone, found.sections)
    assert set(counts) == {"encode", "update", "step", "in all"}
    forward = found.sections["sampling forward"]
    one = forward.flops / 2 / forward.calls  # two images a call
    assert counts["update"]["flops"] == pytest.approx(2 * one, rel=0.2)
    assert counts["encode"]["flops"] > 0
    pairs = shrunk("sd35m_pairs_dpo", tmp_path / "pairs")
    counts = per_image(pairs, plan(pairs).sections)
    assert counts["frozen forward"]["flops"] == pytest.approx(one, rel=0.1)
    beside = shrunk("sd35m_pickscore_fast_nocfg_data", tmp_path / "beside")
    counts = per_image(beside, plan(beside).sections)
    # 64 images of the data for 1,152 samples, a forward and a backward each
    assert counts["data"]["flops"] == pytest.approx(2 * one * 64 / 1152, rel=0.2)
    assert counts["update"]["flops"] > counts["data"]["flops"]


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="for CPU builds of torch")
def test_waits_need_a_cuda_build(small: Recipe) -> None:
    with pytest.raises(ConfigError, match="is a CPU build"):
        waits(small)


def test_plan_of_a_model_not_on_record(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(RECIPES / "sd35m_ocr.toml")
    assert main(["plan", recipe, "--set", "model.path=somebody/else"]) == 2
    assert "no fake run for model.path = 'somebody/else'" in capsys.readouterr().err


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for path in RECIPES.glob("*.toml"):
        (line,) = (text for text in lines if text.split(" ")[0] == path.stem)
        levels = ("run at full size", "dry run and fake run", "figures of the original")
        assert any(level in line for level in levels)
    (line,) = (text for text in lines if text.startswith("sd35m_geneval_nft "))
    assert line.split()[1:3] == ["1152", "46"]
    assert "DiffusionNFT (arXiv 2509.16117)" in line

    assert main(["recipes", str(tmp_path)]) == 2
    assert "no recipe (*.toml) in" in capsys.readouterr().err
    silent = (RECIPES / "tiny_sd3_ocr.toml").read_text().replace("# Evidence: ", "# ")
    (tmp_path / "silent.toml").write_text(silent)
    assert main(["recipes", str(tmp_path)]) == 2
    assert "needs a header line `# Evidence: ...`" in capsys.readouterr().err
