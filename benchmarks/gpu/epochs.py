"""Steps `sd35m` and `flux`: an epoch here and the official way, through benchmarks/train_step.py."""

from __future__ import annotations

import train_step
from environment import device
from step import Write

from flow_trainer.models.architectures import inspect
from flow_trainer.models.kernels import compiles
from flow_trainer.models.memory import memory
from flow_trainer.recipe import Recipe
from flow_trainer.record.throughput import peak_flops, speed

SIZES = {
    "sampling.prompts_per_epoch": 2,
    "sampling.group_size": 8,
    "model.compile": "false",
}
"""Of an epoch: two updates of a micro-batch each. Blocks are compiled last: that may take a minute."""
SHRUNK = {
    "sampling.group_size": 2,
    "sampling.micro_batch": 2,
    "sampling.num_steps": 5,
    "model.height": 32,
    "model.width": 32,
    "model.max_sequence_length": 16,
}


def epoch(name: str, shrunk: bool, write: Write) -> None:
    settings = [f"--set={k}={v}" for k, v in (SIZES | (SHRUNK if shrunk else {})).items()]
    flags = ["--shrunk"] if shrunk else []
    options = train_step.parse(
        ["--model", name, "--device", str(device(shrunk)), *flags, *settings]
    )
    bench = train_step.make_bench(options)
    recipe, images = bench.recipe, bench.recipe.images_per_epoch
    peak = peak_flops(bench.device, recipe.model.dtype)
    found: dict = {}
    if not shrunk:
        found["estimate_gb"] = round(_estimated(recipe) / 1e9, 1)
        write(found)

    def measure(way: str, *, official: bool = False) -> None:
        took = bench.epoch(official=official, reward_s=0.0)
        found[way] = {
            "peak_gb": round(took.peak_memory_gb, 2),
            "sampling": _rates(took.sampled, images, took.sample_s, peak),
            "update": _rates(took.updated, images, took.update_s, peak),
            "images_per_second": images / took.total_s,
        }
        write(found)

    bench.epoch(official=False, reward_s=0.0)  # the first does not count
    measure(train_step.HERE)
    measure(train_step.OFFICIAL, official=True)
    if compiles(recipe.model.model_copy(update={"compile": "auto"}), bench.device):
        bench.compile()
        found["compiling_s"] = round(bench.epoch(official=False, reward_s=0.0).total_s, 1)
        measure("here, compiled")


def _estimated(recipe: Recipe) -> float:
    """Bytes of the recipe's peak, text encoders apart: the epoch here has none."""
    architecture = inspect(recipe.model.path, recipe.model.family, recipe.model.lora_rank)
    assert architecture is not None
    found = memory(recipe, architecture)
    return found.training_peak - found.text_encoders * found.encoders_stay


def _rates(work, images: int, seconds: float, peak: float | None) -> dict[str, float]:
    rate = speed(work, images, seconds, peak)
    return {key: rate[key] for key in ("images_per_second", "mfu") if key in rate}
