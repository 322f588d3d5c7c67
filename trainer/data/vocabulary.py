"""Train a SentencePiece tokenizer with the options of the challenge's own.

BPE with byte fallback, digits split, `nmt_nfkc` normalisation, no dummy prefix; pad 0, BOS 1,
EOS 2, unknown 3. The same documents give the same model file.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from qpack.artifact.writer import write_atomic
from qpack.errors import ConfigError, DataError, SetupError
from qpack.tokenizer import Tokenizer

MIN_VOCAB = 4 + 256 + 1
"""Special tokens, byte pieces, and one more."""
MAX_VOCAB = 1 << 16
"""Shards hold uint16."""


def train_tokenizer(
    documents: Sequence[str], path: Path, *, vocab_size: int, force: bool = False
) -> Tokenizer:
    """Train on `documents`, write the model file `path`, and load it.

    Raises `ConfigError` when `vocab_size` is impossible or more than the text supports,
    `DataError` when there is no text, `SetupError` without the `sentencepiece` package.
    """
    if not MIN_VOCAB <= vocab_size <= MAX_VOCAB:
        raise ConfigError(
            f"a vocabulary of {vocab_size} is impossible",
            hint=f"use {MIN_VOCAB} to {MAX_VOCAB} tokens",
        )
    if not any(text.strip() for text in documents):
        raise DataError("there is no text to train a tokenizer on")
    try:
        from sentencepiece import SentencePieceTrainer
    except ImportError as error:
        raise SetupError(
            "tokenizers need the package sentencepiece", hint="pip install sentencepiece"
        ) from error
    model = io.BytesIO()
    try:
        SentencePieceTrainer.Train(
            sentence_iterator=iter(documents),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="nmt_nfkc",
            add_dummy_prefix=False,
            character_coverage=0.999,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            # Longer documents would be left out without a word.
            max_sentence_length=max(len(text.encode()) for text in documents) + 1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(
            f"no tokenizer of {vocab_size} tokens can be trained on this text",
            items=[str(error)],
            hint="lower the vocabulary size or give more text",
        ) from error
    write_atomic(path, model.getvalue(), force=force)
    return Tokenizer.load(path)
