"""What is chosen, under which rule, and every way in which nothing can be."""

import pytest
import torch
from torch import nn

from qpack.errors import ConfigError
from qpack.quant.selection import select, unwrapped
from qpack.recipe import Recipe, builtin_recipe, default_recipe, parse_recipe

RECIPE = parse_recipe(
    """
    [knob]
    name = "qmax"
    low = 7
    high = 31
    [[rule]]
    match = "class:embedding"
    bits = 8
    [[rule]]
    match = "up.weight"
    bits = 4
    [[rule]]
    match = "class:matrix"
    bits = 5
    scale = "percentile"
    knob = true
    [[rule]]
    match = ["class:vector", "class:buffer"]
    type = "float16"
    """,
    name="r",
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, 16)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("mean", torch.zeros(16, 16))


def problems(*match: str, recipe: Recipe = RECIPE, knob: float | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        select(Net(), recipe, match, knob)
    return caught.value.items


def test_a_class_a_name_and_a_pattern() -> None:
    assert set(select(Net(), RECIPE, ("class:matrix",), None).rules) == {
        "up.weight",
        "down.weight",
    }
    assert set(select(Net(), RECIPE, ("down.weight",), None).rules) == {"down.weight"}
    found = select(Net(), RECIPE, ("re:.*",), None)
    assert set(found.rules) == {"table.weight", "up.weight", "down.weight"}
    assert found.skipped == {
        "up.bias": "stored as float16",
        "down.bias": "stored as float16",
        "mean": "a buffer, which is not trained",
    }


@pytest.mark.parametrize("pattern", ["table.weight", "head.weight", "class:embedding"])
def test_tied_tensors_are_one_under_any_name(pattern: str) -> None:
    net = Net()
    found = select(net, RECIPE, (pattern,), None)
    assert found.names == {"table.weight": ("table.weight", "head.weight")}
    (member,) = found.members(net)
    assert member.parameters == (net.table.weight,)
    assert (member.num_rows, member.num_cols) == (32, 16)


def test_two_parameters_of_one_memory_are_one_member() -> None:
    net = Net()
    net.head.weight = nn.Parameter(net.table.weight.detach())
    (member,) = select(net, RECIPE, ("class:embedding",), None).members(net)
    assert [id(p) for p in member.parameters] == [id(net.table.weight), id(net.head.weight)]


def test_shapes_that_are_not_matrices() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3))
    recipe = parse_recipe('[[rule]]\nmatch = "re:.*"', name="r")
    members = select(net, recipe, ("re:.*",), None).members(net)
    assert [(m.name, m.num_rows, m.num_cols) for m in members] == [
        ("0.bias", 1, 8),
        ("0.weight", 8, 27),
    ]


def test_the_knob_turns_those_that_follow_it() -> None:
    match = ("up.weight", "down.weight")
    rules = select(Net(), RECIPE, match, 21).rules
    assert rules["up.weight"].qmax == 7
    assert (rules["down.weight"].qmax, rules["down.weight"].scale) == (21, "absmax")


def test_without_a_value_a_rule_has_its_own_but_as_the_search_would_turn_it() -> None:
    rule = select(Net(), RECIPE, ("down.weight",), None).rules["down.weight"]
    assert (rule.qmax, rule.scale) == (15, "absmax")
    rule = select(Net(), builtin_recipe("record"), ("down.weight",), None).rules["down.weight"]
    assert (rule.k, rule.clip) == (12.85, False)


def test_patterns_that_choose_nothing_are_all_named() -> None:
    assert problems("class:matrix", "blocks.0.weight", "up.bias", "re:m.*n") == (
        "blocks.0.weight: matches no tensor",
        "up.bias: up.bias is stored as float16",
        "re:m.*n: mean is a buffer, which is not trained",
    )


@pytest.mark.parametrize("match", [("class:matrices",), ("re:(",), ()])
def test_patterns_that_are_none(match: tuple[str, ...]) -> None:
    assert problems(*match)


@pytest.mark.parametrize(
    ("pattern", "knob", "said"),
    [
        ("up.weight", 15, "no selected tensor follows a knob"),
        ("class:matrix", 6, "the recipe's qmax goes from 7 to 31"),
        ("class:matrix", 20.5, "qmax is a whole number"),
        ("class:matrix", float("nan"), "the recipe's qmax goes from 7 to 31"),
    ],
)
def test_knobs_that_the_search_could_not_turn_to(pattern: str, knob: float, said: str) -> None:
    assert problems(pattern, knob=knob) == (said,)


def test_a_recipe_that_does_not_fit_the_model_is_refused_before_training() -> None:
    recipe = parse_recipe('[[rule]]\nmatch = "class:matrix"', name="r")
    assert "up.bias: no rule matches it" in problems("class:matrix", recipe=recipe)


def test_wrappers_are_seen_through() -> None:
    net = Net()
    assert unwrapped(torch.compile(net, backend="aot_eager")) is net
    assert unwrapped(net) is net


def test_steps_that_come_from_calibration_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot round as rule rd does") as caught:
        select(Net(), default_recipe(), ("re:.*weight",), None)
    assert "down.weight" in caught.value.items
    assert "record" in str(caught.value.hint)
