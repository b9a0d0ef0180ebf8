"""What float16 leaves of the published recipes' gradients, at their latents and divisors; the network
itself is narrow. On a CPU, with a GPU's rule for layer norms."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from flow_trainer.doctor.checks import Check
from flow_trainer.doctor.precision import check_precision
from flow_trainer.loop.precision import Precision
from flow_trainer.models.load import load_policy
from flow_trainer.recipe import parse_recipe
from flow_trainer.recipe.prompts import Prompt
from flow_trainer.recipe.update import Update
from policy_steps import CPU
from published_precision import NarrowModels, measured

PROMPT = Prompt("red sign")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> NarrowModels:
    return NarrowModels(tmp_path_factory.mktemp("narrow"))


CASES = [
    ("sd35m_ocr", ()),
    ("sd35m_ocr", ("update.kl=gaussian", "update.beta=0.04")),
    ("sd35m_ocr", ("update.kl=gaussian_unscaled", "update.beta=0.04")),
    ("sd35m_ocr", ("update.kl=velocity", "update.beta=0.04")),
    ("sd35m_ocr", ("sampling.dynamics=dance_sde", "sampling.noise_level=0.3")),
    ("sd35m_ocr", ("update.objective=dppo",)),
    ("sd35m_ocr_guard", ()),
    ("sd35m_pickscore_fast_nocfg", ()),
    ("sd35m_pickscore_fast_nocfg", ("update.kl=velocity", "update.beta=0.04")),
    ("sd35m_ocr_nft", ()),
    ("sd35m_ocr_nft", ("update.kl=velocity", "update.beta=0.04", "forward.old_beta=0.1")),
    ("sd35m_geneval_awm", ()),
    ("sd35m_ocr_nft", ("update.objective=sft",)),
    ("sd35m_ocr_nft", ("update.objective=orw",)),
    ("sd35m_ocr_nft", ("update.objective=dpo", "sampling.micro_batch=24")),
    ("sd35m_geneval_epg", ()),
    ("sd35m_geneval_pepg", ()),
    ("sd35m_geneval_pepg", ("update.kl=kl2",)),
    ("sd35m_geneval_pepg", ("update.kl=kl3",)),
    ("sd35m_geneval_vgrpo", ()),
    ("sd35m_geneval_ram", ()),
    ("sd35m_ocr_dgpo", ()),
    ("sd35m_ocr_crd", ()),
    ("sd35m_multi_opd", ()),
    ("sd35m_multi_flow_opd", ()),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_float16_keeps_the_gradient(
    narrow: NarrowModels, name: str, options: tuple[str, ...]
) -> None:
    found, output = measured(narrow.recipe(name, *options), PROMPT)
    assert output.count > 0
    assert output.share < 0.01
    assert found.zeros < 0.01
    assert found.cosine >= 0.99
    assert found.loss_scale >= 2**15


def test_every_objective_is_among_the_cases(narrow: NarrowModels) -> None:
    measured_here = {narrow.recipe(name, *options).update.objective for name, options in CASES}
    measured_here |= {"refl", "data"}  # in the test below; it draws no samples to measure with
    known = Update.model_fields["objective"].annotation
    assert measured_here == {
        value for part in get_args(known) for value in get_args(part) or [part]
    }


def test_float16_keeps_the_gradient_of_a_reward(narrow: NarrowModels) -> None:
    """It is larger per element than one that a mean divides, so the scale settles lower."""
    short = ("sampling.num_steps=10", "sampling.window.lo=6")
    found, output = measured(narrow.recipe("sd35m_pickscore_refl", *short), PROMPT)
    assert output.share < 0.01
    assert found.zeros < 0.01
    assert found.cosine >= 0.99
    assert found.log_ratio_error is None
    assert 2**10 < found.loss_scale < 2**18


@pytest.mark.parametrize("name", ["sd35m_ocr", "sd35m_pickscore_fast_nocfg", "sd35m_ocr_nft"])
def test_without_a_scale_it_is_lost(narrow: NarrowModels, name: str) -> None:
    found, output = measured(narrow.recipe(name), PROMPT, scale=1.0)
    assert output.share > 0.9
    assert found.zeros > 0.8
    assert found.cosine < 0.9
    assert "the gradient is lost to rounding: set model.dtype = float32" in found.explain()


def test_an_overflow_halves_the_scale(narrow: NarrowModels) -> None:
    found, _ = measured(narrow.recipe("sd35m_ocr"), PROMPT, scale=2.0**60)
    assert 2**21 < found.loss_scale < 2**60
    assert found.cosine >= 0.99


@pytest.mark.parametrize(
    ("name", "clipped"),
    [
        ("sd35m_ocr_guard", True),
        ("sd35m_geneval_awm", True),
        ("sd35m_geneval_vgrpo", True),
        ("sd35m_ocr_dgpo", True),
        ("sd35m_geneval_epg", False),
        ("sd35m_ocr_nft", False),
        ("sd35m_multi_opd", False),
    ],
)
def test_log_ratios_are_measured_where_one_is_clipped(
    narrow: NarrowModels, name: str, clipped: bool
) -> None:
    found, _ = measured(narrow.recipe(name), PROMPT)
    assert (found.log_ratio_error is not None) == clipped
    assert found.log_ratio_error is None or 0 < found.log_ratio_error < found.clip_range


def test_doctor_measures_it(narrow: NarrowModels) -> None:
    recipe = narrow.recipe("sd35m_ocr")
    policy = load_policy(recipe.model, CPU, with_reference=False)
    check = check_precision(policy, recipe, PROMPT)
    assert check.ok, check.message
    assert "float16 beside float32: 0.0% of the gradient is 0, cosine " in check.message
    assert "clip_range 0.0001" in check.message
    u = recipe.update.model_copy(update={"clip_range": 1e-9})
    check = check_precision(policy, recipe.model_copy(update={"update": u}), PROMPT)
    assert not check.ok
    assert "the clip acts on rounding: set model.dtype = float32, or update.clip_range to" in (
        check.message
    )


@pytest.mark.parametrize(
    ("error", "cosine", "word", "said"),
    [
        (0.5e-5, 0.995, "ok", "clip_range 1e-05"),
        (
            1.2e-5,
            0.995,
            "warn",
            "drops samples at random; if it matters, set model.dtype = float32",
        ),
        (1.2e-5, 0.985, "warn", "update.clip_range to 2e-05 or more"),
        (0.5e-5, 0.915, "warn", "rounding turns the gradient a little"),
        (2.5e-5, 0.995, "FAIL", "the clip acts on rounding: set model.dtype = float32"),
        (None, 0.5, "FAIL", "the gradient is lost to rounding"),
    ],
)
def test_the_originals_own_rounding_is_a_warning(
    error: float | None, cosine: float, word: str, said: str
) -> None:
    found = Precision("bfloat16", 1.0, 0.0, cosine, error, 1e-5)
    check = Check("precision", found.problem is None, found.explain(), found.concern is not None)
    assert check.word == word
    assert said in check.message


def test_doctor_has_nothing_to_measure_in_float32(recipe_data: dict[str, Any]) -> None:
    recipe = parse_recipe(recipe_data)
    policy = load_policy(recipe.model, CPU, with_reference=False)
    check = check_precision(policy, recipe, PROMPT)
    assert check.ok
    assert check.message == "computes in float32 on cpu"
