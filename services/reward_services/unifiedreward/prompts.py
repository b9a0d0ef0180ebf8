"""What the judge is asked: our own wording, or a published prompt from a file that is checked.

A template has `{prompt}` where the caption goes. The published prompts are not part of this project;
their digests are, so that a copy of one can be told from an almost equal text.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from reward_services.chassis.settings import SettingError

PLACEHOLDER = "{prompt}"

FINAL_SCORE = """\
The image above was generated from the caption below. Judge it by two criteria.
1. Alignment: are the things that the caption names there, with their attributes and relations?
2. Quality: is the image clear, rich in detail, natural in colour and pleasing to look at?
Give one score from 1 (worst) to 5 (best), decimals allowed: write 'Final Score:' and then the number.
Caption: [{prompt}]"""

ELEMENTS_AND_FINAL_SCORE = """\
The image above was generated from the caption below. Judge it by two criteria.
1. Alignment: are the things that the caption names there, with their attributes and relations?
2. Quality: is the image clear, rich in detail, natural in colour and pleasing to look at?
First list the caption's elements, one a line, as 'element (type): value', where value is 1 for an \
element that the image shows and 0 for one that it lacks.
Then give one score from 1 (worst) to 5 (best), decimals allowed: write 'Final Score:' and then the \
number.
Caption: [{prompt}]"""

AXES = """\
The image above was generated from the caption below. Rate it on three axes from 1 (worst) to 5 \
(best), decimals allowed.
Alignment: does the image show what the caption says?
Coherence: is it free of glitches, broken shapes and things that cannot be?
Style: is it beautiful, whatever the caption says?
Answer with these three lines and nothing else, a number for each X:
Alignment Score (1-5): X
Coherence Score (1-5): X
Style Score (1-5): X
Caption: [{prompt}]"""

GRADE = """\
Grade the look of this image: composition, light, colour, sharpness, detail.
1 is bad, 2 poor, 3 fair, 4 good, 5 excellent.
Say in a few words why, then give the grade, one digit in place of X:
<Thought>your reasons</Thought>
<Score>X</Score>"""


class PromptError(SettingError):
    """A prompt file is not what it should be; the message says what it is."""


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    text: str
    source: str
    """"own wording", "published" or "own file"."""

    @property
    def reads_caption(self) -> bool:
        return PLACEHOLDER in self.text

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def ask(self, caption: str) -> str:
        """The text for one image; braces and brackets of the caption stay as they are."""
        return self.text.replace(PLACEHOLDER, caption)


def load_prompt(path: Path, *, published: str, expected: str | None = None) -> PromptTemplate:
    """The template in a UTF-8 file, whose last line may end in a newline.

    published: SHA-256 of the family's published template, "" when it has none.
    expected: SHA-256 that the operator vouches for; none: the file must be the published one.
    Raises PromptError.
    """
    try:
        text = path.read_bytes().decode().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"prompt_file {path} cannot be read: {error}") from None
    digest = PromptTemplate(text, "").sha256
    wanted = expected or published
    if not wanted:
        raise PromptError(
            f"this family has no published prompt: to ask with this file, set "
            f"prompt_sha256={digest}"
        )
    if digest != wanted:
        raise PromptError(f"prompt_file has SHA-256 {digest} and should have {wanted}")
    return PromptTemplate(text, "published" if digest == published else "own file")
