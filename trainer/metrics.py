"""What a run writes about itself while it runs: JSON lines, and TensorBoard files if asked for.

Every line holds `step` and `seconds`; a resumed run goes on in the same file, from which lines
written after the checkpoint it resumes from are dropped, so that no step appears twice.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from qpack.artifact.writer import write_atomic
from qpack.errors import ResourceError, SetupError


class Metrics:
    """The metrics of a run in `folder`: `metrics.jsonl`, `tensorboard/`. A context manager."""

    def __init__(self, folder: Path, *, tensorboard: bool = False, after: int = -1) -> None:
        """Lines of steps beyond `after` are dropped (-1: all).

        Raises `SetupError` without the package that TensorBoard files need, `ResourceError` when
        the folder cannot be written.
        """
        path = folder / "metrics.jsonl"
        kept = _lines_until(path, after)
        self._board = _board(folder / "tensorboard", after) if tensorboard else None
        try:
            write_atomic(path, "".join(kept).encode("ascii"), force=True)
            self._file = path.open("a", encoding="ascii")
        except OSError as error:
            raise ResourceError(f"cannot write {path}: {error.strerror}") from error

    def log(self, step: int, seconds: float, **values: Any) -> None:
        """Add a line; numbers among the values also become TensorBoard scalars."""
        row = {"step": step, "seconds": round(seconds, 6)} | values
        try:
            self._file.write(json.dumps(row, sort_keys=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise ResourceError(f"cannot write the metrics: {error.strerror}") from error
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def check_tensorboard() -> None:
    """Raise `SetupError` unless TensorBoard files can be written."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise SetupError(
            "loop.tensorboard needs the package tensorboard",
            hint="pip install 'qpack-lm[tensorboard]'",
        ) from error


def _board(folder: Path, after: int) -> Any:
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=after + 1 if after >= 0 else None)


def _lines_until(path: Path, step: int) -> list[str]:
    if not path.exists():
        return []
    lines = path.read_text("ascii", errors="replace").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n") and -1 < _step(line) <= step]


def _step(line: str) -> int:
    """Of a line; -1 where a crash or a disk has damaged it."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1
