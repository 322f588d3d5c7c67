"""How the integers are coded: the smaller way wins, a trellis settles it, choices are kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qpack.artifact import integers as module
from qpack.artifact.encode import Encoded, encode
from qpack.artifact.integers import encode_integers
from qpack.artifact.reader import read
from qpack.artifact.writer import render
from qpack.codec import rans
from qpack.codec.registry import resolve
from qpack.errors import CheckpointError, TooLargeError
from qpack.progress import Silent
from qpack.tensors import Contents, QuantizedTensor
from tests.samples import both, integers, quantized, same

ALL = resolve(None)


def contents(*tensors: QuantizedTensor) -> Contents:
    return Contents(tensors=tensors, aliases={}, metadata={})


def kinds(encoded: Encoded) -> list[tuple[str, int]]:
    """Key and codec of each stream of integers."""
    pairs = zip(encoded.groups, encoded.layout.streams, strict=True)
    return [(g.stream.key, s.codec) for g, s in pairs if g.kind == "int"]


def scaled(name: str, seed: int, *, trellis: int = 0) -> QuantizedTensor:
    """Rows of very different scale, which only classes can tell apart."""
    tensor = quantized(name, 64, 300, seed=seed, trellis=trellis)
    matrix = integers(64, 300, qmax=120, seed=seed) // np.repeat([1, 3, 9, 27], 16)[:, None]
    return tensor if trellis else replace(tensor, integers=matrix.astype(np.int8))


def repeating(name: str) -> QuantizedTensor:
    """The same row again and again: nothing for an entropy coder, everything for brotli."""
    tensor = quantized(name, 200, 300)
    return replace(tensor, integers=np.repeat(tensor.integers[:1], 200, axis=0))


def test_one_stream_where_it_is_smaller() -> None:
    stored = contents(scaled("blocks.0.w", 0), scaled("blocks.1.w", 1), quantized("head", 9, 300))
    encoded = encode(stored, codecs=ALL)
    assert kinds(encoded) == [("integers", 5)]
    trials = [t for t in encoded.trials if t.stream == "integers"]
    assert [t.codec for t in trials] == ["rans", "by role"]
    assert trials[0].bytes < trials[1].bytes
    data = render(encoded, form="qpk")
    assert same(read(data), stored)
    assert both(data) is not None


def test_roles_where_they_are_smaller() -> None:
    stored = contents(repeating("blocks.0.w"), repeating("blocks.1.w"))
    encoded = encode(stored, codecs=ALL)
    assert [key for key, _ in kinds(encoded)] == ["int:blocks.*.w:I8"]
    assert {t.codec for t in encoded.trials if t.stream == "int:blocks.*.w:I8"} > {"rans", "lzma"}
    assert same(read(render(encoded, form="qpk")), stored)


@pytest.mark.parametrize("repeats", [False, True])
def test_large_integers_are_screened_by_a_sample(
    monkeypatch: pytest.MonkeyPatch, repeats: bool
) -> None:
    monkeypatch.setattr(module, "SMALL_BYTES", 10_000)
    monkeypatch.setattr(module, "SAMPLE_BYTES", 8_000)
    tensor = repeating("w") if repeats else scaled("w", 0)
    encoded = encode(contents(tensor), codecs=ALL)
    assert kinds(encoded)[0][0] == ("int:w:I8" if repeats else "integers")
    screened = [t for t in encoded.trials if t.screened]
    if not repeats:
        assert {t.codec for t in screened} == {"store", "lzma", "lzma-raw", "brotli", "zstd"}
        assert all(4_000 < t.input_bytes <= 8_000 for t in screened)
        assert not any(t.codec == "by role" for t in encoded.trials)


@pytest.mark.parametrize("states", [4, 64])
def test_a_trellis_goes_to_rans_untried(states: int) -> None:
    stored = contents(scaled("a", 0, trellis=states), scaled("b", 1), quantized("c", 0, 5))
    encoded = encode(stored, codecs=ALL)
    assert kinds(encoded) == [("integers", 5)]
    assert [t.codec for t in encoded.trials if t.stream == "integers"] == ["rans"]
    assert [t.trellis for t in read(render(encoded, form="qpk")).tensors] == [states, 0, 0]


def test_a_trellis_is_dropped_where_rans_is_excluded() -> None:
    stored = contents(scaled("a", 0, trellis=8))
    encoded = encode(stored, codecs=resolve(["zstd"]))
    decoded = read(render(encoded, form="qpk"))
    assert same(decoded, encoded.contents)
    assert decoded.tensors[0].trellis == 0
    assert np.array_equal(decoded.tensors[0].integers, stored.tensors[0].integers)


def test_integers_that_do_not_obey_are_refused() -> None:
    tensor = scaled("a", 0, trellis=8)
    tensor.integers[5, 7] += 1
    with pytest.raises(CheckpointError) as caught:
        encode(contents(tensor, replace(quantized("b", 2, 2), trellis=7)), codecs=ALL)
    assert caught.value.items == (
        "'a': its integers do not obey the trellis of 8 states",
        "'b': there is no trellis of 7 states",
    )


@pytest.mark.parametrize("make", [scaled, lambda name, seed: repeating(name)])
def test_choices_are_kept(make) -> None:
    stored = contents(make("a", 0), make("b", 1))
    first = encode(stored, codecs=ALL)
    again = encode(stored, codecs=ALL, choices=first.choices)
    assert (again.header, again.segments) == (first.header, first.segments)
    assert len(again.trials) == len(again.groups)


def test_mixed_types_are_one_stream_of_the_wider() -> None:
    stored = contents(scaled("a", 0), quantized("b", 20, 30, qmax=300))
    encoded = encode(stored, codecs=resolve(["rans"]))
    assert [s.dtype for s in encoded.layout.streams if s.kind == "int"] == ["I16"]
    decoded = read(render(encoded, form="qpk"))
    assert same(decoded, encoded.contents)
    assert np.array_equal(decoded.tensors[0].integers, stored.tensors[0].integers)


class Warned(Silent):
    """Remembers warnings."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, message: str) -> None:
        self.said.append(message)


def test_other_codecs_take_over_what_rans_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(matrices: object, trellis: object) -> bytes:
        raise TooLargeError("too many steps")

    monkeypatch.setattr(rans, "encode", fail)
    progress = Warned()
    coded = encode_integers(contents(scaled("a", 0)), ALL, progress=progress)
    assert coded.groups[0].stream.key == "int:a:I8"
    assert progress.said == ["too many steps; other codecs take over"]


def test_no_elements_are_stored() -> None:
    encoded = encode(contents(quantized("a", 0, 5)), codecs=ALL)
    assert kinds(encoded) == [("misc:I8", 0)]
