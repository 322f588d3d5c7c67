"""Arguments and options that several commands take, and how their values are read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from qpack.errors import InputError, OutputExistsError

UNITS: dict[str, int] = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip


def parse_bytes(text: str) -> int:
    """`16000000`, `16_000_000`, `16MB` (10^6) or `15.25MiB` (2^20) as bytes, rounded down."""
    match = re.fullmatch(r"([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([a-zA-Z]*)", text.strip())
    unit = UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise typer.BadParameter(f"{text!r} is not a size: write 16000000, 16MB or 15.25MiB")
    whole, _, fraction = match[1].replace("_", "").replace(",", "").partition(".")
    # Integers throughout: a budget of 10^6 MB must not lose a byte to floating point.
    scale: int = 10 ** len(fraction)
    return int(whole + fraction) * unit // scale


def split_names(text: str | None) -> tuple[str, ...] | None:
    """`brotli, lzma` as a tuple of names; None stays None."""
    if text is None:
        return None
    return tuple(name.strip() for name in text.split(",") if name.strip())


def check_input(path: Path) -> Path:
    """`path`, if it is a file that is there. Raises InputError, so exit 3."""
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: not a regular file", hint="write it to a file first")
    return path


def check_output(path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> Path:
    """`path`, if it may be written, before any slow step.

    Raises OutputExistsError, or InputError where its folder is missing and where it is one of
    `inputs`, which are there: no `--force` may cost what was read.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file")
    if path.exists() and any(path.samefile(given) for given in inputs):
        raise InputError(f"{path} is an input, which would be lost", hint="choose another -o")
    if path.exists() and not force:
        raise OutputExistsError(f"{path} exists", hint="choose another -o, or give --force")
    if not path.parent.is_dir():
        raise InputError(f"{path}: no such folder", hint=f"mkdir -p {path.parent}")
    return path


ArtifactArgument = Annotated[
    Path, typer.Argument(metavar="ARTIFACT", help="A .qpk file, or a .pyz that decodes itself.")
]
CheckpointArgument = Annotated[
    Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint: safetensors, see qpack import.")
]
ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A checkpoint, or an artifact (.qpk, .pyz).")
]
TokenizerOption = Annotated[
    Path, typer.Option(metavar="MODEL", help="The SentencePiece model that made the tokens.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite an output that exists.")]
DeviceOption = Annotated[
    str,
    typer.Option(help="auto, cpu, cuda or mps; auto says what it chose.", envvar="QPACK_DEVICE"),
]
