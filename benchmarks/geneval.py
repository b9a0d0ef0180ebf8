"""GenEval items per second: the batched pipeline against the published reward server's way.

    python benchmarks/geneval.py [--images 34] [--side 128] [--rounds 5] [--detector FOLDER --clip FOLDER]

The published way: one image at a time through the detector, and for every clause with a color a
DataLoader of its own with four worker processes. Both run the same networks in the same process,
without a wire, on the same images, and must give the same scores. Without --detector and --clip the
networks are small and random (weights that detect a handful of things per image).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness import ROOT, markdown
from torch.utils.data import DataLoader, Dataset

from reward_services.chassis.scorer import Sample
from reward_services.geneval.classes import CLASSES
from reward_services.geneval.color_classifier import ColorClassifier
from reward_services.geneval.colors import object_crop
from reward_services.geneval.detections import Detections
from reward_services.geneval.evaluate import Scene, boxes_to_color, evaluate
from reward_services.geneval.findings import kept_by_class
from reward_services.geneval.scorer import GenevalScorer, GenevalSettings

_WORKERS, _COLOR_BATCH = 4, 16  # of the published server's DataLoader
_MOST_OF_A_CLASS = 4  # objects whose color is asked
# Clauses with a color per prompt, in Flow-GRPO's training mixture: of 17 prompts 3 are color_attr and
# 1 is colors.
_MIXTURE = (2, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0)

Score = Callable[[Sequence[Sample]], list[float]]


def published_way(scorer: GenevalScorer) -> Score:
    def score(samples: Sequence[Sample]) -> list[float]:
        return [_score_alone(scorer, sample) for sample in samples]

    return score


def batched(scorer: GenevalScorer, size: int) -> Score:
    def score(samples: Sequence[Sample]) -> list[float]:
        chunks = [samples[start : start + size] for start in range(0, len(samples), size)]
        return [item.value for chunk in chunks for item in scorer.score(chunk)]

    return score


def _score_alone(scorer: GenevalScorer, sample: Sample) -> float:
    (found,) = scorer.detector.detect_prepared([scorer.detector.prepare(sample.image)])
    kept = kept_by_class(found, sample.prepared.metadata.tag)
    asked = boxes_to_color(sample.prepared.metadata, kept)
    colors: dict[int, str] = {}
    for name in {CLASSES[found.labels[index]] for index in asked}:
        own = [index for index in asked if CLASSES[found.labels[index]] == name]
        crops = _Crops(scorer.classifier, sample.image, found, own)
        loader = DataLoader(
            crops, batch_size=_COLOR_BATCH, num_workers=_WORKERS, collate_fn=np.stack
        )
        squares = [square for batch in loader for square in batch]
        colors |= zip(own, scorer.classifier.classify(squares, [name] * len(own)), strict=True)
    return evaluate(sample.prepared.metadata, Scene(found.boxes, kept, colors)).scores["flow_grpo"]


@dataclass
class _Crops(Dataset):
    classifier: ColorClassifier
    image: np.ndarray
    found: Detections
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> np.ndarray:
        index = self.indices[position]
        crop = object_crop(self.image, self.found.boxes[index], self.found.masks[index])
        return self.classifier.prepare(crop)


def made_up_images(count: int, side: int) -> list[np.ndarray]:
    """Blocks of random colors, under noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 8, 8, 3))
    blocks = coarse.repeat(-(-side // 8), axis=1).repeat(-(-side // 8), axis=2)[:, :side, :side]
    return list((blocks + rng.normal(0, 8, blocks.shape)).clip(0, 255).astype(np.uint8))


def questions(scorer: GenevalScorer, images: Sequence[np.ndarray]) -> list[Sample]:
    """Asks for what is really there, because only then does a color have to be found."""
    samples = []
    prepared = [scorer.detector.prepare(image) for image in images]
    found_in = scorer.detector.detect_prepared(prepared)
    for i, (image, found) in enumerate(zip(images, found_in, strict=True)):
        kept = kept_by_class(found, "colors")
        few = {name: len(own) for name, own in kept.items() if len(own) <= _MOST_OF_A_CLASS}
        colored = _MIXTURE[i % len(_MIXTURE)]
        include = [{"class": name, "count": n, "color": "red"} for name, n in few.items()][:colored]
        metadata = {"tag": "colors", "include": include or [{"class": "cup", "count": 1}]}
        bare = Sample(image, metadata=metadata)
        samples.append(Sample(image, metadata=metadata, prepared=scorer.prepare(bare)))
    return samples


def load(folder: Path, detector: str, clip: str, device: str) -> GenevalScorer:
    sys.path.append(str(ROOT / "tests" / "support"))
    if not detector:
        from mask2former_checkpoint import write_checkpoint

        detector = str(write_checkpoint(folder / "detector"))
    if not clip:
        from geneval_clip import write_open_clip

        clip = str(write_open_clip(folder / "clip"))
    scorer = GenevalScorer(GenevalSettings(detector_weights=detector, clip_weights=clip))
    scorer.load(device)
    return scorer


def measure(
    ways: dict[str, Score], samples: Sequence[Sample], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each round of each way; they take turns."""
    expected = [way(samples) for way in ways.values()]
    assert all(np.allclose(scores, expected[0]) for scores in expected), "the ways disagree"
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way(samples)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    # torch thinks four workers too many for a small machine; the published server has them.
    warnings.filterwarnings("ignore", "This DataLoader will create")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=34)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--batch", type=int, default=17)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--detector", default="", help="folder of a checkpoint of mmdet")
    parser.add_argument("--clip", default="", help="folder of a checkpoint of open_clip")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scorer = load(Path(folder), options.detector, options.clip, options.device)
        samples = questions(scorer, made_up_images(options.images, options.side))
        ways = {
            "published way: one image at a time, a DataLoader per color": published_way(scorer),
            "here, one image at a time": batched(scorer, 1),
            f"here, batches of {options.batch}": batched(scorer, options.batch),
        }
        seconds = measure(ways, samples, options.rounds)
    slowest = statistics.median(seconds[next(iter(ways))])
    rows = [
        [
            name,
            f"{len(samples) / min(times):.1f}",
            f"{len(samples) / statistics.median(times):.1f}",
            f"{slowest / statistics.median(times):.1f}",
        ]
        for name, times in seconds.items()
    ]
    print(markdown(["", "items/s, best round", "median round", "times the first (median)"], rows))
    asked = sum(
        clause.color is not None for one in samples for clause in one.prepared.metadata.include
    )
    print(
        f"\n{options.images} images of {options.side} x {options.side}, {asked} color clauses, "
        f"{options.rounds} rounds, {options.device}"
    )


if __name__ == "__main__":
    main()
