"""Conditioning of many prompts, of which only a micro-batch's is ever on the device."""

from __future__ import annotations

from collections.abc import Sequence

from flow_trainer.models.conditioning import Conditioning
from flow_trainer.models.policy import Policy


class PromptRows:
    """Indexed as a Conditioning with one row per prompt. A row is looked up, or encoded, when a
    micro-batch asks for it, padded to that micro-batch's longest."""

    def __init__(self, policy: Policy, texts: Sequence[str], order: Sequence[int] = ()) -> None:
        """`order`: numbers of the prompts that this process will ask for, the first one first; it
        encodes together what comes next, and nothing else."""
        self._policy = policy
        self._texts = texts
        self._order = list(dict.fromkeys(order))
        self._last: tuple[list[int], Conditioning] | None = None

    def __getitem__(self, prompts: list[int]) -> Conditioning:
        """One row for each of `prompts`. The last answer is kept: the steps of a micro-batch ask for the
        same again."""
        if self._last is None or self._last[0] != prompts:
            self._last = None  # not two at a time on the device
            self._last = prompts, self._look_up(prompts)
        return self._last[1]

    def _look_up(self, numbers: list[int]) -> Conditioning:
        distinct = list(dict.fromkeys(numbers))
        place = {number: row for row, number in enumerate(distinct)}
        ahead = self._order
        if distinct[-1] in ahead:
            ahead = ahead[ahead.index(distinct[-1]) + 1 :]
        found = self._policy.encode(
            [self._texts[number] for number in distinct], [self._texts[n] for n in ahead]
        )
        return found[[place[number] for number in numbers]]
