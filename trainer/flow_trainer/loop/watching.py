"""The watch in the loop: it looks at samples that are there anyway, asks the monitors, and rings."""

from __future__ import annotations

import json
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch

from flow_trainer.errors import Interrupted
from flow_trainer.loop.evaluate import stack_images
from flow_trainer.loop.run import Run
from flow_trainer.loop.sampling import Batch
from flow_trainer.loop.scoring import Job, Scorer, reward_token
from flow_trainer.record.scores import pack
from flow_trainer.record.watch import (
    Watch,
    embedding_diversity,
    group_diversity,
    image_statistics,
    latent_norms,
    thumbnails,
    watch_from,
)
from reward_api import RewardClient, RewardError, ScoreBatch
from reward_api.wire.embeddings import pack_embedding, unpack_embedding


class Watching:
    """Of one run; all ranks call its methods together. Close when done."""

    def __init__(self, run: Run) -> None:
        recipe = run.recipe
        self._run = run
        self._scorer = Scorer(recipe.monitors, recipe.scoring) if recipe.monitors else None
        self._embeddings = (
            Embeddings(run, recipe.watch.embeddings) if recipe.watch.embeddings else None
        )
        self._jobs: list[Job] = []
        names = tuple(f"monitor.{name}" for name in recipe.monitors)
        self._watch = Watch(recipe.watch.band_epochs, names)
        if run.world.is_main:
            logged = _logged(run)
            watch_from(logged, self._watch)
            # what a changed [watch] finds out of its band has not rung yet
            rang = {str(row["quantity"]) for row in logged if row.get("kind") == "alarm"}
            for quantity in self._watch.ringing.keys() - rang:
                del self._watch.ringing[quantity]

    def begin(self, batch: Batch) -> None:
        """Sends the monitors their sample of an epoch; they score it while the update runs."""
        if self._embeddings is not None:
            self._embeddings.begin(batch)
        if self._scorer is None:
            return
        group = self._run.recipe.sampling.group_size
        every = max(1, self._run.recipe.images_per_epoch // self._run.recipe.watch.monitor_images)
        images = torch.from_numpy(stack_images(batch.images))
        chosen = [n for n, row in enumerate(batch.samples.rows) if row % every == 0]
        prompts = [batch.prompts[batch.samples.rows[n] // group] for n in chosen]
        size = self._run.recipe.sampling.micro_batch
        self._jobs = [
            self._scorer.submit(
                range(start, start + len(chosen[start : start + size])),
                images[chosen[start : start + size]],
                prompts[start : start + size],
            )
            for start in range(0, len(chosen), size)
        ]

    def look(self, batch: Batch) -> dict[str, float]:
        """The epoch's statistics and the monitors' means, for its line of metrics."""
        run, recipe = self._run, self._run.recipe
        parts = [(image_statistics(images), thumbnails(images)) for images in batch.images]
        rows = batch.samples.rows
        norms = latent_norms(batch.samples.x_0).tolist()
        statistics = torch.cat([part for part, _ in parts]).tolist() if parts else []
        ranks = run.world.exchange([norms, statistics])
        small = run.world.gather_rows(rows, stack_images([part for _, part in parts]))
        embedded = self._embeddings.look() if self._embeddings is not None else {}
        if not run.world.is_main:
            self._monitored()
            return {}
        means = np.array([row for _, found in ranks for row in found]).mean(0).tolist()
        return {
            "latent_norm": float(np.mean([norm for found, _ in ranks for norm in found])),
            **dict(zip(("brightness", "saturation", "sharpness"), means, strict=True)),
            "diversity": group_diversity(torch.from_numpy(small), recipe.sampling.group_size),
            **embedded,
            **self._monitored(),
        }

    def ring(self, epoch: int, metrics: dict[str, Any]) -> None:
        """Says and logs the alarms that an epoch's metrics begin; `epoch` counts from 1. With
        watch.on_alarm = stop, saves the run and raises Interrupted."""
        run = self._run
        alarms = self._watch.see(epoch, metrics) if run.world.is_main else []
        for alarm in alarms:
            run.log.say(f"[yellow]alarm at epoch {epoch}: {alarm.message}[/yellow]")
            run.log.metrics("alarm", epoch, alarm.as_row())
        last = epoch == run.recipe.epochs
        if run.recipe.watch.on_alarm == "stop" and run.world.any(bool(alarms)) and not last:
            run.save()
            said = "; ".join(alarm.message for alarm in alarms) or "see the first rank"
            raise Interrupted(f"alarm at epoch {epoch}, and watch.on_alarm = stop: {said}; saved")

    def close(self) -> None:
        if self._scorer is not None:
            self._scorer.close()
        if self._embeddings is not None:
            self._embeddings.close()

    def _monitored(self) -> dict[str, float]:
        """The means of the monitors; a monitor that is down is left out, and never holds the run."""
        if self._scorer is None:
            return {}
        mine: list[Any] = []
        for job in self._jobs:
            try:
                mine.append(pack(job.scores))
            except RewardError as error:
                self._run.log.say(f"[yellow]monitors: {error}[/yellow]")
        self._jobs = []
        scored: dict[str, list[float]] = {}
        for part in (part for parts in self._run.world.exchange(mine) for part in parts):
            for name, batch in part["rewards"].items():
                values = zip(batch["values"], batch["valid"], strict=True)
                scored.setdefault(name, []).extend(value for value, valid in values if valid)
        silent = [name for name in self._run.recipe.monitors if not scored.get(name)]
        if silent:
            self._run.log.say(f"[yellow]monitors without a score: {', '.join(silent)}[/yellow]")
        return {f"monitor.{name}": float(np.mean(v)) for name, v in scored.items() if v}


class Embeddings:
    """Diversity inside groups by the embeddings that a CLIP reward answers beside its scores: of whole
    groups, about watch.monitor_images of an epoch's samples. All ranks call its methods
    together. Nothing that goes wrong here holds a run."""

    def __init__(self, run: Run, name: str) -> None:
        """`name`: of a reward."""
        self._run, self._name = run, name
        recipe, reward = run.recipe, run.recipe.rewards[name]
        timeout_s = recipe.scoring.deadline_s(recipe.watch.monitor_images)
        self._client = RewardClient(
            reward.urls,
            token=reward_token(name, reward),
            timeout_s=timeout_s,
            attempt_timeout_s=recipe.scoring.attempt_timeout_s or timeout_s,
            encoding=recipe.scoring.encoding,
        )
        self._asked: Future[ScoreBatch] | None = None
        self._rows: list[int] = []

    def begin(self, batch: Batch) -> None:
        """Sends this rank's part; it is scored while the update runs."""
        recipe = self._run.recipe
        size = recipe.sampling.group_size
        groups = max(1, recipe.watch.monitor_images // size)
        every = max(1, recipe.sampling.prompts_per_epoch // groups)
        chosen = [n for n, row in enumerate(batch.samples.rows) if row // size % every == 0]
        self._rows = [batch.samples.rows[n] for n in chosen]
        self._asked = None
        if not chosen:
            return
        prompts = [batch.prompts[row // size] for row in self._rows]
        self._asked = self._client.submit(
            stack_images(batch.images)[chosen],
            [prompt.text for prompt in prompts],
            [dict(prompt.metadata) for prompt in prompts],
            include_details=True,
            on_error="nan",
        )

    def look(self) -> dict[str, float]:
        """The epoch's figure, on the first rank; nothing where fewer than two of every group came."""
        parts = self._run.world.exchange(self._come())
        if not self._run.world.is_main:
            return {}
        found = [
            (row, unpack_embedding({"embedding": text})) for part in parts for row, text in part
        ]
        rows = [(row, vector) for row, vector in found if vector is not None]
        groups = torch.tensor([row // self._run.recipe.sampling.group_size for row, _ in rows])
        value = None
        if rows:
            vectors = torch.from_numpy(np.stack([vector for _, vector in rows]))
            value = embedding_diversity(vectors, groups)
        if value is None:
            self._say("it answered no embeddings of two images of a group")
            return {}
        return {"embedding_diversity": value}

    def close(self) -> None:
        self._client.close()

    def _come(self) -> list[tuple[int, str]]:
        """Rows and packed embeddings of this rank."""
        if self._asked is None:
            return []
        try:
            details = self._asked.result().details
        except RewardError as error:
            self._say(str(error))
            return []
        vectors = [
            (row, unpack_embedding(told)) for row, told in zip(self._rows, details, strict=True)
        ]
        return [(row, pack_embedding(vector)) for row, vector in vectors if vector is not None]

    def _say(self, why: str) -> None:
        self._run.log.say(f"[yellow]watch.embeddings = {self._name}: {why}[/yellow]")


def _logged(run: Run) -> list[dict[str, Any]]:
    """The metrics of the epochs that a resumed run has behind it."""
    path = run.folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
