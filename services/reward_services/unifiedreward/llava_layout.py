"""LLaVA-OneVision checkpoints as LLaVA-NeXT's code saves them, which is how UnifiedReward's v1 family
is published: other key names than transformers', and no processor beside the weights.

Architecture of the released models (arXiv 2408.03326): SigLIP so400m at 384 pixels without its last
layer and head, a two-layer projector, Qwen2; images in crops over a grid ("anyres").
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reward_services.chassis.weights import WeightsError

_ARCHITECTURE = "LlavaQwenForCausalLM"
_VISION_TOWER = "siglip-so400m-patch14-384"
_VISION_CONFIG = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
_PATCHES = (384 // 14) ** 2
_TEXT_CONFIG = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
)

# The first prefix that fits is replaced: names of the hub's transformers checkpoints.
_RENAMED = {
    "model.vision_tower.vision_tower.": "vision_tower.",
    "model.mm_projector.0.": "multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "multi_modal_projector.linear_2.",
    "model.image_newline": "image_newline",
    "model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
_LAYERS = "vision_tower.vision_model.encoder.layers."
_UNUSED = "vision_tower.vision_model.head."

# The conversation "qwen_1_5" that these models were trained with.
_CHAT_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def is_llava_next(folder: Path) -> bool:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return _ARCHITECTURE in config.get("architectures", ())


def load_llava_next(folder: Path, dtype: Any) -> tuple[Any, Any]:
    """Processor and model of transformers with the checkpoint's weights, on the CPU.

    dtype: a torch.dtype, or "auto" for the checkpoint's. Raises WeightsError.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import LlavaOnevisionForConditionalGeneration

    published = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights.update(_renamed(load_file(path)))
    processor = _processor(folder, published)
    config = _config(published, processor, num_vision_layers=_count_layers(weights))
    if dtype == "auto":
        dtype = getattr(torch, published.get("torch_dtype", "bfloat16"))
    model_class: Any = LlavaOnevisionForConditionalGeneration
    model, report = model_class.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):
        raise WeightsError(f"{folder} lacks {len(missing)} tensors, among them {missing[0]}")
    tokenizer = processor.tokenizer
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.generation_config.eos_token_id = ends
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return processor, model


def _renamed(weights: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {_new_name(name): tensor for name, tensor in weights.items()}
    return {name: tensor for name, tensor in renamed.items() if not name.startswith(_UNUSED)}


def _new_name(name: str) -> str:
    for old, new in _RENAMED.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _count_layers(names: Iterable[str]) -> int:
    numbers = [int(n.removeprefix(_LAYERS).split(".")[0]) for n in names if n.startswith(_LAYERS)]
    if not numbers:
        raise WeightsError("the checkpoint has no vision tower of its own")
    return max(numbers) + 1


def _config(published: Mapping[str, Any], processor: Any, num_vision_layers: int) -> Any:
    from transformers import LlavaOnevisionConfig

    tower = published.get("mm_vision_tower", "")
    if not tower.endswith(_VISION_TOWER):
        raise WeightsError(f"the vision tower is {tower!r}, and only {_VISION_TOWER} is known")
    text = {name: published[name] for name in _TEXT_CONFIG if name in published}
    if len(processor.tokenizer) > published["vocab_size"]:
        raise WeightsError("the checkpoint's vocabulary has no room for the mark of an image")
    return LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text},
        vision_config={**_VISION_CONFIG, "num_hidden_layers": num_vision_layers},
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
        image_grid_pinpoints=processor.image_processor.image_grid_pinpoints,
        vision_aspect_ratio=processor.vision_aspect_ratio,
    )


def _processor(folder: Path, published: Mapping[str, Any]) -> Any:
    from transformers import (
        AddedToken,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Tokenizer,
    )

    tokenizer: Any = Qwen2Tokenizer.from_pretrained(folder)
    marks = [AddedToken(mark, special=True, normalized=False) for mark in ("<image>", "<video>")]
    tokenizer.add_tokens(marks, special_tokens=True)
    half = [0.5, 0.5, 0.5]
    grid = published["image_grid_pinpoints"]
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(
            image_mean=half, image_std=half, image_grid_pinpoints=grid
        ),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(),
        num_image_tokens=_PATCHES,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=published.get("image_aspect_ratio", "anyres_max_9"),
        chat_template=_CHAT_TEMPLATE,
    )
