"""Small files, short functions, ASCII: the shape that CONTRIBUTING.md asks for."""

from __future__ import annotations

import ast
from statistics import median

from .sources import ROOT, Function, num_lines, parse, sources

FILE_LIMIT = 400
FILE_MEDIAN = 150
FUNCTION_LIMIT = 80
SHORT_FUNCTION = 40
SHORT_SHARE = 0.9
POSITIONAL_LIMIT = 5


def python_files() -> dict[str, str]:
    folders = ("qpack", "trainer", "cli", "tests", "benchmarks")
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }


def test_no_file_is_long() -> None:
    lines = {path: text.count("\n") for path, text in python_files().items()}
    assert {path: count for path, count in lines.items() if count > FILE_LIMIT} == {}


def test_the_median_file_is_short() -> None:
    assert median(source.text.count("\n") for source in sources()) <= FILE_MEDIAN


def test_no_function_is_long() -> None:
    lengths = {
        f"{source.path}:{function.lineno} {function.name}": num_lines(function)
        for source in sources()
        for function in source.functions()
    }
    assert {name: n for name, n in lengths.items() if n > FUNCTION_LIMIT} == {}
    short = sum(n <= SHORT_FUNCTION for n in lengths.values())
    assert short >= SHORT_SHARE * len(lengths)


def is_kernel(function: Function) -> bool:
    """Triton kernels take what they are given by position."""
    return any("triton" in ast.unparse(decorator) for decorator in function.decorator_list)


def num_positional(function: Function) -> int:
    names = [arg.arg for arg in (*function.args.posonlyargs, *function.args.args)]
    return len([name for name in names if name not in ("self", "cls")])


def test_few_positional_parameters() -> None:
    """The rest go by keyword. A command's are its options: Typer passes them by keyword."""
    many = {
        f"{source.path}:{function.lineno} {function.name}": num_positional(function)
        for source in sources()
        for function in source.functions()
        if not source.module.startswith("qpack.cli.") and not is_kernel(function)
    }
    assert {name: n for name, n in many.items() if n > POSITIONAL_LIMIT} == {}


def test_python_files_are_ascii() -> None:
    found = [path for path, text in python_files().items() if not text.isascii()]
    assert found == []


def test_a_docstring_is_not_code() -> None:
    source = parse(
        'def f(\n    a,\n    b,\n):\n    """One.\n\n    Two.\n    """\n    x = a\n    return x\n'
    )
    (function,) = (node for node in source.tree.body if isinstance(node, ast.FunctionDef))
    assert num_lines(function) == 2
