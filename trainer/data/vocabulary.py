"""Train a SentencePiece tokenizer with the options of the challenge's own.

BPE with byte fallback, digits split, `nmt_nfkc` normalisation, no dummy prefix; pad 0, BOS 1,
EOS 2, unknown 3. The same documents give the same model file.

Of much text a sample is enough: every document draws a number, and those with the lowest are kept
while they fit. So one pass suffices, and the sample of a prefix of the text is not its beginning.
"""

from __future__ import annotations

import heapq
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from qpack.artifact.writer import write_atomic
from qpack.errors import ConfigError, DataError, SetupError
from qpack.tokenizer import Tokenizer

MIN_VOCAB = 4 + 256 + 1
"""Special tokens, byte pieces, and one more."""
MAX_VOCAB = 1 << 16
"""Shards hold uint16."""
SAMPLE_BYTES = 32_000_000
"""Text that a tokenizer is trained on at most: seconds, where all of a corpus takes minutes. The
pieces of 8,192 that more text changes are rare."""


def sample_documents(
    documents: Iterable[str],
    *,
    most_documents: int,
    most_bytes: int = SAMPLE_BYTES,
    seed: int = 0,
) -> list[str]:
    """A random sample of at most that many documents and UTF-8 bytes, in the order they came.

    A function of the documents and `seed` alone. One document is kept, however long.
    """
    generator = np.random.default_rng(seed)
    kept: list[tuple[float, int, int, str]] = []  # a heap, the highest draw first
    total_bytes = 0
    limit = 0.0  # minus the lowest draw that had to go: later documents must draw less
    dropped = False
    for index, text in enumerate(documents):
        draw = -float(generator.random())
        if dropped and draw < limit:
            continue
        num_bytes = len(text.encode())
        heapq.heappush(kept, (draw, index, num_bytes, text))
        total_bytes += num_bytes
        while len(kept) > 1 and (len(kept) > most_documents or total_bytes > most_bytes):
            limit, _, gone, _ = heapq.heappop(kept)
            dropped = True
            total_bytes -= gone
    return [text for _, _, _, text in sorted(kept, key=lambda item: item[1])]


def check_vocab_size(vocab_size: int) -> None:
    """Raise `ConfigError` for a number of pieces that no tokenizer can have."""
    if not MIN_VOCAB <= vocab_size <= MAX_VOCAB:
        raise ConfigError(
            f"a vocabulary of {vocab_size} is impossible",
            hint=f"use {MIN_VOCAB} to {MAX_VOCAB} tokens",
        )


def train_tokenizer(
    documents: Sequence[str], path: Path, *, vocab_size: int, force: bool = False
) -> Tokenizer:
    """Train on `documents`, write the model file `path`, and load it.

    Raises `ConfigError` when `vocab_size` is impossible or more than the text supports,
    `DataError` when there is no text, `SetupError` without the `sentencepiece` package.
    """
    check_vocab_size(vocab_size)
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
            # Longer documents would be left out without a word; 10 is the least it takes.
            max_sentence_length=max(10, *(len(text.encode()) + 1 for text in documents)),
            minloglevel=2,
        )
    except RuntimeError as error:
        too_small = "smaller than required_chars" in str(error)  # its text has more characters
        raise ConfigError(
            f"no tokenizer of {vocab_size} tokens can be trained on this text",
            items=[str(error)],
            hint="raise the vocabulary size"
            if too_small
            else "lower the vocabulary size or give more text",
        ) from error
    write_atomic(path, model.getvalue(), force=force)
    return Tokenizer.load(path)
