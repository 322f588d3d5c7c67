"""English text that every Python installation holds: its own documentation.

Documents are the language reference that `help()` shows (`pydoc_data.topics`) and, one a module,
the docstrings of the standard library. Sources are parsed, never imported. Reference pages quote
one another and modules share docstrings, so a paragraph is kept only where it first appears: text
that a model is validated on is then never a copy of text that it was trained on. White space is
collapsed and characters normalised as the tokenizer would, so that its byte counts are the text's.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import unicodedata
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from qpack.errors import DataError

NOT_DOCUMENTATION = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__"}
)
MIN_CHARACTERS = 200
"""Shorter documents say little about English and cost a BOS each."""
MIN_DOCUMENTS = 40
"""Fewer are no text to train on and be scored on."""


def standard_library_documents(root: Path | None = None) -> list[str]:
    """Documents of the standard library in `root` (None: this Python's), in a fixed order.

    Raises `DataError` when there are too few to train on (a Python stripped of its sources).
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    documents = deduplicated(_sources(root))
    if len(documents) < MIN_DOCUMENTS:
        raise DataError(
            f"found only {len(documents)} documents in {root}",
            hint="use a Python installation that includes the library's sources and docstrings",
        )
    return documents


def deduplicated(sources: Iterable[Iterable[str]]) -> list[str]:
    """One document a source: its texts' paragraphs that no earlier source or text has had."""
    seen: set[str] = set()
    documents = []
    for texts in sources:
        kept = []
        for text in texts:
            for paragraph in re.split(r"\n\s*\n", text):
                clean = " ".join(unicodedata.normalize("NFKC", paragraph).split())
                if clean and clean not in seen:
                    seen.add(clean)
                    kept.append(clean)
        document = " ".join(kept)
        if len(document) >= MIN_CHARACTERS:
            documents.append(document)
    return documents


def _sources(root: Path) -> Iterator[list[str]]:
    """The texts of each source: reference pages by name, then modules by path."""
    pages = root / "pydoc_data" / "topics.py"
    if pages.is_file():
        for page in _string_values(_parse(pages)):
            yield [page]
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        if NOT_DOCUMENTATION.isdisjoint(path.relative_to(root).parts):
            yield list(_docstrings(_parse(path)))


def _parse(path: Path) -> ast.Module:
    """The syntax tree of `path`; an empty one where it cannot be read or parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own, on its escapes
            return ast.parse(path.read_bytes(), filename=str(path))
    except (OSError, SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])


def _string_values(tree: ast.Module) -> Iterator[str]:
    """String values of the module's dictionaries, by key."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            pages = {
                str(key.value): value.value
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
                and isinstance(value, ast.Constant)
                and isinstance(value.value, str)
            }
            yield from (pages[key] for key in sorted(pages))


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """What `ast.walk` gives, in its order, without expressions: most of a tree, and no docstrings
    in them.
    """
    waiting: deque[ast.AST] = deque([tree])
    while waiting:
        node = waiting.popleft()
        yield node
        for name in ("body", "handlers", "orelse", "finalbody", "cases"):
            children = getattr(node, name, None)
            if isinstance(children, list):
                waiting.extend(children)
