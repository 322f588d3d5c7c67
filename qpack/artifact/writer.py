"""Encoded parts -> the file, its exact size, and its way to disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from qpack.artifact import pyz
from qpack.artifact.encode import Encoded
from qpack.artifact.ledger import ledger
from qpack.artifact.reader import check_digests, opened
from qpack.errors import ConfigError, InputError, OutputExistsError, ResourceError

__all__ = ["FORMS", "file_bytes", "form_of", "ledger", "render", "write_atomic", "write_pieces"]

FORMS = ("qpk", "pyz")


def form_of(path: str | os.PathLike[str]) -> str:
    """`qpk` or `pyz`, by the suffix of the output's name."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in FORMS:
        raise ConfigError(
            f"cannot tell the form of {Path(path).name!r} from its suffix",
            hint="name it .qpk (data alone) or .pyz (decodes itself with python)",
        )
    return suffix


def file_bytes(encoded: Encoded, form: str) -> int:
    """Exact size of the file that `render` makes, without making it."""
    return encoded.qpk_bytes + (pyz.overhead_bytes() if _known(form) == "pyz" else 0)


def render(encoded: Encoded, *, form: str) -> bytes:
    """The whole file, accepted by the reader's own checks."""
    parts = (encoded.header, *encoded.segments)
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part)
    data = b"".join((*parts, sha256.digest()))
    if _known(form) == "pyz":
        data = pyz.wrap(data)
    with opened(data) as (file, header):
        check_digests(file, header)
    return data


def _known(form: str) -> str:
    if form not in FORMS:
        raise ConfigError(f"form {form!r} is not one of {', '.join(FORMS)}")
    return form


def write_atomic(path: str | os.PathLike[str], data: bytes, *, force: bool) -> None:
    """Write `data` so that `path` is always either what it was or the whole new file.

    Temporary sibling, fsync, rename, fsync of the folder; a symbolic link is followed.
    OutputExistsError unless `force`; InputError for a path that cannot be written; ResourceError
    for a full disk.
    """
    write_pieces(path, (data,), force=force)


def write_pieces(path: str | os.PathLike[str], pieces: Iterable[bytes], *, force: bool) -> None:
    """`write_atomic` of data that comes in pieces and need not be in memory together."""
    if not force and os.path.lexists(path):
        raise OutputExistsError(f"{path} exists", hint="--force overwrites it")
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".qpack-{secrets.token_hex(8)}.tmp")
    try:
        try:
            _write_synced(temporary, pieces)
            temporary.replace(target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)
    except OSError as error:
        detail = f"cannot write {path}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise ResourceError(detail, hint="free some space or choose another disk") from error
        raise InputError(detail) from error


def _write_synced(path: Path, pieces: Iterable[bytes]) -> None:
    # Not tempfile: its files are private, and an output takes the user's umask.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with os.fdopen(handle, "wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
