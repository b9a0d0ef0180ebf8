"""The self-check that makes GRPO trustworthy: an unchanged policy must give ratio 1.

The first update replays the rollout's own steps. If the replayed log-probability differs by more
than a fraction of the clip range, the clip acts on rounding noise instead of on the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flow_trainer.algorithm.trajectory import Trajectories
from flow_trainer.errors import RatioError
from flow_trainer.loop.rollout import rollout, transition
from flow_trainer.loop.updates.replay import make_replay, step_chunks, trained_steps
from flow_trainer.models.policy import Policy
from flow_trainer.models.prompt_rows import PromptRows
from flow_trainer.parallel.world import ALONE, World
from flow_trainer.recipe import Recipe
from flow_trainer.recipe.prompts import Prompt


@dataclass(frozen=True, slots=True)
class RatioReport:
    error: float
    """max |ratio - 1| in the geometry of training (steps_per_forward steps in one forward)."""
    same_geometry_error: float
    """The same with one step per forward, exactly as in the rollout."""
    tolerance: float
    compiled_error: float | None = None
    """What `error` was with compiled blocks, where they were given up for it."""

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance

    def explain(self) -> str:
        given_up = ""
        if self.compiled_error is not None:
            given_up = (
                f"model.compile = auto goes on without compiled blocks, whose |ratio - 1| = "
                f"{self.compiled_error:.1e}; now "
            )
        if self.ok:
            return f"{given_up}|ratio - 1| = {self.error:.1e}, within {self.tolerance:.1e}"
        found = f"{given_up}|ratio - 1| = {self.error:.1e} exceeds {self.tolerance:.1e} (clip_range / 10): "
        if self.same_geometry_error <= self.tolerance:
            return found + (
                "the model's output depends on the batch it runs in; set "
                "update.steps_per_forward = 1, or model.dtype = 'float32'"
            )
        return found + (
            "two identical forwards differ; set model.compile = false, look for dropout, training mode or "
            "non-deterministic kernels, or raise precision with model.dtype = 'float32'"
        )


def ratio_tolerance(recipe: Recipe) -> float:
    """A tenth of the clip range, but not below the rounding of a float32 log-probability."""
    return max(recipe.update.clip_range / 10, 1e-6)


def measure_ratio(policy: Policy, recipe: Recipe, prompts: Sequence[Prompt]) -> RatioReport:
    """Samples one micro-batch and replays it, as sampled and as training will."""
    sampling = recipe.sampling
    count = min(len(prompts), -(-sampling.micro_batch // sampling.group_size))
    probe = list(prompts[:count])
    samples = rollout(policy, recipe, 0, probe, list(range(count)), lambda rows, images: None)
    rows = min(sampling.micro_batch, recipe.share, len(samples.latents))
    same = _replay_error(policy, recipe, samples, probe, rows, 1)
    size = recipe.update.steps_per_forward
    trained = same if size == 1 else _replay_error(policy, recipe, samples, probe, rows, size)
    return RatioReport(trained, same, ratio_tolerance(recipe))


def check_ratio(
    policy: Policy, recipe: Recipe, prompts: Sequence[Prompt], world: World = ALONE
) -> RatioReport:
    """Raises RatioError unless the ratio of the unchanged policy is 1 within tolerance.

    Blocks that model.compile = auto compiled are given up where it is not: auto means compiled where
    that is right. All ranks call together, and give up together.
    """
    report = measure_ratio(policy, recipe, prompts)
    if policy.compiled_by_choice and world.any(not report.ok):
        worst = max(world.exchange(report.error))
        policy.run_eagerly()
        report = replace(measure_ratio(policy, recipe, prompts), compiled_error=worst)
    if not report.ok:
        raise RatioError(report.explain())
    return report


def _replay_error(
    policy: Policy,
    recipe: Recipe,
    samples: Trajectories,
    prompts: Sequence[Prompt],
    rows: int,
    steps_per_forward: int,
) -> float:
    conditioning = PromptRows(policy, [prompt.text for prompt in prompts])
    worst = 0.0
    for offsets in step_chunks(trained_steps(recipe, 0), steps_per_forward):
        r = make_replay(recipe, samples, conditioning, range(rows), offsets)
        v = policy.velocity(r.x, r.sigmas[r.steps], r.conditioning)
        step = transition(recipe, r.sigmas, r.steps, r.x, v)
        log_ratio = step.log_prob(r.x_next).detach() - r.old_log_prob
        worst = max(worst, float(log_ratio.exp().sub(1).abs().max()))
    return worst
