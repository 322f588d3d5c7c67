"""What other people's programs call, frozen.

A deliberate change: `pytest tests/structure/test_public_api.py --update-snapshots`, and read the
diff.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import qpack

FROZEN = Path(__file__).with_name("public_api.txt")


def plain(parameter: inspect.Parameter) -> inspect.Parameter:
    """Without its annotation, which may change freely; an object as default is only `...`."""
    default = parameter.default
    telling = default is None or isinstance(default, (str, int, float, tuple, type))
    return parameter.replace(
        annotation=inspect.Parameter.empty, default=default if telling else ...
    )


def parameters(value: object) -> str:
    """`(path, *, force=False)`: names, kinds and defaults."""
    signature = inspect.signature(value)  # type: ignore[arg-type]
    bare = [plain(parameter) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def surface() -> str:
    lines = []
    for name in sorted(qpack.__all__):
        value = getattr(qpack, name)
        lines.append(f"{name}{parameters(value)}" if callable(value) else name)
    return "\n".join(lines) + "\n"


def test_public_names_and_parameters(pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--update-snapshots"):
        FROZEN.write_text(surface(), encoding="utf-8")
    assert surface() == FROZEN.read_text(encoding="utf-8"), "see the docstring of this file"


def test_every_public_name_is_explained() -> None:
    values = {name: getattr(qpack, name) for name in qpack.__all__ if name != "__version__"}
    assert [name for name, value in values.items() if not inspect.getdoc(value)] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="quantise"):
        _ = qpack.quantise
