from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from qpack import plugins
from qpack.errors import ConfigError, SetupError
from qpack.plugins import ARCHITECTURES, IMPORTERS, did_you_mean, load_plugin, names


def register(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    """Pretend that installed packages register these (name, object) architectures."""
    found = EntryPoints(EntryPoint(name, value, ARCHITECTURES) for name, value in points)
    monkeypatch.setattr(plugins, "entry_points", lambda *, group: found.select(group=group))


def test_the_reference_model_and_its_importer_are_registered() -> None:
    assert "gpt" in names(ARCHITECTURES)
    assert load_plugin(ARCHITECTURES, "gpt").__module__ == "qpack.trainer.model.gpt"
    assert load_plugin(IMPORTERS, "gpt").__name__ == "import_state"


def test_an_unknown_name_gets_the_likely_one_and_the_list() -> None:
    with pytest.raises(ConfigError) as caught:
        load_plugin(ARCHITECTURES, "gtp")
    assert caught.value.message == 'unknown architecture "gtp" (did you mean "gpt"?)'
    assert "known: gpt" in (caught.value.hint or "")


def test_listing_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, ("b", "no.such.module:build"), ("a", "math:sqrt"))
    assert names(ARCHITECTURES) == ("a", "b")
    assert names("qpack.nothing") == ()


@pytest.mark.parametrize("value", ["no.such.module:build", "math:no_such_name"])
def test_a_broken_plugin_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    register(monkeypatch, ("broken", value))
    with pytest.raises(SetupError, match='architecture "broken" cannot be imported') as caught:
        load_plugin(ARCHITECTURES, "broken")
    assert caught.value.items == (f"entry point {value}",)
    assert caught.value.__cause__ is not None


def test_two_packages_with_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, ("root", "math:sqrt"), ("root", "math:isqrt"))
    with pytest.raises(SetupError) as caught:
        load_plugin(ARCHITECTURES, "root")
    assert caught.value.items == ("math:isqrt", "math:sqrt")


def test_the_same_object_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, ("root", "math:sqrt"), ("root", "math:sqrt"))
    assert load_plugin(ARCHITECTURES, "root")(9) == 3


@pytest.mark.parametrize(
    ("name", "expected"), [("rope_bse", ' (did you mean "rope_base"?)'), ("zzz", "")]
)
def test_did_you_mean(name: str, expected: str) -> None:
    assert did_you_mean(name, iter(["rope_base", "vocab_size"])) == expected
