"""docs/FORMAT.md is true: its vectors decode, its constants and limits are the code's."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from qpack.artifact import layout, limits
from qpack.codec import filters
from qpack.codec.rans.decode import LANES_LOG_MAX
from qpack.codec.rans.schedule import STEPS_MAX
from qpack.codec.rans.side import CLASSES_MAX, SIDE_BYTES_MAX
from qpack.codec.registry import codecs
from qpack.tensors import MANTISSA_BITS
from qpack.trellis import POLYNOMIALS
from tests.samples import both

TEXT = (Path(__file__).parents[3] / "docs" / "FORMAT.md").read_text("utf-8")
VECTORS = re.findall(
    r"^### (.+)\n\n```\nweights-sha256 ([0-9a-f]{64})\n([0-9a-f\n]+)```", TEXT, re.M
)


def test_there_are_vectors() -> None:
    assert len(VECTORS) == TEXT.count("weights-sha256") >= 8


@pytest.mark.parametrize(("title", "digest", "data"), VECTORS, ids=[v[0] for v in VECTORS])
def test_vector(title: str, digest: str, data: str) -> None:
    weights = both(bytes.fromhex(data.replace("\n", "")))
    assert weights is not None
    assert hashlib.sha256(weights).hexdigest() == digest


def test_constants() -> None:
    assert layout.MAGIC.hex(" ") in TEXT
    assert f"format {layout.MAJOR}.{layout.MINOR}" in TEXT.splitlines()[0]
    table = re.search(r"```\n((?:3f[0-9a-f]{6}\s)+)```", TEXT)
    assert table is not None
    assert [int(word, 16) for word in table[1].split()] == list(MANTISSA_BITS)


def test_codecs_and_filters() -> None:
    for codec in codecs(plugins=False).values():
        assert f"| {codec.id} | {codec.name} |" in TEXT
    for number, name in enumerate(filters.NAMES):
        assert f"| {number} | {name} |" in TEXT


def test_element_types() -> None:
    line = next(line for line in TEXT.splitlines() if line.startswith("Element types"))
    found = {name: int(width) for names, width in re.findall(r"`([A-Z0-9_ ]+)` (\d)", line)
             for name in names.split()}  # fmt: skip
    assert found == layout.WIDTHS


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("stored header; decoded header", f"{limits.HEADER_BYTES_MAX:,} bytes each"),
        ("nesting of the header text (the object itself is 1)", str(limits.JSON_DEPTH_MAX)),
        ("streams", f"{limits.STREAMS_MAX:,}"),
        ("tensors and aliases together", f"{limits.TENSORS_MAX:,}"),
        ("name of a tensor, alias or metadata entry", f"{limits.NAME_BYTES_MAX} bytes"),
        ("rank", str(limits.RANK_MAX)),
        ("metadata entries", str(limits.METADATA_MAX)),
        ("files; name of a file", f"{limits.FILES_MAX:,}; {limits.FILE_NAME_BYTES_MAX} bytes"),
        ("decoded bytes of all streams over bytes of the `.qpk`", f"{limits.EXPANSION_MAX:,}"),
    ],
)
def test_limits(what: str, value: str) -> None:
    assert f"| {what} | {value} |" in TEXT


def test_rans() -> None:
    assert f"| steps of a rans segment, of codes and integers together | {STEPS_MAX:,} |" in TEXT
    lanes = f"{1 << LANES_LOG_MAX:,}; {CLASSES_MAX}"
    assert f"| lanes; classes of a rans segment | {lanes} |" in TEXT
    assert SIDE_BYTES_MAX == 1 << 20
    assert "| decoded side block of a rans segment | 1 MiB |" in TEXT
    for states, (h0, h1) in POLYNOMIALS.items():
        assert f"| {states} | {h0:o} | {h1:o} |" in TEXT


def test_limits_that_are_powers() -> None:
    assert limits.DIM_MAX == 2**31 - 1
    assert limits.ELEMENTS_MAX == 2**40
    assert limits.INTEGER_MAX == 2**63 - 1
    assert limits.DECODED_BYTES_MAX == 4 * 2**30
    assert limits.DECODER_BYTES_MAX == 2**20
    assert limits.ZIP_BYTES_MAX == 2**32 - 1
