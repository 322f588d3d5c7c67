"""Zips that are almost a .pyz. None is read; Python's own view of a true one is the same."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable

import pytest

from qpack.artifact import decoder, pyz
from qpack.artifact.limits import DECODER_BYTES_MAX, ZIP_BYTES_MAX
from qpack.artifact.reader import open_artifact, read
from qpack.errors import ArtifactError, CorruptError, TooLargeError
from tests.samples import artifact, same, small, varied

PYZ = artifact(small(), form="pyz")
QPK = artifact(small())
SOURCE = pyz.decoder_source()


def test_the_zip_is_what_python_thinks() -> None:
    with zipfile.ZipFile(io.BytesIO(PYZ)) as zipped:
        main, model = zipped.infolist()
        assert (main.filename, main.compress_type) == ("__main__.py", zipfile.ZIP_DEFLATED)
        assert (model.filename, model.compress_type) == ("model.qpk", zipfile.ZIP_STORED)
        assert zipped.read(main) == SOURCE
        assert zipped.read(model) == QPK
        assert zipped.testzip() is None
        assert main.date_time == model.date_time == (1980, 1, 1, 0, 0, 0)
    assert pyz.overhead_bytes() == len(PYZ) - len(QPK)


def zipped(members: list[tuple[str, bytes, int]], comment: bytes = b"") -> bytes:
    """A zip written by Python."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data, method in members:
            info = zipfile.ZipInfo(name)
            info.compress_type, info.create_system, info.external_attr = method, 3, 0o100644 << 16
            archive.writestr(info, data, compresslevel=9)
        archive.comment = comment
    return file.getvalue()


MAIN, MODEL = ("__main__.py", SOURCE, 8), ("model.qpk", QPK, 0)
ODD = {
    "comment": zipped([MAIN, MODEL], b"comment"),
    "third member": zipped([MAIN, MODEL, ("x", b"", 0)]),
    "third member first": zipped([("x", b"", 0), MAIN, MODEL]),
    "swapped": zipped([MODEL, MAIN]),
    "model deflated": zipped([MAIN, ("model.qpk", QPK, 8)]),
    "decoder stored": zipped([("__main__.py", SOURCE, 0), MODEL]),
    "decoder alone": zipped([MAIN]),
    "model alone": zipped([MODEL]),
    "another name": zipped([MAIN, ("model.qp0", QPK, 0)]),
    "nothing": zipped([]),
    "shebang": b"#!/usr/bin/env python3\n" + PYZ,
    "two of them": PYZ + PYZ,
    "gap": PYZ.replace(QPK, QPK + b"gap"),
    "local header only": PYZ[:30],
}


@pytest.mark.parametrize("name", ODD)
def test_other_zips_are_refused(name: str) -> None:
    with pytest.raises(ArtifactError):
        open_artifact(ODD[name])


def test_pythons_own_zip_of_the_same_is_accepted() -> None:
    assert same(read(zipped([MAIN, MODEL])), small())


@pytest.mark.parametrize("length", [4, 29, 30, 41, 60, len(PYZ) - 1, len(PYZ) - len(QPK)])
def test_truncated(length: int) -> None:
    with pytest.raises(ArtifactError):
        open_artifact(PYZ[:length])


def test_another_decoder_is_data_too() -> None:
    data = zipped([("__main__.py", b"print('mine')\n", 8), MODEL])
    header = open_artifact(data)
    assert header.decoder == b"print('mine')\n"
    assert pyz.decoder_status(header.decoder) == "unknown, do not run"
    assert same(read(data), small())


def patched(offset: int, layout: str, *values: int) -> bytes:
    data = bytearray(PYZ)
    struct.pack_into(layout, data, offset, *values)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (patched(18, "<II", DECODER_BYTES_MAX + 1, 10), TooLargeError),
        (patched(22, "<I", DECODER_BYTES_MAX + 1), TooLargeError),
        (patched(22, "<I", len(SOURCE) + 1), ArtifactError),
        (patched(14, "<I", 0), ArtifactError),
        (patched(41, "<B", 0xFF), CorruptError),
        (patched(10, "<H", 1), CorruptError),
    ],
)
def test_fields_of_the_decoder(data: bytes, error: type[ArtifactError]) -> None:
    with pytest.raises(error):
        open_artifact(data)


def rebuilt(decoder_bytes: bytes, declared: int, crc: int) -> bytes:
    """A consistent zip around any deflated decoder."""
    main = pyz._Member(pyz.MAIN, 8, crc, len(decoder_bytes), declared)
    head, tail = pyz._around(main, pyz._model(zlib.crc32(QPK), len(QPK)))
    split = 30 + len(pyz.MAIN)
    return head[:split] + decoder_bytes + head[split:] + QPK + tail


@pytest.mark.parametrize(
    "make",
    [
        lambda code: rebuilt(code, len(SOURCE), zlib.crc32(SOURCE) ^ 1),
        lambda code: rebuilt(code, len(SOURCE) - 1, zlib.crc32(SOURCE)),
        lambda code: rebuilt(code, len(SOURCE) + 1, zlib.crc32(SOURCE)),
        lambda code: rebuilt(code + b"\0", len(SOURCE), zlib.crc32(SOURCE)),
        lambda code: rebuilt(code[:-1], len(SOURCE), zlib.crc32(SOURCE)),
        lambda code: rebuilt(b"\xff" * 20, len(SOURCE), zlib.crc32(SOURCE)),
    ],
)
def test_decoders_that_do_not_inflate(make: Callable[[bytes], bytes]) -> None:
    code = pyz._deflated_decoder()
    assert rebuilt(code, len(SOURCE), zlib.crc32(SOURCE)) == PYZ
    with pytest.raises(CorruptError, match="decoder"):
        open_artifact(make(code))


def test_the_model_is_checked_by_the_zip_too() -> None:
    main = pyz._main(SOURCE, len(pyz._deflated_decoder()))
    head, tail = pyz._around(main, pyz._model(0, len(QPK)))
    split = 30 + len(pyz.MAIN)
    data = head[:split] + pyz._deflated_decoder() + head[split:] + QPK + tail
    with pytest.raises(CorruptError, match="checksum"):
        read(data)


def test_every_flip_outside_the_model_is_refused_or_changes_nothing() -> None:
    """Padding bits at the end of the deflated decoder mean nothing; all else is noticed."""
    offset = PYZ.index(QPK)
    outside = [*range(60), *range(offset - 60, offset), *range(offset + len(QPK), len(PYZ))]
    silent = 0
    for position in outside:
        for bit in range(8):
            data = bytearray(PYZ)
            data[position] ^= 1 << bit
            try:
                header = open_artifact(bytes(data))
                contents = read(bytes(data))
            except ArtifactError:
                continue
            silent += 1
            assert header.decoder == SOURCE
            assert same(contents, small())
    assert silent < 8


def test_a_pyz_given_to_the_decoder_as_a_model_is_refused() -> None:
    with pytest.raises(decoder.StopError):
        decoder.decode(artifact(varied(), form="pyz"))
    assert ZIP_BYTES_MAX == 2**32 - 1
