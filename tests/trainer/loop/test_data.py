"""Training on image-text data, alone and beside samples: real classes, a real reward, files on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from flow_trainer.__main__ import main
from flow_trainer.algorithm.objectives.sft import mean_square
from flow_trainer.errors import ConfigError
from flow_trainer.loop.train import train
from flow_trainer.loop.updates.data import DataGradients
from flow_trainer.loop.updates.descend import UpdateStats
from flow_trainer.loop.updates.examples import open_examples
from flow_trainer.models.load import load_policy
from flow_trainer.models.policy import Policy
from flow_trainer.recipe import Recipe, parse_recipe
from policy_steps import CPU
from processes import Service

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 230)}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve captioned images as `flow-grpo curate` writes them."""
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    rng, lines = np.random.default_rng(0), []
    for number in range(12):
        name, colour = list(COLOURS.items())[number % 3]
        pixels = np.array(colour) + rng.normal(0, 12, (8, 8, 3))
        file = f"{number:02d}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / file)
        lines.append({"file_name": file, "prompt": name, "scores": {"ocr": 1.0}})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def pairs(images: Path) -> Path:
    """The right colour over the next one's, for every prompt."""
    path = images.parent / "pairs.jsonl"
    rows = [
        {
            "prompt": list(COLOURS)[number % 3],
            "chosen": f"train/{number:02d}.png",
            "rejected": f"train/{(number + 1) % 12:02d}.png",
        }
        for number in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def make(recipe_data: dict[str, Any]) -> Callable[..., Recipe]:
    def build(objective: str, url: str = "http://127.0.0.1:1", **data: Any) -> Recipe:
        merged = {**recipe_data, "data": {"batch": 4, **data}}
        merged["rewards"] = {"brightness": {"url": url}}
        merged["update"] = {**merged["update"], "objective": objective}
        return parse_recipe(merged)

    return build


def metrics(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


def weights(run: Path, epoch: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"epoch_{epoch:05d}" / "weights.safetensors")


def gradients(policy: Policy, recipe: Recipe, scale: float = 1.0) -> tuple[torch.Tensor, Any]:
    """Of the first update's data, in one row; and the means that are logged."""
    examples, data = open_examples(recipe), recipe.data
    assert examples is not None
    assert data is not None
    policy.prepare_prompts(["", *examples.prompts])
    for parameter in policy.trainable().values():
        parameter.grad = None
    own = DataGradients(policy, recipe, data, examples, epoch=0)
    own(0, scale, UpdateStats())
    found = [p.grad.flatten() for p in policy.trainable().values() if p.grad is not None]
    return torch.cat(found), own.means()


def test_a_latent_is_what_the_decoder_takes_back(policy: Policy, images: Path) -> None:
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(p)) for p in images.glob("*.png")]))
    vae: Any = policy._vae  # type: ignore[attr-defined]
    unscale = policy._family.unscale  # type: ignore[attr-defined]
    x_0 = policy.to_latents(pixels, 5)
    assert x_0.shape == (12, *policy.latent_shape)
    wanted = vae.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
    assert torch.allclose(unscale(vae, x_0), wanted, atol=1e-5)


def test_the_gradient_is_that_of_the_mean_loss_whatever_the_micro_batch(
    make: Callable[..., Recipe], images: Path
) -> None:
    found = []
    for micro_batch in (1, 3, 4):
        recipe = make("data", images=str(images), levels=2)
        sampling = recipe.sampling.model_copy(update={"micro_batch": micro_batch})
        recipe = recipe.model_copy(update={"sampling": sampling})
        policy = load_policy(recipe.model, CPU, with_reference=False)
        gradient, means = gradients(policy, recipe)
        found.append(gradient)
        assert means["data.loss"] > 0
        assert means["data.loss"] == pytest.approx(means["data.matching_error"])
    assert torch.allclose(found[0], found[2], rtol=1e-4, atol=1e-6)
    assert torch.allclose(found[1], found[2], rtol=1e-4, atol=1e-6)


