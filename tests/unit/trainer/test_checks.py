from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qpack.errors import ConfigError, DataError, OutputExistsError
from qpack.tokens import write_shard

from .runs import Told, changed, run


def test_bad_input_is_found_before_the_first_step(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **keys: Any) -> None:
        raise AssertionError("a step was made")

    monkeypatch.setattr("qpack.trainer.step.Passes.__call__", fail)
    beyond = tmp_path / "beyond.bin"
    write_shard(beyond, np.full(100, 384, dtype=np.uint16))
    short = tmp_path / "short.bin"
    write_shard(short, np.ones(40, dtype=np.uint16))
    for number, (change, error, message) in enumerate(
        (
            ({"model": {"vocab_size": 300}}, DataError, "300"),
            ({"model": {"layers": 3}}, ConfigError, "layers: unknown"),
            ({"data": {"train": [beyond]}}, DataError, "beyond the vocabulary"),
            ({"data": {"val": [beyond]}}, DataError, "beyond the vocabulary"),
            ({"data": {"train": [short]}}, DataError, "too few"),
            ({"data": {"train": [tmp_path / "missing.bin"]}}, DataError, "missing"),
            ({"loop": {"device": "tpu"}}, ConfigError, "unknown device"),
            ({"loop": {"batch_tokens": 100}}, ConfigError, "multiple of sequence"),
            ({"loop": {"attention": "flex"}}, ConfigError, "needs a CUDA device and compiling"),
            ({"average": {"ship": "best"}, "pack": {"budget": 9}}, ConfigError, "there is none"),
            ({"loop": {"seed": 2**64}}, ConfigError, "loop.seed"),
            ({"model": {"document_mask": True, "bos_token": 3}}, ConfigError, "tokenizer's is 1"),
            (
                {"average": {"ship": "best"}, "pack": {"budget": 9, "calib_tokens": 9}},
                ConfigError,
                "a window has 32",
            ),
        )
    ):
        with pytest.raises(error, match=message):
            run(changed(config, **change), tmp_path / str(number))


def test_nothing_is_overwritten_unasked(config: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = run(config, folder).sha256
    with pytest.raises(OutputExistsError, match="holds a run already"):
        run(config, folder)
    other = run(changed(config, loop={"seed": 3}), folder, force=True)
    assert other.sha256 != first


def test_given_and_unused_settings_are_told(config: dict[str, Any], tmp_path: Path) -> None:
    told = Told()
    run(changed(config, loop={"reserve_seconds": 1.0}), tmp_path / "run", progress=told)
    assert "loop.reserve_seconds: there is no loop.max_seconds: not used" in told.warnings


def test_a_refused_start_leaves_the_earlier_run(config: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = run(config, folder)
    with pytest.raises(DataError):
        run(changed(config, model={"vocab_size": 300}), folder, force=True)
    assert run(config, folder, resume=True).sha256 == first.sha256
