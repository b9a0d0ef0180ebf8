"""Time and memory of a training epoch: sampling and update, and what each way of saving time saves.

    python benchmarks/train_step.py                               # the tiny model, on a CPU
    python benchmarks/train_step.py --model sd35m                 # full shape on a GPU, random weights
    python benchmarks/train_step.py --model flux --set sampling.micro_batch=8

The same epoch is run two ways, in turns: as this trainer does it, and as the official script's loop
does: prompts encoded again for every micro-batch, one window step per forward in replay, images sent to
the reward after sampling. The reward is a wait, as a service elsewhere is to the trainer, of `--reward`
times what sampling takes. Weights of full shapes are random; only time and memory are measured.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import platform
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from harness import ROOT, markdown, write_json
from random_pipelines import MODELS, random_pipeline

from flow_trainer.algorithm.advantages import Advantages
from flow_trainer.algorithm.ema import Ema, ema_rule, old_policy_rule
from flow_trainer.algorithm.trajectory import Trajectories
from flow_trainer.doctor.estimate import forwards
from flow_trainer.loop.feedback import epoch_advantages
from flow_trainer.loop.rollout import rollout
from flow_trainer.loop.updates.chosen import update_chosen
from flow_trainer.loop.updates.forward import update_forward
from flow_trainer.loop.updates.optimizers import make_optimizer
from flow_trainer.loop.updates.replay import reference_velocities
from flow_trainer.loop.updates.trajectory import update_policy
from flow_trainer.models.diffusers_policy import DiffusersPolicy
from flow_trainer.models.families import FAMILIES
from flow_trainer.models.families.family import Family
from flow_trainer.models.kernels import compile_blocks
from flow_trainer.models.policy import Work
from flow_trainer.recipe import Recipe, load_recipe
from flow_trainer.recipe.prompts import Prompt
from flow_trainer.record.throughput import (
    peak_flops,
    peak_memory_gb,
    reset_peak_memory,
    speed,
    synchronize,
)

RECIPES = {
    "tiny": "tiny_sd3_ocr.toml",
    "sd35m": "sd35m_ocr_8x8_80gb.toml",
    "sd35l": "sd35m_ocr_8x8_80gb.toml",
    "flux": "flux_pickscore_fast_8x8_80gb.toml",
}
PHASES = ("encode_s", "sample_s", "wait_s", "update_s", "total_s")
LABELS = ("prompts encoded", "sampled", "waited for the reward", "updated", "whole epoch")
HERE, OFFICIAL = "here", "official loop"


@dataclass(frozen=True, slots=True)
class Epoch:
    """One epoch, one way. Seconds."""

    encode_s: float
    sample_s: float
    """Decoding included."""
    wait_s: float
    update_s: float
    total_s: float
    sampled: Work
    updated: Work
    peak_memory_gb: float


class Bench:
    """A policy whose text encoders can be freed and brought back."""

    def __init__(self, recipe: Recipe, pipeline: Any, family: Family, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self._pipeline, self._family = pipeline, family
        self.policy = DiffusersPolicy(
            family,
            recipe.model,
            device,
            with_reference=recipe.update.beta > 0,
            pipeline=pipeline,
        )
        parameters = self.policy.trainable()
        self._optimizer = make_optimizer(recipe.update, parameters)
        self._ema = Ema(parameters, ema_rule(recipe.ema.decay, recipe.ema.interval))
        self._old = Ema(parameters, old_policy_rule(0, 0.001, 0.5))
        words = "red green blue black white gold pink gray"
        names = [f"{word} sign" for word in words.split()]
        count = recipe.sampling.prompts_per_epoch
        self._prompts = [Prompt(f"{'a ' * (i // 8)}{names[i % 8]}") for i in range(count)]
        self._encoders = {name: getattr(pipeline, name) for name in family.text_encoders}
        if not self.policy.prepare_prompts([prompt.text for prompt in self._prompts]).fits:
            raise SystemExit("the prompts exceed model.prompt_cache_gb")
        self._advantages = self._made_up_advantages()

    def epoch(self, *, official: bool, reward_s: float) -> Epoch:
        """Runs an epoch whose reward takes `reward_s` in all."""
        self._place_encoders(used=official)
        reset_peak_memory(self.device)
        self.policy.take_work()
        began = time.perf_counter()
        sampler = _Sampler(self, official, reward_s)
        samples, encode_s, wait_s = sampler.run()
        sampled_at, sampled = self._now(), self.policy.take_work()
        self._update(samples, steps_per_forward=1 if official else None)
        ended, updated = self._now(), self.policy.take_work()
        return Epoch(
            encode_s,
            sampled_at - began - encode_s - wait_s,
            wait_s,
            ended - sampled_at,
            ended - began,
            sampled,
            updated,
            peak_memory_gb(self.device),
        )

    def compile(self) -> None:
        """Blocks from now on, each at its next call."""
        compile_blocks(self._pipeline.transformer)

    def sample(self, on_images: Any) -> Trajectories:
        indices = range(len(self._prompts))
        return rollout(self.policy, self.recipe, 0, self._prompts, indices, on_images)

    def encode(self, rows: range) -> None:
        """The prompts of some images, by the text encoders themselves."""
        group = self.recipe.sampling.group_size
        texts = [self._prompts[row // group].text for row in rows]
        with torch.no_grad():
            self._family.encode(self._pipeline, self.recipe.model, texts, self.device)

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()

    def _update(self, samples: Trajectories, steps_per_forward: int | None) -> None:
        recipe = self.recipe
        if steps_per_forward is not None:
            u = recipe.update.model_copy(update={"steps_per_forward": steps_per_forward})
            recipe = recipe.model_copy(update={"update": u})
        policy, optimizer, ema = self.policy, self._optimizer, self._ema
        conditioning = policy.encode([prompt.text for prompt in self._prompts])
        what = recipe, 0, samples, conditioning, self._advantages
        if recipe.update.forward_process:
            chooses = recipe.update.trains_on == "chosen samples"
            update_samples = update_chosen if chooses else update_forward
            update_samples(policy, optimizer, ema, self._old, *what)
            return
        v_ref = reference_velocities(policy, recipe, 0, samples, conditioning)
        update_policy(policy, optimizer, ema, *what, v_ref)

    def _place_encoders(self, *, used: bool) -> None:
        for name, encoder in self._encoders.items():
            if encoder is not None:
                encoder.to(self.device if used else "cpu")
                setattr(self._pipeline, name, encoder if used else None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _made_up_advantages(self) -> Advantages:
        s = self.recipe.sampling
        scores = np.random.default_rng(0).random(s.prompts_per_epoch * s.group_size)
        names = self.recipe.rewards
        return epoch_advantages(
            self.recipe, dict.fromkeys(names, scores), np.ones(len(scores), bool)
        )


class _Sampler:
    """Sampling and scoring of one epoch: the reward is one thread that waits."""

    def __init__(self, bench: Bench, official: bool, reward_s: float) -> None:
        self._bench, self._official = bench, official
        self._reward_s = reward_s / bench.recipe.images_per_epoch
        self._encode_s = 0.0
        self._results: list[Future[None]] = []

    def run(self) -> tuple[Trajectories, float, float]:
        """The samples, and seconds of encoding prompts and of waiting for scores."""
        with ThreadPoolExecutor(1) as self._reward:
            samples = self._bench.sample(self._on_images)
            synchronize(self._bench.device)
            began = time.perf_counter()
            if self._official:
                self._score(self._bench.recipe.images_per_epoch)
            for result in self._results:
                result.result()
            wait_s = time.perf_counter() - began
        return samples, self._encode_s, wait_s

    def _on_images(self, rows: range, images: torch.Tensor) -> None:
        if not self._official:
            self._score(len(images))
            return
        synchronize(self._bench.device)
        began = time.perf_counter()
        self._bench.encode(rows)
        synchronize(self._bench.device)
        self._encode_s += time.perf_counter() - began

    def _score(self, count: int) -> None:
        self._results.append(self._reward.submit(time.sleep, self._reward_s * count))


def make_bench(options: argparse.Namespace) -> Bench:
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    device = torch.device(options.device)
    recipe_file = options.recipe or ROOT / "trainer" / "recipes" / RECIPES[options.model]
    recipe = load_recipe(recipe_file, [f"device={device}", *options.set])
    torch.backends.cuda.matmul.allow_tf32 = True
    dtype = torch.float32 if device.type == "cpu" else getattr(torch, recipe.model.dtype)
    family: Family = importlib.import_module(FAMILIES[recipe.model.family]).FAMILY
    if options.model == "tiny":
        pipeline = family.pipeline_class.from_pretrained(
            recipe.model.path, dtype=dtype, **family.load_options(recipe.model)
        )
    else:
        if MODELS[options.model][0] != recipe.model.family:
            raise SystemExit(
                f"--model {options.model} is no {recipe.model.family}, as the recipe's"
            )
        pipeline = random_pipeline(options.model, device, dtype, shrunk=options.shrunk)
    return Bench(recipe, pipeline, family, device)


def measure(bench: Bench, rounds: int, reward: float) -> dict[str, list[Epoch]]:
    """Both ways in turns, after a first epoch of each that does not count."""
    warm = bench.epoch(official=True, reward_s=0.0)
    reward_s = reward * bench.epoch(official=False, reward_s=0.0).sample_s
    found: dict[str, list[Epoch]] = {HERE: [], OFFICIAL: []}
    del warm
    for _ in range(rounds):
        found[OFFICIAL].append(bench.epoch(official=True, reward_s=reward_s))
        found[HERE].append(bench.epoch(official=False, reward_s=reward_s))
    return found


def phase_table(bench: Bench, epochs: list[Epoch]) -> str:
    """What F-counts say beside what was measured, this trainer's way."""
    recipe, f = bench.recipe, forwards(bench.recipe)
    images = recipe.images_per_epoch
    peak = peak_flops(bench.device, recipe.model.dtype)
    rows = []
    for name, count, work, seconds in (
        ("sampling", f.sampling, epochs[0].sampled, median(e.sample_s for e in epochs)),
        ("update", f.training, epochs[0].updated, median(e.update_s for e in epochs)),
    ):
        rate = speed(work, images, seconds, peak)
        rows.append(
            [
                name,
                str(count),
                f"{seconds / images * 1e3:.2f}",
                f"{seconds / images / count * 1e3:.3f}",
                f"{work.flops / images / 1e9:.4g}",
                f"{rate['tokens_per_second']:.0f}",
                f"{rate['model_tflops']:.4g}",
                f"{rate['mfu']:.1%}" if "mfu" in rate else "–",
            ]
        )
    header = ["", "F per image", "ms per image", "ms per F", "GFLOP per image", "tokens/s"]
    return markdown([*header, "TFLOP/s", "MFU"], rows)