def test_weight_and_loss_scale_are_factors(make: Callable[..., Recipe], images: Path) -> None:
    recipe = make("data", images=str(images))
    policy = load_policy(recipe.model, CPU, with_reference=False)
    plain, _ = gradients(policy, recipe)
    heavy, _ = gradients(policy, make("data", images=str(images), weight=3.0), scale=2.0)
    assert torch.allclose(heavy, 6 * plain, rtol=1e-4, atol=1e-7)


def test_pairs_start_undecided_and_push_the_two_apart(
    make: Callable[..., Recipe], pairs: Path
) -> None:
    recipe = make("data", pairs=str(pairs), preference=50.0)
    policy = load_policy(recipe.model, CPU, with_reference=True)
    gradient, means = gradients(policy, recipe)
    # the policy is the reference: margin 0, loss log 2
    assert means["data.loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert means["data.implied_margin"] == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        for parameter, step in zip(
            policy.trainable().values(),
            gradient.split([p.numel() for p in policy.trainable().values()]),
            strict=True,
        ):
            parameter -= 1e-3 * step.view_as(parameter)
    _, after = gradients(policy, recipe)
    assert after["data.loss"] < means["data.loss"]
    assert after["data.implied_accuracy"] > 0.5


def test_guidance_is_1_unless_said(make: Callable[..., Recipe], images: Path) -> None:
    recipe = make("data", images=str(images))
    guided = recipe.model_copy(update={"model": recipe.model.model_copy(update={"guidance": 4.0})})
    policy = load_policy(guided.model, CPU, with_reference=False)
    plain, _ = gradients(load_policy(recipe.model, CPU, with_reference=False), recipe)
    assert torch.allclose(gradients(policy, guided)[0], plain, rtol=1e-4, atol=1e-7)
    data = recipe.data
    assert data is not None
    stronger = guided.model_copy(update={"data": data.model_copy(update={"guidance": 4.0})})
    assert not torch.allclose(gradients(policy, stronger)[0], plain, rtol=1e-2)


def fits(policy: Policy, images: Path) -> float:
    """How far the velocity at one noise level is from what leads to the images."""
    pixels = torch.from_numpy(
        np.stack([np.asarray(Image.open(p)) for p in sorted(images.glob("*.png"))])
    )
    x_0 = policy.to_latents(pixels, 4)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(1))
    sigma = torch.full((len(x_0),), 0.8)
    texts = policy.encode([list(COLOURS)[n % 3] for n in range(12)])
    with torch.no_grad():
        v = policy.velocity(0.2 * x_0 + 0.8 * noise, sigma, texts)
    return float(mean_square(v, noise - x_0).mean())


