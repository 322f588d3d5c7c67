"""What runs of the trainer are tested on: some sentences, and a configuration for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qpack.tokenizer import Tokenizer

from .runs import tables, write_text


@pytest.fixture(scope="session")
def shard(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, sentences: list[str]
) -> Path:
    return write_text(tmp_path_factory.mktemp("shard") / "text.bin", sentences * 30, tokenizer)


@pytest.fixture(scope="session")
def val(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, sentences: list[str]
) -> Path:
    return write_text(tmp_path_factory.mktemp("val") / "val.bin", sentences[::-1] * 6, tokenizer)


@pytest.fixture
def config(shard: Path, tokenizer_path: Path) -> dict[str, Any]:
    return tables(shard, tokenizer_path)
