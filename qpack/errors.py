"""The one exception tree. Each class maps to one exit code of the command line.

A message says what happened, where (every offender by name, in `items`), and `hint` says what to
do. User errors never show a traceback; anything outside this tree that escapes is a bug in qpack.
"""

from __future__ import annotations

from collections.abc import Iterable


class QpackError(Exception):
    """Base of all errors that qpack raises on purpose.

    `message` is one line; `items` lists every offender (one line each); `hint` is the remedy.
    """

    exit_code = 1

    def __init__(self, message: str, *, items: Iterable[str] = (), hint: str | None = None) -> None:
        self.message = message
        self.items = tuple(items)
        self.hint = hint
        lines = [message, *(f"  {item}" for item in self.items)]
        if hint:
            lines.append(f"  fix: {hint}")
        super().__init__("\n".join(lines))


class InputError(QpackError):
    """Exit 3: a checkpoint, shard, tokenizer, recipe or option cannot be used."""

    exit_code = 3


class ConfigError(InputError):
    """A recipe, configuration or option value is wrong."""


class CheckpointError(InputError):
    """A checkpoint is malformed, or does not match its architecture."""


class DataError(InputError):
    """Token shards or tokenizers that cannot be used, alone or together."""


class CalibrationError(InputError):
    """Statistics cannot be collected, or belong to another checkpoint."""


class OutputExistsError(InputError):
    """An output path exists and `--force` was not given."""


class ArtifactError(QpackError):
    """Exit 4: an artifact is rejected."""

    exit_code = 4


class TruncatedError(ArtifactError):
    """The file ends before its contents do."""


class CorruptError(ArtifactError):
    """A digest, bound or value does not hold: the file is damaged or altered."""


class UnsupportedError(ArtifactError):
    """A format version, codec id or feature that this version does not know."""


class TooLargeError(ArtifactError):
    """A declared size is over the reader's limits."""


class MismatchError(ArtifactError):
    """A compressed file needs another model, tokenizer or arithmetic than are at hand."""


class BudgetError(QpackError):
    """Exit 5: the byte budget cannot be reached."""

    exit_code = 5


class VerifyError(QpackError):
    """Exit 6: the written file does not decode to what was packed."""

    exit_code = 6


class EvaluationError(QpackError):
    """Exit 6: a predictor is no code: not normalised, looking ahead, or learning too early."""

    exit_code = 6


class ResourceError(QpackError):
    """Exit 7: out of memory or disk."""

    exit_code = 7


class SetupError(QpackError):
    """Exit 8: a needed package or device is missing."""

    exit_code = 8


class OtherRankError(QpackError):
    """Under `torchrun`: another rank has failed, and has said why. Has that failure's exit code."""

    def __init__(self, exit_code: int = 1) -> None:
        self.exit_code = exit_code
        super().__init__("another rank has failed")
