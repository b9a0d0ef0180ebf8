"""[rewards.NAME], [scoring] and [advantage]: from images to what the update weighs them by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from flow_trainer.errors import ConfigError
from flow_trainer.recipe.section import Section
from reward_api.transport.base import parse_url

LEAST_TIMEOUT_S = 120.0
SECONDS_PER_IMAGE = 0.5
"""A reward that scores two images a second is done with an epoch's, all sent at once."""


class Reward(Section):
    url: str | list[str]
    """http://, https://, grpc:// or grpcs:// address of the service, or of several replicas."""
    weight: float = 1.0
    clip: tuple[float, float] | None = None
    """Least and largest score that counts."""
    normalise: Literal["none", "prompt", "global"] = "none"
    """Before weighting: to mean 0 and standard deviation 1 in its group, or over the epoch."""
    monitor: bool = False
    """Scores a sample of every epoch and never trains: a second opinion for the watch."""
    token_env: str | None = None
    """Name of the environment variable that holds the bearer token."""

    @property
    def urls(self) -> list[str]:
        return [self.url] if isinstance(self.url, str) else self.url


def parse_rewards(texts: Sequence[str]) -> dict[str, Reward]:
    """`--reward NAME=URL[,URL]`. Raises ConfigError."""
    rewards = {}
    for text in texts:
        name, separator, urls = text.partition("=")
        if not separator or not name or not urls:
            raise ConfigError(f"--reward {text}: write NAME=URL, or NAME=URL,URL for replicas")
        reward = Reward(url=urls.split(","))
        for url in reward.urls:
            try:
                parse_url(url)
            except ValueError as error:
                raise ConfigError(f"--reward {text}: {error}") from None
        rewards[name] = reward
    return rewards


class Scoring(Section):
    timeout_s: float | None = Field(default=None, gt=0)
    """Per sample from the moment it is sent, all retries and all queueing included; a later score is
    masked. Default: half a second for each of the epoch's images, at least 120 s."""
    attempt_timeout_s: float | None = Field(default=None, gt=0)
    """Per attempt; a service that takes longer is asked again. Default: timeout_s."""
    min_group: int = Field(default=2, ge=2)
    """Groups with fewer scored members are dropped from the update."""
    outage_wait_s: float = Field(default=3600.0, ge=0)
    """How long to hold an epoch in which a reward scored nothing because it was unreachable."""
    encoding: Literal["raw", "png", "jpeg"] = "raw"
    overlap: Literal["sampling", "updates", "epoch"] = "sampling"
    """What goes on while rewards score. sampling: the rest of the epoch's sampling. updates: also the
    updates, each of which waits for its own share's scores only; same result. epoch: also the next
    epoch's sampling, whose samples are then one update old when they are trained on."""

    def deadline_s(self, images: int = 0) -> float:
        """Seconds that a sample of an epoch of `images` has."""
        if self.timeout_s is not None:
            return self.timeout_s
        return max(LEAST_TIMEOUT_S, SECONDS_PER_IMAGE * images)


class Advantage(Section):
    std: Literal["prompt", "global", "none", "gdpo"] = "prompt"
    """What a group's rewards, less their mean, are divided by: the group's standard deviation, the
    epoch's, or 1. gdpo: each reward by its group's, then their weighted sum by the epoch's."""
    scale: float = Field(default=1.0, gt=0)
    """Factor of every advantage, before the clip."""
    diversity: float = Field(default=0.0, ge=0)
    """Weight of a bonus, beside the rewards' own weights, for what sets an image apart from its group: the
    root mean square difference of its 16 x 16 thumbnail and another member's, 0 to 1, mean over them."""
    clip: float = Field(default=5.0, gt=0)
