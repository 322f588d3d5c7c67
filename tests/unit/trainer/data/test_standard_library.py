from __future__ import annotations

from pathlib import Path

import pytest

from qpack.errors import DataError
from qpack.trainer.data.standard_library import deduplicated, standard_library_documents

LONG = "A paragraph that is long enough to be a document of its own. " * 4


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return standard_library_documents()


def library(root: Path, modules: dict[str, str]) -> Path:
    for name, source in modules.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return root


def numbered(count: int) -> dict[str, str]:
    return {f"m{i:03}.py": f'"""Module {i}. {LONG}"""' for i in range(count)}


def test_this_python_has_enough_text(documents: list[str]) -> None:
    assert sum(map(len, documents)) > 1_000_000
    assert any("The following identifiers are used as reserved words" in text for text in documents)
    assert any("Pretty-print a Python object to a stream" in text for text in documents)


def test_documents_are_clean_and_distinct(documents: list[str]) -> None:
    assert len(set(documents)) == len(documents)
    for text in documents:
        assert text == " ".join(text.split())
        assert len(text) >= 200


def test_the_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    modules = {f"p{i % 3}/m{i}.py": source for i, source in enumerate(numbered(60).values())}
    forwards = library(tmp_path / "a", modules)
    backwards = library(tmp_path / "b", dict(reversed(modules.items())))
    assert standard_library_documents(forwards) == standard_library_documents(backwards)


def test_docstrings_of_every_kind_and_pages_by_name(tmp_path: Path) -> None:
    source = f'''"""Module. {LONG}"""
class C:
    """Class. {LONG}"""
    def f(self):
        """Method. {LONG}"""
    async def g(self):
        """Coroutine. {LONG}"""
"""Not a docstring. {LONG}"""
'''
    pages = f'topics = {{"b": "Page B. {LONG}", "a": "Page A. {LONG}", "n": 3}}'
    root = library(tmp_path, numbered(40) | {"a.py": source, "pydoc_data/topics.py": pages})
    found = standard_library_documents(root)
    assert [text[:7] for text in found[:3]] == ["Page A.", "Page B.", "Module."]
    assert all(word in found[2] for word in ("Module.", "Class.", "Method.", "Coroutine."))
    assert "Not a docstring" not in found[2]
    assert found[3].startswith("Module 0.")


def test_tests_installed_packages_and_broken_files_are_left_out(tmp_path: Path) -> None:
    source = f'"""Left out. {LONG}"""'
    names = ("test/a.py", "x/tests/a.py", "site-packages/a.py", "idlelib/idle_test/a.py")
    root = library(tmp_path, numbered(40) | dict.fromkeys(names, source))
    (root / "broken.py").write_text(f"{source}\ndef", encoding="utf-8")
    (root / "null.py").write_bytes(b"\0")
    assert len(standard_library_documents(root)) == 40


def test_no_paragraph_comes_twice() -> None:
    shared = f"Shared. {LONG}"
    found = deduplicated([[f"One. {LONG}\n\n{shared}"], [f"{shared}\n \n  Two. {LONG}"]])
    assert [text.count("Shared.") for text in found] == [1, 0]
    assert found[1].startswith("Two.")


def test_text_is_normalised_before_paragraphs_are_compared() -> None:
    found = deduplicated([[f"The \ufb01rst\n   one. {LONG}"], [f"The first one. {LONG}"]])
    assert found == [f"The first one. {LONG}".strip()]


def test_short_documents_are_left_out() -> None:
    assert deduplicated([["Short."], [LONG]]) == [LONG.strip()]


def test_a_library_without_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found only 39 documents"):
        standard_library_documents(library(tmp_path, numbered(39)))
