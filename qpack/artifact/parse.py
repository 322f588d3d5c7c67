"""Header JSON -> Layout: shape and types of the JSON first, then the rules of `rules.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from qpack.artifact import layout as lay
from qpack.artifact import rules
from qpack.artifact.limits import INTEGER_MAX, JSON_DEPTH_MAX
from qpack.errors import CorruptError, TooLargeError

KEYS = ("aliases", "files", "metadata", "requires", "streams", "tensors")

Row = TypeVar("Row")


def parse_header(text: bytes, minor: int) -> lay.Layout:
    """Layout of a decoded header written by format minor version `minor`; rules not yet checked.

    Unknown keys are ignored where `minor` is newer than this version, and an error otherwise.
    """
    header = _load(text)
    if type(header) is not dict or not header.keys() >= set(KEYS):
        raise CorruptError(f"header is not an object with the keys {', '.join(KEYS)}")
    unknown = sorted(header.keys() - set(KEYS))
    if unknown and minor <= lay.MINOR:
        raise CorruptError("header has keys that its version does not define", items=unknown)
    if any(_deeper(header[key], JSON_DEPTH_MAX - 1) for key in unknown):
        raise TooLargeError(f"header is nested deeper than {JSON_DEPTH_MAX}")
    _check_counts(header)
    return lay.Layout(
        streams=_rows(header["streams"], "streams", _stream),
        tensors=_rows(header["tensors"], "tensors", _tensor),
        aliases=_strings(header["aliases"], "aliases"),
        files=_rows(header["files"], "files", _file),
        metadata=_strings(header["metadata"], "metadata"),
        requires=_rows(header["requires"], "requires", _string),
    )


def _check_counts(header: dict[str, Any]) -> None:
    """Count before looking at anything: what is too much is refused at once."""
    counts = {key: len(header[key]) for key in KEYS if isinstance(header[key], list | dict)}
    over = list(
        rules.count_problems(
            streams=counts.get("streams", 0),
            tensors=counts.get("tensors", 0) + counts.get("aliases", 0),
            metadata=counts.get("metadata", 0),
            files=counts.get("files", 0),
        )
    )
    if over:
        raise TooLargeError("artifact is over the reader's limits", items=over)


def _load(text: bytes) -> Any:
    """The JSON value, if `text` is the canonical text of one."""
    if text[:1] != b"{":
        raise CorruptError("header does not start with {")
    try:
        value = json.loads(text.decode("ascii"), parse_float=_refuse, parse_constant=_refuse)
        same = lay.canonical(value) == text
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"header is not JSON of strings and integers: {error}") from None
    if not same:  # spaces, unsorted or repeated keys, other escapes
        raise CorruptError("header is not canonical JSON")
    return value


def _deeper(value: Any, levels: int) -> bool:
    """Whether `value` nests deeper than `levels`; looks no further down than that."""
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(item, levels - 1) for item in items)


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} is not an integer")


def _rows(value: Any, key: str, row: Callable[[Any], Row | None]) -> tuple[Row, ...]:
    if type(value) is not list:
        raise CorruptError(f"header key {key} is not an array")
    found = []
    for index, item in enumerate(value):
        parsed = row(item)
        if parsed is None:
            raise CorruptError(f"header key {key}, entry {index}: wrong form")
        found.append(parsed)
    return tuple(found)


def _strings(value: Any, key: str) -> dict[str, str]:
    if type(value) is not dict or not all(type(v) is str for v in value.values()):
        raise CorruptError(f"header key {key} is not an object of strings")
    return value


def _typed(row: Any, *types: type) -> bool:
    return (
        type(row) is list
        and [type(item) for item in row] == list(types)
        and all(_fits(item) for item in row if type(item) is int)
    )


def _fits(value: int) -> bool:
    return 0 <= value <= INTEGER_MAX


def _stream(row: Any) -> lay.StreamInfo | None:
    if not _typed(row, str, str, int, int, int, int, str):
        return None
    kind, dtype, codec, filter_id, stored_bytes, decoded_bytes, digest = row
    if len(digest) != 16 or digest.strip("0123456789abcdef"):
        return None
    return lay.StreamInfo(
        kind=kind,
        dtype=dtype,
        codec=codec,
        filter=filter_id,
        stored_bytes=stored_bytes,
        decoded_bytes=decoded_bytes,
        digest=bytes.fromhex(digest),
    )


def _tensor(row: Any) -> lay.TensorInfo | None:
    raw = _typed(row, str, list, int)
    if not raw and not _typed(row, str, list, int, int, int, int):
        return None
    name, shape, stream = row[:3]
    if not _typed(shape, *[int] * len(shape)):
        return None
    if raw:
        return lay.TensorInfo(name=name, shape=tuple(shape), stream=stream)
    lead, octave, has_cols = row[3:]
    if has_cols > 1 or octave == 0:
        return None
    return lay.TensorInfo(
        name=name,
        shape=tuple(shape),
        stream=stream,
        lead=lead,
        octave=octave,
        has_cols=bool(has_cols),
    )


def _file(row: Any) -> lay.FileInfo | None:
    if not _typed(row, str, str, int, int):
        return None
    name, role, stream, num_bytes = row
    return lay.FileInfo(name=name, role=role, stream=stream, num_bytes=num_bytes)


def _string(row: Any) -> str | None:
    return row if type(row) is str else None
