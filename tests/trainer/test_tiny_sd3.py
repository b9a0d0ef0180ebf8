"""The committed checkpoint: stock classes load it, it draws letters, and it starts imperfect."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flow_trainer.recipe.prompts import read_prompts
from flow_trainer.tiny_sd3.__main__ import PHASES, main
from flow_trainer.tiny_sd3.signs import HEIGHT, WIDTH, render
from flow_trainer.tiny_sd3.words import PROMPT, splits
from processes import ROOT

CHECKPOINT = ROOT / "trainer" / "tiny_sd3"


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from diffusers import StableDiffusion3Pipeline

    loaded = StableDiffusion3Pipeline.from_pretrained(
        CHECKPOINT, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def read_text() -> Any:
    """The recogniser that the demo's reward uses, on whole images; no confidence threshold."""
    from reward_services.ocr.rapidocr_engine import RapidOcrEngine

    engine = RapidOcrEngine("cpu", detect=False, min_side=128, threads=1)

    def read(images: list[np.ndarray]) -> list[str]:
        return ["".join(line.text for line in lines).upper() for lines in engine.read(images)]

    return read


def same_letters(found: str, word: str) -> float:
    return sum(a == b for a, b in zip(found, word, strict=False)) / len(word)


def test_the_checkpoint_is_small_and_names_no_machine() -> None:
    files = [path for path in CHECKPOINT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10e6
    for path in files:
        if path.suffix == ".json":
            assert "_name_or_path" not in path.read_text()


def test_word_lists_are_disjoint_and_the_prompt_files_hold_them() -> None:
    parts = splits()
    assert [len(part) for part in parts] == [426, 32, 64]
    everything = [word for part in parts for word in part]
    assert len(set(everything)) == len(everything)
    assert all(len(word) == 4 and word.isascii() and word.isupper() for word in everything)
    for name, words in zip(("train", "validation", "heldout"), parts, strict=True):
        prompts = read_prompts(ROOT / "trainer" / "prompts" / f"tiny_words_{name}.txt")
        assert [prompt.text for prompt in prompts] == [PROMPT.format(word=word) for word in words]


def test_every_prompt_has_its_own_tokens(pipeline: Any) -> None:
    prompts = [PROMPT.format(word=word) for part in splits() for word in part]
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        rows = tokenizer(prompts, padding="max_length", max_length=14).input_ids
        assert len({tuple(row) for row in rows}) == len(prompts)
        # an unknown character would be an eos, and lost here
        spelled = [tokenizer.decode(row, skip_special_tokens=True).replace(" ", "") for row in rows]
        assert spelled == [prompt.lower().replace(" ", "") for prompt in prompts]


def test_signs_and_their_reconstructions_are_readable(pipeline: Any, read_text: Any) -> None:
    rng = random.Random(0)
    words = splits()[2][:16]
    images = [render(word, rng) for word in words]
    assert images[0].shape == (HEIGHT, WIDTH, 3)
    assert (
        np.mean([same_letters(t, w) for t, w in zip(read_text(images), words, strict=True)]) > 0.97
    )
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        y = pipeline.vae.decode(pipeline.vae.encode(x).latent_dist.mean).sample
    decoded = (y * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    found = read_text([np.ascontiguousarray(image) for image in decoded])
    assert np.mean([same_letters(t, w) for t, w in zip(found, words, strict=True)]) > 0.95


def test_it_draws_letters_and_leaves_room_for_rl(pipeline: Any, read_text: Any) -> None:
    words = splits()[2][:32]
    images = pipeline(
        [PROMPT.format(word=word) for word in words],
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=20,
        guidance_scale=1.0,
        max_sequence_length=0,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    found = read_text(list((images * 255).round().astype(np.uint8)))
    score = np.mean([same_letters(t, w) for t, w in zip(found, words, strict=True)])
    assert 0.3 < score < 0.75


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_program_that_made_it_runs(tmp_path: Path) -> None:
    stages = tmp_path / "stages"

    def finished() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in stages.glob("*.safetensors")}

    program = ["--out", str(tmp_path), "--scale", "0.002"]
    assert main(program) == 0
    first = finished()
    assert set(first) == {f"{phase.name}.safetensors" for phase, _ in PHASES}
    assert (stages / "vae").is_dir()
    assert main(program) == 0
    assert finished() == first  # the second run finds every stage done
    from diffusers import StableDiffusion3Pipeline

    loaded = StableDiffusion3Pipeline.from_pretrained(
        tmp_path / "tiny_sd3", text_encoder_3=None, tokenizer_3=None
    )
    stock = StableDiffusion3Pipeline.from_pretrained(
        CHECKPOINT, text_encoder_3=None, tokenizer_3=None
    )
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        made, kept = (getattr(p, name).state_dict() for p in (loaded, stock))
        assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in kept.items()}
    for split in ("train", "validation", "heldout"):
        file = f"tiny_words_{split}.txt"
        assert (tmp_path / "prompts" / file).read_text() == (
            ROOT / "trainer" / "prompts" / file
        ).read_text()
