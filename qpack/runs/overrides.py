"""`--set section.key=value`: single values of a configuration, changed from the command line.

The value is TOML (`0.04`, `true`, `[1, 2]`, `"text"`); what is no TOML and does not look like any
is text as it stands, so that `--set loop.device=cpu` needs no quotes within quotes. `null` takes
the key out, so that its default holds. A number in the key is an index into a list of tables:
`phase.0.at`.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from qpack.errors import ConfigError

QUOTING = ("[", "{", '"', "'")
"""A value that begins so was meant as TOML."""

UNSET = object()
"""Value of a key that is to be taken out: `null`, a word that TOML does not have."""

Override = tuple[tuple[str, ...], Any]
"""Key in parts, and value."""


def parse_overrides(texts: Iterable[str]) -> list[Override]:
    """`section.key=value` strings as keys and values.

    Raises `ConfigError` naming every one that is not of that form, and every key given twice.
    """
    overrides: list[Override] = []
    problems = []
    for text in texts:
        key, equals, value = text.partition("=")
        parts = tuple(part.strip() for part in key.split("."))
        if not equals or not all(parts):
            problems.append(f"{text}: expected section.key=value")
            continue
        if parts in [known for known, _ in overrides]:
            problems.append(f"{key.strip()}: given twice")
        try:
            overrides.append((parts, parse_value(value)))
        except ValueError as error:
            problems.append(f"{text}: {error}")
    if problems:
        raise ConfigError(
            "--set cannot be used", items=problems, hint="for example --set loop.max_seconds=60"
        )
    return overrides


def parse_value(text: str) -> Any:
    """The TOML value `text`, or the text itself. Raises `ValueError` for unfinished TOML."""
    text = text.strip()
    if text == "null":
        return UNSET
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as error:
        if text.startswith(QUOTING):
            raise ValueError(f"not valid TOML ({error})") from None
        return text
    return table["value"] if len(table) == 1 else text


def apply_overrides(tables: Mapping[str, Any], overrides: Iterable[Override]) -> dict[str, Any]:
    """A copy of `tables` with every override in place; tables on the way are made where missing.

    Raises `ConfigError` naming every key that leads through something that is no table.
    """
    changed = copy.deepcopy(dict(tables))
    problems = []
    for parts, value in overrides:
        problem = _put(changed, parts, value)
        if problem is not None:
            problems.append(f"{'.'.join(parts)}: {problem}")
    if problems:
        raise ConfigError("--set cannot be used", items=problems)
    return changed


def _put(tables: dict[str, Any], parts: tuple[str, ...], value: Any) -> str | None:
    """Set the value at `parts`; returns what is in the way, if anything is."""
    place: Any = tables
    for i, part in enumerate(parts):
        here = ".".join(parts[:i])
        last = i == len(parts) - 1
        if isinstance(place, list):
            if not part.isdecimal() or int(part) >= len(place):
                return f"{here} is a list of {len(place)}: {part} is no index into it"
            key: Any = int(part)
        elif isinstance(place, dict):
            key = part
            if not last:
                place.setdefault(key, {})
        else:
            return f"{here} is a value, not a table"
        if last and value is UNSET:
            if not isinstance(place, dict) or key not in place:
                return "null, and it is not set"
            del place[key]
        elif last:
            place[key] = value
        else:
            place = place[key]
    return None