@pytest.mark.system
def test_alone_it_learns_the_images_and_resumes_bit_for_bit(
    make: Callable[..., Recipe], brightness: Service, images: Path, tmp_path: Path
) -> None:
    recipe = make("data", brightness.http, images=str(images)).model_copy(update={"epochs": 6})
    train(recipe, tmp_path / "whole")
    rows = metrics(tmp_path / "whole")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert "reward" not in rows[0]
    policy = load_policy(recipe.model, CPU, with_reference=False)
    policy.prepare_prompts(list(COLOURS))
    before = fits(policy, images)
    for name, value in weights(tmp_path / "whole", 6).items():
        policy.trainable()[name].data.copy_(value)
    assert fits(policy, images) < 0.9 * before
    train(recipe.model_copy(update={"epochs": 4}), tmp_path / "parts")
    train(recipe, tmp_path / "parts", resume=True)
    whole, parts = (weights(tmp_path / name, 6) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.system
def test_beside_samples_both_train(
    make: Callable[..., Recipe], brightness: Service, images: Path, tmp_path: Path
) -> None:
    recipe = make("clip", brightness.http, images=str(images), weight=0.5)
    train(recipe, tmp_path / "mixed")
    for row in metrics(tmp_path / "mixed"):
        assert row["reward"] > 0
        assert row["ratio_error"] < 1e-5
        assert row["data.loss"] > 0
    without = recipe.model_copy(update={"data": None})
    train(without, tmp_path / "plain")
    # the first epoch is drawn by the same weights: only its update differs
    first, other = (metrics(tmp_path / name)[0] for name in ("mixed", "plain"))
    assert first["reward"] == other["reward"]
    assert "data.loss" not in other
    mixed, plain = (weights(tmp_path / name, 3) for name in ("mixed", "plain"))
    assert not all(torch.equal(mixed[name], plain[name]) for name in mixed)


@pytest.mark.system
def test_what_curate_writes_trains_beside_samples(
    make: Callable[..., Recipe], brightness: Service, images: Path, tmp_path: Path
) -> None:
    """One service scores the data, its rule drops the blue, and scores the samples of the run."""
    command = [
        "curate",
        str(images),
        "--reward",
        f"bright={brightness.http}",
        "--keep",
        "bright<0.42",
    ]
    sizes = ["--resolution", "8", "--duplicates", "off", "--validation", "0", "--test", "0"]
    assert main([*command, *sizes, "--out", str(tmp_path / "curated")]) == 0
    kept = tmp_path / "curated" / "data" / "train"
    recipe = make("clip", brightness.http, images=str(kept), weight=0.5)
    examples = open_examples(recipe)
    assert examples is not None
    assert set(examples.prompts) == {"red", "green"}
    train(recipe, tmp_path / "run")
    assert all(row["reward"] > 0 and row["data.loss"] > 0 for row in metrics(tmp_path / "run"))


@pytest.mark.system
def test_a_run_keeps_to_its_data(
    make: Callable[..., Recipe], brightness: Service, images: Path, tmp_path: Path
) -> None:
    recipe = make("data", brightness.http, images=str(images)).model_copy(update={"epochs": 1})
    train(recipe, tmp_path / "run")
    listing = images / "metadata.jsonl"
    listing.write_text(listing.read_text().replace("red", "crimson"))
    with pytest.raises(ConfigError, match="other images or captions"):
        train(recipe.model_copy(update={"epochs": 2}), tmp_path / "run", resume=True)


def test_mistakes_name_what_to_change(
    make: Callable[..., Recipe], recipe_data: dict[str, Any], images: Path, pairs: Path
) -> None:
    with pytest.raises(ConfigError, match=r"needs \[data\]"):
        parse_recipe({**recipe_data, "update": {"objective": "data"}})
    with pytest.raises(ConfigError, match="one of the two"):
        make("data", images=str(images), pairs=str(pairs))
    with pytest.raises(ConfigError, match="12 examples, and an epoch takes 20"):
        open_examples(make("data", images=str(images), batch=10))
    (images / "00.png").unlink()
    with pytest.raises(ConfigError, match=r"pairs\.jsonl:1: there is no"):
        open_examples(make("data", pairs=str(pairs)))
    recipe = make("data", images=str(images), batch=6)
    examples = open_examples(recipe)
    assert examples is not None
    with pytest.raises(ConfigError, match=r"00\.png: .*No such file"):
        examples.images(range(12))
    bigger = recipe.model.model_copy(update={"width": 16, "height": 16})
    examples = open_examples(recipe.model_copy(update={"model": bigger}))
    assert examples is not None
    with pytest.raises(ConfigError, match="too small: 8 x 8 pixels; the model takes 16 x 16"):
        examples.images([1])
    (images / "set.parquet").write_bytes(b"")
    pairs.write_text(json.dumps({"prompt": "red", "chosen": "train/01.png"}))
    with pytest.raises(ConfigError, match=r"pairs\.jsonl:1: expected an object"):
        open_examples(make("data", pairs=str(pairs)))
