"""The recipe: one TOML file, strictly typed. An unknown key names the nearest known one, and sizes
that cannot work are refused here, before any model loads.

All sizes are global (prompts per epoch, images per prompt, updates per epoch). Micro-batches and
worker counts are performance knobs and never change the result beyond rounding.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flow_trainer.errors import ConfigError
from flow_trainer.overrides import apply_override, resolve_paths


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "sd3": {},
    "flux": {
        "dtype": "bfloat16",
        "guidance": 3.5,
        "max_sequence_length": 512,
        "lora_rank": 64,
        "lora_alpha": 128,
    },
    "qwen_image": {
        "dtype": "bfloat16",
        "guidance": 4.0,
        "max_sequence_length": 1024,
        "lora_rank": 64,
        "lora_alpha": 128,
    },
}
"""Where a family's published recipes differ from the fields' defaults, which are SD3.5's."""


class Model(Section):
    family: Literal["sd3", "flux", "qwen_image"] = "sd3"
    path: str
    """Hub id, or a folder in diffusers' pipeline layout (relative: to the recipe's own folder)."""
    revision: str | None = None
    height: int = Field(default=512, ge=8)
    """Pixels."""
    width: int = Field(default=512, ge=8)
    dtype: Literal["float32", "float16", "bfloat16"] = "float16"
    """Autocast type of the transformer on a GPU; weights that train stay float32. CPUs use float32."""
    guidance: float = Field(default=4.5, ge=1.0)
    """Guidance scale in sampling and training. SD3 and Qwen-Image: classifier-free, 1 means none
    (half the cost). FLUX: an input of the model."""
    max_sequence_length: int = Field(default=128, ge=0)
    """Text tokens; for SD3 those of T5, 0 for checkpoints without it."""
    tuning: Literal["lora", "full"] = "lora"
    lora_rank: int = Field(default=32, ge=1)
    lora_alpha: int = Field(default=64, ge=1)
    adapter: str | None = None
    """Adapter to start from, or to evaluate: a folder or hub repository in peft's layout (the
    published Flow-GRPO adapters) or an adapter/ of a run. Its rank and targets count. The reference
    of a KL term stays the model without it."""
    gradient_checkpointing: bool = False
    compile: bool = False
    """torch.compile of the transformer's blocks, the same for sampling and replay."""
    attention: Literal[
        "native",
        "native_flash",
        "native_cudnn",
        "native_efficient",
        "native_math",
        "flash",
        "flash_hub",
        "xformers",
    ] = "native"
    """What computes attention, in sampling and replay alike. native: torch's choice among its own
    kernels; native_...: one of them. The others, for FLUX and Qwen-Image, need their packages:
    flash-attn, kernels, xformers."""
    offload: bool = False
    """Text encoders and VAE stay in host memory and visit the GPU for each use."""
    prompt_cache_gb: float = Field(default=16.0, gt=0)
    """Host memory for encoded prompts. When all prompts of the recipe fit, the text encoders are freed
    before training; else prompts are encoded as they come."""

    @model_validator(mode="before")
    @classmethod
    def _family_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {**FAMILY_DEFAULTS.get(str(data.get("family")), {}), **data}


class Prompts(Section):
    """Prompt files: `.txt`, a prompt per line, or `.jsonl` with `prompt` and `metadata`."""

    train: str
    validation: str | None = None
    """Chooses the best checkpoint; never reported as the result."""
    heldout: str | None = None
    """Evaluated before and after; training and selection never see it."""


class Window(Section):
    """Which steps are stochastic (and trained); the rest are Euler steps. One window per epoch,
    shared by every sample."""

    kind: Literal["all", "first", "random", "progressive"] = "all"
    """all: every step but the last (the paper). first: steps lo..lo+size-1. random: `size`
    contiguous steps inside [lo, hi), drawn per epoch (Flow-GRPO-Fast). progressive: `size` steps
    that move right by `stride` every `every` epochs (MixGRPO)."""
    size: int = Field(default=2, ge=1)
    lo: int = Field(default=0, ge=0)
    hi: int | None = None
    every: int = Field(default=25, ge=1)
    stride: int = Field(default=1, ge=1)


