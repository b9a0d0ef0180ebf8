"""A real CLIPTokenizer of 97 tokens: letters, digits, a few signs, and the words of the template."""

from __future__ import annotations

import json
import string
from pathlib import Path

from transformers import CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CHARACTERS = [*string.ascii_lowercase, '"', *string.digits, ",", ".", "'", "!", "?", "-"]
TEMPLATE_WORDS = ("sign", "that", "says")
MAX_LENGTH = 14


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes vocab.json and merges.txt into `folder` and loads them.

    A letter that ends a word is another token (`r</w>`) than inside it (`r`): the text encoders
    learn both, because equal ids would not survive saving.
    """
    tokens = [BOS, EOS, *CHARACTERS, *(character + "</w>" for character in CHARACTERS)]
    merges: list[tuple[str, str]] = []
    for word in TEMPLATE_WORDS:
        prefix = word[0]
        for i, character in enumerate(word[1:], 1):
            piece = character + ("</w>" if i == len(word) - 1 else "")
            if (prefix, piece) not in merges:
                merges.append((prefix, piece))
            prefix += piece
            if prefix not in tokens:
                tokens.append(prefix)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        unk_token=EOS,
        model_max_length=MAX_LENGTH,
    )
