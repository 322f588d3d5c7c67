"""Headers that break one rule each, with every digest right. Both decoders refuse them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qpack.artifact.reader import read
from qpack.errors import ArtifactError, CorruptError, TruncatedError, UnsupportedError
from tests.samples import artifact, both, forge, seal, small, take_apart

Header = dict[str, Any]
DATA = artifact(small(), codec="store")


def stream(header: Header, kind: str) -> list[Any]:
    found: list[Any] = next(row for row in header["streams"] if row[0] == kind)
    return found


def put(path: str, value: Any) -> Callable[[Header], None]:
    """Set one place of the header, as `tensors.0.1`."""

    def change(header: Header) -> None:
        place: Any = header
        *parents, last = path.split(".")
        for key in parents:
            place = place[int(key) if key.isdigit() else key]
        place[int(last) if last.isdigit() else last] = value

    return change


def drop(key: str) -> Callable[[Header], None]:
    return lambda header: header.pop(key)


CORRUPT = {
    "key missing": drop("aliases"),
    "unknown key": put("zz", []),
    "streams not a list": put("streams", {}),
    "streams a string": put("streams", "abc"),
    "stream row short": put("streams.0", ["int", "I8"]),
    "stream row of other types": put("streams.0.2", "0"),
    "tensors an object": put("tensors", {}),
    "tensor row short": put("tensors.0", ["w"]),
    "tensor row too long": put("tensors.0", ["w", [8, 16], 0, 1, 16, 0, 0]),
    "shape of strings": put("tensors.0.1", ["8", 16]),
    "shape of booleans": put("tensors.0.1", [True, 16]),
    "negative dimension": put("tensors.0.1", [-8, -16]),
    "stream index negative": put("tensors.0.2", -1),
    "no such stream": put("tensors.0.2", 99),
    "integers in a raw stream": put("tensors.0.2", 2),
    "raw in an integer stream": put("tensors.1.2", 0),
    "file in a raw stream": put("files.0.2", 2),
    "file in no stream": put("files.0.2", 99),
    "lead past the rank": put("tensors.0.3", 2),
    "lead moved": put("tensors.0.3", 0),
    "octave zero": put("tensors.0.4", 0),
    "octave 3": put("tensors.0.4", 3),
    "octave 128": put("tensors.0.4", 128),
    "columns flag 2": put("tensors.0.5", 2),
    "columns without a stream": put("tensors.0.5", 1),
    "shape that asks for more": put("tensors.0.1", [8, 17]),
    "shape that asks for less": put("tensors.0.1", [8, 15]),
    "raw shape that asks for more": put("tensors.1.1", [3]),
    "file that asks for more": put("files.0.3", 5),
    "aliases a list": put("aliases", []),
    "alias to a number": put("aliases.tied", 1),
    "alias to nothing": put("aliases.tied", "nowhere"),
    "alias to itself": put("aliases", {"x": "x"}),
    "alias of a stored name": put("aliases", {"b": "w"}),
    "name used twice": put("tensors.1.0", "w"),
    "empty name": put("aliases", {"": "w"}),
    "name with NUL": put("aliases", {"a\0b": "w"}),
    "name with a newline": put("aliases", {"a\nb": "w"}),
    "name with an escape": put("aliases", {"a\x9bb": "w"}),
    "name that reorders text": put("aliases", {"a\u202eb": "w"}),
    "name with a surrogate": put("aliases", {"a\ud800b": "w"}),
    "name with ..": put("aliases", {"a/../b": "w"}),
    "reserved name": put("tensors.1.0", "__metadata__"),
    "reserved alias": put("aliases", {"__metadata__": "w"}),
    "reserved metadata": put("metadata.aliases", "{}"),
    "metadata key unprintable": put("metadata", {"\x1b[2J": "x"}),
    "metadata value a number": put("metadata.model_name", 1),
    "metadata value with a surrogate": put("metadata.model_name", "\udc00"),
    "file role": put("files.0.1", "virus"),
    "file in a folder": put("files.0.0", "../a.txt"),
    "file with a drive": put("files.0.0", "C:a.txt"),
    "file with a backslash": put("files.0.0", "a\\b"),
    "hidden file": put("files.0.0", ".bashrc"),
    "file like an option": put("files.0.0", "-rf"),
    "file without a name": put("files.0.0", ""),
    "file of other letters": put("files.0.0", "\u00e9.txt"),
    "file row short": put("files.0", ["a.txt"]),
    "file role a number": put("files.0.1", 1),
    "files an object": put("files", {}),
    "requires an object": put("requires", {}),
    "requires a number": put("requires", [1]),
    "metadata a list": put("metadata", []),
    "float": put("tensors.0.1", [8.0, 16]),
    "large integer": put("streams.0.5", 1 << 63),
    "null": put("tensors.0.1", None),
    "two row streams": lambda header: header["streams"].append(
        ["rows", "I16", 0, 0, 0, 0, "0" * 16]
    ),
    "a stream of nothing": lambda header: header["streams"].append(
        ["raw", "F32", 0, 0, 0, 0, "0" * 16]
    ),
}
UNSUPPORTED = {
    "feature": put("requires", ["telepathy"]),
    "codec id": put("streams.0.2", 99),
    "codec id past a byte": put("streams.0.2", 256),
    "kind of stream": put("streams.0.0", "floats"),
    "integers of four bytes": put("streams.0.1", "I32"),
    "row codes of one byte": put("streams.1.1", "I8"),
    "raw type": put("streams.2.1", "F4"),
    "file type": put("streams.3.1", "I8"),
    "filter": put("streams.0.3", 99),
    "planes of bytes": put("streams.0.3", 1),
    "differences of integers": put("streams.0.3", 4),
    "transposed floats": put("streams.2.3", 2),
    "filtered file": put("streams.3.3", 1),
}


def changed(change: Callable[[Header], Any]) -> bytes:
    header, segments = take_apart(DATA)
    change(header)
    return forge(header, segments)


def test_the_unchanged_header_is_accepted() -> None:
    assert changed(lambda header: None) == DATA
    assert both(DATA) is not None


@pytest.mark.parametrize("name", CORRUPT)
def test_corrupt(name: str) -> None:
    data = changed(CORRUPT[name])
    with pytest.raises(CorruptError):
        read(data)
    assert both(data) is None


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported(name: str) -> None:
    data = changed(UNSUPPORTED[name])
    with pytest.raises(UnsupportedError):
        read(data)
    assert both(data) is None


def test_all_offenders_are_named() -> None:
    header, segments = take_apart(DATA)
    header["aliases"] = {"a\nb": "w", "c": "nowhere"}
    header["files"][0][0] = "../x"
    with pytest.raises(CorruptError) as caught:
        read(forge(header, segments))
    assert len(caught.value.items) == 3


@pytest.mark.parametrize("version", [(0, 0), (2, 0), (0xFFFF, 0xFFFF)])
def test_other_major_versions(version: tuple[int, int]) -> None:
    header, segments = take_apart(DATA)
    data = forge(header, segments, version=version)
    with pytest.raises(UnsupportedError, match=f"version {version[0]}"):
        read(data)
    assert both(data) is None


def test_a_newer_minor_version_may_add_keys() -> None:
    header, segments = take_apart(DATA)
    header["zz"] = {"of": ["the", "future"]}
    assert both(forge(header, segments, version=(1, 7))) == both(DATA)


TEXTS = {
    "spaces": lambda text: text.replace(b",", b", ", 1),
    "repeated key": lambda text: b'{"aliases":{},' + text[1:],
    "unsorted": lambda text: (
        text.replace(b'"aliases":{"tied":"w"},', b"")[:-1] + b',"aliases":{"tied":"w"}}'
    ),
    "escaped letter": lambda text: text.replace(b"tied", b"\\u0074ied"),
    "upper-case escape": lambda text: text.replace(b"tied", b"t\\u00E9d"),
    "UTF-8": lambda text: text.replace(b"tied", "ti\u00e9d".encode()),
    "leading zero": lambda text: text.replace(b"[8,16]", b"[08,16]"),
    "minus zero": lambda text: text.replace(b"[2],2", b"[2],-0"),
    "exponent": lambda text: text.replace(b"[8,16]", b"[8e0,16]"),
    "NaN": lambda text: text.replace(b"[8,16]", b"[NaN,16]"),
    "Infinity": lambda text: text.replace(b"[8,16]", b"[Infinity,16]"),
    "true": lambda text: text.replace(b"[8,16]", b"[true,16]"),
    "trailing comma": lambda text: text.replace(b"[8,16]", b"[8,16,]"),
    "not an object": lambda text: b"[" + text + b"]",
    "a string": lambda text: b'"aliases"',
    "two values": lambda text: text + text,
    "cut short": lambda text: text[:-1],
    "empty": lambda text: b"",
    "not text": lambda text: b"{\xff\xfe",
    "endless digits": lambda text: text.replace(b"[8,16]", b"[" + b"9" * 5000 + b",16]"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_only_the_canonical_text_is_read(name: str) -> None:
    header, segments = take_apart(DATA)
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    assert TEXTS[name](text) != text
    data = forge(header, segments, text=TEXTS[name](text))
    with pytest.raises(CorruptError):
        read(data)
    assert both(data) is None


@pytest.mark.parametrize("change", [-1, 1, 1000])
def test_the_header_has_the_declared_length(change: int) -> None:
    stored = DATA[28 : 28 + int.from_bytes(DATA[12:16], "little")]
    decoded_bytes = int.from_bytes(DATA[16:20], "little") + change
    data = seal(stored, decoded_bytes, take_apart(DATA)[1])
    with pytest.raises(CorruptError):
        read(data)
    assert both(data) is None


@pytest.mark.parametrize("stored", [b"", b"\xff\xff", b"\x03\x00extra"])
def test_a_header_that_does_not_inflate(stored: bytes) -> None:
    data = seal(stored, 0, [])
    with pytest.raises(CorruptError):
        read(data)
    assert both(data) is None


@pytest.mark.parametrize(
    ("segments", "error"),
    [
        (lambda parts: [*parts, b"x"], CorruptError),
        (lambda parts: parts[:-1], TruncatedError),
        (lambda parts: parts[::-1], CorruptError),
    ],
)
def test_segments_fill_the_file(segments: Any, error: type[ArtifactError]) -> None:
    header, parts = take_apart(DATA)
    whole = forge(header, parts)
    stored = whole[28 : 28 + int.from_bytes(whole[12:16], "little")]
    data = seal(stored, int.from_bytes(whole[16:20], "little"), segments(parts))
    with pytest.raises(error):
        read(data)
    assert both(data) is None


def segment(index: int, array: list[int], dtype: str) -> bytes:
    header, segments = take_apart(DATA)
    values = np.frombuffer(segments[index], dtype).copy()
    values[: len(array)] = array
    segments[index] = values.tobytes()
    return forge(header, segments)


@pytest.mark.parametrize(
    ("index", "array", "dtype", "message"),
    [
        (0, [-128], "<i1", "symmetric"),
        (1, [-126 * 16 - 1], "<i2", "row code"),
        (1, [128 * 16], "<i2", "row code"),
        (1, [128 * 16 - 1] * 8, "<i2", "overflows"),
    ],
)
def test_values_out_of_range(index: int, array: list[int], dtype: str, message: str) -> None:
    data = segment(index, array, dtype)
    with pytest.raises(CorruptError, match=message):
        read(data)
    assert both(data) is None


def test_values_at_the_edge() -> None:
    assert both(segment(1, [-126 * 16], "<i2")) is not None
    assert both(segment(0, [-127, 127], "<i1")) is not None


def test_stored_and_decoded_bytes_are_zero_together() -> None:
    header, segments = take_apart(DATA)
    header["files"][0][3] = header["streams"][3][5] = 0
    data = forge(header, segments)
    with pytest.raises(CorruptError, match="stores 4 bytes for 0"):
        read(data)
    assert both(data) is None
