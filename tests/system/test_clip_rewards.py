"""The four CLIP rewards as services: one command each, HTTP, gRPC and no wire give the same."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from clip_checkpoints import tile_image, write_clip, write_head, write_hps
from processes import environment
from reward_api import RewardClient
from reward_api.wire.embeddings import unpack_embedding
from reward_api.wire.messages import Item, PackedImages, ScoreRequest
from reward_services.chassis.service import RewardService
from reward_services.clip.model import load_checkpoint, projected
from reward_services.clipscore.pixels import clipscore_pixels

pytestmark = pytest.mark.system

REWARDS = ["aesthetic", "clipscore", "hpsv2", "pickscore"]
IMAGES = np.stack([tile_image(96, 64, k) for k in range(6)])
PROMPTS = ["a cat", "a cat", "naïve café 日本語", "word " * 100, "a cat", "a dog"]


def checkpoint(reward, folder):
    """The reward's settings for a tiny checkpoint."""
    if reward == "hpsv2":
        return {"weights": str(write_hps(folder))}
    if reward == "pickscore":
        return {"weights": str(write_clip(folder, activation="gelu"))}
    if reward == "clipscore":
        return {"weights": str(write_clip(folder, activation="quick_gelu"))}
    weights = write_clip(folder, activation="quick_gelu", projection=768, tokenizer=False)
    head = write_head(folder / "head.pth")
    return {"weights": str(weights), "head": str(head), "head_sha256": "any"}


async def in_process(reward, settings):
    """Values and revision of the service without a port."""
    scorer_class = import_module(f"reward_services.{reward}.scorer").SCORER
    count, height, width, _ = IMAGES.shape
    request = ScoreRequest(
        items=[Item(prompt=prompt) for prompt in PROMPTS],
        packed_images=PackedImages(data=IMAGES.tobytes(), count=count, height=height, width=width),
    )
    scorer = scorer_class(scorer_class.Settings(**settings))
    async with RewardService(reward, scorer) as service:
        response = await service.score(request)
    return [result.score.value for result in response.results if result.score], response.revision


def own_features(folder):
    """Image features as transformers computes them from the same checkpoint, of unit length."""
    model = load_checkpoint(CLIPModel, Path(folder))
    pixels = torch.from_numpy(np.stack([clipscore_pixels(image) for image in IMAGES]))
    with torch.no_grad():
        features = projected(model.get_image_features(pixel_values=pixels)).numpy()
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.parametrize("reward", REWARDS)
async def test_every_wire_gives_the_same(services, tmp_path, reward):
    settings = checkpoint(reward, tmp_path / "weights")
    expected, revision = await in_process(reward, settings)
    variables = {f"REWARD_{reward}_{name}".upper(): value for name, value in settings.items()}
    service = services.start("-m", "reward_services", reward, **variables)
    for address in (service.http, service.grpc):
        with RewardClient(address, on_error="nan") as client:
            batch = client.score(IMAGES, PROMPTS)
            # Half the images come with the prompt forgotten: an error of theirs alone.
            partial = client.score(IMAGES, [*PROMPTS[:3], "", " ", ""])
            detailed = client.score(IMAGES, PROMPTS, include_details=True)
            metadata = client.metadata()
        assert batch.details == [None] * len(IMAGES)
        assert detailed.values.tolist() == pytest.approx(expected, abs=1e-5)
        found = [unpack_embedding(details) for details in detailed.details]
        embeddings = np.stack([embedding for embedding in found if embedding is not None])
        assert len(embeddings) == len(IMAGES)
        assert np.linalg.norm(embeddings, axis=1) == pytest.approx(1)
        assert len(np.unique(embeddings, axis=0)) == len(IMAGES)
        if reward == "clipscore":
            wanted = own_features(settings["weights"])
            assert embeddings == pytest.approx(wanted, abs=1e-3)  # float16
        assert not batch.errors
        assert batch.values.tolist() == pytest.approx(expected, abs=1e-5)
        assert len(set(expected)) == len(expected)
        if metadata.prompt_required:
            assert {error.reason for error in partial.errors.values()} == {"MISSING_PROMPT"}
            assert list(partial.errors) == [3, 4, 5]
        assert partial.values[:3].tolist() == pytest.approx(expected[:3], abs=1e-5)
        assert metadata.revision == revision
        assert metadata.license


def test_without_weights_nothing_heavy_is_loaded(tmp_path):
    code = f"""
import sys
from importlib import import_module
from reward_services.chassis.weights import WeightsError
for name in {REWARDS}:
    scorer_class = import_module(f"reward_services.{{name}}.scorer").SCORER
    try:
        scorer_class(scorer_class.Settings(weights="nowhere")).load("cpu")
    except WeightsError as error:
        print(name, str(error).count("\\n"))
print(*sorted({{"torch", "transformers", "open_clip"}} & set(sys.modules)))
"""
    lines = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert lines == [*(f"{reward} 0" for reward in REWARDS), ""]
