"""Loops are compiled with numba, and without it the reader is told so."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest

from qpack.errors import SetupError
from qpack.eval.compiled import compiled


@compiled
def divided(values, by: int):  # type: ignore[no-untyped-def]
    return values[0] / by


def test_divisions_are_those_of_the_standard() -> None:
    assert divided(np.array([3.0]), 2) == 1.5
    assert divided(np.array([3.0]), 0) == np.inf


def test_without_numba_it_is_missed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "qpack.eval.compiled")
    with pytest.raises(SetupError, match="numba") as caught:
        importlib.import_module("qpack.eval.compiled")
    assert caught.value.hint == 'pip install "qpack-lm[pack]"'
