"""What `time_to_score.py` runs: every objective on the tiny model, a row each, and what else was tried.

All start from Flow-GRPO's recipe (trainer/recipes/tiny_sd3_ocr.toml): 8 prompts x 16 images and two updates
per epoch, full fine-tuning at 3e-4 with ten updates of warm-up. An objective's row says what it changes.
Its `tried` has as many alternatives as every other's, each one change; `time_to_score.py --tune` runs them
on a seed that the table does not use, with one budget for each. A short run favours high learning rates:
where one wins by MARGIN, it has to win a longer run by that too. What scored highest at its end is `chosen`
for the table.
"""

from __future__ import annotations

from dataclasses import dataclass

SEEDS = (42, 43, 44)
TUNING_SEED = 41
BUDGET = 140_800
"""Transformer forwards of a run's training, the backward counted as two: the 50 epochs of that recipe.
Evaluations come on top."""
TUNING_BUDGETS = (26_400, 70_400)
"""Of the first round, and of the second, in which learning rates that won the first have to win again."""
MARGIN = 0.025
"""By which a learning rate has to win: about the standard error of a score here."""
THRESHOLDS = (0.80, 0.85, 0.90)

COMMON = (
    # the curve is of held-out words; nothing is chosen by it but where a run stops
    "prompts.validation=../prompts/tiny_words_heldout.txt",
    "prompts.heldout=../prompts/tiny_words_heldout.txt",
    "evaluation.num_steps=20",
    "evaluation.images_per_prompt=2",
    "evaluation.heldout_images_per_prompt=2",
    "evaluation.diversity=true",
    # the CPU draws and trains 64 at once in two thirds of the time of four times 16
    "sampling.micro_batch=64",
    "update.steps_per_forward=1",
    "checkpoints.every=1000",  # but for the one that a stopped run leaves
    "checkpoints.keep=1",
    "logging.tensorboard=false",
    "logging.image_every=0",
    "logging.fixed_prompts=0",
)
ALL_STEPS = ("sampling.window.kind=all",)
FINISHED = ("sampling.dynamics=ode", "sampling.same_latent=false", "update.trained_steps=4")
"""For objectives on finished samples: four of nine noise levels of each."""
TENTH = ("advantage.std=none", "advantage.scale=0.1")
"""The advantage of the ELBO's authors; the scores lie in 0 to 1."""


@dataclass(frozen=True, slots=True)
class Row:
    settings: tuple[str, ...]
    tried: tuple[tuple[str, ...], ...]
    chosen: tuple[str, ...] = ()
    """One of `tried`, or none of them."""


FASTER, FASTEST = ("update.learning_rate=6e-4",), ("update.learning_rate=1.2e-3",)


def _rates(*more: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    return FASTER, FASTEST, *more


OBJECTIVES: dict[str, Row] = {
    "clip": Row(
        (),
        _rates(("update.clip_range=1e-4",), ALL_STEPS),
    ),
    "clip, noise weights": Row(
        ("update.step_weight=noise",),
        _rates(("update.clip_range=1e-4",), ALL_STEPS),
        chosen=FASTER,
    ),
    "guard": Row(
        ("update.objective=guard", "update.clip_range=1e-4", *ALL_STEPS),
        _rates(("update.clip_range=1e-3",), ("sampling.window.kind=first",)),
        chosen=("sampling.window.kind=first",),
    ),
    "dppo": Row(
        ("update.objective=dppo", "update.clip_range=1e-3"),
        _rates(("update.clip_range=1e-5",), ALL_STEPS),
    ),
    "nft": Row(
        ("update.objective=nft", "forward.strength=0.1", *FINISHED),
        _rates(("forward.strength=0.3",), ("sampling.dynamics=ode2",)),
        chosen=FASTEST,
    ),
    "awm": Row(
        ("update.objective=awm", "update.clip_range=1", "advantage.clip=1", *FINISHED),
        _rates(("forward.old_max=0", "forward.old_beta=1"), ("forward.weighting=t",)),
        chosen=("forward.old_max=0", "forward.old_beta=1"),
    ),
    "epg": Row(
        ("update.objective=epg", "forward.gradient=epg", *TENTH, *FINISHED),
        _rates(("advantage.scale=1",), ("forward.share=pairs", "forward.times=stratified")),
    ),
    "pepg": Row(
        (
            "update.objective=epg",
            "forward.gradient=pepg",
            "forward.ratio=false",
            *TENTH,
            *FINISHED,
        ),
        _rates(("advantage.scale=1",), ("forward.share=pairs", "forward.times=stratified")),
        chosen=("advantage.scale=1",),
    ),
    "epg, clipped": Row(
        (
            "update.objective=epg",
            "forward.gradient=clip",
            "update.clip_range=1e-3",
            "forward.share=pairs",
            "forward.times=stratified",
            *FINISHED,
        ),
        _rates(("update.clip_range=1e-2",), ("forward.share=none", "forward.times=schedule")),
        chosen=("update.clip_range=1e-2",),
    ),
    "ram": Row(
        ("update.objective=ram", *TENTH, *FINISHED),
        _rates(("advantage.scale=1",), ("advantage.scale=10",)),
        chosen=("advantage.scale=10",),
    ),
    "dgpo": Row(
        (
            "update.objective=dgpo",
            "forward.strength=100",
            "forward.share=pairs",
            "update.clip_range=1e-2",
            *FINISHED,
        ),
        _rates(("forward.strength=10",), ("forward.first_steps=5",)),
        chosen=("forward.first_steps=5",),
    ),
    "crd": Row(
        ("update.objective=crd", "forward.share=times", *FINISHED),
        _rates(("forward.strength=0.3",), ("forward.share=pairs",)),
    ),
    "sft": Row(
        ("update.objective=sft", "sampling.dynamics=ode", "sampling.same_latent=false"),
        _rates(("update.trained_steps=4",), ("sampling.dynamics=ode2",)),
        chosen=("update.trained_steps=4",),
    ),
    "orw": Row(
        ("update.objective=orw", *FINISHED),
        _rates(("forward.temperature=0.3",), ("forward.temperature=3",)),
        chosen=("forward.temperature=3",),
    ),
    "dpo": Row(
        ("update.objective=dpo", "sampling.dynamics=ode", "sampling.same_latent=false"),
        _rates(("forward.preference=30",), ("update.trained_steps=4",)),
        chosen=("forward.preference=30",),
    ),
}
"""Not here: opd, whose teacher would have to have the score already, and refl, as OCR has no gradient."""
