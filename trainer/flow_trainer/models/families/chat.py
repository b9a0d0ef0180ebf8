"""Prompts that a language model's chat template wraps."""

from __future__ import annotations

from typing import Any

from flow_trainer.errors import ConfigError
from flow_trainer.recipe import Model


def check_room(pipeline: Any, config: Model, *, thinking: bool) -> None:
    """Raises ConfigError when the template leaves no room for a prompt, so that all images would be of
    none. `thinking`: the template's flag, as the pipeline sets it."""
    tokenizer = getattr(pipeline, "tokenizer", None)
    if tokenizer is None:  # a pipeline of fake tensors
        return
    first, second = (
        tokenizer.apply_chat_template(
            [{"role": "user", "content": word}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
        for word in ("a", "b")
    )
    options = {"truncation": True, "max_length": config.max_sequence_length}
    if tokenizer(first, **options)["input_ids"] == tokenizer(second, **options)["input_ids"]:
        raise ConfigError(
            f"model.max_sequence_length = {config.max_sequence_length}: the template before the prompt "
            "takes them all, and no prompt would reach the model; the published length is 512"
        )
