"""Full-size transformers on the meta device: their size, and which layers the adapter reaches."""

from __future__ import annotations

from pathlib import Path

import pytest

from flow_trainer.models.architectures import inspect
from tiny_pipelines import build

STREAMS = 8  # q, k, v, out of the image and of the text stream


# Parameters: the sizes of the published checkpoints. SD3.5-M's first 13 blocks have a second
# attention, which the recipes leave alone; the last block of SD3 has no output of the text stream.
@pytest.mark.parametrize(
    ("path", "family", "rank", "parameters", "blocks", "modules"),
    [
        ("stabilityai/stable-diffusion-3.5-medium", "sd3", 32, 2_243_171_520, 24, 24 * STREAMS - 1),
        ("stabilityai/stable-diffusion-3.5-large", "sd3", 32, 8_056_627_520, 38, 38 * STREAMS - 1),
        (
            "black-forest-labs/FLUX.1-dev",
            "flux",
            64,
            11_901_408_320,
            19 + 38,
            19 * (STREAMS + 4) + 38 * 3,
        ),
        ("Qwen/Qwen-Image", "qwen_image", 64, 20_430_401_088, 60, 60 * (STREAMS + 4)),
        ("Tongyi-MAI/Z-Image", "z_image", 64, 6_154_908_736, 30 + 2 + 2, 34 * 7),
        (
            "black-forest-labs/FLUX.2-klein-base-4B",
            "flux2_klein",
            64,
            3_875_544_576,
            5 + 20,
            5 * (STREAMS + 4) + 20,
        ),
        (
            "black-forest-labs/FLUX.2-klein-base-9B",
            "flux2_klein",
            64,
            9_078_581_248,
            8 + 24,
            8 * (STREAMS + 4) + 24,
        ),
    ],
)
def test_full_size(
    path: str, family: str, rank: int, parameters: int, blocks: int, modules: int
) -> None:
    found = inspect(path, family, rank)
    assert found is not None
    assert found.parameters == parameters
    assert found.blocks == blocks
    assert len(found.lora_modules) == modules
    assert not any("attn2" in name or "norm" in name for name in found.lora_modules)
    first = "layers.0.attention" if family == "z_image" else "transformer_blocks.0.attn"
    assert f"{first}.to_out.0" in found.lora_modules
    assert 0 < found.lora_parameters < 0.03 * parameters


def test_a_folder_is_read_and_an_unknown_name_is_not(tmp_path: Path) -> None:
    folder = build("flux", tmp_path)
    found = inspect(str(folder), "flux", 2)
    assert found is not None
    assert (found.blocks, found.width) == (2, 16)
    assert inspect("somebody/else", "flux", 2) is None