def comparison_table(epochs: dict[str, list[Epoch]], images: int) -> str:
    rows = []
    for phase, label in zip(PHASES, LABELS, strict=True):
        here, official = (
            median(getattr(e, phase) for e in epochs[way]) for way in (HERE, OFFICIAL)
        )
        ratio = f"{official / here:.2f}" if here > 1e-3 * official else "–"
        per_image = [f"{seconds / images * 1e3:.2f}" for seconds in (here, official)]
        rows.append([f"{label}, ms per image", *per_image, ratio])
    return markdown(["", HERE, OFFICIAL, "ratio"], rows)


def notes(
    bench: Bench, epochs: dict[str, list[Epoch]], options: argparse.Namespace
) -> Iterator[str]:
    recipe, f = bench.recipe, forwards(bench.recipe)
    totals = [
        median(o.total_s / h.total_s for h, o in zip(epochs[HERE], epochs[OFFICIAL], strict=True))
    ]
    by_phase = median(e.update_s / e.sample_s for e in epochs[HERE])
    yield f"- update / sampling: {by_phase:.2f} measured, {f.training / f.sampling:.2f} by F-counts"
    yield f"- an epoch of the official loop takes {totals[0]:.2f} times as long (median of rounds)"
    memory = ", ".join(
        f"{max(e.peak_memory_gb for e in epochs[way]):.2f} GB {way}" for way in (HERE, OFFICIAL)
    )
    if bench.device.type == "cuda":
        yield f"- peak GPU memory: {memory}"
    else:
        most = max(e.peak_memory_gb for way in epochs.values() for e in way)
        yield f"- peak memory of the process: {most:.2f} GB"
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "CPU"
    shape = (
        f"{recipe.model.height} x {recipe.model.width}, {recipe.images_per_epoch} images per epoch"
    )
    yield (
        f"\n{recipe.name}, model {options.model}{' (shrunk)' if options.shrunk else ''}, {shape}, "
        f"micro-batches of {recipe.sampling.micro_batch}, {recipe.update.steps_per_forward} steps per "
        f"forward, reward {options.reward:g} x sampling; medians of {options.rounds} rounds; "
        f"{name}, {datetime.date.today().isoformat()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}"
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=RECIPES, default="tiny", help="(%(default)s)")
    parser.add_argument(
        "--recipe", type=Path, help="another recipe of that model's family (default: one per model)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--shrunk", action="store_true", help="few narrow layers, for a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each way (%(default)s)")
    parser.add_argument(
        "--reward", type=float, default=0.5, help="its time, in units of sampling's (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every epoch there")
    return parser.parse_args(argv)


def main() -> None:
    options = parse()
    warnings.filterwarnings("ignore", category=FutureWarning)
    bench = make_bench(options)
    epochs = measure(bench, options.rounds, options.reward)
    print(phase_table(bench, epochs[HERE]), end="\n\n")
    print(comparison_table(epochs, bench.recipe.images_per_epoch), end="\n\n")
    print("\n".join(notes(bench, epochs, options)))
    write_json(
        options.json,
        {
            "forwards": asdict(forwards(bench.recipe)),
            "images": bench.recipe.images_per_epoch,
            "epochs": {way: [asdict(e) for e in found] for way, found in epochs.items()},
        },
    )


if __name__ == "__main__":
    main()
