"""From a prompt and the recognised text to the sub-scores. Pure; README.md has the edge cases."""

from __future__ import annotations

from reward_api.errors import ItemFailure, Reason


def target_text(prompt: str) -> str:
    """The text that the image should show: what stands between the first two `"` of the prompt.

    With a single `"` it is everything after it, as in flow_grpo. Raises ItemFailure
    (PROMPT_TARGET) when there is no `"` or nothing but blanks behind it: N_ref would be 0.
    """
    _, quote, rest = prompt.partition('"')
    if not quote:
        raise ItemFailure(
            Reason.PROMPT_TARGET,
            'the prompt has no double quote ("): write the text to be shown as "TEXT"; '
            "single and typographic quotes do not count",
        )
    target, _, _ = rest.partition('"')
    if not normalize(target):
        raise ItemFailure(
            Reason.PROMPT_TARGET, "the first quoted text of the prompt is empty: there is no target"
        )
    return target


def normalize(text: str) -> str:
    """ASCII blanks removed and lower case: nothing else, so that scores equal flow_grpo's."""
    return text.replace(" ", "").lower()


def sub_scores(text: str, target: str) -> dict[str, float]:
    """Scores in [0, 1] of the recognised `text` against `target` (both not yet normalised).

    `similarity` is max(1 - N_e / N_ref, 0) of the Flow-GRPO paper (section 4.1) with the edit
    distance N_e and the target's length N_ref in code points; `flow_grpo` is that of the official
    code, where a text that contains the target anywhere scores 1; `exact` is 1 for equal texts.
    """
    text, target = normalize(text), normalize(target)
    similarity = max(1 - levenshtein(target, text) / len(target), 0.0)
    return {
        "flow_grpo": 1.0 if target in text else similarity,
        "similarity": similarity,
        "exact": float(text == target),
    }


def levenshtein(a: str, b: str) -> int:
    """The number of insertions, deletions and substitutions between `a` and `b`.

    Bit-parallel (Hyyrö 2003, after Myers 1999): the column of the distance table that belongs to
    one character of `b` lives in two integers of len(a) bits, one for the rows where the distance
    grows by one (`rises`) and one for those where it falls.
    """
    if not a:
        return len(b)
    all_rows = (1 << len(a)) - 1
    last_row = 1 << (len(a) - 1)
    rows_of: dict[str, int] = {}
    for row, character in enumerate(a):
        rows_of[character] = rows_of.get(character, 0) | 1 << row

    rises, falls, distance = all_rows, 0, len(a)
    for character in b:
        equal = rows_of.get(character, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        right_rises = falls | (all_rows & ~(diagonal | rises))
        right_falls = rises & diagonal
        distance += bool(right_rises & last_row) - bool(right_falls & last_row)
        right_rises = right_rises << 1 | 1
        right_falls <<= 1
        rises = (right_falls | ~(equal | falls | right_rises)) & all_rows
        falls = right_rises & (equal | falls) & all_rows
    return distance
