"""From any exception to an exit code, a message, and where needed a saved traceback.

0 done, 1 a bug in qpack, 2 usage, 3 input, 4 artifact, 5 budget, 6 verification, 7 resources,
8 missing package or device, 130 interrupted. These numbers are a promise.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qpack import __version__
from qpack.errors import InputError, OtherRankError, QpackError, ResourceError, SetupError

from .output import Output

EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

OPTIONAL_PACKAGES = {
    "brotli": "brotli",
    "python_minifier": "python-minifier",
    "safetensors": "safetensors",
    "sentencepiece": "sentencepiece",
    "torch": "torch",
    "zstandard": "zstandard",
}
"""Import name -> what to install. Anything else that cannot be imported is a bug."""

TORCHRUN_FILE = "TORCHELASTIC_ERROR_FILE"
"""Names the file from which torchrun takes what it says last, below its own traceback."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """What the user is told, and the exit code."""

    kind: str
    exit_code: int
    message: str
    items: tuple[str, ...] = ()
    hint: str | None = None


def explain(error: BaseException) -> Failure:
    """The failure that `error` stands for."""
    if isinstance(error, KeyboardInterrupt) and error.args:  # a run, with the way to go on
        return Failure(
            kind="Interrupted",
            exit_code=EXIT_INTERRUPTED,
            message="interrupted; what was finished is kept",
            hint=str(error.args[0]),
        )
    if isinstance(error, KeyboardInterrupt):
        return Failure(
            kind="Interrupted",
            exit_code=EXIT_INTERRUPTED,
            message="interrupted; unfinished output was not written",
            hint="run the same command again, with --force where it says that an output exists",
        )
    known = error if isinstance(error, QpackError) else translate(error)
    if known is None:
        return bug(error)
    return Failure(
        kind=type(known).__name__,
        exit_code=known.exit_code,
        message=known.message,
        items=known.items,
        hint=known.hint,
    )


def translate(error: BaseException) -> QpackError | None:
    """What the machine around qpack did wrong, in qpack's words; None if it is none of that."""
    if isinstance(error, MemoryError) or is_torch_out_of_memory(error):
        return ResourceError(
            f"out of memory: {first_line(error)}",
            hint="close other programs, or use smaller --calib-tokens, --val-tokens or --window",
        )
    if isinstance(error, ModuleNotFoundError):
        package = OPTIONAL_PACKAGES.get((error.name or "").partition(".")[0])
        if package is not None:
            return SetupError(
                f"this command needs the package {package}, which is not installed",
                hint="pip install 'qpack-lm[pack]'",
            )
    if isinstance(error, OSError) and error.strerror:
        kind = ResourceError if error.errno in FULL else InputError
        where = f"{error.filename}: " if error.filename is not None else ""
        return kind(f"{where}{error.strerror}")
    return None


def is_torch_out_of_memory(error: BaseException) -> bool:
    """Whether torch ran out of device or host memory. Imports no torch to find out."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def bug(error: BaseException) -> Failure:
    """An error that qpack did not foresee: keep the traceback for the report of it."""
    return Failure(
        kind=type(error).__name__,
        exit_code=EXIT_BUG,
        message=f"this is a bug in qpack: {type(error).__name__}: {first_line(error)}",
        hint=f"report it with the traceback in {save_traceback(error)}",
    )


def save_traceback(error: BaseException) -> Path | str:
    """Write the traceback to a new file in the temporary folder; returns its path."""
    lines = [
        f"qpack {__version__}, Python {platform.python_version()}, {platform.platform()}\n",
        f"command: {' '.join(sys.argv)}\n\n",
        *traceback.format_exception(error),
    ]
    try:
        handle, name = tempfile.mkstemp(prefix="qpack-traceback-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)
    except OSError:
        return "(it could not be saved; run again with --debug)"
    return Path(name)


def report(error: BaseException, output: Output) -> int:
    """Tell the user; returns the exit code."""
    if output.settings.debug:
        traceback.print_exception(error)
    failure = explain(error)
    if isinstance(error, OtherRankError):
        return failure.exit_code
    output.error(
        failure.message,
        items=failure.items,
        hint=failure.hint,
        error=failure.kind,
        exit_code=failure.exit_code,
    )
    if TORCHRUN_FILE in os.environ:
        tell_torchrun(failure, Path(os.environ[TORCHRUN_FILE]))
    return failure.exit_code


def tell_torchrun(failure: Failure, path: Path) -> None:
    """Leave the message where torchrun reads it: it ends in a page of traceback of its own."""
    lines = [failure.message, *failure.items, *([f"fix: {failure.hint}"] if failure.hint else ())]
    when = {"timestamp": str(int(time.time()))}
    told = {"message": {"message": "\n".join(lines), "extraInfo": when}}
    with suppress(OSError):  # it has been told on stderr
        path.write_text(json.dumps(told), "utf-8")
