"""The quantities that the watch looks at. Without torch: the report reads it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Quantity:
    """What is watched, and the least departure that can matter."""

    title: str
    side: Literal["both", "below", "above"]
    absolute: float = 0.0
    relative: float = 0.0
    """Of the first epochs' mean."""


QUANTITIES = {
    "latent_norm": Quantity("norm of the latents (root mean square)", "both", relative=0.1),
    "brightness": Quantity("brightness (0 to 1)", "both", absolute=0.1),
    "saturation": Quantity("saturation (0 to 1)", "both", absolute=0.12),
    "sharpness": Quantity("sharpness (mean step between neighbours, 0 to 1)", "both", relative=0.5),
    "diversity": Quantity("diversity inside groups (0 to 1)", "below", relative=0.3),
    "embedding_diversity": Quantity(
        "diversity of embeddings inside groups (1 - cosine)", "below", relative=0.3
    ),
    "kl": Quantity("KL to the reference", "above", relative=10.0),
    "zero_std_ratio": Quantity("groups of equal rewards (share)", "above", absolute=0.3),
}
"""By their name in the metrics."""
