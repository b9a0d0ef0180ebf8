"""[update], [forward] and [ema]: the objective and the steps of its optimizer."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from flow_trainer.recipe.section import Section

OnTrajectories = Literal["clip", "guard", "dppo"]
OnFinishedSamples = Literal["nft", "awm", "epg", "ram", "dgpo", "crd"]
OnChosenSamples = Literal["sft", "orw", "dpo"]
OnTeachers = Literal["opd"]
OnGradients = Literal["refl"]
OnData = Literal["data"]


class Update(Section):
    objective: Literal[
        OnTrajectories, OnFinishedSamples, OnChosenSamples, OnTeachers, OnGradients, OnData
    ] = "clip"
    """On the sampled trajectories: clip: PPO's ratio clip (the paper). guard: the clip of a ratio
    normalised per step (GRPO-Guard). dppo: no clip, a mask by exact KL (Flow-DPPO). On finished
    samples that are noised again, see [forward]: nft (DiffusionNFT), awm (advantage-weighted
    matching), epg (policy gradient on an ELBO), ram (regression to the reference plus advantage), dgpo
    (group preference), crd (regression of implied to real rewards). On chosen ones of them, the
    paper's baselines: sft (the best of each group), orw (all, weighed by exp of the reward), dpo (the
    best against the worst: Flow-DPO). Without rewards: opd, distillation of the teachers that [prompts]
    names, on the sampled trajectories. refl: up the gradient of rewards that offer one, carried back
    through the decoder and the steps of sampling.window, the last of which goes straight to x_0. data:
    nothing is sampled, and only [data] trains."""
    clip_range: float = Field(default=1e-4, gt=0)
    """e of the ratio's clip; for dppo, the KL per element above which a step is masked. Log-ratios
    are means over a latent's elements, so the useful range depends on resolution."""
    kl: Literal["none", "gaussian", "gaussian_unscaled", "velocity", "kl2", "kl3"] = "none"
    """Distance from the reference: of transitions (gaussian, gaussian_unscaled), of velocities, or for
    epg of likelihoods (kl2, kl3)."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL term; not portable between KL forms."""
    step_weight: Literal["none", "noise", "flash"] = "none"
    """Factor of a stochastic step's loss. noise: 2.25 times its standard deviation (TempFlow-GRPO).
    flash: the inverse of how far a change of the velocity moves it, in standard deviations, over its
    mean in the steps that a window may reach (Flash-GRPO)."""
    keep: tuple[int, int] | None = None
    """[best, worst]: train on so many of the best and of the worst of sampling.candidates, in all
    sampling.group_size; each is drawn again from its own noise with all steps, and scored again."""
    updates_per_epoch: int = Field(default=2, ge=1)
    trained_steps: int | None = Field(default=None, ge=1)
    """Train a random subset of the window of this size, drawn per epoch (default: all of it). On the
    forward process: noise levels per sample (default: num_steps - 1)."""
    gradient_batch: int = Field(default=1, ge=1)
    """Under refl, images per decode that is taken back (a performance knob): such a decode takes many
    times the memory of one that only looks."""
    steps_per_forward: int = Field(default=1, ge=1)
    """Window steps replayed in one transformer forward (a performance knob)."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit: moments in 8 bits (needs bitsandbytes), a quarter of their memory."""
    learning_rate: float = Field(default=3e-4, gt=0)
    warmup_updates: int = Field(default=0, ge=0)
    final_learning_rate: float = Field(default=1.0, ge=0, le=1)
    """Fraction of learning_rate reached linearly at the last update; 1 keeps it constant."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)

    @property
    def needs_old_means(self) -> bool:
        return self.objective in ("guard", "dppo")

    @property
    def trains_on(
        self,
    ) -> Literal[
        "trajectories", "finished samples", "chosen samples", "teachers", "gradients", "data"
    ]:
        if self.objective in get_args(OnTeachers):
            return "teachers"
        if self.objective in get_args(OnGradients):
            return "gradients"
        if self.objective in get_args(OnData):
            return "data"
        if self.objective in get_args(OnTrajectories):
            return "trajectories"
        return (
            "chosen samples" if self.objective in get_args(OnChosenSamples) else "finished samples"
        )

    @property
    def forward_process(self) -> bool:
        """Noises finished samples again, all of them or chosen ones."""
        return self.trains_on in ("finished samples", "chosen samples")

    def chosen(self, group_size: int) -> int:
        """How many samples of a group are trained on."""
        return {"sft": 1, "dpo": 2}.get(self.objective, group_size)

    @property
    def needs_reference(self) -> bool:
        return self.beta > 0 or self.objective in ("ram", "dgpo", "dpo")

    @property
    def whole_groups(self) -> bool:
        """Compares the samples of a group in the loss, so that no micro-batch may divide one."""
        return self.objective in ("dgpo", "crd", "dpo")


class Forward(Section):
    """Objectives on finished samples. An old policy, a moving average of the trained one, draws the
    samples. After every epoch, k optimizer steps in all, it keeps d = min(old_rate (k - old_start),
    old_max) of itself."""

    strength: float = Field(default=1.0, gt=0)
    """b of nft (at most 1), dgpo and crd; m of ram."""
    weighting: Literal["uniform", "t", "t2", "huber", "ghuber"] = "ghuber"
    """How AWM weighs the matching loss over noise levels."""
    gradient: Literal["epg", "pepg", "clip"] = "pepg"
    """Of epg: the plain policy gradient, the proximal one (PAR's is the same), or the ratio's clip
    (V-GRPO)."""
    likelihood: Literal["adaptive", "t", "uniform", "exact"] = "adaptive"
    """How epg weighs the matching loss over noise levels."""
    ratio: bool = True
    """Weigh epg and pepg by the likelihood ratio to the old policy."""
    share: Literal["none", "times", "pairs"] = "none"
    """What of its noise levels a group has in common: nothing, the levels, or noise and level."""
    times: Literal["schedule", "stratified"] = "schedule"
    """schedule: different steps of the sampling schedule. stratified: one level from each of as many
    equal parts of the schedule as there are levels, between its steps too."""
    first_steps: int | None = Field(default=None, ge=1)
    """Draw noise levels from that many first steps of the schedule (default: from all)."""
    skip_steps: int = Field(default=0, ge=0)
    """But not from that many first ones, the noisiest. What is decided there, as layout and colours are,
    then moves less."""
    reference_guidance: float | None = Field(default=None, ge=1)
    """Guidance scale of the reference (default: model.guidance)."""
    old_start: int = Field(default=0, ge=0)
    old_rate: float = Field(default=0.001, ge=0)
    old_max: float = Field(default=0.5, ge=0, lt=1)
    """0: the old policy is the current one of the epoch's start."""
    old_beta: float = Field(default=0.0, ge=0)
    """Weight of mean((v - v_old)^2)."""
    temperature: float = Field(default=1.0, gt=0)
    """tau of orw: the weight of a sample is exp(tau A), A its advantage."""
    preference: float = Field(default=100.0, gt=0)
    """b of dpo: how far it goes from the reference for a preference; small ones collapse."""


class Ema(Section):
    enabled: bool = True
    decay: float = Field(default=0.9, ge=0, lt=1)
    interval: int = Field(default=8, ge=1)
    """Optimizer steps between EMA updates."""
    repeats: int = Field(default=1, ge=1)
    """How often an EMA update is applied: flow_grpo's trainer applies each one once per micro-batch of
    gradient accumulation."""
