"""Opening: paths, bytes, what is missing; and what is said about damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qpack.artifact import reader
from qpack.artifact.reader import check_digests, members, open_artifact, opened, read
from qpack.errors import CorruptError, InputError, TooLargeError, TruncatedError
from qpack.tensors import QuantizedTensor
from tests.samples import artifact, same, varied


@pytest.mark.parametrize("form", ["qpk", "pyz"])
def test_paths_and_bytes_are_the_same(tmp_path: Path, form: str) -> None:
    data = artifact(varied(), form=form)
    path = tmp_path / "anything"
    path.write_bytes(data)
    assert open_artifact(path) == open_artifact(str(path)) == open_artifact(data)
    assert same(read(path), varied())
    assert same(read(data), varied())


@pytest.mark.parametrize("name", ["missing", ".", "a\0b"])
def test_paths_that_cannot_be_opened(tmp_path: Path, name: str) -> None:
    for function in (open_artifact, read):
        with pytest.raises(InputError, match="cannot open"):
            function(str(tmp_path / name))


def test_arrays_have_native_types() -> None:
    for tensor in read(artifact(varied())).tensors:
        if isinstance(tensor, QuantizedTensor):
            assert tensor.integers.dtype in (np.dtype(np.int8), np.dtype(np.int16))
            assert tensor.integers.dtype.isnative
            assert tensor.row_codes.dtype == np.dtype(np.int16)


def test_a_smaller_limit() -> None:
    with pytest.raises(TooLargeError, match="decoded bytes"):
        read(artifact(varied()), max_decoded_bytes=1000)


def test_a_text_file_is_not_an_artifact() -> None:
    with pytest.raises(CorruptError, match="magic"):
        read(b"hello world, this is not an artifact")


def test_a_file_cut_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.qpk"
    path.write_bytes(artifact(varied()))
    with opened(path) as (file, header):
        with path.open("r+b") as other:
            other.truncate(header.header_bytes + 10)
        with pytest.raises(TruncatedError, match="ends in segment"):
            check_digests(file, header)


def test_members_of_streams_are_named() -> None:
    layout = open_artifact(artifact(varied())).layout
    named = {s.kind: members(layout, i) for i, s in enumerate(layout.streams)}
    assert named["cols"] == "blocks.0.fc.weight, blocks.1.fc.weight"
    assert named["rows"].endswith("and 5 more")
    assert named["files"] in ("train.py", "tok.model")


def test_pieces_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "PIECE_BYTES", 7)
    assert same(read(artifact(varied())), varied())
