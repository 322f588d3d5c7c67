"""A file proves a score, and shows one that is not true."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qpack.errors import DataError, VerifyError
from qpack.eval import prove as module
from qpack.eval.coder import Setup
from qpack.eval.prove import decode_elsewhere, num_tokens_within, prove
from qpack.options import PackOptions
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard

SETUP = Setup(window=32, stride=16)


def test_a_score_is_proved_in_a_fresh_process(given: PackOptions) -> None:
    tokens = read_shard(given.calib)
    proof = prove(given.checkpoint, tokens, SETUP, tokenizer=given.tokenizer, num_bytes=400)
    proof.check()
    assert 390 <= proof.text_bytes <= proof.asked_bytes == 400
    assert proof.stream_bpb == pytest.approx(proof.computed_bpb, rel=0.02)
    assert proof.file_bytes == proof.header_bytes + proof.stream_bpb * proof.text_bytes / 8
    assert proof.file_bpb > proof.stream_bpb


def test_a_score_that_is_not_true(given: PackOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batched form claims half of the nats that the sequential form needs."""
    opened = module.open_coder

    def boasting(*arguments: Any) -> Any:
        coder = opened(*arguments)
        score = coder.predictor.score
        coder.predictor.score = lambda tokens, progress: score(tokens) / 2
        return coder

    monkeypatch.setattr(module, "open_coder", boasting)
    monkeypatch.setattr(module, "decode_elsewhere", lambda *_, **__: b"not looked at")
    monkeypatch.setattr(module, "join", lambda *_: b"not looked at")
    proof = prove(
        given.checkpoint, read_shard(given.calib), SETUP, tokenizer=given.tokenizer, num_bytes=200
    )
    assert not proof.agrees
    with pytest.raises(VerifyError, match="not as long as its score says"):
        proof.check()
    replace(proof, excess_bits=-proof.allowed_bits).check()


def test_a_text_that_does_not_come_back(
    given: PackOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "decode_elsewhere", lambda *_, **__: b"other")
    tokens = read_shard(given.calib)
    with pytest.raises(VerifyError, match="did not come back"):
        prove(given.checkpoint, tokens, SETUP, tokenizer=given.tokenizer, num_bytes=30)


def test_what_the_fresh_process_says_is_told(given: PackOptions) -> None:
    with pytest.raises(VerifyError, match="exit code 1") as caught:
        decode_elsewhere(b"hello", given.checkpoint, given.tokenizer, timeout_seconds=60)
    assert "magic bytes" in "\n".join(caught.value.items)


def test_no_whole_character(given: PackOptions) -> None:
    with pytest.raises(DataError, match="no whole character"):
        prove(given.checkpoint, np.array([1, 1, 1]), SETUP, tokenizer=given.tokenizer, num_bytes=1)


def test_where_the_text_is_cut(tokenizer: Tokenizer, sentences: list[str]) -> None:
    tokens = np.array([tokenizer.bos, *tokenizer.encode(sentences[2])])
    for num_bytes in range(len(sentences[2].encode()) + 3):
        count = num_tokens_within(tokens, num_bytes, tokenizer)
        text = tokenizer.decode(tokens[: count + 1])  # strict: no half characters
        assert "\ufffd" not in text
        assert sentences[2].startswith(text)
        assert len(text.encode()) <= num_bytes
    assert count == len(tokens) - 1
