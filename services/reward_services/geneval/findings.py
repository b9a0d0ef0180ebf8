"""An image on its way from the detector to its scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reward_services.chassis.scorer import Sample
from reward_services.geneval.boxes import kept_boxes, min_score
from reward_services.geneval.classes import CLASSES
from reward_services.geneval.detections import Detections
from reward_services.geneval.evaluate import Scene


@dataclass(slots=True)
class Finding:
    """An image with what was found in it."""

    sample: Sample
    detections: Detections
    kept: dict[str, list[int]]
    colors: dict[int, str] = field(default_factory=dict)

    def scene(self) -> Scene:
        return Scene(self.detections.boxes, self.kept, self.colors)

    def box_details(self) -> list[dict[str, Any]]:
        """The boxes that count, by class, surest first; a color only where it was asked for."""
        return [
            {
                "class": name,
                "score": float(self.detections.scores[index]),
                "box": self.detections.boxes[index].tolist(),
            }
            | ({"color": self.colors[index]} if index in self.colors else {})
            for name, indices in self.kept.items()
            for index in indices
        ]


def kept_by_class(
    detections: Detections, tag: str, *, max_overlap: float = 1.0
) -> dict[str, list[int]]:
    """Class name to the indices of its boxes that count for a prompt with this tag."""
    kept: dict[str, list[int]] = {}
    for label in np.unique(detections.labels).tolist():
        own = np.flatnonzero(detections.labels == label)
        indices = kept_boxes(
            detections.boxes[own],
            detections.scores[own],
            threshold=min_score(tag),
            max_overlap=max_overlap,
        )
        if indices:
            kept[CLASSES[label]] = own[indices].tolist()
    return kept
