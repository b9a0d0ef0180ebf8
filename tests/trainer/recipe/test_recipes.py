"""Every recipe dry-runs, says its source, and costs what its header says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flow_trainer.__main__ import main
from flow_trainer.doctor.estimate import GB, dry_run, forwards
from flow_trainer.doctor.recipes import listed
from flow_trainer.models.architectures import inspect
from flow_trainer.models.memory import ACTIVATIONS, SECOND_ATTENTION, memory
from flow_trainer.recipe import load_recipe, parse_recipe
from processes import ROOT

FOLDER = ROOT / "trainer" / "recipes"
PUBLISHED = sorted(path for path in FOLDER.glob("*.toml") if not path.stem.startswith("tiny_sd3"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_recipe(path: Path) -> None:
    recipe = load_recipe(path)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    cost = forwards(recipe)
    assert header[1] == (
        f"# Cost: {cost.total} transformer forwards per image ({cost.sampling} sampling, "
        f"{cost.training} training)."
    )
    assert re.search(r"@ 20\d\d-\d\d", header[0] + header[1]), "names its source"
    assert header[-1].startswith("# Prompts: ")
    # the newest shapes may have no fake run yet
    assert listed(path).evidence.startswith(("dry run and fake run", "figures of the original"))
    lines = list(dry_run(recipe))
    assert any(line.startswith("memory    about ") for line in lines)
    share = recipe.images_per_epoch // recipe.update.updates_per_epoch
    assert share % recipe.sampling.micro_batch == 0, "a micro-batch never spans two updates"
    size = re.search(r"_(\d+)gb$", path.stem)
    if size is not None:
        architecture = inspect(recipe.model.path, recipe.model.family, recipe.model.lora_rank)
        assert architecture is not None
        assert memory(recipe, architecture).peak < 0.9 * float(size[1]) * GB


# Forwards per image counted by hand: sampling, then trained steps x (forward, backward, reference,
# old policy, recomputation), doubled by classifier-free guidance.
@pytest.mark.parametrize(
    ("name", "sampling", "training"),
    [
        ("sd35m_ocr", 10 * 2, 9 * 2 * (1 + 1 + 1)),
        ("sd35m_ocr_guard", 10 * 2, 9 * 2 * (1 + 1)),
        ("sd35m_pickscore_fast", 10 * 2, 2 * 2 * (1 + 1)),
        ("sd35m_geneval_fast_nocfg", 10, 3 * (1 + 1)),
        ("flux_pickscore", 6, 5 * (1 + 1 + 1)),
        ("sd35m_geneval_nft", 10, 9 * (1 + 1 + 1 + 1)),
        ("sd35m_pickscore_sft", 10, round(9 * (1 + 1) / 24)),
        ("sd35m_pickscore_orw", 10, 9 * (1 + 1 + 1)),
        ("sd35m_pickscore_dpo", 10, round(9 * (1 + 1 + 1) * 2 / 24)),
        # one of the steps 30 to 39, 36 forwards with it on average
        ("sd35m_pickscore_refl", 36, 1 * (1 + 1 + 1)),
        # [data] alone: a forward and a backward per image, and the reference of a pair
        ("sd35m_curated_sft", 0, 1 + 1),
        ("sd35m_pairs_dpo", 0, 1 + 1 + 1),
        ("sd35m_geneval_awm", 14, 6 * (1 + 1 + 1 + 1)),
        ("flux_hpsv2_dance", 16, 9 * (1 + 2 + 1)),
        ("sd35m_geneval_pepg", 10, 9 * (1 + 1 + 1 + 1)),
        ("sd35m_geneval_ram", 10, 9 * (1 + 1 + 1 + 1)),
        ("sd35m_geneval_dgpo", 10 * 2, 4 * 2 * (1 + 1 + 1 + 1)),
        ("sd35m_ocr_crd", 10, 9 * (1 + 1 + 1 + 2)),  # its reference is guided
        ("sd35m_multi_opd", 10 * 2, 9 * 2 * (1 + 1) + 9 * 5 // 3),  # one teacher of three is not
        ("sd35l_hpsv2_solrl", 10 + 6 * 128 // 16, 6 * (1 + 1 + 1 + 1)),
    ],
)
def test_forwards(name: str, sampling: int, training: int) -> None:
    cost = forwards(load_recipe(FOLDER / f"{name}.toml"))
    assert (cost.sampling, cost.training) == (sampling, training)


def test_memory_is_the_documented_arithmetic() -> None:
    recipe = load_recipe(FOLDER / "sd35m_ocr.toml")
    architecture = inspect(recipe.model.path, "sd3", 32)
    assert architecture is not None
    found = memory(recipe, architecture)
    parameters, lora = architecture.parameters, architecture.lora_parameters
    assert found.transformer == 2 * (parameters + architecture.buffers) + 4 * lora
    assert found.training_state == 16 * lora
    # 9 stochastic steps: 10 latents, the finished one, 9 reference velocities, 65,536 floats each
    assert found.trajectories == 1152 * (10 + 1 + 9) * 65536 * 4
    # 9 images with guidance, 1024 image, 77 CLIP and 128 T5 tokens, 24 blocks of 1536 channels
    # of which 13 have a second attention
    kept = 24 * ACTIVATIONS["sd3"] + 13 * SECOND_ATTENTION
    assert found.activations == pytest.approx(18 * (1024 + 77 + 128) * 1536 * 2 * kept)
    assert found.decode == 9 * 512 * 512 * 3100, "never more than a micro-batch"
    assert found.peak == found.training_peak > found.loading_peak
    # T5's `wo` is float32 under float16; 21,000 prompts of 1.7 MB exceed 16 GB
    assert found.text_encoders == 2 * 5.58e9 + 2 * 1.007e9
    assert found.encoders_stay
    roomy = recipe.model.model_copy(update={"prompt_cache_gb": 80.0})
    freed = memory(recipe.model_copy(update={"model": roomy}), architecture)
    assert freed.training_peak == found.training_peak - found.text_encoders


def test_memory_of_other_choices(recipe_data: dict[str, Any]) -> None:
    architecture = inspect("stabilityai/stable-diffusion-3.5-medium", "sd3", 32)
    assert architecture is not None

    def of(**sections: Any) -> Any:
        data = {k: v for k, v in recipe_data.items() if k not in ("update", "sampling")}
        data["model"] = {"path": "m", **sections.pop("model", {})}
        return memory(parse_recipe({**data, **sections}), architecture)

    lora, full = of(), of(model={"tuning": "full"})
    assert full.transformer == 4 * (architecture.parameters + architecture.buffers)
    assert full.training_state == 16 * architecture.parameters
    assert of(ema={"enabled": False}).training_state < lora.training_state
    assert of(model={"gradient_checkpointing": True}).activations < 0.2 * lora.activations
    ode = of(sampling={"dynamics": "ode"}, update={"objective": "nft"})
    assert ode.trajectories == lora.trajectories / (10 + 1)
    assert of(update={"objective": "guard"}).trajectories > lora.trajectories


def test_memory_on_several_gpus() -> None:
    full = load_recipe(FOLDER / "flux_hpsv2_dance.toml")
    architecture = inspect(full.model.path, "flux", 32)
    assert architecture is not None
    one, eight, sixteen = (memory(full, architecture, gpus) for gpus in (1, 8, 16))
    assert eight.training_state == one.training_state / 8
    # two blocks gathered, and a block's gradients before they are added: 16 bits, and float32
    gathered = (2 * 2 + 2 + 4) * architecture.parameters / architecture.blocks
    assert eight.transformer == pytest.approx(one.transformer / 8 + gathered)
    assert eight.trajectories == one.trajectories / 8
    # without autocast's copies of a block's weights
    copies = 2 * architecture.parameters / architecture.blocks
    assert eight.activations == pytest.approx(one.activations - copies)
    assert sixteen.training_state == eight.training_state, "a copy per node"
    assert sixteen.trajectories == one.trajectories / 16

    lora = load_recipe(FOLDER / "sd35m_ocr.toml")
    architecture = inspect(lora.model.path, "sd3", 32)
    assert architecture is not None
    assert memory(lora, architecture, 8).transformer == memory(lora, architecture).transformer
    assert any("GB on each of 8 GPUs" in line for line in dry_run(lora, 8))


def test_memory_of_a_local_pipeline_follows_its_vae() -> None:
    recipe = load_recipe(FOLDER / "tiny_sd3_ocr.toml")
    architecture = inspect(recipe.model.path, "sd3", 32)
    assert architecture is not None
    # 4 stochastic steps: 5 latents and the finished one, of 8 x 8 x 16 floats (VAE factor 4)
    assert memory(recipe, architecture).trajectories == 128 * (5 + 1) * (8 * 8 * 16) * 4
    assert any(" MB on one GPU" in line for line in dry_run(recipe))


def test_dry_run_tells_stochastic_from_trained_steps() -> None:
    lines = list(dry_run(load_recipe(FOLDER / "flux_hpsv2_dance.toml")))
    assert "steps     16 sampled (dance_sde), 15 of them stochastic, 9 trained per image" in lines
    lines = list(dry_run(load_recipe(FOLDER / "sd35m_ocr_nft.toml")))
    assert "steps     10 sampled (ode), 9 trained per image" in lines
    assert any("1 update per epoch" in line for line in lines)


def test_dry_run_for_several_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(FOLDER / "flux_hpsv2_dance.toml")
    assert main(["train", recipe, "--dry-run", "--gpus", "8"]) == 0
    assert "GB on each of 8 GPUs" in capsys.readouterr().out
    for wrong in ("0", "-1", "all"):
        with pytest.raises(SystemExit):
            main(["train", recipe, "--dry-run", f"--gpus={wrong}"])
        assert f"--gpus: '{wrong}' is not a positive integer" in capsys.readouterr().err


def test_dry_run_loads_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = FOLDER / "sd35m_ocr.toml"
    assert main(["train", str(recipe), "--dry-run", "--set", "model.path=somebody/else"]) == 0
    printed = capsys.readouterr().out
    assert "48 prompts x 24 images = 1152 images per epoch" in printed
    assert "74 per image" in printed
    assert "memory    unknown" in printed
