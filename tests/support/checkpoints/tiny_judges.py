"""Judges of a few thousand parameters, in the files and key names of the real ones.

Their tokenizer knows bytes only, so they answer in bytes; `teach` makes one answer always the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN_MARKS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_QWEN_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [1, 1, 2],
    },
}


def byte_tokenizer(marks: list[str]) -> Any:
    """One token per byte, and the marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", *marks],
    )


def qwen2_5_vl(folder: Path) -> None:
    vision = {"out_hidden_size": 32, "window_size": 56, "fullatt_block_indexes": [1]}
    _qwen(
        folder,
        tf.Qwen2_5_VLConfig,
        tf.Qwen2_5_VLForConditionalGeneration,
        tf.Qwen2_5_VLProcessor,
        {"hidden_size": 32, **vision},
        patch=14,
        video_processor=tf.Qwen2VLVideoProcessor(),
    )


def qwen3_vl(folder: Path) -> None:
    vision = {"out_hidden_size": 32, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    _qwen(
        folder,
        tf.Qwen3VLConfig,
        tf.Qwen3VLForConditionalGeneration,
        tf.Qwen3VLProcessor,
        {"hidden_size": 32, **vision},
        patch=16,
        video_processor=tf.Qwen3VLVideoProcessor(),
    )


def _qwen(
    folder: Path,
    config_class: Any,
    model_class: Any,
    processor_class: Any,
    vision: dict[str, Any],
    patch: int,
    video_processor: Any,
) -> None:
    tokenizer = byte_tokenizer(_QWEN_MARKS)
    ids = tokenizer.convert_tokens_to_ids
    config = config_class(
        text_config={**_QWEN_TEXT, "vocab_size": len(tokenizer)},
        vision_config={
            "depth": 2,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": patch,
            **vision,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    processor = processor_class(
        image_processor=tf.Qwen2VLImageProcessor(
            patch_size=patch, min_pixels=(4 * patch) ** 2, max_pixels=(8 * patch) ** 2
        ),
        tokenizer=tokenizer,
        video_processor=video_processor,
        chat_template=_CHAT.replace("IMAGE", _QWEN_IMAGE),
    )
    _save(folder, model_class, config, processor)


def llava_onevision(folder: Path) -> None:
    tokenizer = byte_tokenizer(["<image>", "<video>"])
    ids = tokenizer.convert_tokens_to_ids
    grid = [[56, 56], [56, 112], [112, 56], [112, 112]]
    text = {
        key: _QWEN_TEXT[key] for key in _QWEN_TEXT if key not in ("head_dim", "rope_parameters")
    }
    config = tf.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **text, "vocab_size": len(tokenizer)},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=ids("<image>"),
        video_token_index=ids("<video>"),
        image_grid_pinpoints=grid,
    )
    processor = tf.LlavaOnevisionProcessor(
        image_processor=tf.LlavaOnevisionImageProcessor(
            size={"height": 56, "width": 56}, image_grid_pinpoints=grid
        ),
        tokenizer=tokenizer,
        video_processor=tf.LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=_CHAT.replace("IMAGE", "<image>\n"),
    )
    _save(folder, tf.LlavaOnevisionForConditionalGeneration, config, processor)


def _save(folder: Path, model_class: Any, config: Any, processor: Any) -> None:
    torch.manual_seed(0)
    model = model_class(config)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def teach(folder: Path, chat: str, image: Any, answer: str) -> None:
    """Trains the judge in `folder` until it gives `answer` to this image and rendered chat."""
    processor: Any = tf.AutoProcessor.from_pretrained(folder)
    model: Any = tf.AutoModelForImageTextToText.from_pretrained(folder)
    end = processor.tokenizer.eos_token
    inputs = processor(text=[chat + answer + end], images=[[image]], return_tensors="pt")
    start = processor(text=[chat], images=[[image]], return_tensors="pt")["input_ids"].shape[1]
    labels = inputs["input_ids"].clone()
    labels[:, :start] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(300):
        outputs = model(**inputs, labels=labels)
        is_right = (outputs.logits[0, start - 1 : -1].argmax(-1) == labels[0, start:]).all()
        if is_right and outputs.loss < 0.2:
            break
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
    else:
        raise AssertionError("the judge does not learn its answer")
    model.save_pretrained(folder)


def llava_next(folder: Path) -> dict[str, torch.Tensor]:
    """A judge as LLaVA-NeXT saves it: real vision tower but for its depth, tiny language model.
    Returns the weights under transformers' names."""
    folder.mkdir(exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    added = {str(256 + i): {"content": mark, "special": True} for i, mark in enumerate(marks)}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "Qwen2Tokenizer",
                "added_tokens_decoder": added,
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
            }
        )
    )
    text = {
        "vocab_size": 264,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlavaQwenForCausalLM"],
                "model_type": "llava",
                "torch_dtype": "float32",
                "mm_vision_tower": "google/siglip-so400m-patch14-384",
                "image_aspect_ratio": "anyres_max_9",
                "image_grid_pinpoints": [[384, 384], [384, 768], [768, 384], [768, 768]],
                **text,
            }
        )
    )
    torch.manual_seed(0)
    config = tf.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", "bos_token_id": None, "eos_token_id": None, **text},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 1,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
    )
    with torch.device("meta"):  # only for names and shapes: its own initialisation is slow
        shapes = tf.LlavaOnevisionForConditionalGeneration(config).state_dict()
    weights = {name: 0.02 * torch.randn(shape.shape) for name, shape in shapes.items()}
    names = {
        "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
        "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "model.language_model.": "model.",
    }
    published = {}
    for name, tensor in weights.items():
        prefix = next((old for old in names if name.startswith(old)), "")
        published[names.get(prefix, "") + name.removeprefix(prefix)] = tensor
    head = "model.vision_tower.vision_tower.vision_model.head.probe"
    save_file({**published, head: torch.zeros(1, 1, 1152)}, folder / "model.safetensors")
    return weights
