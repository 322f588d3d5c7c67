from __future__ import annotations

import pytest

from qpack.errors import ConfigError
from qpack.runs.overrides import apply_overrides, parse_overrides


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=3", 3),
        ("a.b = 0.5", 0.5),
        ("a.b=1_000", 1000),
        ("a.b=true", True),
        ('a.b="3"', "3"),
        ("a.b=[1, 2]", [1, 2]),
        ("a.b={c = 1}", {"c": 1}),
        ("a.b=cpu", "cpu"),
        ("a.b=cuda:1", "cuda:1"),
        ("a.b=data/*.bin", "data/*.bin"),
        ("a.b=x=y", "x=y"),
        ("a.b=", ""),
        ("a.b=1\nc = 2", "1\nc = 2"),
    ],
)
def test_values(text: str, value: object) -> None:
    ((parts, got),) = parse_overrides([text])
    assert parts == ("a", "b")
    assert got == value and type(got) is type(value)


def test_every_bad_one_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(["novalue", "=3", "a..b=1", "a.b=[1", "c=1", "c=2", "fine.one=1"])
    assert [item.partition(":")[0] for item in caught.value.items] == [
        "novalue", "=3", "a..b=1", "a.b=[1", "c",
    ]  # fmt: skip
    assert caught.value.hint is not None


def test_application() -> None:
    tables = {"a": {"b": 1}, "phase": [{"at": 0.5}, {"at": 0.7}]}
    changed = apply_overrides(
        tables,
        parse_overrides(["a.b=2", "a.c=3", "new.x.y=4", "phase.1.at=0.9", "trainer=script"]),
    )
    assert changed == {
        "a": {"b": 2, "c": 3}, "new": {"x": {"y": 4}},
        "phase": [{"at": 0.5}, {"at": 0.9}], "trainer": "script",
    }  # fmt: skip
    assert tables == {"a": {"b": 1}, "phase": [{"at": 0.5}, {"at": 0.7}]}


def test_null_takes_a_key_out() -> None:
    tables = {"loop": {"max_seconds": 120, "seed": 1}}
    overrides = parse_overrides(["loop.max_seconds=null", 'loop.device="null"'])
    assert apply_overrides(tables, overrides) == {"loop": {"seed": 1, "device": "null"}}
    assert tables["loop"]["max_seconds"] == 120
    for text in ("loop.max_secnds=null", "data.text=null"):
        with pytest.raises(ConfigError, match="not set"):
            apply_overrides(tables, parse_overrides([text]))


def test_keys_that_lead_nowhere() -> None:
    tables = {"a": {"b": 1}, "phase": [{"at": 0.5}]}
    with pytest.raises(ConfigError) as caught:
        apply_overrides(tables, parse_overrides(["a.b.c=2", "phase.1.at=1", "phase.at=1"]))
    assert caught.value.items == (
        "a.b.c: a.b is a value, not a table",
        "phase.1.at: phase is a list of 1: 1 is no index into it",
        "phase.at: phase is a list of 1: at is no index into it",
    )
