"""Which part may import which. The rules are in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

import pytest

from .sources import Source, parse, sources

TORCH_FREE = (
    "qpack.artifact", "qpack.codec", "qpack.report.markdown", "qpack.report.tables",
    "qpack.tensors", "qpack.errors", "qpack.progress", "qpack.cli",
)  # fmt: skip
UNSAFE = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
DECODER = ("qpack.artifact.decoder", "qpack.artifact.unrans")
"""Two halves: the second stands in the first in a .pyz."""
DECODER_MAY_IMPORT = set(sys.stdlib_module_names) | {"numpy", "brotli", "zstandard"}


def within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def part_of(source: Source) -> str:
    for part in ("qpack.trainer", "qpack.cli"):
        if within(source.module, part):
            return part
    return "qpack"


def violations(source: Source) -> Iterator[str]:
    """Each import of `source` that breaks a rule, with the rule."""
    part = part_of(source)
    for name in dict.fromkeys(source.imports()):
        if within(name, "trainer", "cli"):
            yield f"{name}: not installed under this name"
        if part == "qpack" and within(name, "qpack.trainer", "qpack.cli"):
            yield f"{name}: the library knows neither the trainer nor the command line"
        if part == "qpack.trainer" and within(name, "qpack.cli"):
            yield f"{name}: the trainer does not know the command line"
        if part == "qpack.cli" and within(name, "qpack.trainer"):
            yield f"{name}: the command line reaches the trainer by entry point only"
        if within(source.module, *TORCH_FREE) and within(name, "torch"):
            yield f"{name}: {source.module} works without torch"
        if name.partition(".")[0] in UNSAFE:
            yield f"{name}: runs code from files"
        foreign = name.partition(".")[0] not in DECODER_MAY_IMPORT
        other_half = source.module == DECODER[0] and within(name, DECODER[1])
        if source.module in DECODER and foreign and not other_half:
            yield f"{name}: the decoder stands alone"


def absolute_siblings(source: Source) -> Iterator[str]:
    """Imports of the own top folder by its absolute name, which would load a file twice."""
    part = part_of(source)
    for node in ast.walk(source.tree):
        named = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        yield from (name for name in named if part != "qpack" and within(name, part))


def unsafe_calls(source: Source) -> Iterator[str]:
    """Calls that run code or read pickles. `torch.load` has one place, which restricts it."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name in {"eval", "exec", "compile", "__import__", "torch.save"}:
            yield f"line {node.lineno}: {name}"
        restricted = any(
            word.arg == "weights_only" and ast.unparse(word.value) == "True"
            for word in node.keywords
        )
        if name == "torch.load" and not (source.module == "qpack.importing" and restricted):
            yield f"line {node.lineno}: {name}"


@pytest.mark.parametrize("rule", [violations, absolute_siblings, unsafe_calls])
def test_all_sources_keep_the_rule(rule) -> None:
    broken = {source.path: list(rule(source)) for source in sources()}
    assert {path: found for path, found in broken.items() if found} == {}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("qpack/pipeline.py", "from qpack.trainer.loop import train"),
        ("qpack/quant/grid.py", "from ..cli import output"),
        ("qpack/pipeline.py", "import trainer"),
        ("trainer/loop.py", "import qpack.cli.main"),
        ("cli/demo.py", "def f():\n    from qpack.trainer import loop"),
        ("qpack/artifact/reader.py", "import torch.nn"),
        ("qpack/codec/__init__.py", "def f():\n    import torch"),
        ("qpack/artifact/decoder.py", "from qpack.errors import QpackError"),
        ("qpack/artifact/decoder.py", "import safetensors"),
        ("qpack/artifact/unrans.py", "from qpack.codec import rans"),
        ("qpack/artifact/unrans.py", "from qpack.artifact import decoder"),
        ("trainer/loop.py", "import pickle"),
    ],
)
def test_the_import_rule_can_fail(path: str, text: str) -> None:
    assert list(violations(parse(text, path=path)))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("trainer/loop.py", "from qpack.trainer.config import TrainConfig"),
        ("cli/main.py", "import qpack.cli.output"),
    ],
)
def test_the_sibling_rule_can_fail(path: str, text: str) -> None:
    assert list(absolute_siblings(parse(text, path=path)))


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "torch.save(x, 'f')",
        "torch.load('f', weights_only=True)",
    ],
)
def test_the_call_rule_can_fail(text: str) -> None:
    assert list(unsafe_calls(parse(text)))


def test_torch_load_is_restricted_even_in_its_place() -> None:
    source = parse("torch.load('f', weights_only=False)", path="qpack/importing.py")
    assert list(unsafe_calls(source))


def test_relative_imports_resolve_to_installed_names() -> None:
    package = parse("from .data import text", path="trainer/__init__.py")
    module = parse("from .. import config\nfrom .rope import rotate", path="trainer/model/gpt.py")
    assert list(package.imports()) == ["qpack.trainer.data", "qpack.trainer.data.text"]
    assert list(module.imports()) == [
        "qpack.trainer", "qpack.trainer.config",
        "qpack.trainer.model.rope", "qpack.trainer.model.rope.rotate",
    ]  # fmt: skip
