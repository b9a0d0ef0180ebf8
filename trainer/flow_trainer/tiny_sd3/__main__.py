"""`python -m flow_trainer.tiny_sd3 --out FOLDER`: makes the checkpoint and the prompt files.

Three quarters of an hour on one CPU core. A stage that is finished is not run again: interrupt at will.
"""

# diffusers annotates its arguments and results more narrowly than what it takes and gives
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

from flow_trainer.tiny_sd3.pretrain import Phase, TinySD3, new_model, train_phase
from flow_trainer.tiny_sd3.tokenizer import build_tokenizer
from flow_trainer.tiny_sd3.vae import SAMPLES, train_vae
from flow_trainer.tiny_sd3.words import PROMPT, splits

VAE_STEPS = 2000
# Spelling comes suddenly, and when depends on rounding: after three to five cycles.
CLEAN = Phase("clean", 600, 1.5e-3, timestep_shift=0.5, samples=14_000, cycles=6, enough=0.22)
NOISY = Phase(
    "noisy", 625, 1e-3, timestep_shift=0.3, samples=20_000, wrong_letter=0.18, wrong_word=0.10
)
PHASES = (
    (CLEAN, 1),
    (NOISY, 2),
    # a model that has learned to spell twice learns it a third time from rewards, and faster than one that
    # was taught once for as long (docs/decisions/0006-demo-settings.md)
    (replace(CLEAN, name="clean_again", rate=1e-3, cycles=1), 1),
    (replace(NOISY, name="noisy_again", steps=400, wrong_letter=0.28), 2),
)
"""In their order, each with its seed."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    torch.set_num_threads(arguments.threads)
    stages = arguments.out / "stages"
    stages.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(stages / "tokenizer")
    vae = _vae(stages / "vae", arguments.scale)
    model = new_model(tokenizer, vae)
    for phase, seed in PHASES:
        _phase(model, _scaled(phase, arguments.scale), seed, stages / f"{phase.name}.safetensors")
    save_pipeline(model, arguments.out / "tiny_sd3")
    write_prompts(arguments.out / "prompts")
    _say(f"wrote {arguments.out / 'tiny_sd3'} and {arguments.out / 'prompts'}")
    return 0


def save_pipeline(model: TinySD3, folder: Path) -> None:
    """Writes the averaged weights as float16 in StableDiffusion3Pipeline's folder layout."""
    with model.averaged():
        pipeline = StableDiffusion3Pipeline(
            transformer=model.transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=model.vae,
            text_encoder=model.text_encoders[0],
            tokenizer=model.tokenizer,
            text_encoder_2=model.text_encoders[1],
            tokenizer_2=model.tokenizer,
            text_encoder_3=None,
            tokenizer_3=None,
        )
        pipeline.to(dtype=torch.float16)
        pipeline.save_pretrained(folder)
    for config in folder.rglob("*.json"):
        _drop_local_paths(config)


def write_prompts(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, words in zip(("train", "validation", "heldout"), splits(), strict=True):
        lines = "".join(PROMPT.format(word=word) + "\n" for word in words)
        (folder / f"tiny_words_{name}.txt").write_text(lines)


def _vae(folder: Path, scale: float) -> AutoencoderKL:
    if not folder.exists():
        steps = max(2, round(VAE_STEPS * scale))
        train_vae(steps, max(200, round(SAMPLES * scale)), _say).save_pretrained(folder)
    return AutoencoderKL.from_pretrained(folder)


def _phase(model: TinySD3, phase: Phase, seed: int, done: Path) -> None:
    if not done.exists():
        torch.manual_seed(seed)
        train_phase(model, phase, random.Random(seed), _say)
        weights = {f"weight.{i}": p.detach() for i, p in enumerate(model.parameters())}
        average = {f"average.{i}": tensor for i, tensor in enumerate(model.average)}
        partial = done.with_suffix(".partial")
        save_file({**weights, **average}, partial)
        partial.rename(done)
    state = load_file(done)
    with torch.no_grad():
        for i, (parameter, average) in enumerate(
            zip(model.parameters(), model.average, strict=True)
        ):
            # the next phase starts from the average, which is the better model
            parameter.copy_(state[f"average.{i}"])
            average.copy_(state[f"average.{i}"])


def _scaled(phase: Phase, scale: float) -> Phase:
    steps, samples = round(phase.steps * scale), round(phase.samples * scale)
    return replace(phase, steps=max(2, steps), samples=max(200, samples))


def _drop_local_paths(config: Path) -> None:
    """Configs record where a component was loaded from: a path of the machine that made it."""
    data = json.loads(config.read_text())
    if isinstance(data, dict) and data.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flow_trainer.tiny_sd3", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny_sd3"), help="output folder")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="fraction of all steps and samples, for a trial"
    )
    return parser


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")


if __name__ == "__main__":
    sys.exit(main())
