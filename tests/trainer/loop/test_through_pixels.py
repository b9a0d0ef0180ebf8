"""ReFL: gradients of a reward that runs elsewhere, through the decoder and the last steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flow_trainer.algorithm.dynamics import euler
from flow_trainer.algorithm.objectives.refl import slopes
from flow_trainer.errors import ConfigError
from flow_trainer.loop.rollout import rollout
from flow_trainer.loop.scoring import Job, Scorer
from flow_trainer.loop.train import train
from flow_trainer.loop.updates.through_pixels import pixel_gradients, update_through_pixels
from flow_trainer.models.load import load_policy
from flow_trainer.models.policy import Policy
from flow_trainer.recipe import Recipe
from flow_trainer.recipe.prompts import Prompt
from flow_trainer.recipe.rewards import Reward
from policy_steps import CPU, PROMPTS, changed
from processes import SMOOTH, Service, Services
from smooth import factor, weights

INDICES = [3, 1]


def refl(data: dict[str, Any], url: str, **update: Any) -> Recipe:
    """Of the steps 1 to 4 of four, two in a row have gradients."""
    window = {"kind": "random", "lo": 1, "size": 2}
    changes = {
        "sampling": {**data["sampling"], "dynamics": "ode", "window": window},
        "rewards": {"smooth": {"url": url, "weight": 3.0}},
    }
    settings = {"objective": "refl", "updates_per_epoch": 1, **update}
    return changed({**data, **changes}, "update", **settings)


class Kept(torch.optim.Optimizer):
    """Takes no step and keeps the gradient."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy.trainable().values(), {"lr": 0.0})
        self.policy = policy

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = self.policy.trainable().values()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        self.gradient = torch.cat([grad.flatten() for grad in grads])


