"""What a recipe's values say together: combinations that cannot work are refused before any model
loads. Every check raises ValueError with the keys and the fix."""

from __future__ import annotations

from typing import get_args

from flow_trainer.errors import ConfigError
from flow_trainer.recipe.recipe import Recipe
from flow_trainer.recipe.update import Forward, OnChosenSamples, OnFinishedSamples
from reward_api.transport.base import parse_url

_FORWARD = ", ".join((*get_args(OnFinishedSamples), *get_args(OnChosenSamples)))


def check_recipe(recipe: Recipe) -> None:
    for check in (
        _model,
        _rewards,
        _monitors,
        _overlap,
        _sizes,
        _objective,
        _forward_process,
        _trained_steps,
    ):
        check(recipe)


def _model(recipe: Recipe) -> None:
    m = recipe.model
    if m.family != "sd3" and m.dtype == "float16":
        raise ValueError(
            f"model.dtype = float16 overflows in {m.family} and gives broken images: use bfloat16"
        )
    if m.adapter is not None and m.tuning == "full":
        raise ValueError("model.adapter is a LoRA adapter: use model.tuning = lora")


def _rewards(recipe: Recipe) -> None:
    if not recipe.rewards:
        raise ValueError("rewards: name at least one, e.g. [rewards.ocr] url = ...")
    for name, reward in recipe.rewards.items():
        urls = [reward.url] if isinstance(reward.url, str) else reward.url
        if not urls:
            raise ValueError(f"rewards.{name}.url = []: name at least one address")
        for url in urls:
            try:
                parse_url(url)
            except ValueError as error:
                raise ValueError(f"rewards.{name}.url = {error}") from None
        if reward.clip is not None and reward.clip[0] >= reward.clip[1]:
            raise ValueError(f"rewards.{name}.clip = {reward.clip}: write [least, largest]")
        if recipe.advantage.std == "gdpo" and reward.normalise != "none":
            raise ValueError(
                "advantage.std = gdpo normalises every reward in its group already: leave out "
                f"rewards.{name}.normalise"
            )


def _monitors(recipe: Recipe) -> None:
    if not recipe.trained:
        raise ValueError("rewards: all are monitors; one without monitor = true must train")
    for name, reward in recipe.monitors.items():
        # by value: a run's recipe.json states the defaults too
        usual = {"weight": 1.0, "clip": None, "normalise": "none"}
        changed = [key for key, value in usual.items() if getattr(reward, key) != value]
        if changed:
            raise ValueError(f"rewards.{name}.{changed[0]}: a monitor never trains: leave it out")


def _overlap(recipe: Recipe) -> None:
    if recipe.scoring.overlap != "updates":
        return
    whole = [f"advantage.std = {s}" for s in ("global", "gdpo") if recipe.advantage.std == s]
    whole += [
        f"rewards.{name}.normalise = global"
        for name, reward in recipe.rewards.items()
        if reward.normalise == "global"
    ]
    if whole:
        raise ValueError(
            f"scoring.overlap = updates begins before all scores are there, which {whole[0]} needs: "
            "use scoring.overlap = sampling or epoch"
        )


def _sizes(recipe: Recipe) -> None:
    s, u = recipe.sampling, recipe.update
    if s.prompts_per_epoch % u.updates_per_epoch:
        raise ValueError(
            f"sampling.prompts_per_epoch = {s.prompts_per_epoch} is not a multiple of "
            f"update.updates_per_epoch = {u.updates_per_epoch}: groups are never split"
        )
    if recipe.scoring.min_group > s.group_size:
        raise ValueError(
            f"scoring.min_group = {recipe.scoring.min_group} exceeds sampling.group_size = "
            f"{s.group_size}: every group would be dropped"
        )


def _objective(recipe: Recipe) -> None:
    s, u = recipe.sampling, recipe.update
    if u.beta > 0 and u.kl == "none":
        raise ValueError("update.beta > 0 needs update.kl (gaussian, gaussian_unscaled, velocity)")
    if u.objective == "guard" and s.dynamics == "cps":
        raise ValueError(
            "update.objective = guard normalises Gaussian log-probabilities, which cps leaves "
            "unscaled: use sampling.dynamics = flow_sde or dance_sde"
        )
    if s.dynamics == "cps" and s.noise_level > 1:
        raise ValueError(
            f"sampling.noise_level = {s.noise_level}: cps replaces all predicted noise at 1 already, and "
            "beyond it adds it with the wrong sign"
        )
    if u.forward_process != (s.dynamics == "ode"):
        raise ValueError(
            f"update.objective = {u.objective} does not go with sampling.dynamics = {s.dynamics}: "
            f"{_FORWARD} train on finished samples of the ode, the others on the stochastic steps of "
            "flow_sde, cps or dance_sde"
        )


def _forward_process(recipe: Recipe) -> None:
    s, u = recipe.sampling, recipe.update
    if not u.forward_process:
        if recipe.forward != Forward():
            raise ValueError(
                f"[forward] belongs to update.objective = {_FORWARD}, not to {u.objective}"
            )
        return
    if s.same_latent:
        raise ValueError(
            "sampling.same_latent with sampling.dynamics = ode draws the same image for a whole "
            "group: nothing to learn from"
        )
    if u.trains_on == "chosen samples" and recipe.forward.old_beta > 0:
        raise ValueError(
            f"forward.old_beta = {recipe.forward.old_beta} is not for update.objective = {u.objective}, "
            'which does not look at the old policy: use update.kl = "velocity" with update.beta'
        )
    if u.whole_groups and s.micro_batch % s.group_size:
        raise ValueError(
            f"update.objective = {u.objective} compares the samples of whole groups: "
            f"sampling.micro_batch = {s.micro_batch} must be a multiple of sampling.group_size = "
            f"{s.group_size}"
        )
    if u.kl not in ("none", "velocity"):
        raise ValueError(
            f"update.kl = {u.kl} compares transitions, which update.objective = {u.objective} does "
            "not have: use velocity"
        )


def _trained_steps(recipe: Recipe) -> None:
    s, u = recipe.sampling, recipe.update
    available = s.num_steps if u.forward_process else len(recipe.window(0))
    if u.trained_steps is not None and u.trained_steps > available:
        raise ValueError(
            f"update.trained_steps = {u.trained_steps} exceeds the {available} steps there are to "
            "train (sampling.num_steps, sampling.window)"
        )


def busy_share(recipe: Recipe, size: int) -> float:
    """Which part of the time `size` ranks have a micro-batch to work on. Raises ConfigError when an
    update has fewer micro-batches than there are ranks."""
    batches = -(-recipe.share // recipe.sampling.micro_batch)
    if batches < size:
        raise ConfigError(
            f"an update's {recipe.share} images in micro-batches of {recipe.sampling.micro_batch} "
            f"are work for {batches} processes, not for {size}: set sampling.micro_batch to "
            f"{max(recipe.share // size, 1)} or less, or start fewer processes"
        )
    return batches / (-(-batches // size) * size)