class Sampling(Section):
    num_steps: int = Field(default=10, ge=2)
    """T while training; evaluation has its own."""
    dynamics: Literal["flow_sde", "cps", "dance_sde", "ode"] = "flow_sde"
    """ode: no noise after the first, for objectives on the forward process."""
    noise_level: float = Field(default=0.7, gt=0.0)
    """a of Flow-SDE and CPS, eta of Dance-SDE."""
    window: Window = Window()
    prompts_per_epoch: int = Field(default=48, ge=1)
    group_size: int = Field(default=24, ge=2)
    same_latent: bool = False
    """All members of a group start from the same initial noise."""
    micro_batch: int = Field(default=8, ge=1)
    """Images per transformer forward, in sampling and in replay."""
    decode_batch: int = Field(default=16, ge=1)
    """Images per VAE decode."""


class Reward(Section):
    url: str | list[str]
    """http://, https://, grpc:// or grpcs:// address of the service, or of several replicas."""
    weight: float = 1.0
    clip: tuple[float, float] | None = None
    """Least and largest score that counts."""
    normalise: Literal["none", "prompt", "global"] = "none"
    """Before weighting: to mean 0 and standard deviation 1 in its group, or over the epoch."""
    token_env: str | None = None
    """Name of the environment variable that holds the bearer token."""


class Scoring(Section):
    timeout_s: float = Field(default=120.0, gt=0)
    """Per sample, all retries included; a later score is masked."""
    min_group: int = Field(default=2, ge=2)
    """Groups with fewer scored members are dropped from the update."""
    outage_wait_s: float = Field(default=3600.0, ge=0)
    """How long to hold an epoch in which a reward scored nothing because it was unreachable."""
    encoding: Literal["raw", "png", "jpeg"] = "raw"
    overlap: Literal["sampling", "updates", "epoch"] = "sampling"
    """What goes on while rewards score. sampling: the rest of the epoch's sampling. updates: also the
    updates, each of which waits for its own share's scores only; same result. epoch: also the next
    epoch's sampling, whose samples are then one update old when they are trained on."""


class Advantage(Section):
    std: Literal["prompt", "global", "none", "gdpo"] = "prompt"
    """What a group's rewards, less their mean, are divided by: the group's standard deviation, the
    epoch's, or 1. gdpo: each reward by its group's, then their weighted sum by the epoch's."""
    clip: float = Field(default=5.0, gt=0)


class Update(Section):
    objective: Literal["clip", "guard", "dppo", "nft", "awm"] = "clip"
    """On the sampled trajectories: clip: PPO's ratio clip (the paper). guard: the clip of a ratio
    normalised per step (GRPO-Guard). dppo: no clip, a mask by exact KL (Flow-DPPO). On finished
    samples that are noised again, see [forward]: nft (DiffusionNFT), awm (advantage-weighted
    matching)."""
    clip_range: float = Field(default=1e-4, gt=0)
    """e of the ratio's clip; for dppo, the KL per element above which a step is masked. Log-ratios
    are means over a latent's elements, so the useful range depends on resolution."""
    kl: Literal["none", "gaussian", "gaussian_unscaled", "velocity"] = "none"
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL term; not portable between KL forms."""
    updates_per_epoch: int = Field(default=2, ge=1)
    trained_steps: int | None = Field(default=None, ge=1)
    """Train a random subset of the window of this size, drawn per epoch (default: all of it). On the
    forward process: noise levels per sample (default: num_steps - 1)."""
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
    def forward_process(self) -> bool:
        return self.objective in ("nft", "awm")


class Forward(Section):
    """Objectives nft and awm. An old policy, a moving average of the trained one, draws the samples.
    After every epoch, k optimizer steps in all, it keeps d = min(old_rate (k - old_start), old_max)
    of itself."""

    strength: float = Field(default=1.0, gt=0, le=1)
    """b of DiffusionNFT."""
    weighting: Literal["uniform", "t", "t2", "huber", "ghuber"] = "ghuber"
    """How AWM weighs the matching loss over noise levels."""
    old_start: int = Field(default=0, ge=0)
    old_rate: float = Field(default=0.001, ge=0)
    old_max: float = Field(default=0.5, ge=0, lt=1)
    """0: the old policy is the current one of the epoch's start."""
    old_beta: float = Field(default=0.0, ge=0)
    """Weight of mean((v - v_old)^2)."""


