"""What is asked, and which settings go together."""

import hashlib

import pytest
from pydantic import ValidationError

from reward_services.unifiedreward.families import FAMILIES
from reward_services.unifiedreward.prompts import PromptError, PromptTemplate, load_prompt
from reward_services.unifiedreward.scorer import _revision
from reward_services.unifiedreward.settings import UnifiedRewardSettings

URL = "http://127.0.0.1:1/v1"
TEXT = "Judge [{prompt}]"
DIGEST = hashlib.sha256(TEXT.encode()).hexdigest()


@pytest.mark.parametrize("name", FAMILIES)
def test_own_wording_asks_for_what_the_reader_reads(name):
    """With a number in the placeholders' place, the format that a prompt describes is readable."""
    family = FAMILIES[name]
    assert (
        set(family.marks)
        <= family.read(
            family.prompt.replace("X", "4").replace(
                "'Final Score:' and then the number", "Final Score: 4"
            )
        ).keys()
    )
    question = PromptTemplate(family.prompt, "own wording")
    assert question.reads_caption == (name != "qwenvl")
    if question.reads_caption:
        assert question.ask('a "{prompt}" [sign]').endswith('Caption: [a "{prompt}" [sign]]')


@pytest.mark.parametrize("ending", ["", "\n"])
def test_a_published_prompt_is_known_by_its_digest(tmp_path, ending):
    path = tmp_path / "prompt.txt"
    path.write_text(TEXT + ending)
    template = load_prompt(path, published=DIGEST)
    assert template == PromptTemplate(TEXT, "published")
    assert template.sha256 == DIGEST
    assert template.ask("a {b}") == "Judge [a {b}]"


def test_another_prompt_needs_its_digest(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text(TEXT)
    with pytest.raises(PromptError, match=f"has SHA-256 {DIGEST} and should have {'0' * 64}"):
        load_prompt(path, published="0" * 64)
    with pytest.raises(PromptError, match=f"set prompt_sha256={DIGEST}"):
        load_prompt(path, published="")
    assert load_prompt(path, published="0" * 64, expected=DIGEST).source == "own file"
    with pytest.raises(PromptError, match="cannot be read"):
        load_prompt(tmp_path / "absent", published=DIGEST)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "m"}, "set engine_url too"),
        ({"api_key": "k"}, "set engine_url too"),
        ({"engine_url": URL, "dtype": "float16"}, "leave engine_url out"),
        ({"engine_url": "127.0.0.1:80"}, "pattern"),
        ({"family": "acs", "score": "flow_grpo"}, "no reader"),
        ({"prompt_sha256": DIGEST}, "needs prompt_file"),
        ({"engine_url": URL, "api_key": "two\nlines"}, "key"),
        ({"image_size": 8}, "greater"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message) as caught:
        UnifiedRewardSettings(**fields)
    assert "two\nlines" not in caught.value.errors(include_input=False)[0]["msg"]


def test_the_revision_changes_with_what_changes_scores():
    own = PromptTemplate("a", "own wording")

    def revision(prompt=own, model="m", **fields):
        return _revision(UnifiedRewardSettings(**fields), prompt, model)

    same = [{}, {"engine_url": URL}, {"engine_url": URL, "api_key": "k", "concurrency": 2}]
    assert len({revision(**fields) for fields in same}) == 1
    changed = [
        revision(),
        revision(PromptTemplate("b", "own wording")),
        revision(model="n"),
        revision(image_size=None),
        revision(max_tokens=8),
        revision(score="flow_grpo"),
        revision(family="qwen"),
    ]
    assert len(set(changed)) == len(changed)
