"""Our arithmetic against numbers produced by the published trainers' own functions."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flow_trainer.algorithm.advantages import combine_rewards, group_advantages
from flow_trainer.algorithm.dynamics import DYNAMICS, Transition
from flow_trainer.algorithm.ema import Ema, ema_rule
from flow_trainer.algorithm.objectives.awm import awm_log_prob
from flow_trainer.algorithm.objectives.clip import Replayed, clip_objective
from flow_trainer.algorithm.objectives.dppo import dppo_objective
from flow_trainer.algorithm.objectives.guard import guard_objective
from flow_trainer.algorithm.objectives.kl import kl_divergence
from flow_trainer.algorithm.objectives.matching import Noised
from flow_trainer.algorithm.objectives.nft import nft_objective
from flow_trainer.algorithm.schedule import dynamic_shift_sigmas, shift_mu, static_shift_sigmas
from flow_trainer.algorithm.window import window
from flow_trainer.recipe import Reward

MEAN_ATOL, LOG_PROB_ATOL = 1e-5, 2e-5


@pytest.fixture(scope="module")
def folder(golden: Path) -> Path:
    return golden / "trainer"


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def test_schedules(folder: Path) -> None:
    data = load(folder / "schedules.json")
    assert shift_mu(1024) == pytest.approx(data["mu_flux512"])
    for name, expected in data["schedules"].items():
        family, _, steps = name.partition("_T")
        if family == "flux512":
            sigmas = dynamic_shift_sigmas(int(steps), data["mu_flux512"])
        else:
            sigmas = static_shift_sigmas(int(steps), {"sd3": 3.0, "shift1": 1.0}[family])
        assert sigmas.dtype == torch.float32
        np.testing.assert_allclose(sigmas, expected["sigmas"], atol=1e-6, err_msg=name)
        np.testing.assert_allclose(sigmas[:-1] * 1000, expected["timesteps"], atol=1e-3)


def sde_cases() -> list[dict[str, Any]]:
    path = Path(__file__).parents[2] / "golden" / "trainer" / "sde_step.json"
    return load(path)["cases"]


@pytest.fixture(scope="module")
def sde_tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "sde_step.safetensors")


@pytest.mark.parametrize("case", sde_cases(), ids=lambda case: f"{case['id']}-{case['kind']}")
def test_sde_step(case: dict[str, Any], sde_tensors: dict[str, Tensor], folder: Path) -> None:
    sigmas = load(folder / "schedules.json")["schedules"][case["schedule"]]["sigmas"]
    x = sde_tensors[f"in/{case['input']}/sample"]
    expected = {k: sde_tensors[f"sde/{case['id']}/{k}"] for k in ("prev_sample", "noise")}
    step = DYNAMICS[case["kind"]]

    def transition(which: str, noise_level: float) -> Transition:
        v = sde_tensors[f"in/{case['input']}/model_output_{which}"]
        sigma, sigma_next = torch.tensor(case["sigma"]), torch.tensor(case["sigma_next"])
        return step(x, v, sigma, sigma_next, noise_level, sigmas[1])

    if case["noise_level"] == 0:
        # the original returns the Euler mean and a NaN density; we refuse, and the limit agrees
        with pytest.raises(ValueError, match="Euler"):
            transition("old", 0.0)
        limit = transition("old", 1e-6)
        mean = sde_tensors[f"sde/{case['id']}/mean_old"]
        torch.testing.assert_close(limit.mean, mean, atol=MEAN_ATOL, rtol=0)
        return
    for which in ("old", "new"):
        found = transition(which, case["noise_level"])
        mean = sde_tensors[f"sde/{case['id']}/mean_{which}"]
        torch.testing.assert_close(found.mean, mean, atol=MEAN_ATOL, rtol=1e-5)
        if case["finite_log_prob"]:
            log_prob = sde_tensors[f"sde/{case['id']}/log_prob_{which}"]
            torch.testing.assert_close(
                found.log_prob(expected["prev_sample"]), log_prob, atol=LOG_PROB_ATOL, rtol=1e-5
            )
        if which == "old":
            sample = found.sample(expected["noise"])
            torch.testing.assert_close(sample, expected["prev_sample"], atol=MEAN_ATOL, rtol=1e-5)


@pytest.mark.parametrize("std", ["prompt", "global"])
def test_advantages(folder: Path, std: str) -> None:
    compared = 0
    for case in load(folder / "advantages.json")["cases"]:
        rewards = np.array(case["rewards"], np.float64)
        if rewards.ndim != 1:
            continue  # one reward per step: not a form that any recipe uses
        groups = defaultdict(list)
        for row, prompt in enumerate(case["prompts"]):
            groups[prompt].append(row)
        size = max(map(len, groups.values()))
        grid, valid = np.zeros((len(groups), size)), np.zeros((len(groups), size), bool)
        for p, rows in enumerate(groups.values()):
            grid[p, : len(rows)], valid[p, : len(rows)] = rewards[rows], True
        found = group_advantages(grid, valid, std=std, min_group=1, clip=np.inf)
        expected = np.array(case[f"flow_grpo_{'per_prompt' if std == 'prompt' else 'global'}_std"])
        for p, rows in enumerate(groups.values()):
            np.testing.assert_allclose(
                found.values[p, : len(rows)], expected[rows], rtol=1e-9, atol=1e-12
            )
        assert found.metrics["zero_std_ratio"] == pytest.approx(case["zero_std_ratio"])
        compared += 1
    assert compared >= 3


def test_clip_objective(folder: Path) -> None:
    tensors = load_file(folder / "grpo_loss.safetensors")
    cases = [c for c in load(folder / "grpo_loss.json")["cases"] if "kl_loss" not in c]
    for case in cases:
        t = {
            k: tensors[f"{case['name']}/{k}"]
            for k in ("old_log_prob", "new_log_prob", "advantages")
        }
        log_prob = t["new_log_prob"].clone().requires_grad_(True)
        advantages = t["advantages"].clamp(-case["adv_clip_max"], case["adv_clip_max"])
        unit = torch.ones(len(log_prob))
        step = Replayed(log_prob, t["old_log_prob"], std=unit, d=unit)
        loss, diagnostics = clip_objective(step, advantages, case["clip_range"])
        loss.mean().backward()
        assert loss.mean().item() == pytest.approx(case["policy_loss"], rel=1e-6, abs=1e-7)
        gradient = tensors[f"{case['name']}/grad_policy_loss_wrt_new_log_prob"]
        torch.testing.assert_close(log_prob.grad, gradient, atol=1e-7, rtol=1e-5)
        ratio = torch.exp(t["new_log_prob"] - t["old_log_prob"])
        torch.testing.assert_close(ratio, tensors[f"{case['name']}/ratio"])
        means = {name: value.mean().item() for name, value in diagnostics.items()}
        assert means["approx_kl"] == pytest.approx(case["approx_kl"], rel=1e-4, abs=1e-12)
        assert means["clip_fraction"] == pytest.approx(case["clipfrac"], abs=1e-6)
        assert means["clip_fraction_above"] == pytest.approx(case["clipfrac_gt_one"], abs=1e-6)
        assert means["clip_fraction_below"] == pytest.approx(case["clipfrac_lt_one"], abs=1e-6)


@pytest.fixture(scope="module")
def guard_tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "guard_dppo.safetensors")


def replayed(t: dict[str, Tensor], name: str) -> Replayed:
    square = (t[f"{name}/new_mean"] - t[f"{name}/old_mean"]) ** 2
    return Replayed(
        t[f"{name}/new_log_prob"],
        t[f"{name}/old_log_prob"],
        std=t[f"{name}/std_dev_t"].flatten() * t[f"{name}/sqrt_neg_dt"].flatten(),
        d=t[f"{name}/sqrt_neg_dt"].flatten() ** 2,
        mean_square=square.flatten(1).mean(1),
    )


def test_guard_objective(folder: Path, guard_tensors: dict[str, Tensor]) -> None:
    for case in load(folder / "guard_dppo.json")["cases"]:
        step = replayed(guard_tensors, case["name"])
        # a huge clip range shows the ratio itself: loss = -A r / D
        raw, _ = guard_objective(step, -torch.ones(2), 1e9)
        ratio = guard_tensors[f"{case['name']}/guard_ratio_per_sample"]
        torch.testing.assert_close(raw * step.d, ratio, atol=2e-7, rtol=0)
        advantages = guard_tensors[f"{case['name']}/advantages"]
        loss, _ = guard_objective(step, advantages, case["clip_range"])
        assert loss.mean().item() == pytest.approx(case["guard_policy_loss_verl_omni"], rel=1e-6)


def test_dppo_objective(folder: Path, guard_tensors: dict[str, Tensor]) -> None:
    for case in load(folder / "guard_dppo.json")["cases"]:
        step, name = replayed(guard_tensors, case["name"]), case["name"]
        loss, diagnostics = dppo_objective(
            step, guard_tensors[f"{name}/advantages"], case["dppo_threshold"]
        )
        torch.testing.assert_close(loss, guard_tensors[f"{name}/dppo_loss_per_element"])
        assert loss.mean().item() == pytest.approx(case["dppo_loss"], rel=1e-6)
        means = {key: value.mean().item() for key, value in diagnostics.items()}
        assert means["masked_fraction"] == case["dppo_masked_fraction"]
        assert means["approx_kl"] == pytest.approx(case["dppo_kl_mean"], rel=1e-4)


def test_nft_objective(folder: Path) -> None:
    t = load_file(folder / "forward_process.safetensors")
    cases = load(folder / "forward_process.json")["cases"]
    assert len(cases) == 3
    for case in cases:
        x_0, noise, sigma, v_old, v_new, v_ref, advantages = (
            t[f"{case['name']}/{k}"]
            for k in ("x0", "noise", "t", "v_old", "v_new", "v_ref", "advantages")
        )
        column = sigma.view(-1, 1, 1, 1)
        v = v_new.clone().requires_grad_(True)
        x_t = (1 - column) * x_0 + column * noise
        clip = case["adv_clip_max"]
        loss, diagnostics = nft_objective(
            Noised(x_0, noise, x_t, sigma, v, v_old),
            advantages.clamp(-clip, clip),
            strength=case["beta"],
            advantage_clip=clip,
        )
        total = loss + case["kl_beta"] * ((v - v_ref) ** 2).flatten(1).mean(1)
        total.mean().backward()
        assert total.mean().item() == pytest.approx(case["total_loss"], rel=1e-6)
        assert loss.mean().item() == pytest.approx(clip * case["unweighted_policy_loss"], rel=1e-6)
        deviation = diagnostics["old_deviation"].mean().item()
        assert deviation == pytest.approx(case["old_deviate"], rel=1e-5)
        torch.testing.assert_close(
            v.grad, t[f"{case['name']}/grad_wrt_v_new"], atol=1e-8, rtol=1e-4
        )


def test_awm_log_prob(folder: Path) -> None:
    t = load_file(folder / "forward_process.safetensors")
    for weighting, key in (
        ("uniform", "Uniform"),
        ("t", "t"),
        ("t2", "tpow2"),
        ("huber", "huber"),
        ("ghuber", "ghuber"),
    ):
        found = awm_log_prob(
            t["awm/model_output"], t["awm/target"], t["awm/timestep"] / 1000, weighting
        )
        expected = t[f"awm/log_prob_{key}"]
        torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=1e-9)


def test_several_rewards(folder: Path) -> None:
    for case in load(folder / "advantages.json")["multi_reward"]:
        assert len(set(case["prompts"])) == 3
        rewards = {name: np.reshape(values, (3, 4)) for name, values in case["rewards"].items()}
        terms = {name: Reward(url="", weight=w) for name, w in case["weights"].items()}
        valid = np.ones((3, 4), bool)
        for std, key in (("prompt", "sum_per_prompt_std"), ("global", "sum_global_std")):
            total = combine_rewards(rewards, terms, valid)
            found = group_advantages(total, valid, std=std, min_group=2, clip=np.inf).values
            # Flow-Factory floors the deviation where we add flow_grpo's 1e-4
            np.testing.assert_allclose(found.flatten(), case[key], rtol=1e-3)
        total = combine_rewards(rewards, terms, valid, normalise="prompt")
        found = group_advantages(total, valid, std="gdpo", min_group=2, clip=np.inf).values
        np.testing.assert_allclose(found.flatten(), case["gdpo"], rtol=1e-6, atol=1e-6)


def test_progressive_window(folder: Path) -> None:
    for case in load(folder / "sampling.json")["mixgrpo_windows"]:
        config, expected = case["config"], case["windows_start_len"]
        if "sample_strategy" in config:
            continue  # random (another generator) and decaying periods
        stride = (
            config.get("prog_overlap_step", 1) if config["prog_overlap"] else config["group_size"]
        )
        found = [
            window(
                "progressive",
                num_steps=config["max_timesteps"] + 1,
                size=config["group_size"],
                lo=0,
                hi=None,
                every=config["iters_per_group"],
                stride=stride,
                epoch=index * config.get("every", 1),
                seed=0,
            )
            for index in range(len(expected))
        ]
        first_pass = expected.index([0])
        assert [[w.start, len(w)] for w in found[:first_pass]] == expected[:first_pass]
        # where the original idles we begin again at once
        assert found[first_pass] == found[0]


def test_kl_forms(folder: Path) -> None:
    tensors = load_file(folder / "grpo_loss.safetensors")
    cases = [c for c in load(folder / "grpo_loss.json")["cases"] if "kl_loss" in c]
    assert len(cases) == 3
    for case in cases:
        name, d = case["name"], -torch.tensor(case["dt"])
        mean, mean_ref = (tensors[f"{name}/prev_sample_mean{s}"] for s in ("", "_ref"))
        g = (
            tensors[f"{name}/std_dev_t"]
            .reshape(-1, *[1] * (mean.ndim - 1))
            .expand(len(mean), -1, -1, -1)
        )
        step, reference = (Transition(m, g * d.sqrt()) for m in (mean, mean_ref))
        for form, key in (
            ("gaussian", "kl_true_gaussian"),
            ("gaussian_unscaled", "kl_without_dt_code_form"),
        ):
            kl = kl_divergence(form, step, reference, mean, mean_ref, d.expand(len(mean)))
            assert kl.mean().item() == pytest.approx(case[key], rel=1e-5), form
        velocity = kl_divergence("velocity", step, reference, mean, mean_ref, d)
        assert velocity.mean().item() == pytest.approx(case["flow_factory_x_based"], rel=1e-5)


def test_ema(folder: Path) -> None:
    trace = load(folder / "sampling.json")["ema_decay09_interval8"]
    start = [p - s for p, s in zip(trace[0]["param"], (0.1, 0.05), strict=True)]
    parameter = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    ema = Ema({"w": parameter}, ema_rule(0.9, 8))
    for row in trace:
        parameter.data = torch.tensor(row["param"], dtype=torch.float64)
        ema.update()
        np.testing.assert_allclose(ema.weights()["w"], row["ema"], rtol=1e-12)
