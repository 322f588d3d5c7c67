"""R18: the stand-alone decoder: small, harmless by default, clear about what goes wrong."""

from __future__ import annotations

import ast
import errno
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from qpack.artifact import decoder, pyz, unrans
from tests.samples import artifact, small, varied

SOURCE = pyz.decoder_source()
TREE = ast.parse(SOURCE)
STANDARD = {
    *("__future__", "argparse", "hashlib", "json", "lzma", "math", "os", "struct", "sys"),
    *("typing", "zlib"),
}
LAZY = {"numpy", "brotli", "zstandard"}
FORBIDDEN = {"exec", "eval", "compile", "__import__", "importlib", "pickle", "marshal", "ctypes",
             "subprocess", "socket", "urllib", "getattr", "setattr", "system", "popen"}  # fmt: skip


def imports(nodes: list[ast.stmt]) -> set[str]:
    return {
        name
        for node in nodes
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip


def test_imports() -> None:
    every = imports([node for node in ast.walk(TREE) if isinstance(node, ast.stmt)])
    assert imports(TREE.body) == STANDARD
    assert every == STANDARD | LAZY


def test_nothing_dangerous_is_named() -> None:
    names = {node.id for node in ast.walk(TREE) if isinstance(node, ast.Name)}
    attributes = {node.attr for node in ast.walk(TREE) if isinstance(node, ast.Attribute)}
    assert not (names | attributes) & FORBIDDEN


@pytest.mark.parametrize(("half", "most"), [(decoder, 300), (unrans, 200)])
def test_it_stays_small(half: ModuleType, most: int) -> None:
    lines = Path(str(half.__file__)).read_text("ascii").splitlines()
    assert sum(1 for line in lines if line.strip()) <= most
    assert max(map(len, lines)) <= 100


def test_it_costs_little() -> None:
    assert pyz.overhead_bytes() <= 10_200


def test_the_pyz_carries_both_halves_byte_for_byte() -> None:
    whole, part = (Path(str(half.__file__)).read_bytes() for half in (decoder, unrans))
    before, after = whole.split(b"from qpack.artifact.unrans import inflate, rans\n")
    assert SOURCE.startswith(before)
    assert SOURCE.endswith(after)
    assert SOURCE[len(before) : -len(after)] in part
    assert b"import struct" in SOURCE[len(before) : -len(after)]
    assert b"qpack.artifact" not in SOURCE


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.qpk"
    path.write_bytes(artifact(varied()))
    return path


def test_it_says_what_the_file_is(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert decoder.main([str(model)]) == 0
    said = capsys.readouterr()
    for part in ("'varied'", f"{model.stat().st_size:,} bytes", "train.py", "-o", "numpy"):
        assert part in said.out
    assert said.err == ""
    assert list(model.parent.iterdir()) == [model]


@pytest.mark.parametrize("form", ["qpk", "pyz"])
def test_describing_needs_no_package(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"model.{form}"
    path.write_bytes(artifact(small(), form=form))
    alone = tmp_path.parent / f"{form}_decoder.py"
    alone.write_bytes(SOURCE)
    program = [str(path)] if form == "pyz" else [str(alone), str(path)]
    command = [sys.executable, "-I", "-S", "-B", "-W", "error", *program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "'small'" in done.stdout
    done = subprocess.run([*command, "-o", str(tmp_path / "w")], capture_output=True, text=True)
    assert done.returncode == 8
    assert "pip install numpy" in done.stderr
    assert list(tmp_path.iterdir()) == [path]


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """The one line that it says."""
    assert decoder.main([str(argument) for argument in arguments]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


def test_it_does_not_overwrite(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = model.with_name("w")
    out.write_bytes(b"mine")
    folder = model.with_name("files")
    folder.mkdir()
    (folder / "train.py").write_bytes(b"mine")
    said = fails(capsys, 3, model, "-o", out, "--files", folder)
    assert "train.py" in said
    assert "--force" in said
    assert out.read_bytes() == (folder / "train.py").read_bytes() == b"mine"
    assert decoder.main([str(model), "-o", str(out), "--files", str(folder), "--force"]) == 0
    assert (folder / "train.py").read_bytes() == varied().files[0].data


def test_files_alone(model: Path) -> None:
    folder = model.with_name("files")
    before = set(model.parent.iterdir())
    assert decoder.main([str(model), "--files", str(folder)]) == 0
    assert (folder / "train.py").read_bytes() == varied().files[0].data
    assert set(model.parent.iterdir()) == before | {folder}


def test_paths(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "missing.qpk" in fails(capsys, 3, model.with_name("missing.qpk"))
    fails(capsys, 3, model, "-o", model.with_name("no_folder") / "w")
    with pytest.raises(SystemExit) as caught:
        decoder.main([])
    assert caught.value.code == 2


def test_damaged(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(model.read_bytes())
    data[-40] ^= 1
    model.write_bytes(data)
    for extra in ((), ("-o", model.with_name("w"))):
        assert "damaged" in fails(capsys, 4, model, *extra)
    assert list(model.parent.iterdir()) == [model]


def test_missing_package(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "brotli", None)
    assert "pip install brotli" in fails(capsys, 8, model, "-o", model.with_name("w"))


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 7), (errno.EACCES, 3)])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disks_that_fail(
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
    call: str,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "as told")

    monkeypatch.setattr(decoder.os, call, fail)
    assert "as told" in fails(capsys, code, model, "-o", model.with_name("w"))
    assert list(model.parent.iterdir()) == [model]


def test_out_of_memory(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoder, "decode", fail)
    assert "memory" in fails(capsys, 7, model, "-o", model.with_name("w"))
