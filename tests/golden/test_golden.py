"""R2 and R24: released bytes. Each file decodes to what it held; the encoder still writes it."""

from __future__ import annotations

import hashlib
import json
import zlib
from importlib.metadata import version

import pytest

from qpack.artifact.reader import open_artifact, read
from tests.golden.rans_vectors import HANDMADE, handmade
from tests.golden.vectors import CASES, FOLDER, INDEX
from tests.samples import artifact, both, same, take_apart

EXPECTED = json.loads(INDEX.read_text())
# Encoded bytes are a promise for these versions; other versions must still decode them.
ENCODERS = {"brotli": "1.2", "zstandard": "0.25"}


def test_there_are_enough() -> None:
    assert len(CASES) >= 24
    assert set(EXPECTED) >= set(CASES)
    codecs = [codec for _, codec in CASES.values()]
    assert all(codecs.count(codec) >= 2 for codec in set(codecs))
    assert {path.stem for path in FOLDER.glob("*.qpk")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_decodes_to_the_same_weights(name: str) -> None:
    weights = both((FOLDER / f"{name}.qpk").read_bytes())
    assert weights is not None
    assert hashlib.sha256(weights).hexdigest() == EXPECTED[name]["weights_sha256"]


@pytest.mark.parametrize("name", CASES)
def test_decodes_to_the_same_contents(name: str) -> None:
    assert same(read(FOLDER / f"{name}.qpk"), CASES[name][0])


@pytest.mark.parametrize("name", HANDMADE)
def test_segments_by_hand_are_what_they_were(name: str) -> None:
    contents, data = handmade(name)
    stored = (FOLDER / f"{name}.qpk").read_bytes()
    assert take_apart(stored) == take_apart(data)
    assert same(read(stored), contents)


@pytest.mark.parametrize("name", CASES)
def test_encodes_to_the_same_bytes(name: str) -> None:
    contents, codec = CASES[name]
    package = {"brotli": "brotli", "zstd": "zstandard"}.get(codec)
    if package and not version(package).startswith(ENCODERS[package]):
        pytest.skip(f"written with {package} {ENCODERS[package]}")
    if not zlib.ZLIB_RUNTIME_VERSION.startswith("1.") or "ng" in zlib.ZLIB_RUNTIME_VERSION:
        pytest.skip("the header was deflated with zlib proper")
    stored = (FOLDER / f"{name}.qpk").read_bytes()
    assert artifact(contents, codec=codec) == stored
    assert open_artifact(stored).version == (1, 0)
