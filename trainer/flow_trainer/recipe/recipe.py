"""The recipe: one TOML file, strictly typed. An unknown key names the nearest known one, and sizes
that cannot work are refused when it is read (checks.py), before any model loads.

All sizes are global (prompts per epoch, images per prompt, updates per epoch). Micro-batches and
worker counts are performance knobs and never change the result beyond rounding.
"""

from __future__ import annotations

from pydantic import Field

from flow_trainer.algorithm.window import window
from flow_trainer.recipe.model import Model
from flow_trainer.recipe.rewards import Advantage, Reward, Scoring
from flow_trainer.recipe.running import Checkpoints, Evaluation, Logging, Parallel, Watch
from flow_trainer.recipe.sampling import Prompts, Sampling
from flow_trainer.recipe.section import Section
from flow_trainer.recipe.update import Ema, Forward, Update


class Recipe(Section):
    name: str
    seed: int = 42
    epochs: int = Field(ge=1)
    device: str = "auto"
    model: Model
    prompts: Prompts
    sampling: Sampling = Sampling()
    rewards: dict[str, Reward]
    scoring: Scoring = Scoring()
    advantage: Advantage = Advantage()
    update: Update = Update()
    forward: Forward = Forward()
    ema: Ema = Ema()
    evaluation: Evaluation = Evaluation()
    parallel: Parallel = Parallel()
    checkpoints: Checkpoints = Checkpoints()
    logging: Logging = Logging()
    watch: Watch = Watch()

    @property
    def trained(self) -> dict[str, Reward]:
        """The rewards that make the advantages."""
        return {name: reward for name, reward in self.rewards.items() if not reward.monitor}

    @property
    def monitors(self) -> dict[str, Reward]:
        return {name: reward for name, reward in self.rewards.items() if reward.monitor}

    @property
    def images_per_epoch(self) -> int:
        return self.sampling.prompts_per_epoch * self.sampling.group_size

    @property
    def sharding(self) -> str:
        """How the transformer is held: none, full or hybrid."""
        automatic = "none" if self.model.tuning == "lora" else "hybrid"
        return automatic if self.parallel.sharding == "auto" else self.parallel.sharding

    @property
    def share(self) -> int:
        """Images per optimizer step: whole groups, in sampling order."""
        return self.images_per_epoch // self.update.updates_per_epoch

    @property
    def num_updates(self) -> int:
        return self.epochs * self.update.updates_per_epoch

    @property
    def forward_steps(self) -> int:
        """Noise levels per sample that nft and awm train."""
        return self.update.trained_steps or self.sampling.num_steps - 1

    def window(self, epoch: int) -> range:
        """Stochastic steps of `epoch`."""
        if self.sampling.dynamics == "ode":
            return range(0)
        w = self.sampling.window
        return window(
            w.kind,
            num_steps=self.sampling.num_steps,
            size=w.size,
            lo=w.lo,
            hi=w.hi,
            every=w.every,
            stride=w.stride,
            epoch=epoch,
            seed=self.seed,
        )
