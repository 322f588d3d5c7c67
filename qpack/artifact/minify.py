"""Source files to carry inside an artifact: smaller, and still the same program.

Only what cannot change behaviour is taken from Python source: comments, docstrings (unless the
source mentions `__doc__`), spaces, and the names of local variables. Other files are carried as
they are. Compression is the stream encoder's.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from qpack.artifact.rules import file_name_problem, repeated
from qpack.errors import ConfigError, InputError, SetupError
from qpack.tensors import EmbeddedFile


def pack_code(
    paths: Sequence[str | PathLike[str]],
) -> tuple[tuple[EmbeddedFile, ...], list[dict[str, Any]]]:
    """Embedded files of role `code`, and a row a file: name, raw bytes, minified bytes.

    Names are the last parts of the paths; ConfigError lists those that are not plain or repeat.
    InputError lists files that cannot be read or are not Python where they say they are.
    """
    files = [Path(path) for path in paths]
    offenders = [f"{f.name!a} {why}" for f in files if (why := file_name_problem(f.name))]
    offenders += [f"{name!a} is there twice" for name in repeated(f.name.lower() for f in files)]
    if offenders:
        raise ConfigError("code files that cannot be embedded", items=offenders)
    sources: dict[str, bytes] = {}
    for file in files:
        try:
            sources[file.name] = file.read_bytes()
            if file.suffix == ".py":
                _parse(sources[file.name])
        except (OSError, SyntaxError, ValueError, RecursionError) as error:
            offenders.append(f"{file}: {error}")
    if offenders:
        raise InputError("code files that cannot be used", items=offenders)
    packed = tuple(
        EmbeddedFile(name=name, role="code", data=minified(data) if name.endswith(".py") else data)
        for name, data in sources.items()
    )
    rows = [
        {"name": f.name, "raw_bytes": len(sources[f.name]), "minified_bytes": len(f.data)}
        for f in packed
    ]
    return packed, rows


def minified(source: bytes) -> bytes:
    """Minified Python, or `source` itself where that is no smaller.

    SetupError without the package python-minifier.
    """
    try:
        import python_minifier
    except ImportError as error:
        raise SetupError(
            "embedding Python code needs the package python-minifier",
            hint="pip install python-minifier, or: pip install 'qpack-lm[pack]'",
        ) from error
    text: str = python_minifier.minify(
        source,
        remove_literal_statements=b"__doc__" not in source,
        remove_annotations=False,
        rename_globals=False,
        remove_asserts=False,
        remove_debug=False,
        hoist_literals=False,
        preserve_shebang=True,
    )
    small = text.encode("utf-8")
    _parse(small)  # a minifier's bug must not reach the file
    return small if len(small) < len(source) else source


def _parse(source: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the source: its own business
        ast.parse(source)
