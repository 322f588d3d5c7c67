"""R14, R15, R19: exact sizes; a target that is always the old file or the whole new one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qpack.artifact import pyz, writer
from qpack.artifact.encode import encode
from qpack.artifact.reader import open_artifact
from qpack.artifact.writer import file_bytes, form_of, ledger, render, write_atomic
from qpack.codec.registry import resolve
from qpack.errors import ConfigError, InputError, OutputExistsError, ResourceError, TooLargeError
from tests.samples import encoded, varied


@pytest.mark.parametrize("form", writer.FORMS)
def test_sizes_are_exact(form: str, tmp_path: Path) -> None:
    parts = encoded(varied())
    data = render(parts, form=form)
    path = tmp_path / f"model.{form}"
    write_atomic(path, data, force=False)
    assert path.stat().st_size == file_bytes(parts, form)
    assert sum(count for _, count in ledger(parts, form)) == path.stat().st_size
    assert open_artifact(path).file_bytes == path.stat().st_size
    assert open_artifact(path).form == form


@pytest.mark.parametrize(("name", "form"), [("a.qpk", "qpk"), ("b.c.PYZ", "pyz")])
def test_form_by_suffix(name: str, form: str) -> None:
    assert form_of(name) == form_of(Path("x") / name) == form


@pytest.mark.parametrize("name", ["model", "model.bin", "qpk", ".qpk"])
def test_other_suffixes(name: str) -> None:
    with pytest.raises(ConfigError, match="qpk"):
        form_of(name)


@pytest.mark.parametrize("function", [file_bytes, lambda e, f: render(e, form=f)])
def test_unknown_form(function: Callable[..., object]) -> None:
    with pytest.raises(ConfigError, match="zip"):
        function(encode(varied(), codecs=resolve(["store"])), "zip")


def test_a_pyz_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyz, "ZIP_BYTES_MAX", 1000)
    with pytest.raises(TooLargeError, match="zip"):
        render(encode(varied(), codecs=resolve(["store"])), form="pyz")


def test_existing_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_atomic(path, b"one", force=False)
    with pytest.raises(OutputExistsError, match="--force"):
        write_atomic(path, b"two", force=False)
    assert path.read_bytes() == b"one"
    write_atomic(path, b"two", force=True)
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_the_umask_is_respected(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "out", b"x", force=False)
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


def test_a_link_is_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    with pytest.raises(OutputExistsError):
        write_atomic(link, b"new", force=False)
    write_atomic(link, b"new", force=True)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_dangling_link_is_something_that_exists(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExistsError):
        write_atomic(link, b"new", force=False)


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path in ("missing/out", "file/out", "folder", "n" * 300):
        with pytest.raises(InputError, match="cannot write"):
            write_atomic(tmp_path / path, b"x", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


class FailAt:
    """Lets `count` system calls through, then fails every one with `number`."""

    def __init__(self, count: int, number: int) -> None:
        self.left = count
        self.number = number

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise OSError(self.number, os.strerror(self.number))
            return function(*args, **kwargs)

        return call


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("force", [False, True])
def test_every_call_that_can_fail(tmp_path: Path, number: int, force: bool) -> None:
    """SQLite's loop: fail the first call, then the second, ... until it succeeds."""
    path, new = tmp_path / "out", b"new" * 1000
    expected = ResourceError if number != errno.EACCES else InputError
    for count in range(20):
        path.unlink(missing_ok=True)
        if force:
            path.write_bytes(b"old")
        with pytest.MonkeyPatch.context() as patch:
            failing = FailAt(count, number)
            for name in ("open", "fdopen", "fsync"):
                patch.setattr(writer.os, name, failing.wrap(getattr(os, name)))
            patch.setattr(Path, "replace", failing.wrap(Path.replace))
            try:
                write_atomic(path, new, force=force)
            except (ResourceError, InputError) as error:
                assert type(error) is expected
                held = path.read_bytes() if path.exists() else None
                assert held in ((b"old",) if force else (None,)) or held == new
                assert [p for p in tmp_path.iterdir() if p != path] == []
                continue
        assert path.read_bytes() == new
        assert count >= 5
        return
    pytest.fail("never succeeded")


def test_no_folder_is_synced_where_it_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer.os, "name", "nt")
    writer._sync_folder(tmp_path / "missing")
