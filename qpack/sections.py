"""Configuration tables: declared as fields, read from TOML, every problem named at once.

A section is a frozen pydantic model that refuses unknown keys. `read_section` turns pydantic's
account of what is wrong into one `ConfigError`: each key by its dotted name, an unknown one with
the likely key meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from qpack.errors import ConfigError
from qpack.plugins import did_you_mean


class Section(BaseModel):
    """Base of every table of a configuration file."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
    )


@dataclass(frozen=True, slots=True)
class NotPaths:
    """Annotates a field of paths: these words name something else, and are left alone where
    relative paths are resolved."""

    words: tuple[str, ...]


S = TypeVar("S", bound=Section)


def read_section(kind: type[S], table: Mapping[str, Any], *, what: str) -> S:
    """The section of a TOML table or JSON object, nested sections included.

    Raises `ConfigError` ("`what` cannot be used") that names every unknown key, missing key, wrong
    type, value out of range and contradiction.
    """
    try:
        return kind.model_validate(dict(table))
    except ValidationError as error:
        problems = [_problem(kind, dict(item)) for item in error.errors()]
        raise ConfigError(f"{what} cannot be used", items=problems) from None


def _problem(kind: type[Section], error: dict[str, Any]) -> str:
    """One line: the key, its value, and what it must be."""
    path = [str(part) for part in error["loc"] if part not in ("function-plain", "constrained-str")]
    name = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"{name}: unknown{did_you_mean(path[-1], _keys(kind, path[:-1]))}"
    if error["type"] == "missing":
        return f"{name}: missing"
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return f"{name}: {message}" if name else message
    wanted = error["msg"].removeprefix("Input ").removeprefix("Value ").replace("should", "must")
    return f"{name} = {error['input']!r}: {wanted}"


def _keys(kind: type[Section], path: list[str]) -> list[str]:
    """Keys of the section at `path` inside `kind`."""
    for part in path:
        field = kind.model_fields.get(part)
        if field is None:
            continue  # an index into a list of sections
        for option in (field.annotation, *_inner(field.annotation)):
            if isinstance(option, type) and issubclass(option, Section):
                kind = option
    return list(kind.model_fields)


def _inner(annotation: Any) -> list[Any]:
    """Types inside a union, list or tuple, however deep."""
    found = []
    for part in get_args(annotation):
        found += [part, *_inner(part)]
    return found
