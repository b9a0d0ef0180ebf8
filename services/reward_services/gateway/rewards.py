"""The rewards behind a gateway: names, aliases, clients, and asking several of them about one batch."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_api.batch import ScoreBatch
from reward_api.client import AsyncRewardClient
from reward_api.errors import InvalidRequest, Reason, RewardError

# What UniRL and cosmos-rl call rewards that have another name here.
KNOWN_ALIASES = {
    "clip": "clipscore",
    "unified_reward": "unifiedreward",
    "image_reward": "imagereward",
    "gen_eval": "geneval",
    "hps": "hpsv2",
}


@dataclass(frozen=True)
class Asked:
    """One batch for one reward: N of each."""

    images: Any
    """a list of pictures, or one array [N, H, W, 3] uint8"""
    prompts: Sequence[str]
    metadata: Sequence[Mapping[str, Any] | None]
    include_details: bool = False


class Rewards:
    """Clients by name. An alias is another name of a reward that is there."""

    def __init__(
        self,
        clients: Mapping[str, AsyncRewardClient],
        aliases: Mapping[str, str] | None = None,
        *,
        on_batch: Callable[[str, ScoreBatch], None] = lambda name, batch: None,
    ) -> None:
        """`on_batch` is told every batch with the reward's own name."""
        self._clients = dict(clients)
        self._on_batch = on_batch
        named = {**KNOWN_ALIASES, **(aliases or {})}
        wrong = [a for a, name in (aliases or {}).items() if name not in self._clients]
        if wrong:
            raise ValueError(
                f"--alias {wrong[0]}={named[wrong[0]]}: there is no reward of this name; the rewards "
                f"are {', '.join(self._clients)}"
            )
        self._aliases = {a: n for a, n in named.items() if n in clients and a not in clients}

    @property
    def names(self) -> list[str]:
        """Of the rewards, then their aliases."""
        return [*self._clients, *self._aliases]

    @property
    def own_names(self) -> list[str]:
        return list(self._clients)

    def check(self, name: str) -> None:
        """Raises InvalidRequest (MODEL_NOT_FOUND)."""
        if name not in self._clients and name not in self._aliases:
            close = difflib.get_close_matches(name, self.names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InvalidRequest(
                Reason.MODEL_NOT_FOUND,
                f"there is no reward {name[:64]!r} here; there are {', '.join(self.names)}{hint}",
            )

    async def score(self, asked: Mapping[str, Asked]) -> dict[str, ScoreBatch]:
        """Each reward's batch, asked at the same time. An image without a score has its error in the
        batch, also when the whole reward is away. Raises InvalidRequest, AuthenticationFailed."""
        for name in asked:
            self.check(name)
        batches = await asyncio.gather(*(self._score(n, one) for n, one in asked.items()))
        return dict(zip(asked, batches, strict=True))

    async def _score(self, name: str, asked: Asked) -> ScoreBatch:
        own = self._aliases.get(name, name)
        batch = await self._clients[own].score(
            asked.images,
            asked.prompts,
            asked.metadata,
            include_details=asked.include_details,
            on_error="nan",
        )
        self._on_batch(own, batch)
        return batch

    async def states(self) -> dict[str, str]:
        """ "ready", or why not, by name; an alias is as its reward."""

        async def state(client: AsyncRewardClient) -> str:
            try:
                await client.wait_ready(1.0)
            except RewardError as error:
                return str(error.reason).lower()
            return "ready"

        found = await asyncio.gather(*(state(client) for client in self._clients.values()))
        states = dict(zip(self._clients, found, strict=True))
        return {**states, **{alias: states[name] for alias, name in self._aliases.items()}}

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()
