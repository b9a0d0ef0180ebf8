"""The prompt as BLIP reads it: BERT's word pieces, 35 of them."""

from __future__ import annotations

from pathlib import Path

from tokenizers import BertWordPieceTokenizer, Encoding

LENGTH = 35
"""Tokens per prompt with [CLS] and [SEP]: longer prompts are cut, shorter ones padded."""


class PromptTokenizer:
    """bert-base-uncased: lower case, accents stripped. Thread-safe."""

    def __init__(self, vocabulary: Path) -> None:
        """vocabulary: vocab.txt, one word piece a line."""
        tokenizer = BertWordPieceTokenizer(vocab=str(vocabulary), lowercase=True)
        tokenizer.add_special_tokens(["[DEC]", "[ENC]"])  # BLIP's own, ids 30522 and 30523
        tokenizer.enable_truncation(LENGTH)
        tokenizer.enable_padding(length=LENGTH)
        self._tokenizer = tokenizer

    def encode(self, prompt: str) -> Encoding:
        """`ids` and `attention_mask` of LENGTH; `overflowing` is not empty for a prompt that was cut."""
        return self._tokenizer.encode(prompt)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()
