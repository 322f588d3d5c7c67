"""What the stages that do not tokenize are given: files to pack with, and how to import weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from qpack.checkpoint import (
    ARCHITECTURE,
    Checkpoint,
    read_model,
    read_safetensors,
    write_checkpoint,
)
from qpack.errors import DataError, InputError
from qpack.importing import PICKLED, import_file
from qpack.sections import Section
from qpack.tokenizer import Tokenizer
from qpack.tokens import check_vocab, read_shard
from qpack.training import Trained

AnyPath = Annotated[Path, Field(strict=False)]

MODEL = "model.safetensors"


class GivenFiles(Section):
    """Keys that `[checkpoint]` and `[script]` share."""

    tokenizer: AnyPath
    """SentencePiece model of the shards, and of the model."""
    calibration: AnyPath
    """Token shard of training text."""
    validation: AnyPath | None = None
    """Token shard of held-out text; none: the end of the calibration shard."""
    sequence: Annotated[int, Field(ge=1)] | None = None
    """Tokens of context in a window when the model is scored."""
    architecture: str = "gpt"
    """Importer of weights that do not say what they are."""
    set: Mapping[str, Any] = {}
    """Configuration of the model that its weights do not tell, as in `qpack import --set`."""

    @property
    def files(self) -> dict[str, Path]:
        """The files by their keys."""
        named = {"tokenizer": self.tokenizer, "calibration": self.calibration}
        return named if self.validation is None else {**named, "validation": self.validation}


def missing(table: str, files: Mapping[str, Path]) -> list[str]:
    """One line for each of `files` that is not there; keys are those of `[table]`."""
    return [
        f"{table}.{key}: {path}{' is a folder' if path.is_dir() else ''}"
        for key, path in files.items()
        if not path.is_file()
    ]


def check_data(given: GivenFiles) -> None:
    """Raise `DataError` unless the tokenizer loads and made every shard, naming all that it did
    not."""
    tokenizer = Tokenizer.load(given.tokenizer)
    problems = []
    for key, path in given.files.items():
        if key == "tokenizer":
            continue
        try:
            check_vocab(read_shard(path), tokenizer.vocab_size, path)
        except InputError as error:
            problems.append(error.message)
    if problems:
        raise DataError(
            "token shards that cannot be used",
            items=problems,
            hint="give shards that were written with this tokenizer",
        )


def read_weights(path: Path, given: GivenFiles) -> Checkpoint:
    """The model in `path`: a checkpoint or artifact of qpack, or weights to import.

    Raises `CheckpointError`, `ArtifactError` or `ConfigError`.
    """
    foreign = path.suffix in PICKLED or bool(given.set)
    if not foreign and path.suffix == ".safetensors":
        foreign = ARCHITECTURE not in read_safetensors(path)[1]
    if foreign:
        return import_file(path, hints=given.set, architecture=given.architecture)
    return read_model(path)


def keep_model(path: Path, given: GivenFiles, folder: Path) -> int | None:
    """Write the model in `path` to `folder` as the run's checkpoint.

    Returns the tokens of a sequence that it was trained on, if that is known.
    """
    checkpoint = read_weights(path, given)
    tokenizer = Tokenizer.load(given.tokenizer)
    checkpoint.check_tokenizer(tokenizer.sha256, given.tokenizer)
    kept = replace(checkpoint, tokenizer_sha256=tokenizer.sha256)
    write_checkpoint(folder / MODEL, kept, force=True)
    known = given.sequence or kept.config.get("train_seq_len")
    return None if known is None else int(known)


def trained(
    given: GivenFiles, folder: Path, *, sequence: int | None, details: Mapping[str, Any]
) -> Trained:
    """What a stage leaves that was given its data."""
    return Trained(
        checkpoint=folder / MODEL,
        tokenizer=given.tokenizer,
        calibration=given.calibration,
        validation=given.validation,
        sequence=sequence,
        details=details,
    )


def data_settings(given: GivenFiles) -> dict[str, Any]:
    """Settings that decide the result, files apart."""
    return given.model_dump(mode="json", include={"sequence", "architecture", "set"})
