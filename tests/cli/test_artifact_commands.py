"""inspect, verify and unpack on a real artifact, whole and damaged."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from .artifacts import contents, write_artifact
from .conftest import Runner


@pytest.fixture(params=["qpk", "pyz"])
def artifact(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_artifact(tmp_path / f"tiny.{request.param}")


def test_inspect(qpack: Runner, artifact: Path) -> None:
    outcome = qpack("inspect", artifact)
    assert outcome.code == 0, outcome.err
    for text in ("head.weight", "norm.gain", "train.py", "tiny", "8 x 16", "characters more"):
        assert text in outcome.out
    assert outcome.err == f"next: qpack verify {artifact}\n"


def test_inspect_as_json(qpack: Runner, artifact: Path) -> None:
    document = qpack("inspect", artifact, "--json").document
    assert document["schema"] == "qpack.inspect/1"
    assert document["bytes"] == artifact.stat().st_size
    assert document["sha256"] == hashlib.sha256(artifact.read_bytes()).hexdigest()
    assert [row["name"] for row in document["tensors"]] == ["head.weight", "norm.gain"]


def test_verify(qpack: Runner, artifact: Path) -> None:
    digest = hashlib.sha256(artifact.read_bytes()).hexdigest()
    outcome = qpack("verify", artifact, "--sha256", digest)
    assert outcome.code == 0, outcome.err
    assert outcome.out.endswith("Every digest, bound and value holds.\n")
    assert digest in outcome.out
    assert "qpack unpack" in outcome.err


def test_verify_against_another_digest(qpack: Runner, artifact: Path) -> None:
    outcome = qpack("verify", artifact, "--sha256", "0" * 64)
    assert (outcome.code, outcome.out) == (6, "")


def test_a_damaged_artifact_is_rejected(qpack: Runner, artifact: Path) -> None:
    data = bytearray(artifact.read_bytes())
    data[-200] ^= 1
    artifact.write_bytes(data)
    for command in (("verify",), ("unpack", "-o", artifact.with_name("w.safetensors"))):
        outcome = qpack(*command, artifact, "--json")
        assert (outcome.code, outcome.out) == (4, "")
        assert outcome.error["exit_code"] == 4
    assert not artifact.with_name("w.safetensors").exists()


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_decoder_of_no_release(
    qpack: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    artifact = write_artifact(tmp_path / "tiny.pyz")
    assert "do not run" not in qpack(command, artifact).err
    monkeypatch.setattr("qpack.artifact.pyz.released_decoders", dict)
    outcome = qpack(command, artifact)
    assert outcome.code == 0
    assert "warning: the decoder in this file is of no release of qpack" in outcome.err


@pytest.mark.parametrize("data", [b"", b"QPACK", b"PK\x03\x04", b"\0" * 4096])
def test_what_is_no_artifact(qpack: Runner, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other.qpk"
    path.write_bytes(data)
    for command in ("inspect", "verify"):
        outcome = qpack(command, path)
        assert (outcome.code, outcome.out) == (4, "")
        assert outcome.err.startswith("error: ")


def test_unpack(qpack: Runner, artifact: Path, tmp_path: Path) -> None:
    out, files = tmp_path / "w.safetensors", tmp_path / "files"
    outcome = qpack("unpack", artifact, "-o", out, "--files", files, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.document["bytes"] == out.stat().st_size
    assert (load_file(out)["head.weight"] == contents().tensors[0].dequantize()).all()
    assert (files / "train.py").read_bytes() == b"print(1)\n"


def test_unpack_overwrites_only_when_told(qpack: Runner, artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    out.write_bytes(b"mine")
    outcome = qpack("unpack", artifact, "-o", out)
    assert (outcome.code, outcome.out) == (3, "")
    assert "--force" in outcome.err
    assert out.read_bytes() == b"mine"
    assert qpack("unpack", artifact, "-o", out, "--force").code == 0
    assert len(load_file(out)) == 2


def test_both_decoders_write_the_same_file(qpack: Runner, tmp_path: Path) -> None:
    artifact = write_artifact(tmp_path / "tiny.pyz")
    ours, its = tmp_path / "ours.safetensors", tmp_path / "its.safetensors"
    assert qpack("unpack", artifact, "-o", ours).code == 0
    subprocess.run([sys.executable, "-I", artifact, "-o", its], check=True, capture_output=True)
    assert ours.read_bytes() == its.read_bytes()
