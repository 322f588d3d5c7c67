from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import Field, model_validator

from qpack.errors import ConfigError
from qpack.sections import Section, read_section


class Inner(Section):
    width: Annotated[int, Field(ge=1)] = 4
    name: str = "x"


class Outer(Section):
    inner: Inner = Inner()
    many: tuple[Inner, ...] = Field(default=(), strict=False)
    rate: float
    maybe: Inner | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Outer:
        if self.rate == self.inner.width:
            raise ValueError("rate and inner.width must differ")
        return self


def problems(table: dict[str, object]) -> tuple[str, ...]:
    with pytest.raises(ConfigError, match="the test cannot be used") as caught:
        read_section(Outer, table, what="the test")
    return caught.value.items


def test_defaults_and_values() -> None:
    read = read_section(Outer, {"rate": 1, "many": [{"width": 2}]}, what="the test")
    assert (read.rate, read.inner.width, read.many[0].width) == (1.0, 4, 2)


def test_every_problem_at_once_with_the_likely_key() -> None:
    table = {
        "iner": {},
        "inner": {"widht": 3, "width": 0},
        "many": [{"width": 1}, {"nam": "y"}],
        "maybe": {"width": "4"},
    }
    assert set(problems(table)) == {
        'iner: unknown (did you mean "inner"?)',
        'inner.widht: unknown (did you mean "width"?)',
        "inner.width = 0: must be greater than or equal to 1",
        'many.1.nam: unknown (did you mean "name"?)',
        "maybe.width = '4': must be a valid integer",
        "rate: missing",
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1"])
def test_numbers_are_numbers(value: object) -> None:
    (problem,) = problems({"rate": value})
    assert problem.startswith(f"rate = {value!r}: must be a ")


def test_contradictions_say_what_the_validator_says() -> None:
    assert problems({"rate": 4.0}) == ("rate and inner.width must differ",)


def test_a_section_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner().width = 3  # type: ignore[misc]
