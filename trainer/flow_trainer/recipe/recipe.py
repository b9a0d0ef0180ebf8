"""The recipe: one TOML file, strictly typed. An unknown key names the nearest known one, and sizes
that cannot work are refused when it is read (checks.py), before any model loads.

All sizes are global (prompts per epoch, images per prompt, updates per epoch). Micro-batches and
worker counts are performance knobs and never change the result beyond rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from flow_trainer.algorithm.window import window
from flow_trainer.recipe.data import Data
from flow_trainer.recipe.model import Model
from flow_trainer.recipe.rewards import Advantage, Reward, Scoring
from flow_trainer.recipe.running import Checkpoints, Evaluation, Logging, Parallel, Watch
from flow_trainer.recipe.sampling import Prompts, Sampling
from flow_trainer.recipe.section import Section
from flow_trainer.recipe.update import Ema, Forward, Update


@dataclass(frozen=True, slots=True)
class Teacher:
    adapter: str
    guidance: float | None
    """None: the student's."""


class Recipe(Section):
    name: str = Field(pattern=r"^[^/\\\x00-\x1f]+$")
    """Of run folders, so it has no slash."""
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
    data: Data | None = None
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
    def needs_reference(self) -> bool:
        return self.update.needs_reference or (self.data is not None and self.data.members == 2)

    @property
    def images_per_epoch(self) -> int:
        return self.sampling.prompts_per_epoch * self.sampling.group_size

    @property
    def images_taken(self) -> int:
        """That an epoch draws, or takes from [data] where it draws none."""
        d = self.data
        if d is None or self.update.trains_on != "data":
            return self.images_per_epoch
        return d.batch * d.members * self.update.updates_per_epoch

    @property
    def scouting(self) -> Recipe:
        """This recipe as its scouts are drawn."""
        s = self.sampling
        changed = {"group_size": s.candidates, "num_steps": s.scout_steps or s.num_steps}
        return self.model_copy(update={"sampling": s.model_copy(update=changed)})

    @property
    def sharding(self) -> str:
        """How the transformer is held: none, full or hybrid."""
        automatic = "none" if self.model.tuning == "lora" else "hybrid"
        return automatic if self.parallel.sharding == "auto" else self.parallel.sharding

    @property
    def source_rewards(self) -> dict[str, dict[str, Reward]]:
        """By source, "" without sources: the rewards of its images, with its weights."""
        if not self.prompts.sources:
            return {"": self.trained}
        found = {}
        for name, source in self.prompts.sources.items():
            own = {reward: self.trained[reward] for reward in source.rewards}
            if source.weights is not None:
                weighted = zip(own.items(), source.weights, strict=True)
                own = {n: r.model_copy(update={"weight": w}) for (n, r), w in weighted}
            found[name] = own
        return found

    @property
    def teachers(self) -> dict[str, Teacher]:
        """By source, "" without sources; those that are named."""
        named = self.prompts.sources or {"": self.prompts}
        return {
            name: Teacher(source.teacher, source.teacher_guidance)
            for name, source in named.items()
            if source.teacher is not None
        }

    @property
    def source_weights(self) -> dict[str, float]:
        """By source, "" without sources: its part of an epoch; they sum to 1."""
        weights = {name: source.weight for name, source in self.prompts.sources.items()} or {
            "": 1.0
        }
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    @property
    def share(self) -> int:
        """Images per optimizer step: whole groups, in sampling order."""
        return self.images_per_epoch // self.update.updates_per_epoch

    @property
    def num_updates(self) -> int:
        return self.epochs * self.update.updates_per_epoch

    @property
    def forward_steps(self) -> int:
        """Noise levels per sample that objectives on finished samples train."""
        return self.update.trained_steps or min(len(self.levels), self.sampling.num_steps - 1)

    @property
    def levels(self) -> range:
        """Steps of the schedule that they are drawn from."""
        return range(self.forward.skip_steps, self.forward.first_steps or self.sampling.num_steps)

    @property
    def window_pool(self) -> range:
        """Steps that some epoch's window may reach."""
        w, last = self.sampling.window, self._last_step
        match w.kind:
            case "all":
                return range(last)
            case "first":
                return range(w.lo, w.lo + w.size)
            case _:
                return range(w.lo, last if w.hi is None else w.hi)

    @property
    def _last_step(self) -> int:
        """A window ends before it: the last step is never stochastic, but may have a gradient."""
        return self.sampling.num_steps - (self.update.trains_on != "gradients")

    @property
    def sampled_steps(self) -> float:
        """Steps from noise to a sample of training, on average: refl leaves out those after the window."""
        if self.update.trains_on != "gradients":
            return self.sampling.num_steps
        pool, size = self.window_pool, self.sampling.window.size
        return (pool.start + pool.stop + size) / 2

    def window(self, epoch: int) -> range:
        """Steps of `epoch`'s trajectories that are trained: the stochastic ones; of the ode under opd and
        refl, those of [sampling.window] too."""
        return range(0) if self.update.forward_process else self._window(epoch)

    def noisy_steps(self, epoch: int) -> range:
        """Steps of `epoch` that a transition draws, the others being the solver's."""
        if self.update.trains_on == "gradients":
            return range(0)
        if self.update.forward_process and self.sampling.deterministic:
            return range(0)
        return self._window(epoch)

    def _window(self, epoch: int) -> range:
        w = self.sampling.window
        return window(
            w.kind,
            num_steps=self._last_step + 1,
            size=w.size,
            lo=w.lo,
            hi=w.hi,
            every=w.every,
            stride=w.stride,
            epoch=epoch,
            seed=self.seed,
        )
