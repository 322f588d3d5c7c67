"""Unpacking: the library's bytes are the decoder's bytes, and safetensors reads them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from qpack.artifact import unpack as unpack_module
from qpack.artifact.unpack import unpack
from qpack.errors import CorruptError, InputError, OutputExistsError
from qpack.tensors import Contents, QuantizedTensor
from tests.samples import artifact, varied


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.pyz"
    path.write_bytes(artifact(varied(), form="pyz"))
    return path


def test_safetensors_reads_it(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    contents = unpack(model, out)
    with safe_open(out, framework="numpy") as file:
        metadata = file.metadata()
        names = set(file.keys())
    assert names == {tensor.name for tensor in contents.tensors}
    assert json.loads(metadata["qpack.aliases"]) == contents.aliases
    assert metadata["qpack.architecture"] == "gpt"
    assert metadata["qpack.config"] == '{"dim":24}'
    header = json.loads(out.read_bytes()[8 : 8 + int.from_bytes(out.read_bytes()[:8], "little")])
    assert header["half"]["dtype"] == "BF16"
    for tensor in contents.tensors:
        if isinstance(tensor, QuantizedTensor):
            found = out.read_bytes()
            start, stop = header[tensor.name]["data_offsets"]
            base = 8 + int.from_bytes(found[:8], "little")
            assert found[base + start : base + stop] == tensor.dequantize().tobytes()
            assert base % 8 == 0


def test_values_by_hand(tmp_path: Path) -> None:
    tensor = QuantizedTensor(
        name="w",
        shape=(2, 2),
        integers=np.array([[1, -2], [3, 0]], np.int8),
        row_codes=np.array([0, -16], np.int16),
        col_codes=np.array([0, 32], np.int16),
    )
    contents = Contents(tensors=(tensor,), aliases={}, metadata={})
    unpack(artifact(contents), tmp_path / "w.safetensors")
    assert load_file(tmp_path / "w.safetensors")["w"].tolist() == [[1, -8], [1.5, 0]]


@pytest.mark.parametrize("form", ["qpk", "pyz"])
def test_the_decoder_writes_the_same_bytes(tmp_path: Path, form: str) -> None:
    path, own, alone = tmp_path / f"m.{form}", tmp_path / "own", tmp_path / "alone"
    path.write_bytes(artifact(varied(), form=form))
    unpack(path, own, files_dir=tmp_path / "own_files")
    decoder = Path(unpack_module.__file__).with_name("decoder.py")
    program = [str(path)] if form == "pyz" else [str(decoder), str(path)]
    command = [sys.executable, "-I", "-B", "-W", "error", *program, "-o", str(alone)]
    subprocess.run([*command, "--files", str(tmp_path / "alone_files")], check=True)
    assert hashlib.sha256(own.read_bytes()).digest() == hashlib.sha256(alone.read_bytes()).digest()
    for file in varied().files:
        for folder in ("own_files", "alone_files"):
            assert (tmp_path / folder / file.name).read_bytes() == file.data


def test_nothing_is_overwritten(model: Path, tmp_path: Path) -> None:
    out, folder = tmp_path / "w.safetensors", tmp_path / "files"
    unpack(model, out, files_dir=folder)
    before = out.read_bytes()
    out.write_bytes(b"mine")
    with pytest.raises(OutputExistsError) as caught:
        unpack(model, out, files_dir=folder)
    assert len(caught.value.items) == 3
    assert out.read_bytes() == b"mine"
    unpack(model, out, force=True, files_dir=folder)
    assert out.read_bytes() == before


def test_a_damaged_file_leaves_nothing(tmp_path: Path) -> None:
    data = bytearray(artifact(varied()))
    data[-40] ^= 1
    with pytest.raises(CorruptError):
        unpack(bytes(data), tmp_path / "w", files_dir=tmp_path / "files")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot make"):
        unpack(model, tmp_path / "w", files_dir=tmp_path / "file" / "sub")
