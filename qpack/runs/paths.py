"""The one place where relative paths of a configuration file are resolved.

A relative path in a file is relative to the file's folder; one in a preset or on the command line,
to the folder in which qpack runs. Which values are paths is read from the declared sections: every
field of type `Path`, alone, in a list, or as one choice of several. `~` is the home folder.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from qpack.sections import NotPaths, Section


def resolve_paths(kind: type[Section], tables: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """`tables` of a document declared by `kind`, its relative paths joined to `folder`.

    Values that do not fit their declaration stay as they are: reading the section names them.
    """
    resolved = dict(tables)
    for key, field in kind.model_fields.items():
        if key in tables:
            words = _words(field.metadata)
            resolved[key] = _value(field.annotation, tables[key], folder, words)
    return resolved


def _value(kind: Any, value: Any, folder: Path, words: tuple[str, ...]) -> Any:
    """`value` of a field declared as `kind`; the strings `words` are no paths."""
    if get_origin(kind) is Annotated:
        inner, *metadata = get_args(kind)
        return _value(inner, value, folder, (*words, *_words(metadata)))
    if isinstance(value, str) and _has_path(kind):
        return value if value in words else join(folder, value)
    if isinstance(value, list):
        elements = [element for element in get_args(kind) if element is not Ellipsis]
        if _is_union(kind):
            elements = [inner for arm in elements for inner in get_args(arm)]
        return [_first(elements, item, folder, words) for item in value]
    if isinstance(value, Mapping):
        section = next((arm for arm in (kind, *get_args(kind)) if _is_section(arm)), None)
        return value if section is None else resolve_paths(section, value, folder)
    return value


def _first(kinds: Iterable[Any], item: Any, folder: Path, words: tuple[str, ...]) -> Any:
    """`item` under the first of `kinds` that changes it."""
    for kind in kinds:
        changed = _value(kind, item, folder, words)
        if changed != item:
            return changed
    return item


def join(folder: Path, path: str) -> str:
    """`path`, if it is relative, in `folder`."""
    try:
        home = Path(path).expanduser()
    except RuntimeError:  # no such user
        return path
    if home.is_absolute():
        return str(home)
    # A pattern stays one; the folder's own name is never part of it.
    base = glob.escape(str(folder)) if glob.has_magic(path) else str(folder)
    return str(Path(base) / home)


def _has_path(kind: Any) -> bool:
    """Whether a string may be given here, and is then a path (a list may be given as one)."""
    if isinstance(kind, type):
        return issubclass(kind, Path)
    return any(_has_path(arm) for arm in get_args(kind))


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _words(metadata: Iterable[Any]) -> tuple[str, ...]:
    return tuple(word for entry in metadata if isinstance(entry, NotPaths) for word in entry.words)
