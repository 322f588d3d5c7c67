from __future__ import annotations

import pytest

from qpack.errors import ConfigError, SetupError
from qpack.plugins import TRAINERS, names
from qpack.sections import Section
from qpack.training import DEFAULT, load_trainer

from .runs.fake import register_fake


def test_the_shipped_trainers_are_trainers() -> None:
    assert set(names(TRAINERS)) >= {"checkpoint", "reference", "script"}
    assert DEFAULT in names(TRAINERS)
    for name in ("checkpoint", "reference", "script"):
        trainer = load_trainer(name)
        assert issubclass(trainer.TABLES, Section)
        assert "pack" in trainer.TABLES.model_fields
        assert callable(trainer.check) and callable(trainer.train)


def test_an_unknown_one() -> None:
    with pytest.raises(ConfigError, match=r'unknown trainer "scirpt" \(did you mean "script"\?\)'):
        load_trainer("scirpt")


def test_a_plugin_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    register_fake(monkeypatch)
    with pytest.raises(SetupError, match="it lacks TABLES, check, train"):
        load_trainer("broken")
