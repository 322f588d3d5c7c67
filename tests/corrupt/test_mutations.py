"""R10 and R11: random structured changes with the digests repaired; the two decoders agree."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from tests.samples import artifact, both, forge, take_apart, varied

INTERESTING = (0, 1, 2, 3, 4, 5, 7, 8, 16, 64, 127, 255, 256, 65_535, 2**31 - 1, 2**31, 2**62)
TEXTS = (
    "",
    "w",
    "I8",
    "I16",
    "F32",
    "BF16",
    "rows",
    "cols",
    "int",
    "raw",
    "files",
    "code",
    "a/..",
    "\n",
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a JSON value."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [path, *(deep for key, item in items for deep in places(item, (*path, key)))]


def mutate(header: Any, rng: np.random.Generator) -> None:
    """Change one place of a header."""
    paths = places(header)[1:]
    *parents, last = paths[rng.integers(len(paths))]
    holder = header
    for key in parents:
        holder = holder[key]
    value, kind = holder[last], rng.integers(6)
    if kind == 0 and isinstance(holder, list):
        holder.append(copy.deepcopy(value))
    elif kind == 1:
        del holder[last]
    elif isinstance(value, int) and kind < 5:
        holder[last] = int(rng.choice([value + 1, value - 1, value * 2, *INTERESTING]))
    elif isinstance(value, str):
        holder[last] = str(rng.choice([value + "x", value[:-1], *TEXTS]))
    else:
        holder[last] = [0, "x", [], {}][rng.integers(4)]


def mutate_bytes(segment: bytes, rng: np.random.Generator) -> bytes:
    """Flip, cut, grow or scramble a segment."""
    data = bytearray(segment)
    for _ in range(int(rng.integers(1, 4))):
        position = int(rng.integers(len(data) + 1))
        kind = rng.integers(4)
        if kind == 0 and position < len(data):
            data[position] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[position : position + int(rng.integers(1, 9))]
        elif kind == 2:
            data[position:position] = rng.bytes(int(rng.integers(1, 9)))
        elif position < len(data):
            data[position] = int(rng.choice([0, 1, 127, 128, 255]))
    return bytes(data)


def attack(codec: str, seed: int, count: int) -> int:
    """Run `count` mutated files through both decoders; how many were accepted."""
    rng = np.random.default_rng(seed)
    header, segments = take_apart(artifact(varied(), codec=codec))
    accepted = 0
    for _ in range(count):
        changed, parts = copy.deepcopy(header), list(segments)
        if rng.random() < 0.6:
            for _ in range(int(rng.integers(1, 4))):
                mutate(changed, rng)
        else:
            index = int(rng.integers(len(parts)))
            parts[index] = mutate_bytes(parts[index], rng)
        version = (1, int(rng.integers(2)))
        accepted += both(forge(changed, parts, version=version)) is not None
    return accepted


@pytest.mark.parametrize("codec", ["store", "lzma", "lzma-raw", "brotli", "zstd", "rans"])
def test_decoders_agree_on_mutated_files(codec: str) -> None:
    count = 300
    assert 0 < attack(codec, 0, count) < count


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["store", "lzma", "lzma-raw", "brotli", "zstd", "rans"])
def test_decoders_agree_on_many_mutated_files(codec: str) -> None:
    count = 10_000
    assert 0 < attack(codec, 1, count) < count
