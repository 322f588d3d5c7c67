"""inspect says what is there without decoding; verify checks all of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import qpack
from qpack.artifact import pyz
from qpack.artifact.inspect import inspect, required_packages, verify
from qpack.artifact.reader import open_artifact
from qpack.errors import ArtifactError, ConfigError, CorruptError, UnsupportedError, VerifyError
from qpack.tensors import Contents
from tests.samples import artifact, forge, quantized, take_apart, varied


@pytest.mark.parametrize("form", ["qpk", "pyz"])
def test_summary(form: str, tmp_path: Path) -> None:
    data = artifact(varied(), form=form)
    found = inspect(data)
    assert json.loads(json.dumps(found)) == found
    assert found["form"] == form
    assert found["format_version"] == "1.0"
    assert found["bytes"] == len(data)
    assert found["sha256"] == hashlib.sha256(data).hexdigest()
    assert found["weights"] == sum(row["elements"] for row in found["tensors"])
    assert sum(row["bytes"] for row in found["streams"]) < len(data)
    assert [row["name"] for row in found["tensors"]] == [t.name for t in varied().tensors]
    assert found["aliases"] == varied().aliases
    assert found["metadata"] == varied().metadata
    assert [row["name"] for row in found["files"]] == ["train.py", "tok.model"]
    path = tmp_path / "model"
    path.write_bytes(data)
    assert inspect(path) == found
    assert verify(path) == {**found, "verified": True, "sha256_expected": None}


def test_streams_have_names() -> None:
    names = [row["name"] for row in inspect(artifact(varied()))["streams"]]
    assert names[0] == "blocks.*.fc.weight"
    assert {"misc I8", "row codes", "col codes", "raw F32", "files code"} <= set(names)


def test_rows_of_tensors() -> None:
    rows = {row["name"]: row for row in inspect(artifact(varied()))["tensors"]}
    assert rows["conv.weight"]["shape"] == [2, 3, 2, 4]
    assert (rows["conv.weight"]["rows"], rows["conv.weight"]["cols"]) == (6, 8)
    assert rows["blocks.0.fc.weight"]["col_codes"] is True
    assert rows["half"]["kind"] == "raw"
    assert rows["half"]["dtype"] == "BF16"
    assert "octave" not in rows["half"]


def test_trellis_and_bits_a_weight() -> None:
    tensors = (quantized("a", 9, 30, trellis=8), quantized("b", 0, 5), quantized("c", 9, 30))
    contents = Contents(tensors=tensors, aliases={}, metadata={})
    found = inspect(artifact(contents, codec="rans"))
    assert [row["trellis"] for row in found["tensors"]] == [8, 0, 0]
    stream, rows = found["streams"]
    assert (stream["name"], stream["codec"]) == ("integers", "rans")
    assert stream["bits_per_weight"] == 8 * stream["bytes"] / (2 * 9 * 30)
    assert rows["bits_per_weight"] is None
    assert found["requires"] == []
    plain = inspect(artifact(contents, codec="store"))
    assert [row["trellis"] for row in plain["tensors"]] == [0, 0, 0]


def test_the_decoder_is_known() -> None:
    assert inspect(artifact(varied()))["decoder"] is None
    decoder = inspect(artifact(varied(), form="pyz"))["decoder"]
    assert decoder["status"] == f"unmodified (qpack {qpack.__version__})"
    assert decoder["bytes"] == len(pyz.decoder_source())


def test_decoders_json_is_in_step() -> None:
    """Changing decoder.py means adding its digest; digests of releases are never removed."""
    digest = hashlib.sha256(pyz.decoder_source()).hexdigest()
    assert pyz.released_decoders().get(digest) == qpack.__version__


@pytest.mark.parametrize(
    ("codec", "packages"), [("brotli", ["brotli"]), ("zstd", ["zstandard"]), ("lzma-raw", [])]
)
def test_packages_that_decoding_needs(codec: str, packages: list[str]) -> None:
    data = artifact(varied(), codec=codec)
    assert required_packages(open_artifact(data).layout) == packages
    assert inspect(data)["requires"] == packages


def test_inspect_does_not_need_the_codec_but_verify_does() -> None:
    header, segments = take_apart(artifact(varied()))
    header["streams"][0][2] = 200
    data = forge(header, segments)
    assert inspect(data)["streams"][0]["codec"] == "id 200"
    with pytest.raises(UnsupportedError, match="codec id 200"):
        verify(data)


def test_expected_digest() -> None:
    data = artifact(varied())
    digest = hashlib.sha256(data).hexdigest()
    assert verify(data, sha256=digest.upper())["sha256_expected"] == digest
    with pytest.raises(VerifyError, match="not the one") as caught:
        verify(data, sha256="0" * 64)
    assert digest in caught.value.items[1]


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "0" * 65])
def test_a_digest_that_is_none(digest: str) -> None:
    with pytest.raises(ConfigError, match="64 hexadecimal"):
        verify(artifact(varied()), sha256=digest)


def test_damage() -> None:
    data = bytearray(artifact(varied()))
    data[-100] ^= 1
    assert inspect(bytes(data))["bytes"] == len(data)
    with pytest.raises(CorruptError):
        verify(bytes(data))
    with pytest.raises(ArtifactError):
        inspect(bytes(data[:-1]))
