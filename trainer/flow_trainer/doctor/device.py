"""Doctor: the device is there, is large enough, and computes steps as the published trainers do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from flow_trainer.algorithm.dynamics import DYNAMICS
from flow_trainer.doctor.checks import Check
from flow_trainer.doctor.estimate import GB
from flow_trainer.errors import ConfigError
from flow_trainer.models.architectures import inspect
from flow_trainer.models.memory import memory
from flow_trainer.parallel.world import pick_device
from flow_trainer.recipe import Recipe

GOLDEN = Path(__file__).with_name("golden_steps.safetensors")
"""One row of each kind of step from numbers that the published trainers' functions gave."""
MEAN_ATOL, LOG_PROB_ATOL = 1e-5, 2e-5


def check_device(recipe: Recipe) -> Check:
    """The device exists and has the recipe's arithmetic."""
    try:
        device = pick_device(recipe.device)
    except ConfigError as error:
        return Check("device", False, str(error))
    if device.type != "cuda":
        return Check("device", True, f"{device}, {_host_memory() / GB:.0f} GB, float32")
    name = torch.cuda.get_device_name(device)
    if recipe.model.dtype == "bfloat16" and not torch.cuda.is_bf16_supported(False):
        return Check(
            "device", False, f"{name} has no bfloat16: set model.dtype = float16 (SD3) or float32"
        )
    return Check("device", True, f"{name}, {_memory(device) / GB:.0f} GB, {recipe.model.dtype}")


def check_memory(recipe: Recipe, gpus: int = 1) -> Check:
    """The estimate against what the device has; the run's other GPUs are taken to be like it."""
    m = recipe.model
    device = pick_device(recipe.device)
    model = inspect(m.path, m.family, m.lora_rank)
    if model is None:
        return Check("memory", True, f"no estimate: the size of {m.path} is not on record")
    if device.type == "cpu":
        recipe = recipe.model_copy(update={"model": m.model_copy(update={"dtype": "float32"})})
    need, have = memory(recipe, model, gpus), _memory(device)
    where = f" on each of {gpus} GPUs" if gpus > 1 else ""
    message = (
        f"about {need.peak / GB:.1f} of {have / GB:.1f} GB{where} (an estimate, within 10 % of a run "
        "without GPU: docs/memory.md)"
    )
    if need.peak > 0.9 * have and need.peak <= have:
        message += "; little is left for CUDA's context and fragmentation: see `flow-grpo plan`"
    if need.peak <= have:
        return Check("memory", True, message)
    ways = ["lower sampling.micro_batch"]
    if not m.gradient_checkpointing:
        ways.append("set model.gradient_checkpointing = true")
    if need.encoders_stay:
        ways.append("raise model.prompt_cache_gb or set model.offload = true (text encoders leave)")
    if m.tuning == "full":
        ways += ["set update.optimizer = adamw8bit", "set model.tuning = lora"]
    if need.loading_peak > have:
        ways = ["use a larger device"]
    if recipe.sharding != "none":
        ways.append("train on more GPUs (--gpus N estimates)")
    return Check("memory", False, f"{message}: {', '.join(ways)}")


def check_arithmetic(device: torch.device) -> Check:
    """Steps, densities and ratios on the device against golden numbers."""
    worst = {"mean": 0.0, "log-probability": 0.0}
    with safe_open(GOLDEN, framework="pt") as file:
        tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
        cases = json.loads(file.metadata()["cases"])
    for case in cases:
        for kind, error in _errors(case, tensors).items():
            worst[kind] = max(worst[kind], error)
    ok = worst["mean"] <= MEAN_ATOL and worst["log-probability"] <= LOG_PROB_ATOL
    found = ", ".join(f"{kind} off by {error:.0e}" for kind, error in worst.items())
    fix = "" if ok else f" (at most {MEAN_ATOL:.0e}, {LOG_PROB_ATOL:.0e}): another torch or driver"
    return Check("arithmetic", ok, f"{len(cases)} golden steps on {device}: {found}{fix}")


def _errors(case: dict, tensors: dict[str, Tensor]) -> dict[str, float]:
    kind, sigma = case["dynamics"], case["sigma"]
    log_probs, mean = {}, torch.empty(0)
    for which in ("old", "new"):
        v = tensors[f"model_output_{which}"]
        step = DYNAMICS[kind](
            tensors["sample"], v, sigma, case["sigma_next"], case["noise_level"], sigma
        )
        log_probs[which] = float(step.log_prob(tensors[f"{kind}/prev_sample"]))
        mean = step.mean
    return {
        "mean": float((mean - tensors[f"{kind}/mean_new"]).abs().max()),
        "log-probability": max(abs(log_probs[w] - case[f"log_prob_{w}"]) for w in log_probs),
    }


def _memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return _host_memory()


def _host_memory() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
