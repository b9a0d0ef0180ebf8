"""`flow-grpo evaluate RECIPE --suite ...`: suites for one model or several, under one noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flow_trainer.errors import ConfigError, OutageError
from flow_trainer.evaluation.measure import Asked, measure, missing_scores
from flow_trainer.evaluation.samples import Finished, Samples
from flow_trainer.evaluation.sources import describe, parse_sources, suite_prompts
from flow_trainer.evaluation.subjects import Subject, make_subject
from flow_trainer.evaluation.suites import PROTOCOLS, Suite, find_suites
from flow_trainer.evaluation.tables import Table, suite_table, task_table
from flow_trainer.loop.scoring import Scorer
from flow_trainer.models.load import load_policy
from flow_trainer.parallel.world import World, open_world, pick_device
from flow_trainer.recipe import Recipe
from flow_trainer.recipe.prompts import Prompt
from flow_trainer.recipe.rewards import parse_rewards
from flow_trainer.record.checkpoint import load_weights
from flow_trainer.record.meter import Meter
from reward_api import RewardError


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for."""

    suites: list[str]
    checkpoint: Path | None = None
    against: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    rewards: list[str] = field(default_factory=list)
    out: Path | None = None
    steps: int | None = None
    seed: int = 42
    own_sampling: bool = False
    keep_images: bool = False
    ready_s: float = 10.0
    """In which a reward must say that it is ready, or its columns stay empty."""


@dataclass(frozen=True, slots=True)
class _Rewards:
    asked: dict[str, Asked]
    """By the name under which a service introduces itself."""
    unanswered: dict[str, str]
    """Why not, by the recipe's name."""

    def of(self, suite: Suite) -> dict[str, Asked]:
        return {m.reward: self.asked[m.reward] for m in suite.metrics if m.reward in self.asked}

    def why_not(self, suite: Suite) -> dict[str, str]:
        return {
            metric.reward: self.unanswered.get(
                metric.reward,
                f"no reward {metric.reward}: start its service and pass --reward "
                f"{metric.reward}=URL",
            )
            for metric in suite.metrics
            if metric.reward not in self.asked
        }


def run_suites(recipe: Recipe, request: Request) -> list[Table]:
    """Draws and scores what `request.out` does not hold yet, and returns the tables, which it also
    saves there as Markdown and JSON. Under torchrun, all ranks call this together. Raises ConfigError,
    OutageError."""
    suites = find_suites(request.suites)
    sources = parse_sources(request.prompts)
    prompts = {suite.name: suite_prompts(suite, sources.get(suite.name)) for suite in suites}
    subjects = _subjects(recipe, request)
    out = request.out or Path("runs") / f"evaluation-{recipe.name}"
    with (
        open_world(pick_device(recipe.device), recipe.sharding) as world,
        _rewards(recipe, request, world) as rewards,
    ):
        for suite in suites:
            if not rewards.of(suite):
                why = "; ".join(rewards.why_not(suite).values())
                raise ConfigError(f"suite {suite.name}: {why}")
        results: dict[str, dict[str, Finished]] = {suite.name: {} for suite in suites}
        for subject in subjects:
            finished = _measure(subject, suites, prompts, rewards, out, request, world)
            for name, found in finished.items():
                results[name][subject.label] = found
        tables = _tables(suites, prompts, subjects, results, rewards, sources)
        if world.is_main:
            for table in tables:
                table.save(out)
        world.barrier()
        return tables


def _subjects(recipe: Recipe, request: Request) -> list[Subject]:
    which = [request.checkpoint, *request.against]
    subjects = [
        make_subject(
            recipe,
            name,
            own_sampling=request.own_sampling,
            steps=request.steps,
            seed=request.seed,
        )
        for name in which
    ]
    labels = [subject.label for subject in subjects]
    if len(set(labels)) < len(labels):
        raise ConfigError(
            f"{', '.join(labels)}: a model is not compared with itself; change --checkpoint or "
            "--against"
        )
    return subjects