class Ema(Section):
    enabled: bool = True
    decay: float = Field(default=0.9, ge=0, lt=1)
    interval: int = Field(default=8, ge=1)
    """Optimizer steps between EMA updates."""


class Evaluation(Section):
    every: int = Field(default=10, ge=0)
    """Epochs between validation runs; 0: never."""
    num_steps: int = Field(default=40, ge=1)
    """T of the ODE sampler, with EMA weights."""
    images_per_prompt: int = Field(default=1, ge=1)
    heldout_images_per_prompt: int = Field(default=1, ge=1)


class Parallel(Section):
    sharding: Literal["auto", "none", "full", "hybrid"] = "auto"
    """How several processes hold the transformer. none: each all of it. full: each a part (FSDP2).
    hybrid: parts within a node, a copy per node. auto: none for LoRA, hybrid for full fine-tuning."""


class Checkpoints(Section):
    every: int = Field(default=10, ge=1)
    """Epochs."""
    keep: int = Field(default=2, ge=1)


class Logging(Section):
    tensorboard: bool = True
    wandb_project: str | None = None
    image_every: int = Field(default=10, ge=0)
    """Epochs between sample grids; 0: none."""


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

    @model_validator(mode="after")
    def _values_fit(self) -> Recipe:
        from flow_trainer.checks import check_recipe

        check_recipe(self)
        return self

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
        from flow_trainer.window import window

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


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies `--set a.b=c` overrides (values in TOML; bare words are strings).

    TOML, whose relative paths of prompts, and of models that exist as a folder, are taken from the
    recipe's folder; or the resolved recipe.json of a run. Raises ConfigError.
    """
    path = Path(path)
    resolved = path.suffix == ".json"
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if resolved else tomllib.loads(text)
    except FileNotFoundError:
        known = ", ".join(sorted(p.name for p in path.parent.glob("*.toml"))) or "none"
        raise ConfigError(f"no recipe {path} (recipes there: {known})") from None
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    for override in overrides:
        apply_override(data, override)
    if not resolved:
        resolve_paths(data, path.parent)
    return parse_recipe(data, source=str(path))


def parse_recipe(data: dict[str, Any], source: str = "recipe") -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [_explain(data, detail) for detail in error.errors()]
        raise ConfigError(f"{source}:\n  " + "\n  ".join(lines)) from None


def save_resolved(recipe: Recipe, path: Path) -> None:
    """The complete recipe as JSON, for `load_recipe`."""
    path.write_text(json.dumps(recipe.model_dump(), indent=2) + "\n", encoding="utf-8")


def _explain(data: dict[str, Any], detail: Any) -> str:
    where = ".".join(str(part) for part in detail["loc"]) or "recipe"
    if detail["type"] != "extra_forbidden":
        return f"{where}: {detail['msg'].removeprefix('Value error, ')}"
    known = _fields_at(detail["loc"][:-1])
    nearest = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known keys: {', '.join(known)}"
    return f"{where}: unknown key; {hint}"


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    section: Any = Recipe
    for part in location:
        if isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[str(part)].annotation
        if section == dict[str, Reward]:
            section = dict
        elif section is dict:
            section = Reward
    return list(section.model_fields) if isinstance(section, type) and section is not dict else []
