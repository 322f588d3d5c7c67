"""Model, tokenizer and predictor are found together, or it is said why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from qpack.checkpoint import read_checkpoint, write_checkpoint
from qpack.errors import ConfigError, DataError
from qpack.eval.coder import Setup, find_tokenizer, open_coder
from qpack.options import PackOptions
from qpack.tensors import EmbeddedFile
from qpack.tokens import sha256_file


def test_a_coder_says_what_it_was_made_of(given: PackOptions) -> None:
    setup = Setup(window=16, name="adamw", settings={"chunk_tokens": 64})
    coder = open_coder(given.checkpoint, given.tokenizer, setup)
    assert coder.model_sha256 == sha256_file(given.checkpoint)
    assert coder.model_name == "model"
    assert coder.setup.window == 16
    assert coder.setup.settings["chunk_tokens"] == 64
    assert len(coder.setup.settings) > 1, "defaults are recorded too: they may change"
    again = Setup.model_validate_json(coder.setup.model_dump_json())
    assert open_coder(given.checkpoint, given.tokenizer, again).setup == coder.setup


def test_the_tokenizer_that_came_with_the_model(given: PackOptions) -> None:
    data = given.tokenizer.read_bytes()
    checkpoint = read_checkpoint(given.checkpoint)
    embedded = (
        EmbeddedFile(name="train.py", role="code", data=b"1"),
        EmbeddedFile(name="t.model", role="tokenizer", data=data),
    )
    found = find_tokenizer(replace(checkpoint, files=embedded), None)
    assert found.sha256 == sha256_file(given.tokenizer)
    with pytest.raises(DataError, match="--embed-tokenizer"):
        find_tokenizer(checkpoint, None)


def test_the_tokenizer_of_another_model(given: PackOptions, tmp_path: Path) -> None:
    checkpoint = replace(read_checkpoint(given.checkpoint), tokenizer_sha256="0" * 64)
    write_checkpoint(tmp_path / "m.safetensors", checkpoint)
    with pytest.raises(DataError, match="not the tokenizer of m"):
        open_coder(tmp_path / "m.safetensors", given.tokenizer, Setup())


def test_impossible_setups(given: PackOptions) -> None:
    for setup in (Setup(window=8, stride=9), Setup(name="oracle")):
        with pytest.raises(ConfigError):
            open_coder(given.checkpoint, given.tokenizer, setup)
    with pytest.raises(ValidationError):
        Setup(window=0)


def test_what_can_be_told_without_the_model_is_told_first(tmp_path: Path) -> None:
    for setup in (Setup(name="oracle"), Setup(name="adamw", settings={"chunk": 3})):
        with pytest.raises(ConfigError):
            open_coder(tmp_path / "absent", None, setup)
