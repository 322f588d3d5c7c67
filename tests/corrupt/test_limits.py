"""R7: every limit of the format, at its edge (accepted) and one past it (refused), at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from qpack.artifact import limits
from qpack.artifact.reader import open_artifact
from qpack.codec.zstd import Zstd
from qpack.errors import ArtifactError, CorruptError, TooLargeError
from qpack.tensors import Contents
from tests.samples import artifact, both, forge, quantized, seal, small, take_apart

Header = dict[str, Any]


def accepted(data: bytes) -> None:
    """Both decoders take it."""
    assert both(data) is not None


def refused(data: bytes, error: type[ArtifactError] = TooLargeError) -> None:
    """Both refuse it; the library with this error, quickly, from the header alone."""
    start = time.process_time()
    with pytest.raises(error):
        open_artifact(data)
    assert time.process_time() - start < 0.5
    assert both(data) is None


def edited(change: Callable[[Header], None]) -> bytes:
    """The small artifact with a change to its header and every digest right."""
    header, segments = take_apart(artifact(small()))
    change(header)
    return forge(header, segments)


def empties(count: int) -> bytes:
    """A file of `count` tensors without elements."""
    header, _ = take_apart(artifact(small()))
    header |= {"tensors": [[f"{i:x}", [0], 0] for i in range(count)], "aliases": {}, "files": []}
    header["streams"] = [["raw", "F32", 0, 0, 0, 0, ""]]
    return forge(header, [b""])


def test_tensors() -> None:
    accepted(empties(limits.TENSORS_MAX))
    refused(empties(limits.TENSORS_MAX + 1))


def test_aliases_count_as_tensors() -> None:
    def alias(header: Header, count: int) -> None:
        header["aliases"] = {f"a{i}": "w" for i in range(count)}

    accepted(edited(lambda header: alias(header, limits.TENSORS_MAX - 2)))
    refused(edited(lambda header: alias(header, limits.TENSORS_MAX - 1)))


@pytest.mark.parametrize("letter", ["n", "\u00e9"])
def test_name_length_is_in_bytes(letter: str) -> None:
    most = limits.NAME_BYTES_MAX // len(letter.encode())

    def rename(header: Header, name: str) -> None:
        header["aliases"], header["tensors"][0][0] = {}, name

    accepted(edited(lambda header: rename(header, letter * most)))
    refused(edited(lambda header: rename(header, letter * most + "n")), CorruptError)
    refused(edited(lambda header: rename(header, "")), CorruptError)


def reshape(shape: list[int]) -> bytes:
    """An artifact of one empty raw tensor of this shape."""
    header, _ = take_apart(artifact(small()))
    header |= {"tensors": [["t", shape, 0]], "aliases": {}, "files": []}
    header["streams"] = [["raw", "F32", 0, 0, 0, 0, ""]]
    return forge(header, [b""])


def test_rank() -> None:
    accepted(reshape([0] * limits.RANK_MAX))
    refused(reshape([0] * (limits.RANK_MAX + 1)))


def test_dimension() -> None:
    accepted(reshape([0, limits.DIM_MAX]))
    refused(reshape([0, limits.DIM_MAX + 1]))


def test_elements() -> None:
    # No file of 2^40 elements is within the other limits: at the limit another rule speaks.
    with pytest.raises(TooLargeError, match="decoded bytes"):
        open_artifact(reshape_raw([1 << 20, 1 << 20]))
    with pytest.raises(TooLargeError, match="elements"):
        open_artifact(reshape_raw([1 << 20, (1 << 20) + 1]))


def reshape_raw(shape: list[int]) -> bytes:
    header, segments = take_apart(artifact(small()))
    header["tensors"][1][1] = shape
    header["streams"][header["tensors"][1][2]][5] = 4 << 40
    return forge(header, segments)


def test_metadata() -> None:
    def fill(header: Header, count: int) -> None:
        header["metadata"] = {f"k{i}": "" for i in range(count)}

    accepted(edited(lambda header: fill(header, limits.METADATA_MAX)))
    refused(edited(lambda header: fill(header, limits.METADATA_MAX + 1)))


def test_streams() -> None:
    def file(count: int) -> bytes:
        header, _ = take_apart(artifact(small()))
        header |= {"aliases": {}, "files": []}
        header["tensors"] = [[f"t{i}", [0], i] for i in range(count)]
        header["streams"] = [["raw", "F32", 0, 0, 0, 0, ""] for _ in range(count)]
        return forge(header, [b""] * count)

    accepted(file(limits.STREAMS_MAX))
    refused(file(limits.STREAMS_MAX + 1))


def test_files() -> None:
    def file(count: int) -> bytes:
        header, _ = take_apart(artifact(small()))
        header |= {"aliases": {}, "tensors": [], "streams": [["files", "U8", 0, 0, 0, 0, ""]]}
        header["files"] = [[f"f{i}", "code", 0, 0] for i in range(count)]
        return forge(header, [b""])

    accepted(file(limits.FILES_MAX))
    refused(file(limits.FILES_MAX + 1))


def test_file_name_length() -> None:
    def rename(header: Header, length: int) -> None:
        header["files"][0][0] = "f" * length

    accepted(edited(lambda header: rename(header, limits.FILE_NAME_BYTES_MAX)))
    refused(edited(lambda header: rename(header, limits.FILE_NAME_BYTES_MAX + 1)), CorruptError)


def test_decoded_header() -> None:
    def pad(header: Header, length: int) -> None:
        header["metadata"] = {"pad": ""}
        size = len(json.dumps(header, sort_keys=True, separators=(",", ":")))
        header["metadata"]["pad"] = "x" * (length - size)

    # The digests in the stream rows have their length already, so the length stays as set.
    accepted(edited(lambda header: pad(header, limits.HEADER_BYTES_MAX)))
    refused(edited(lambda header: pad(header, limits.HEADER_BYTES_MAX + 1)))


def test_stored_header() -> None:
    header, segments = take_apart(artifact(small()))
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    # Stored deflate blocks of no bytes (5 each) make a header of any length.
    body = b"\x01" + len(text).to_bytes(2, "little") + (0xFFFF ^ len(text)).to_bytes(2, "little")
    empty = b"\x00\x00\x00\xff\xff"
    room = limits.HEADER_BYTES_MAX - len(body) - len(text)
    stored = empty * (room // 5) + body + text
    accepted(seal(stored, len(text), segments))
    refused(seal(stored + bytes(6), len(text), segments))


@pytest.mark.parametrize(("depth", "good"), [(8, True), (9, False)])
def test_depth(depth: int, good: bool) -> None:
    def nest(header: Header) -> None:
        value: Any = 0
        for _ in range(depth - 1):
            value = [value]
        header["zz_future"] = value

    header, segments = take_apart(artifact(small()))
    nest(header)
    data = forge(header, segments, version=(1, 1))
    if good:
        accepted(data)
    else:
        refused(data)


@pytest.mark.parametrize("brackets", [b"[", b'{"a":'])
def test_depth_without_end(brackets: bytes) -> None:
    text = b'{"aliases":' + brackets * 100_000
    refused(forge({}, [], text=text), CorruptError)


def test_decoded_bytes() -> None:
    data = artifact(small())
    total = open_artifact(data).layout.decoded_bytes
    assert open_artifact(data, max_decoded_bytes=total)
    with pytest.raises(TooLargeError, match=str(total)):
        open_artifact(data, max_decoded_bytes=total - 1)


def expanding(cols: int) -> bytes:
    """A file of `cols` zeros in one row, decoding to `cols` + 2 bytes."""
    contents = Contents(tensors=(quantized("w", 1, 1),), aliases={}, metadata={})
    header, segments = take_apart(artifact(contents, codec="store"))
    header["tensors"][0][1] = [cols]
    header["streams"][0][2:6] = [4, 0, 0, cols]
    segments[0] = Zstd().encode(bytes(cols))
    return forge(header, segments)


def test_expansion() -> None:
    cols = 300_000
    for _ in range(10):  # the size of the file moves with the number of columns, by a byte or two
        cols = 1024 * len(expanding(cols)) - 2
    data = expanding(cols)
    assert cols + 2 == limits.EXPANSION_MAX * len(data)
    accepted(data)
    over = expanding(cols + 1)
    assert len(over) == len(data)
    refused(over)


def test_the_payload_is_not_read(tmp_path: Any) -> None:
    """A sparse file of 2 GiB is refused by its header alone."""
    header, segments = take_apart(artifact(small()))
    header["metadata"] = {f"k{i}": "" for i in range(limits.METADATA_MAX + 1)}
    path = tmp_path / "sparse.qpk"
    path.write_bytes(forge(header, segments))
    with path.open("r+b") as file:
        file.truncate(2 << 30)
    start = time.process_time()
    with pytest.raises(TooLargeError):
        open_artifact(path)
    assert time.process_time() - start < 0.5
