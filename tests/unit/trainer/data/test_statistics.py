from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qpack.errors import DataError
from qpack.tokenizer import Tokenizer
from qpack.tokens import write_shard
from qpack.trainer.data.statistics import shard_statistics


def test_counts_by_hand(tmp_path: Path, tokenizer: Tokenizer, sentences: list[str]) -> None:
    rows = [[1, *tokenizer.encode(text)] for text in sentences]
    write_shard(tmp_path / "a.bin", np.array(rows[0] + rows[1], dtype=np.uint16))
    write_shard(tmp_path / "b.bin", np.array(rows[2], dtype=np.uint16))
    found = shard_statistics([tmp_path / "*.bin"], tokenizer=tokenizer.path)
    sizes = [len(text.encode()) for text in sentences]
    tokens = [len(row) for row in rows]
    a, b = found["shards"]
    assert (a["name"], a["tokens"], a["documents"]) == ("a.bin", tokens[0] + tokens[1], 2)
    assert a["bytes"] == sizes[0] + sizes[1]
    assert b["bytes_per_token"] == sizes[2] / tokens[2]
    assert found["total"]["bytes"] == sum(sizes[:3])
    assert found["total"]["tokens_per_document"] == sum(tokens[:3]) / 3


def test_without_a_tokenizer_bytes_are_not_known(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.array([1, 5, 1, 6], dtype=np.uint16))
    found = shard_statistics([tmp_path / "a.bin"])
    assert found["total"]["documents"] == 2
    assert found["total"]["bytes"] is None and found["total"]["bytes_per_token"] is None


def test_bad_input(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_shard(tmp_path / "a.bin", np.array([1, 9999], dtype=np.uint16))
    with pytest.raises(DataError, match="beyond the vocabulary of 384"):
        shard_statistics([tmp_path / "a.bin"], tokenizer=tokenizer.path)
    with pytest.raises(DataError, match="shards are missing") as caught:
        shard_statistics([tmp_path / "x*", tmp_path / "y*"])
    assert len(caught.value.items) == 2
    with pytest.raises(DataError, match="no shards"):
        shard_statistics([])
