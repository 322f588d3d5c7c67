from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qpack.errors import DataError
from qpack.tokenizer import Tokenizer
from qpack.trainer.data.shards import tokenize


def test_each_document_follows_a_bos(tokenizer: Tokenizer, sentences: list[str]) -> None:
    tokens = tokenize(sentences, tokenizer)
    assert tokens.dtype == np.uint16
    expected = [token for text in sentences for token in (1, *tokenizer.encode(text))]
    assert tokens.tolist() == expected
    assert tokenizer.text_bytes(tokens) == sum(len(text.encode()) for text in sentences)


def test_no_documents(tokenizer: Tokenizer) -> None:
    assert tokenize([], tokenizer).tolist() == []


def test_more_tokens_than_a_shard_can_name(tokenizer: Tokenizer) -> None:
    huge = replace(tokenizer, piece_bytes=np.zeros(65_537, dtype=np.int64))
    with pytest.raises(DataError, match="65,537"):
        tokenize(["a"], huge)
