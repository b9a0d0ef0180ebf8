"""The suites: what is drawn, how often, by which rewards it is measured, and where its prompts are.

Sources: Flow-GRPO (arXiv 2505.05470), section 5 and its tables; GenEval (arXiv 2310.11513); the prompt
files of flow_grpo @ 2025-11.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flow_trainer.errors import ConfigError
from flow_trainer.recipe.prompt_sets import geneval, unseen
from flow_trainer.recipe.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Protocol:
    """How the published figures of a model family are sampled: ODE steps, guidance scale, an empty
    negative prompt, square images of `side` pixels."""

    steps: int
    guidance: float
    side: int = 512


PROTOCOLS = {
    "sd3": Protocol(steps=40, guidance=4.5),
    "flux": Protocol(steps=28, guidance=3.5),
    "qwen_image": Protocol(steps=50, guidance=4.0),
    "z_image": Protocol(steps=50, guidance=5.0),
    "flux2_klein": Protocol(steps=50, guidance=4.0),
}
"""By model.family."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A column: a score of a reward service, on the scale that papers print."""

    key: str
    title: str
    reward: str
    """The name under which the service introduces itself."""
    score: str
    """Its main score or a sub-score."""
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts of a kind, which have a column of their own."""

    key: str
    title: str


@dataclass(frozen=True, slots=True)
class Suite:
    name: str
    title: str
    images_per_prompt: int
    metrics: tuple[Metric, ...]
    where: str
    """Where its prompts come from, for people."""
    make: Callable[[], list[Prompt]] | None = None
    """Its prompts, where they can be made; the others are read."""
    groups: tuple[Group, ...] = ()
    group_of: Callable[[Prompt], str] = lambda prompt: ""
    overall: bool = False
    """The mean of the groups is a column too, as GenEval defines its overall score."""


def _tag(prompt: Prompt) -> str:
    return str(prompt.metadata.get("tag", ""))


def _count(prompt: Prompt) -> str:
    count = int(prompt.metadata["include"][0]["count"])
    return "5-6" if count in (5, 6) else str(count)


def _made(rows: Callable[[], list[dict]]) -> Callable[[], list[Prompt]]:
    def prompts() -> list[Prompt]:
        return [
            Prompt(row["prompt"], {key: value for key, value in row.items() if key != "prompt"})
            for row in rows()
        ]

    return prompts


_GENEVAL = Metric("geneval", "GenEval", "geneval", "official")
_TASKS = (
    Group("single_object", "single"),
    Group("two_object", "two"),
    Group("counting", "counting"),
    Group("colors", "colors"),
    Group("position", "position"),
    Group("color_attr", "attr"),
)
_FLOW_GRPO = "github.com/yifan123/flow_grpo"

SUITES = {
    "geneval": Suite(
        "geneval",
        "GenEval",
        images_per_prompt=4,
        metrics=(_GENEVAL,),
        where="GenEval's 553 lines, made here",
        make=_made(geneval.benchmark),
        groups=_TASKS,
        group_of=_tag,
        overall=True,
    ),
    "unseen-objects": Suite(
        "unseen-objects",
        "GenEval, unseen objects",
        images_per_prompt=4,
        metrics=(_GENEVAL,),
        where="256 lines over 20 classes, made here by the published counts",
        make=_made(unseen.objects),
        groups=_TASKS,
        group_of=_tag,
        overall=True,
    ),
    "unseen-counting": Suite(
        "unseen-counting",
        "GenEval, unseen counts",
        images_per_prompt=4,
        metrics=(_GENEVAL,),
        where="5, 6 and 12 objects of every class, made here",
        make=_made(unseen.counting),
        groups=(Group("5-6", "5-6 objects"), Group("12", "12 objects")),
        group_of=_count,
    ),
    "ocr": Suite(
        "ocr",
        "OCR",
        images_per_prompt=1,
        metrics=(Metric("ocr", "OCR", "ocr", "flow_grpo"),),
        where=f"dataset/ocr/test.txt of {_FLOW_GRPO} (1,018 lines), or a set of this repository: "
        "flow-grpo prompts ocr --split test --out ocr_test.jsonl",
    ),
    "pickscore": Suite(
        "pickscore",
        "Pick-a-Pic",
        images_per_prompt=1,
        metrics=(Metric("pickscore", "PickScore", "pickscore", "pickscore"),),
        where=f"dataset/pickscore/test.txt of {_FLOW_GRPO} (2,048 captions), or "
        "hf:yuvalkirstain/pickapic_v1_no_images@test_unique#caption",
    ),
    "drawbench": Suite(
        "drawbench",
        "DrawBench",
        images_per_prompt=5,
        metrics=(
            Metric("aesthetic", "Aesthetic", "aesthetic", "aesthetic"),
            Metric("deqa", "DeQA", "deqa", "level"),
            Metric("imagereward", "ImgRwd", "imagereward", "imagereward"),
            Metric("pickscore", "PickScore", "pickscore", "pickscore"),
            Metric("unifiedreward", "UniRwd", "unifiedreward", "strict", scale=5.0),
        ),
        where=f"dataset/drawbench/test.txt of {_FLOW_GRPO} (200 prompts, each five times), or a "
        "Hugging Face data set as hf:OWNER/NAME@SPLIT#COLUMN",
    ),
}


def find_suites(names: list[str]) -> list[Suite]:
    """Those suites, each once. Raises ConfigError with the names there are."""
    wanted = [part.strip() for name in names for part in name.split(",") if part.strip()]
    unknown = [name for name in wanted if name not in SUITES]
    if unknown or not wanted:
        raise ConfigError(
            f"no suite {', '.join(unknown) or 'named'}: the suites are {', '.join(SUITES)}"
        )
    return [SUITES[name] for name in dict.fromkeys(wanted)]
