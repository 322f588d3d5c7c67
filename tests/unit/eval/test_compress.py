"""Any bytes through a small model and back; what differs is refused by name."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpack.checkpoint import read_checkpoint, write_checkpoint
from qpack.errors import (
    CorruptError,
    DataError,
    MismatchError,
    TruncatedError,
    UnsupportedError,
)
from qpack.eval import compress as module
from qpack.eval import qpz
from qpack.eval.coder import Coder, Setup, open_coder
from qpack.eval.compress import compress, compress_tokens, decompress
from qpack.eval.qpz import Compressed, parse
from qpack.eval.residual import split
from qpack.options import PackOptions

SETUP = Setup(window=16, stride=8)
TEXT = (
    "The quick brown\nfox  jumps\tover it.\r\nCaf\u00e9 \u20ac42 \ufb01\n".encode()
    + b"\xff\x00\xfe"
)


@pytest.fixture(scope="module")
def coder(given: PackOptions) -> Coder:
    return open_coder(given.checkpoint, given.tokenizer, SETUP)


@pytest.fixture(scope="module")
def made(coder: Coder) -> Compressed:
    return compress(TEXT, coder)


def back(data: bytes, given: PackOptions) -> bytes:
    return decompress(data, model=given.checkpoint, tokenizer=given.tokenizer)


def test_a_file_comes_back(given: PackOptions, made: Compressed) -> None:
    assert back(made.render(), given) == TEXT


@settings(max_examples=15)
@given(data=st.binary(max_size=30) | st.text(max_size=20).map(str.encode))
def test_any_bytes_come_back(given: PackOptions, coder: Coder, data: bytes) -> None:
    assert back(compress(data, coder).render(), given) == data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("ngram", {}),
        ("ppm", {"order": 3}),
        ("tilt", {}),
        ("adamw", {"chunk_tokens": 32, "learning_rate": 0.01}),
        ("lora", {"chunk_tokens": 8, "learning_rate": 0.01}),
    ],
)
def test_what_learns_from_the_text(given: PackOptions, name: str, more: dict[str, Any]) -> None:
    setup = SETUP.model_copy(update={"name": name, "settings": more})
    coder = open_coder(given.checkpoint, given.tokenizer, setup)
    made = compress(TEXT * 3, coder)
    assert back(made.render(), given) == TEXT * 3
    assert made.header.predictor.name == name
    assert made.header.predictor.settings.items() > more.items()
    plain = compress(TEXT * 3, open_coder(given.checkpoint, given.tokenizer, SETUP))
    assert made.stream != plain.stream


def test_the_same_bytes_every_time_and_for_any_threads(coder: Coder, made: Compressed) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert compress(TEXT, coder).render() == made.render()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_model_runs_on_one_thread(coder: Coder, monkeypatch: pytest.MonkeyPatch) -> None:
    """For large ones the order of a sum depends on how many there are."""
    model: Any = coder.predictor
    forward, seen = model.model.forward, set()

    def counting(*tokens: Any, **more: Any) -> Any:
        seen.add(torch.get_num_threads())
        return forward(*tokens, **more)

    monkeypatch.setattr(model.model, "forward", counting)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        compress(b"The dog", coder)
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


def test_the_size_is_what_the_nats_say(coder: Coder) -> None:
    tokens, _ = split(TEXT * 5, coder.tokenizer)
    made = compress_tokens(tokens, coder)
    bits = -coder.predictor.score(np.asarray(tokens)).sum() / np.log(2)
    assert abs(8 * made.header.stream_bytes - bits) <= 0.001 * bits + 64


def test_a_file_that_is_too_long_is_refused_before_the_work(
    coder: Coder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TEXT_BYTES_MAX", 10)
    monkeypatch.setattr(module, "split", None)
    with pytest.raises(DataError, match="11 bytes are more than the 10"):
        compress(b"hello world", coder)


def test_no_residual_is_packed_further_than_may_be_unpacked(
    given: PackOptions, coder: Coder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qpz, "FREE_BYTES", 100)
    monkeypatch.setattr(qpz, "EXPANSION_MAX", 4)
    data = b"\xff" * 1000
    made = compress(data, coder)
    assert made.header.residual_codec == "store"
    assert back(made.render(), given) == data
    monkeypatch.undo()
    assert compress(data, coder).header.residual_codec != "store"


def test_a_model_of_an_awkward_name(given: PackOptions, coder: Coder) -> None:
    made = compress(b"The dog", replace(coder, model_name="a\nb\x1b[2Jc" + 600 * "d"))
    assert made.header.model_name == "a?b?[2Jc" + 504 * "d"
    assert back(made.render(), given) == b"The dog"


def test_the_header_says_what_is_needed(given: PackOptions, made: Compressed, coder: Coder) -> None:
    header = parse(made.render()).header
    assert header.text_bytes == len(TEXT)
    assert header.predictor == SETUP
    assert header.tokenizer == coder.tokenizer.sha256
    assert header.first == coder.tokenizer.bos
    assert header.fingerprint["torch"] == torch.__version__
    assert str(given.checkpoint.parent) not in str(header)


def test_another_model(given: PackOptions, made: Compressed, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(given.checkpoint)
    name = next(iter(checkpoint.tensors))
    tensors = {**checkpoint.tensors, name: checkpoint.tensors[name] + 1e-3}
    write_checkpoint(tmp_path / "other.safetensors", replace(checkpoint, tensors=tensors))
    with pytest.raises(MismatchError, match="its model: model") as caught:
        decompress(made.render(), model=tmp_path / "other.safetensors", tokenizer=given.tokenizer)
    assert [item.split(":")[0] for item in caught.value.items] == ["model"]


def test_another_tokenizer(given: PackOptions, made: Compressed, tmp_path: Path) -> None:
    shutil.copy(given.tokenizer, tmp_path / "t.model")
    with (tmp_path / "t.model").open("ab") as file:
        file.write(b"\x00")
    with pytest.raises(MismatchError) as caught:
        decompress(made.render(), model=given.checkpoint, tokenizer=tmp_path / "t.model")
    assert [item.split(":")[0] for item in caught.value.items] == ["tokenizer"]


def test_another_tokenizer_in_the_model(
    given: PackOptions, coder: Coder, made: Compressed, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(coder, tokenizer=replace(coder.tokenizer, sha256="0" * 64))
    monkeypatch.setattr(module, "open_coder", lambda *_: other)
    with pytest.raises(MismatchError, match="--tokenizer"):
        decompress(made.render(), model=given.checkpoint)


def test_no_tokenizer(given: PackOptions, made: Compressed) -> None:
    with pytest.raises(DataError, match="embeds no tokenizer"):
        decompress(made.render(), model=given.checkpoint)


@pytest.mark.parametrize("name", ["torch", "processor", "instructions", "numpy", "probe"])
def test_other_arithmetic(given: PackOptions, made: Compressed, name: str) -> None:
    other = {**made.header.fingerprint, name: "something else"}
    file = replace(made, header=made.header.model_copy(update={"fingerprint": other}))
    with pytest.raises(MismatchError, match="garbage") as caught:
        back(file.render(), given)
    assert [item.split(":")[0] for item in caught.value.items] == [name]


def test_a_cut_file(given: PackOptions, made: Compressed) -> None:
    with pytest.raises(TruncatedError):
        back(made.render()[:-5], given)


def test_a_stream_that_is_another(given: PackOptions, made: Compressed) -> None:
    """Sealed with a right digest: what it decodes to is not the original."""
    other = bytes(byte ^ 1 for byte in made.stream[:8]) + made.stream[8:]
    with pytest.raises(CorruptError):
        back(replace(made, stream=other).render(), given)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 3},
        {"tokens": 200},
        {"first": 5},
        {"text_sha256": "0" * 64},
        {"text_bytes": len(TEXT) + 1},
        {"residual_decoded_bytes": 1},
    ],
)
def test_headers_that_lie(given: PackOptions, made: Compressed, change: dict[str, Any]) -> None:
    file = replace(made, header=made.header.model_copy(update=change))
    with pytest.raises(CorruptError):
        back(file.render(), given)


@pytest.mark.parametrize(
    "change",
    [
        {"residual_codec": "rar"},
        {"residual_codec": "rans"},
        {"predictor": SETUP.model_copy(update={"stride": 17})},
        {"predictor": SETUP.model_copy(update={"name": "oracle"})},
    ],
)
def test_headers_that_ask_for_what_there_is_not(
    given: PackOptions, made: Compressed, change: dict[str, Any]
) -> None:
    file = replace(made, header=made.header.model_copy(update=change))
    with pytest.raises(UnsupportedError):
        back(file.render(), given)
