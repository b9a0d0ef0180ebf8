"""Objectives on finished samples against numbers produced by the published trainers' own functions:
value and gradient."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flow_trainer.algorithm.objectives.crd import crd_objective, kl_weight
from flow_trainer.algorithm.objectives.dgpo import dgpo_objective
from flow_trainer.algorithm.objectives.epg import elbo, epg_objective, likelihood_kl
from flow_trainer.algorithm.objectives.matching import Noised, group_means, mean_square
from flow_trainer.algorithm.objectives.nft import nft_objective
from flow_trainer.algorithm.objectives.ram import ram_objective

FOLDER = Path(__file__).parents[2] / "golden" / "objectives"
GRADIENT_RTOL = 1e-5
"""Of the largest entry."""


def cases(name: str, kind: str) -> list[dict[str, Any]]:
    found = json.loads((FOLDER / f"{name}.json").read_text())["cases"]
    return [case for case in found if case["kind"] == kind]


def identify(case: dict[str, Any]) -> str:
    return case["id"]


@pytest.fixture(scope="module")
def elbo_tensors() -> dict[str, Tensor]:
    return load_file(FOLDER / "elbo_policy.safetensors")


@pytest.fixture(scope="module")
def group_tensors() -> dict[str, Tensor]:
    return load_file(FOLDER / "dgpo_crd.safetensors")


def noised(t: dict[str, Tensor], name: str, **changed: Any) -> tuple[Noised, Tensor]:
    """The rows of an input whose v collects gradients, and their advantages."""
    get = {key: t[f"in/{name}/{key}"] for key in ("x0", "noise", "v", "v_old", "v_ref")}
    get = {**get, **changed}
    sigma = t.get(f"in/{name}/t", t.get(f"in/{name}/sigma"))
    assert sigma is not None
    sigma = changed.get("sigma", sigma)
    column = sigma.view(-1, *[1] * (get["x0"].ndim - 1))
    x_t = (1 - column) * get["x0"] + column * get["noise"]
    step = Noised(
        get["x0"],
        get["noise"],
        x_t,
        sigma,
        get["v"].clone().requires_grad_(True),
        get["v_old"],
        get["v_ref"],
        changed.get("group"),
    )
    return step, t[f"in/{name}/advantages"]


def compare(loss: Tensor, expected: float, step: Noised, gradient: Tensor) -> None:
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5, abs=2e-6)
    (found,) = torch.autograd.grad(loss, step.v)
    atol = GRADIENT_RTOL * float(gradient.abs().max())
    torch.testing.assert_close(found, gradient.to(found), atol=atol, rtol=0)


@pytest.mark.parametrize("case", cases("elbo_policy", "elbo"), ids=identify)
def test_elbo(case: dict[str, Any], elbo_tensors: dict[str, Tensor]) -> None:
    step, _ = noised(elbo_tensors, case["input"])
    found = elbo(step, step.v, case["elbo"], case["guidance_scale"])
    expected = elbo_tensors[f"{case['id']}/elbo"]
    torch.testing.assert_close(found.detach(), expected.double(), atol=1e-6, rtol=1e-5)
    compare(found.sum(), float(expected.sum()), step, elbo_tensors[f"{case['id']}/grad_sum_wrt_v"])


POLICY = {
    "epg": ("epg", True),
    "epg_noratio": ("epg", False),
    "pepg": ("pepg", True),
    "pepg_noratio": ("pepg", False),
    "grpo": ("clip", True),
}


@pytest.mark.parametrize("case", cases("elbo_policy", "policy"), ids=identify)
def test_policy_gradients(case: dict[str, Any], elbo_tensors: dict[str, Tensor]) -> None:
    changed = {} if case["old"] == "v_old" else {"v_old": elbo_tensors[f"in/{case['input']}/v"]}
    step, advantages = noised(elbo_tensors, case["input"], **changed)
    par = case["method"].startswith("par")
    gradient, ratio = POLICY[case["method"].replace("par", "pepg") if par else case["method"]]
    if gradient == "clip":
        advantages = advantages.clamp(-5, 5)
    loss, _ = epg_objective(
        step,
        advantages,
        gradient=gradient,
        likelihood=case["elbo"],
        ratio=ratio,
        clip_range=1e-3,
        guidance=case["guidance_scale"],
    )
    loss = loss.mean()
    expected = (
        float(loss.detach()) if par else case["loss"]
    )  # PAR: another value, the same gradient
    compare(loss, expected, step, elbo_tensors[f"{case['id']}/grad_wrt_v"])


@pytest.mark.parametrize(
    "case",
    [c for c in cases("elbo_policy", "kl") if c["kl_method"] in ("girsanov", "kl2", "kl3")],
    ids=identify,
)
def test_distance_from_the_reference(case: dict[str, Any], elbo_tensors: dict[str, Tensor]) -> None:
    step, _ = noised(elbo_tensors, case["input"])
    form = case["kl_method"]
    if form == "girsanov":
        kl = mean_square(step.v, step.reference)
    else:
        e = elbo(step, step.v, case["elbo"])
        e_ref = elbo(step, step.reference, case["elbo"], case["ref_guidance_scale"])
        kl = likelihood_kl(form, e, e_ref)
        if form == "kl3":
            # the original's K has the other sign
            k = e - e_ref
            torch.testing.assert_close(kl.detach(), (torch.exp(-k) - 1 + k).detach())
            swapped = likelihood_kl("kl3", -e, -e_ref).detach()
            torch.testing.assert_close(
                swapped, torch.tensor(case["kl_values"]).double(), atol=2e-7, rtol=1e-4
            )
            return
    values = torch.tensor(case["kl_values"]).to(kl)
    torch.testing.assert_close(kl.detach(), values, atol=2e-7, rtol=1e-5)
    compare(kl.mean(), case["kl_mean"], step, elbo_tensors[f"{case['id']}/grad_mean_wrt_v"])


def test_kl3_is_least_at_the_reference() -> None:
    e = torch.tensor([-0.3, 0.0, 0.4], dtype=torch.float64, requires_grad=True)
    kl = likelihood_kl("kl3", e, torch.zeros(3).double())
    (gradient,) = torch.autograd.grad(kl.sum(), e)
    assert kl.detach().tolist() == pytest.approx([0.04985880757600311, 0.0, 0.07032004603563933])
    assert gradient[0] < 0
    assert gradient[1] == 0
    assert gradient[2] > 0


def full_loss(step: Noised, a: Tensor, settings: dict[str, Any]) -> Tensor:
    method = settings["method"]
    if method == "ram":
        return ram_objective(step, a, strength=settings["ram_reward_multiplier"])[0]
    if method == "diffusionnft":
        # it takes the optimality, in [0, 1]
        strength = settings["diffusionnft_beta"]
        loss, _ = nft_objective(step, (2 * a - 1) * 5, strength=strength, advantage_clip=5.0)
    else:
        gradient, ratio = POLICY[method.replace("par", "pepg")]
        loss, _ = epg_objective(
            step, a, gradient=gradient, likelihood="adaptive", ratio=ratio, clip_range=1e-3
        )
    return loss + settings["beta"] * mean_square(step.v, step.reference)


@pytest.mark.parametrize(
    "case",
    [c for c in cases("elbo_policy", "full") if not c["settings"]["method"].startswith("dmd")],
    ids=identify,
)
def test_whole_losses(case: dict[str, Any], elbo_tensors: dict[str, Tensor]) -> None:
    noise = elbo_tensors[f"{case['id']}/noise"]
    step, _ = noised(elbo_tensors, case["input"], noise=noise)
    loss = full_loss(step, elbo_tensors[f"{case['id']}/signal"], case["settings"]).mean()
    par = case["settings"]["method"].startswith("par")
    expected = float(loss.detach()) if par else case["loss"]
    compare(loss, expected, step, elbo_tensors[f"{case['id']}/grad_wrt_v"])


@pytest.mark.parametrize("case", cases("dgpo_crd", "dgpo"), ids=identify)
def test_group_preference(case: dict[str, Any], group_tensors: dict[str, Tensor]) -> None:
    name = case["input"]
    changed: dict[str, Any] = {"group": group_tensors[f"in/{name}/groups"].long()}
    step, advantages = noised(group_tensors, name, **changed)
    kl = mean_square(step.v, step.reference)
    if case["use_ema_ref"]:
        changed["v_ref"] = step.v_old
        compared, _ = noised(group_tensors, name, **changed)
        step = Noised(**{**fields(compared), "v": step.v})
    loss, diagnostics = dgpo_objective(
        step,
        advantages.clamp(-case["adv_clip"], case["adv_clip"]),
        strength=case["dpo_beta"],
        clip_range=case["clip_range"] if case["clip_dsm"] else float("inf"),
        group_size=case["group_size"],
    )
    clipped = torch.tensor(case["clipped"], dtype=torch.float32)
    torch.testing.assert_close(diagnostics["clip_fraction"].float(), clipped)
    if case["clip_kl"]:
        kl = torch.where(clipped.bool(), kl.detach(), kl)
    total = loss.mean() + case["kl_beta"] * kl.mean()
    compare(total, case["loss"], step, group_tensors[f"{case['id']}/grad_wrt_v"])


def fields(step: Noised) -> dict[str, Any]:
    return {name: getattr(step, name) for name in Noised.__dataclass_fields__}


def one_centre(case: dict[str, Any]) -> bool:
    """The rule without what is left out: weights, cross-entropy, plain errors, the reference as old."""
    return (
        case["center_weights"] is None
        and case["crd_loss_type"] == "mse"
        and case["adaptive_logp"]
        and case["use_old_for_loss"]
    )


@pytest.mark.parametrize(
    "case", [c for c in cases("dgpo_crd", "crd") if one_centre(c)], ids=identify
)
def test_reward_regression(case: dict[str, Any], group_tensors: dict[str, Tensor]) -> None:
    # the original centres over all rows, as if they were one group
    rows = len(group_tensors[f"in/{case['input']}/groups"])
    step, advantages = noised(
        group_tensors, case["input"], group=torch.zeros(rows, dtype=torch.int64)
    )
    loss, diagnostics = crd_objective(
        step, advantages, strength=case["crd_beta"], advantage_clip=case["adv_clip"]
    )
    r = torch.tensor(case["r_theta"]).to(diagnostics["implied_reward"])
    torch.testing.assert_close(diagnostics["implied_reward"], r, atol=1e-6, rtol=1e-5)
    weight: Tensor | float = case["kl_beta"]
    if case["reward_adaptive_kl"]:
        weight = kl_weight(advantages, case["adv_clip"], case["kl_beta"])
    total = (loss + weight * mean_square(step.v, step.reference)).mean()
    compare(total, case["loss"], step, group_tensors[f"{case['id']}/grad_wrt_v"])


def test_implied_rewards_are_centred_in_each_group(group_tensors: dict[str, Tensor]) -> None:
    group = group_tensors["in/g2/groups"].long()
    whole, advantages = noised(group_tensors, "g2", group=group)
    together, _ = crd_objective(whole, advantages, strength=1.0, advantage_clip=5.0)
    for number in (0, 1):
        rows = group == number
        parts = {k: v[rows] for k, v in fields(whole).items() if v is not None and k != "used"}
        parts["group"] = torch.zeros(int(rows.sum()), dtype=torch.int64)
        alone, _ = crd_objective(
            Noised(**parts), advantages[rows], strength=1.0, advantage_clip=5.0
        )
        torch.testing.assert_close(alone, together[rows])


def test_unused_rows_do_not_move_a_centre() -> None:
    group = torch.tensor([0, 0, 0, 1])
    used = torch.tensor([True, True, False, False])
    means = group_means(torch.tensor([1.0, 3.0, 99.0, 5.0]), group, used)
    assert means.tolist() == [2.0, 2.0, 2.0, 0.0]


def test_unknown_choices_are_named(elbo_tensors: dict[str, Tensor]) -> None:
    step, advantages = noised(elbo_tensors, "a")
    settings = {"ratio": True, "clip_range": 1.0}
    wrong: list[tuple[str, Callable[[], Any]]] = [
        ("likelihood", lambda: elbo(step, step.v, "hinge")),
        ("KL form", lambda: likelihood_kl("kl1", step.sigma, step.sigma)),
        (
            "gradient",
            lambda: epg_objective(step, advantages, gradient="ppo", likelihood="t", **settings),
        ),
    ]
    for what, call in wrong:
        with pytest.raises(ValueError, match=what):
            call()
