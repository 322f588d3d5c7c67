"""Code to embed: smaller, still the same program, and never broken silently."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qpack.artifact import decoder
from qpack.artifact.minify import minified, pack_code
from qpack.errors import ConfigError, InputError, SetupError

SOURCE = b'''"""Module docstring."""
# a comment
GLOBAL_NAME = 1


def function(argument_name: int) -> int:
    """Docstring."""
    local_variable_name = argument_name + GLOBAL_NAME
    assert local_variable_name
    return local_variable_name * 2
'''


def test_python_gets_smaller_and_works_the_same(tmp_path: Path) -> None:
    path, other = tmp_path / "a.py", tmp_path / "b.toml"
    path.write_bytes(SOURCE)
    other.write_bytes(b"# kept = 1\n")
    files, rows = pack_code([path, str(other)])
    assert [file.name for file in files] == ["a.py", "b.toml"]
    assert {file.role for file in files} == {"code"}
    assert files[1].data == b"# kept = 1\n"
    assert rows[0] == {
        "name": "a.py",
        "raw_bytes": len(SOURCE),
        "minified_bytes": len(files[0].data),
    }
    assert len(files[0].data) < 0.6 * len(SOURCE)
    space: dict[str, object] = {}
    exec(files[0].data, space)  # noqa: S102 (that it still runs is the point)
    assert space["GLOBAL_NAME"] == 1
    assert space["function"](argument_name=3) == 8  # type: ignore[operator]
    with pytest.raises(AssertionError):
        space["function"](-1)  # type: ignore[operator]


def test_docstrings_that_are_read_are_kept() -> None:
    source = b'"""Usage text."""\nprint(__doc__)\n\n\n\n'
    assert b"Usage text." in minified(source)


def test_what_gets_no_smaller_is_kept() -> None:
    assert minified(b"x=1") == b"x=1"


def test_the_decoder_itself() -> None:
    source = Path(decoder.__file__).read_bytes()
    small = minified(source)
    assert len(small) < len(source)
    compile(small, "decoder", "exec")


def test_all_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_bytes(b"def (:\n")
    (tmp_path / "nul.py").write_bytes(b"x = 1\0")
    with pytest.raises(InputError) as caught:
        pack_code([tmp_path / "bad.py", tmp_path / "missing.py", tmp_path / "nul.py"])
    assert len(caught.value.items) == 3


def test_names_must_be_plain_and_unique(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        pack_code([tmp_path / "a.py", tmp_path / "sub" / "A.py", tmp_path / ".hidden", "a b.py"])
    assert len(caught.value.items) == 3


def test_no_files() -> None:
    assert pack_code([]) == ((), [])


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_minifier", None)
    with pytest.raises(SetupError, match="pip install python-minifier"):
        minified(SOURCE)