def _measure(
    subject: Subject,
    suites: Sequence[Suite],
    prompts: dict[str, list[Prompt]],
    rewards: _Rewards,
    out: Path,
    request: Request,
    world: World,
) -> dict[str, Finished]:
    """One model under every suite; it is loaded once, and only when something is left to do."""
    open_samples, todo = {}, {}
    for suite in suites:
        own = prompts[suite.name]
        identity = subject.identity(suite, own)
        folder = out / suite.name / subject.folder(identity)
        open_samples[suite.name] = samples = Samples(folder, identity, world.rank)
        total = len(own) * suite.images_per_prompt
        # another node may see an older state of shared storage: the first rank decides
        found = missing_scores(samples, list(rewards.of(suite)), total) if world.is_main else {}
        todo[suite.name] = world.exchange(found)[0]
    left = [suite for suite in suites if any(todo[suite.name].values())]
    if left:
        mesh = world.mesh
        device = pick_device(subject.recipe.device)
        policy = load_policy(subject.recipe.model, device, with_reference=False, mesh=mesh)
        if subject.checkpoint is not None:
            load_weights(policy, subject.checkpoint)
        policy.prepare_prompts([p.text for suite in left for p in prompts[suite.name]])
        for suite in left:
            missing = todo[suite.name]
            total = len(missing) * len(prompts[suite.name]) * suite.images_per_prompt
            lacking = sum(map(len, missing.values()))
            title = f"{suite.name}, {subject.label}"
            with Meter(title, total, done=total - lacking, quiet=not world.is_main) as meter:
                meter.say(f"{title}: {total - lacking} of {total} scores are there")
                measure(
                    subject,
                    suite,
                    prompts[suite.name],
                    open_samples[suite.name],
                    policy,
                    rewards.of(suite),
                    missing,
                    meter,
                    keep_images=request.keep_images,
                    world=world,
                )
    world.barrier()
    return {name: samples.read() for name, samples in open_samples.items()}


def _tables(
    suites: Sequence[Suite],
    prompts: dict[str, list[Prompt]],
    subjects: Sequence[Subject],
    results: dict[str, dict[str, Finished]],
    rewards: _Rewards,
    sources: dict[str, str],
) -> list[Table]:
    tables = {}
    for suite in suites:
        source = describe(sources.get(suite.name), suite)
        identity = subjects[0].identity(suite, prompts[suite.name])
        protocol = {
            **{k: identity[k] for k in ("model", "steps", "guidance", "size", "seed")},
            **{k: identity[k] for k in ("images_per_prompt", "prompts_sha256")},
            "prompts": source,
        }
        tables[suite.name] = suite_table(
            suite,
            prompts[suite.name],
            results[suite.name],
            family=subjects[0].recipe.model.family,
            protocol=protocol,
            unanswered=rewards.why_not(suite),
            notes=_notes(subjects[0], source),
        )
    made = list(tables.values())
    if any(suite.name in ("ocr", "pickscore", "drawbench") for suite in suites):
        made.append(task_table(tables, subjects[0].recipe.model.family))
    return made


def _notes(subject: Subject, source: str) -> list[str]:
    """How it was sampled, and where that is not as the published figures were."""
    model, protocol = subject.recipe.model, PROTOCOLS[subject.recipe.model.family]
    size = f"{model.width} x {model.height}"
    notes = [
        f"ODE, {subject.steps} steps, guidance {model.guidance}, {size} pixels, seed "
        f"{subject.recipe.seed}, prompts: {source}"
    ]
    usual = f"{protocol.side} x {protocol.side}"
    found = [
        ("steps", subject.steps, protocol.steps),
        ("guidance", model.guidance, protocol.guidance),
        ("size", size, usual),
    ]
    differing = [f"{name} {own} for {theirs}" for name, own, theirs in found if own != theirs]
    if differing:
        notes.append(f"not sampled as the paper's figures were: {', '.join(differing)}")
    return notes


@contextmanager
def _rewards(recipe: Recipe, request: Request, world: World) -> Iterator[_Rewards]:
    """Every reward of the recipe and of --reward that answers."""
    configured = {**recipe.rewards, **parse_rewards(request.rewards)}
    scorers: list[Scorer] = []
    rewards = _Rewards({}, {})
    try:
        for key, reward in configured.items():
            scorer = Scorer({key: reward}, recipe.scoring)
            scorers.append(scorer)
            try:
                scorer.wait_ready(request.ready_s)
                about = scorer.metadata()[key]
            except (OutageError, RewardError) as error:
                rewards.unanswered[key] = f"does not answer: {_first_line(error)}"
                continue
            name = about.name if about.name else key
            rewards.asked.setdefault(name, Asked(scorer, key, about.score.name))
        everywhere = world.exchange(list(rewards.asked))
        for name in [n for n in rewards.asked if not all(n in names for names in everywhere)]:
            del rewards.asked[name]
            rewards.unanswered[name] = "does not answer another rank"
        yield rewards
    finally:
        for scorer in scorers:
            scorer.close()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
