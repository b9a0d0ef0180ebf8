"""What a recipe's values say together: combinations that cannot work are refused before any model
loads. Every check raises ValueError with the keys and the fix."""

from __future__ import annotations

from typing import get_args

from flow_trainer.errors import ConfigError
from flow_trainer.recipe.recipe import Recipe
from flow_trainer.recipe.rewards import Advantage
from flow_trainer.recipe.update import Forward, OnChosenSamples, OnFinishedSamples
from reward_api.transport.base import parse_url

_ALL_LEVELS = {"share": "none", "times": "schedule", "first_steps": None, "skip_steps": 0}
_FORWARD = ", ".join((*get_args(OnFinishedSamples), *get_args(OnChosenSamples)))


def check_recipe(recipe: Recipe) -> None:
    for check in (
        _model,
        _rewards,
        _monitors,
        _sources,
        _overlap,
        _sizes,
        _scouts,
        _objective,
        _teachers,
        _gradients,
        _data,
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
        if not reward.urls:
            raise ValueError(f"rewards.{name}.url = []: name at least one address")
        for url in reward.urls:
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
    if recipe.watch.embeddings not in (None, *recipe.rewards):
        raise ValueError(f"watch.embeddings = {recipe.watch.embeddings} is none of the rewards")
    if not recipe.trained:
        raise ValueError("rewards: all are monitors; one without monitor = true must train")
    for name, reward in recipe.monitors.items():
        # by value: a run's recipe.json states the defaults too
        usual = {"weight": 1.0, "clip": None, "normalise": "none"}
        changed = [key for key, value in usual.items() if getattr(reward, key) != value]
        if changed:
            raise ValueError(f"rewards.{name}.{changed[0]}: a monitor never trains: leave it out")


def _sources(recipe: Recipe) -> None:
    p = recipe.prompts
    if not p.sources:
        if p.train is None:
            raise ValueError(
                "prompts.train: name a prompt file, or [prompts.sources.NAME] with one"
            )
        return
    beside = [name for name in ("train", "validation", "heldout", "teacher") if getattr(p, name)]
    if beside:
        raise ValueError(
            f"prompts.{beside[0]} does not go with [prompts.sources]: every source has its own"
        )
    for name, source in p.sources.items():
        missing = [reward for reward in source.rewards if reward not in recipe.trained]
        if missing:
            known = ", ".join(recipe.trained)
            raise ValueError(
                f"prompts.sources.{name}.rewards names {missing[0]!r}, and there is no "
                f"[rewards.{missing[0]}]: add it, or use one of {known}"
            )
        if len(set(source.rewards)) < len(source.rewards):
            raise ValueError(f"prompts.sources.{name}.rewards names a reward twice")
        if source.weights is not None and len(source.weights) != len(source.rewards):
            raise ValueError(
                f"prompts.sources.{name}.weights has {len(source.weights)} entries for "
                f"{len(source.rewards)} rewards: write one each"
            )
    idle = set(recipe.trained).difference(*(source.rewards for source in p.sources.values()))
    if idle:
        raise ValueError(
            f"rewards.{min(idle)} scores no source's images: name it in a source's rewards (weights 0 "
            "only watches), or leave it out"
        )


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


def _scouts(recipe: Recipe) -> None:
    s, u = recipe.sampling, recipe.update
    if u.keep is None:
        if s.candidates is not None or s.scout_steps is not None:
            raise ValueError(
                "sampling.candidates and scout_steps are for update.keep = [best, worst]: set it, or "
                "leave them out"
            )
        return
    if not u.forward_process:
        raise ValueError(
            f"update.keep draws the chosen samples again, which update.objective = {u.objective}, on "
            "stochastic steps, cannot: use an objective on finished samples"
        )
    if not s.deterministic:
        raise ValueError(
            f"update.keep draws the chosen samples again along the ode, not with sampling.dynamics = "
            f"{s.dynamics}: use ode or ode2"
        )
    if min(u.keep) < 0 or sum(u.keep) != s.group_size:
        raise ValueError(
            f"update.keep = {list(u.keep)} must add up to sampling.group_size = {s.group_size}"
        )
    if s.candidates is None or s.candidates <= s.group_size:
        raise ValueError(
            f"update.keep needs sampling.candidates above sampling.group_size = {s.group_size}"
        )


def _objective(recipe: Recipe) -> None:
    s, u = recipe.sampling, recipe.update
    if u.beta > 0 and u.kl == "none":
        raise ValueError("update.beta > 0 needs update.kl (gaussian, gaussian_unscaled, velocity)")
    if u.kl in ("kl2", "kl3") and u.objective != "epg":
        raise ValueError(
            f"update.kl = {u.kl} compares likelihoods, which update.objective = {u.objective} does "
            "not have: use velocity"
        )
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
    if u.step_weight != "none" and (s.deterministic or s.dynamics == "cps"):
        raise ValueError(
            f"update.step_weight = {u.step_weight} weighs Gaussian steps, which sampling.dynamics = "
            f"{s.dynamics} does not take: use flow_sde, dance_sde or flash_sde"
        )
    if u.trains_on in ("teachers", "gradients", "data"):
        return
    if s.deterministic and not u.forward_process:
        raise ValueError(
            f"update.objective = {u.objective} does not go with sampling.dynamics = {s.dynamics}: "
            f"{_FORWARD} train on finished samples however they were drawn, the others on the stochastic "
            "steps of flow_sde, cps, dance_sde or flash_sde"
        )


def _teachers(recipe: Recipe) -> None:
    u, named = recipe.update, set(recipe.teachers)
    if u.trains_on in ("teachers", "data") and recipe.advantage.diversity > 0:
        raise ValueError(
            f"advantage.diversity is a bonus beside rewards, which update.objective = {u.objective} does "
            "not follow: leave it out"
        )
    if u.trains_on != "teachers":
        if named:
            raise ValueError(f"a teacher is for update.objective = opd, not for {u.objective}")
        return
    missing = set(recipe.source_weights) - named
    if missing:
        where = f"sources.{min(missing)}." if min(missing) else ""
        raise ValueError(
            f"update.objective = opd needs prompts.{where}teacher: an adapter's folder or repository"
        )
    if recipe.model.tuning != "lora":
        raise ValueError("update.objective = opd switches adapters: use model.tuning = lora")
    if recipe.sharding != "none":
        raise ValueError(
            f"update.objective = opd asks other teachers on every process, which parallel.sharding = "
            f"{recipe.sharding} cannot: use none"
        )
    if recipe.sampling.dynamics == "ode2":
        raise ValueError(
            "update.objective = opd compares single steps, and ode2's depend on the one before: use "
            "sampling.dynamics = ode"
        )
    if u.beta > 0 or u.step_weight != "none":
        raise ValueError(
            "update.objective = opd has no update.beta and no update.step_weight: leave them out"
        )


def _gradients(recipe: Recipe) -> None:
    s, u, w = recipe.sampling, recipe.update, recipe.sampling.window
    if u.trains_on != "gradients":
        return
    name = f"update.objective = {u.objective}"
    normalised = [n for n, reward in recipe.trained.items() if reward.normalise != "none"]
    drawn = "has gradients of the images as they were drawn"
    wrong = {
        f"takes the gradient through single steps without noise, not through those of sampling.dynamics "
        f"= {s.dynamics}: use ode": s.dynamics != "ode",
        f"takes the gradient through few steps, not through those of sampling.window.kind = {w.kind}: "
        "use random (ReFL) or first, with lo and size": w.kind not in ("random", "first"),
        f"has sampling.num_steps = {s.num_steps} steps, and sampling.window.hi = {w.hi} exceeds them": (
            (w.hi or 0) > s.num_steps
        ),
        "with sampling.same_latent draws the same image for a whole group: leave it out": s.same_latent,
        f"{drawn}, so that update.updates_per_epoch = {u.updates_per_epoch} would go by old ones: use 1, "
        "with fewer prompts per epoch": u.updates_per_epoch != 1,
        f"{drawn}, and scoring.overlap = epoch trains on older ones: use sampling": (
            recipe.scoring.overlap == "epoch"
        ),
        f"has no distributions for update.kl = {u.kl} to compare: use velocity": (
            u.kl not in ("none", "velocity")
        ),
        "trains all steps of sampling.window: leave out update.trained_steps": (
            u.trained_steps is not None
        ),
        f"follows rewards as they are: use weight, not normalise, for {', '.join(normalised)}": (
            bool(normalised)
        ),
        "has no advantages: leave out [advantage]": recipe.advantage != Advantage(),
    }
    for said, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(f"{name} {said}")


def _data(recipe: Recipe) -> None:
    d, u = recipe.data, recipe.update
    if d is None:
        if u.trains_on == "data":
            raise ValueError("update.objective = data needs [data] with images or pairs")
        return
    if (d.images is None) == (d.pairs is None):
        raise ValueError(
            "[data]: name images, a folder or hf:NAME for supervised fine-tuning, or pairs, a .jsonl file "
            "for Flow-DPO; one of the two"
        )
    if u.trains_on != "data":
        return
    changed = {
        "update.beta": u.beta > 0,
        "update.trained_steps": u.trained_steps is not None,
        "update.step_weight": u.step_weight != "none",
        "update.keep": u.keep is not None,
        "scoring.overlap": recipe.scoring.overlap != "sampling",
    }
    if any(changed.values()):
        name = next(name for name, is_set in changed.items() if is_set)
        raise ValueError(
            f"update.objective = data draws no samples, which {name} is about: leave it out"
        )


def _forward_process(recipe: Recipe) -> None:
    s, u = recipe.sampling, recipe.update
    if not u.forward_process:
        if recipe.forward != Forward():
            raise ValueError(
                f"[forward] belongs to update.objective = {_FORWARD}, not to {u.objective}"
            )
        return
    if s.same_latent and s.deterministic:
        raise ValueError(
            f"sampling.same_latent with sampling.dynamics = {s.dynamics} draws the same image for a whole "
            "group: nothing to learn from"
        )
    if u.trains_on == "chosen samples" and recipe.forward.old_beta > 0:
        raise ValueError(
            f"forward.old_beta = {recipe.forward.old_beta} is not for update.objective = {u.objective}, "
            'which does not look at the old policy: use update.kl = "velocity" with update.beta'
        )
    if u.kl in ("gaussian", "gaussian_unscaled"):
        raise ValueError(
            f"update.kl = {u.kl} compares transitions, which update.objective = {u.objective} does "
            "not have: use velocity"
        )
    _levels(recipe)


def _levels(recipe: Recipe) -> None:
    s, u, f = recipe.sampling, recipe.update, recipe.forward
    if u.objective == "nft" and f.strength > 1:
        raise ValueError(
            f"forward.strength = {f.strength}: nft mixes that much of the new velocity into the old "
            "one, so it is at most 1"
        )
    if f.first_steps is not None and f.first_steps > s.num_steps:
        raise ValueError(
            f"forward.first_steps = {f.first_steps} exceeds sampling.num_steps = {s.num_steps}"
        )
    if not recipe.levels:
        raise ValueError(
            f"forward.skip_steps = {f.skip_steps} leaves no noise level of the first "
            f"{recipe.levels.stop} steps: lower it"
        )
    if u.trains_on == "chosen samples" and f.model_dump(include=set(_ALL_LEVELS)) != _ALL_LEVELS:
        raise ValueError(
            f"update.objective = {u.objective} draws its noise levels from all of the schedule: leave "
            "out forward.share, forward.times, forward.first_steps and forward.skip_steps"
        )
    if u.trains_on == "chosen samples" and f.reference_guidance is not None:
        raise ValueError(
            f"update.objective = {u.objective} has the reference at model.guidance: leave out "
            "forward.reference_guidance"
        )
    if not u.whole_groups:
        return
    least = "pairs" if u.objective == "dgpo" else "times"
    if u.objective != "dpo" and f.share not in ("pairs", least):
        raise ValueError(
            f"update.objective = {u.objective} compares a group's samples at the same noise level: "
            f'set forward.share = "{least}"'
        )
    if s.micro_batch % s.group_size:
        raise ValueError(
            f"update.objective = {u.objective} compares the samples of whole groups: "
            f"sampling.micro_batch = {s.micro_batch} must be a multiple of sampling.group_size = "
            f"{s.group_size}"
        )


def _trained_steps(recipe: Recipe) -> None:
    u = recipe.update
    recipe.noisy_steps(0)  # raises for a window that does not fit, whoever trains on it
    available = len(recipe.levels) if u.forward_process else len(recipe.window(0))
    if u.trained_steps is not None and u.trained_steps > available:
        raise ValueError(
            f"update.trained_steps = {u.trained_steps} exceeds the {available} steps there are to "
            "train (sampling.num_steps, sampling.window, forward.first_steps and skip_steps)"
        )


def busy_share(recipe: Recipe, size: int) -> float:
    """Which part of the time `size` ranks have a micro-batch to work on. Raises ConfigError when an
    update has fewer micro-batches than there are ranks."""
    images = recipe.share
    if recipe.data is not None and recipe.update.trains_on == "data":
        images = recipe.data.batch * recipe.data.members
    batches = -(-images // recipe.sampling.micro_batch)
    if batches < size:
        raise ConfigError(
            f"an update's {images} images in micro-batches of {recipe.sampling.micro_batch} "
            f"are work for {batches} processes, not for {size}: set sampling.micro_batch to "
            f"{max(images // size, 1)} or less, or start fewer processes"
        )
    return batches / (-(-batches // size) * size)
