"""The project's own Python files as syntax trees, under the names that they are installed with."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"qpack": "qpack", "trainer": "qpack.trainer", "cli": "qpack.cli"}
"""Folder at the top -> package that it is installed as."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One file."""

    path: str
    """relative to the repository"""
    module: str
    """`qpack.cli.main`; a package is named without `__init__`"""
    is_package: bool
    text: str
    tree: ast.Module

    def imports(self) -> Iterator[str]:
        """Every module that is imported anywhere in the file, absolute, as far as syntax tells."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self.resolve(node)
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names)

    def resolve(self, node: ast.ImportFrom) -> str:
        """The absolute name of the module that `from ... import` names."""
        if not node.level:
            return node.module or ""
        package = self.module.split(".")
        keep = len(package) - node.level + int(self.is_package)
        return ".".join([*package[:keep], *([node.module] if node.module else [])])

    def functions(self) -> Iterator[Function]:
        """Every function and method."""
        for node in ast.walk(self.tree):
            if isinstance(node, Function):
                yield node


def parse(text: str, *, path: str = "qpack/made_up.py") -> Source:
    """The source of `text`, as if it stood at `path`."""
    parts = list(Path(path).with_suffix("").parts)
    parts[:1] = FOLDERS[parts[0]].split(".")
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    return Source(path, module, is_package, text, ast.parse(text))


@functools.cache
def sources() -> tuple[Source, ...]:
    """Every file of the three folders."""
    return tuple(
        parse(path.read_text(encoding="utf-8"), path=str(path.relative_to(ROOT)))
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
    )


def num_lines(function: Function) -> int:
    """Lines of a function's body without its docstring: neither a long list of options nor a good
    explanation makes code long.
    """
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