def by_service(
    policy: Policy, recipe: Recipe, epoch: int, prompts: Sequence[Prompt] = PROMPTS
) -> tuple[torch.Tensor, dict[str, float]]:
    """The gradient that the trainer hands its optimizer, and the epoch's metrics."""
    scorer = Scorer(recipe.rewards, recipe.scoring)
    jobs: list[Job] = []
    group = recipe.sampling.group_size

    def send(rows: range, images: torch.Tensor) -> None:
        texts = [prompts[row // group] for row in rows]
        jobs.append(scorer.submit(rows, images, texts, gradient=True))

    try:
        samples = rollout(policy, recipe, epoch, prompts, INDICES[: len(prompts)], send)
        scores = scorer.collect(jobs)
        found = pixel_gradients(recipe, scores, [""] * len(prompts), jobs)
    finally:
        scorer.close()
    optimizer = Kept(policy)
    texts = policy.encode([prompt.text for prompt in prompts])
    stats = update_through_pixels(
        policy, optimizer, None, recipe, epoch, samples, texts, lambda: found
    )
    return optimizer.gradient, stats.means()


def in_one_process(policy: Policy, recipe: Recipe, epoch: int) -> torch.Tensor:
    """The same by autograd, from the noise on: nothing is cut but where ReFL stops."""
    images: list[torch.Tensor] = []
    samples = rollout(policy, recipe, epoch, PROMPTS, INDICES, lambda _, i: images.append(i))
    count, group = len(samples.rows), recipe.sampling.group_size
    texts = policy.encode([PROMPTS[row // group].text for row in samples.rows])
    x, window = samples.latents[:, 0], samples.window
    sigmas = policy.sigmas(recipe.sampling.num_steps)
    squares = []
    for i in window:
        sigma = sigmas[i].repeat(count)
        with torch.no_grad(), policy.reference():
            v_ref = policy.velocity(x.detach(), sigma, texts)
        v = policy.velocity(x, sigma, texts)
        squares.append(((v - v_ref) ** 2).flatten(1).mean(1))
        x = euler(x, v, sigmas[i], 0.0 if i == window[-1] else sigmas[i + 1])
    decoded = policy._pixels(x)  # type: ignore[attr-defined]
    pixels = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    rounded = pixels + ((255 * pixels).round() / 255 - pixels).detach()
    w = torch.from_numpy(weights(*pixels.shape[1:3]))
    k = torch.tensor([factor(PROMPTS[row // group].text) for row in samples.rows])
    reward = 3.0 * k * (w * rounded**2).flatten(1).mean(1)
    assert torch.equal((255 * pixels).round().to(torch.uint8), torch.cat(images))
    kl = torch.stack(squares).mean(0)
    loss = (recipe.update.beta * kl - reward).mean()
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(policy.trainable().values()))]
    )


@pytest.fixture
def smooth(services: Services) -> Service:
    return services.start(SMOOTH)


def moved(policy: Policy) -> Policy:
    """With weights that are not the reference's."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return policy


@pytest.mark.system
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_the_whole_chain_is_that_of_one_process(
    smooth: Service, recipe_data: dict[str, Any], tuning: str
) -> None:
    data = {**recipe_data, "model": {**recipe_data["model"], "tuning": tuning, "lora_rank": 2}}
    windows = set()
    for epoch, gradient_batch in ((0, 1), (1, 3), (4, 4)):
        recipe = refl(
            data,
            smooth.http,
            kl="velocity",
            beta=0.01,
            gradient_batch=gradient_batch,
            max_grad_norm=1e9,
        )
        torch.manual_seed(0)
        policy = moved(load_policy(recipe.model, CPU, with_reference=True))
        windows.add(recipe.window(epoch))
        found, metrics = by_service(policy, recipe, epoch)
        wanted = in_one_process(policy, recipe, epoch)
        # eleven bits of each number that travels
        assert float((found - wanted).norm() / wanted.norm()) < 1e-3
        assert metrics["kl"] > 0
        assert metrics["reward_slope"] > 0
    assert len(windows) > 1


@pytest.mark.system
def test_samples_without_a_score_and_beyond_the_clip_pull_nowhere(
    services: Services, recipe_data: dict[str, Any]
) -> None:
    service = services.start(SMOOTH, SMOOTH_FAIL_PROMPT="blue")
    recipe = refl(recipe_data, service.http, max_grad_norm=1e9)
    policy = load_policy(recipe.model, CPU, with_reference=True)
    found, metrics = by_service(policy, recipe, 0)
    assert found.norm() > 0
    sizes = {**recipe_data["sampling"], "prompts_per_epoch": 1}
    alone = refl({**recipe_data, "sampling": sizes}, service.http, max_grad_norm=1e9)
    only_red, of_red = by_service(policy, alone, 0, PROMPTS[:1])
    # half of the planned samples failed, and the mean is over the planned ones
    torch.testing.assert_close(found, only_red / 2, rtol=1e-4, atol=1e-9)
    assert metrics["policy_loss"] == pytest.approx(of_red["policy_loss"], rel=1e-5)
    clipped = changed(
        recipe.model_dump(), "rewards", smooth={"url": service.http, "clip": (5.0, 9.0)}
    )
    nothing, _ = by_service(policy, clipped, 0)
    assert not nothing.any()


def test_a_slope_is_the_weight_inside_the_clip() -> None:
    terms = {
        "plain": Reward(url="http://h:1", weight=-0.5),
        "enough": Reward(url="http://h:1", weight=2.0, clip=(-1.0, 2.0)),
    }
    rewards = {"plain": np.array([1.0, 9.0, 9.0]), "enough": np.array([1.9, 2.0, -3.0])}
    found = slopes(rewards, terms, np.array([True, True, True]))
    assert found["plain"].tolist() == [-0.5, -0.5, -0.5]
    assert found["enough"].tolist() == [2.0, 0.0, 0.0]
    assert slopes(rewards, terms, np.zeros(3, bool))["plain"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.system
def test_the_reward_climbs_and_a_run_resumes_bit_for_bit(
    brightness: Service, recipe_data: dict[str, Any], tmp_path: Path
) -> None:
    def settings(epochs: int) -> Recipe:
        data = {**recipe_data, "epochs": epochs}
        data["rewards"] = {"brightness": {"url": brightness.http}}
        return refl(data, brightness.http, learning_rate=1e-2)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(settings(4), whole)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    rewards = [line["reward"] for line in lines if line["kind"] == "train"]
    # other rewards and noise in each epoch vary it by 0.003
    assert rewards[-1] > rewards[0] + 0.03
    train(settings(2), parts)
    train(settings(4), parts, resume=True)
    states = [load_file(r / "checkpoints/epoch_00004/weights.safetensors") for r in (whole, parts)]
    assert [n for n, weight in states[0].items() if not torch.equal(weight, states[1][n])] == []


@pytest.mark.system
def test_a_reward_without_gradients_is_refused_before_the_model_loads(
    services: Services, recipe_data: dict[str, Any], tmp_path: Path
) -> None:
    jpeg = services.start("-m", "reward_services", "jpeg")
    with pytest.raises(ConfigError, match=r"rewards\.smooth is served by jpeg .* no gradient"):
        train(refl(recipe_data, jpeg.http), tmp_path / "run")


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("sampling", {"dynamics": "ode2"}, "use ode"),
        ("sampling", {"window": {"kind": "all"}}, "use random"),
        ("sampling", {"window": {"kind": "random", "hi": 5}}, "hi = 5 exceeds"),
        ("sampling", {"same_latent": True}, "same image"),
        ("update", {"updates_per_epoch": 2}, "use 1"),
        ("update", {"kl": "gaussian", "beta": 0.1}, "use velocity"),
        ("update", {"trained_steps": 1}, r"leave out update\.trained_steps"),
        ("scoring", {"overlap": "epoch"}, "use sampling"),
        ("rewards", {"smooth": {"url": "http://h:1", "normalise": "prompt"}}, "not normalise"),
        ("advantage", {"std": "none"}, "leave out"),
    ],
)
def test_what_does_not_go_with_gradients_is_refused(
    recipe_data: dict[str, Any], section: str, values: dict[str, Any], said: str
) -> None:
    recipe = refl(recipe_data, "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match=said):
        changed(recipe.model_dump(), section, **values)
