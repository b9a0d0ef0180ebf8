"""Compiled blocks with the real compiler: is the ratio of an unchanged policy exactly 1, and is
anything compiled anew once every shape was met?

    python benchmarks/trainer/compiled.py [--dtype bfloat16] [--epochs 3]

A shrunk SD3.5-M with random weights on a CPU: Inductor's C++ instead of its Triton. Every epoch samples,
asks the reference, updates twice and evaluates, with guidance, and asks the reference once without.
Micro-batches are of 4 images and a last smaller one of 2, in training and in evaluation. From the second
epoch on a recompilation is an error.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._dynamo.utils import counters

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from harness import ROOT
from random_pipelines import random_pipeline

from flow_trainer.algorithm.advantages import group_advantages
from flow_trainer.loop.rollout import generate, rollout
from flow_trainer.loop.updates.loss_scale import make_loss_scale
from flow_trainer.loop.updates.replay import reference_velocities
from flow_trainer.loop.updates.trajectory import update_policy
from flow_trainer.models.diffusers_policy import DiffusersPolicy
from flow_trainer.models.families.sd3 import FAMILY
from flow_trainer.models.prompt_rows import PromptRows
from flow_trainer.recipe import load_recipe
from flow_trainer.recipe.prompts import Prompt

CHANGES = (
    "device=cpu",
    "model.height=64",
    "model.width=64",
    "model.max_sequence_length=16",
    "model.compile=true",
    "model.autocast_on_cpu=true",
    "sampling.num_steps=4",
    "sampling.prompts_per_epoch=4",
    "sampling.group_size=3",
    "sampling.micro_batch=4",
    "sampling.decode_batch=4",
    "update.updates_per_epoch=2",
)
PROMPTS = [Prompt(text) for text in ("a red sign", "a blue sign", "a dog", "a cat")]


class Run:
    """A policy and what an epoch does with it."""

    def __init__(self, dtype: str) -> None:
        recipe = ROOT / "trainer" / "recipes" / "sd35m_ocr_8x8.toml"
        self.recipe = load_recipe(recipe, [*CHANGES, f"model.dtype={dtype}"])
        kind, cpu = getattr(torch, dtype), torch.device("cpu")
        pipeline = random_pipeline("sd35m", cpu, kind, shrunk=True)
        self.policy = DiffusersPolicy(
            FAMILY, self.recipe.model, cpu, with_reference=True, pipeline=pipeline
        )
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.policy.trainable().values():
                parameter += torch.randn(parameter.shape, generator=generator) * 1e-3
        self.policy.prepare_prompts([prompt.text for prompt in PROMPTS])
        parameters = self.policy.trainable().values()
        self.optimizer = torch.optim.AdamW(parameters, lr=self.recipe.update.learning_rate)
        self.scale = make_loss_scale(self.policy, self.recipe)

    def epoch(self, number: int) -> tuple[float, dict[str, int]]:
        """Largest |ratio - 1| of its first update, and how many graphs each part compiled."""
        policy, recipe, nothing = self.policy, self.recipe, lambda rows, images: None
        graphs, found = counters["stats"]["unique_graphs"], {}

        def compiled(part: str) -> None:
            nonlocal graphs
            found[part] = counters["stats"]["unique_graphs"] - graphs
            graphs = counters["stats"]["unique_graphs"]

        samples = rollout(policy, recipe, number, PROMPTS, range(4), nothing)
        compiled("sampling")
        texts = PromptRows(policy, [prompt.text for prompt in PROMPTS])
        v_ref = reference_velocities(policy, recipe, number, samples, texts)
        compiled("reference")
        rewards = np.random.default_rng(number).random((4, recipe.sampling.group_size))
        advantages = group_advantages(
            rewards, np.ones_like(rewards, bool), std="prompt", min_group=2, clip=5.0
        )
        stats = update_policy(
            policy,
            self.optimizer,
            None,
            recipe,
            number,
            samples,
            texts,
            advantages,
            v_ref,
            scale=self.scale,
        )
        assert stats.updates + stats.skipped == 2
        compiled("update")
        generate(policy, recipe, PROMPTS[:3], 4, 2, nothing)
        compiled("evaluation")
        with torch.no_grad(), policy.reference(1.0):
            policy.velocity(samples.x_0[:4], samples.sigmas[[1] * 4], texts[[0] * 4])
        compiled("without guidance")
        return float(stats.ratio_error), found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    run = Run(options.dtype)
    for number in range(options.epochs):
        stance: Any = torch.compiler.set_stance("fail_on_recompile") if number else nullcontext()
        began = time.process_time()
        with stance:
            error, graphs = run.epoch(number)
        parts = ", ".join(f"{part} {count}" for part, count in graphs.items())
        print(
            f"{options.dtype}, epoch {number + 1}: |ratio - 1| = {error:g}; graphs compiled: {parts}; "
            f"{time.process_time() - began:.0f} s of CPU",
            flush=True,
        )


if __name__ == "__main__":
    main()
