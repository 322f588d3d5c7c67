"""One rule for every tensor, or an error that names them all."""

import pytest
import torch
from torch import Tensor, nn

from qpack.errors import ConfigError
from qpack.quant.plan import Plan, classify, make_plan, natural_key
from qpack.recipe import default_recipe, parse_recipe


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(16, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(11))
        self.conv = nn.Conv2d(3, 8, 3)
        self.mix = nn.Parameter(torch.ones(2, 512))
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.emb.weight


def state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = dict(model.state_dict())
    del tensors["head.weight"]
    return tensors, {"head.weight": "emb.weight"}


def plan_with(text: str) -> Plan:
    model = Net()
    tensors, aliases = state(model)
    return make_plan(tensors, classify(model), aliases, parse_recipe(text, name="r"))


def test_classes() -> None:
    kinds = classify(Net())
    assert kinds["emb.weight"] == kinds["head.weight"] == "embedding"
    assert kinds["blocks.3.weight"] == kinds["conv.weight"] == "matrix"
    assert kinds["mix"] == kinds["norm.weight"] == kinds["conv.bias"] == "vector"
    assert kinds["norm.running_var"] == kinds["norm.num_batches_tracked"] == "buffer"


def test_default_recipe_covers_every_tensor() -> None:
    model = Net()
    tensors, aliases = state(model)
    plan = make_plan(tensors, classify(model), aliases, default_recipe())
    assert {entry.name for entry in plan.tensors} == set(tensors)
    assert {entry.name for entry in plan.turned} == {
        "conv.weight",
        "emb.weight",
        *(f"blocks.{i}.weight" for i in range(11)),
    }
    assert plan.warnings == ()


def test_rows_of_tables_have_no_feedback_and_say_so() -> None:
    plan = plan_with('[[rule]]\nmatch="re:.*weight"\nscale="rd"\nrow_feedback=true\n'
                     '[[rule]]\nmatch="re:.*"\ntype="keep"')  # fmt: skip
    labels = {entry.name: entry.rule.label() for entry in plan.tensors}
    assert "row feedback" in labels["blocks.0.weight"]
    assert "row feedback" not in labels["emb.weight"]


def test_natural_order() -> None:
    names = [e.name for e in plan_with('[[rule]]\nmatch="re:.*"\ntype="keep"').tensors]
    assert names.index("blocks.2.weight") < names.index("blocks.10.weight")
    assert sorted(["a10", "a9", "a"], key=natural_key) == ["a", "a9", "a10"]


def test_first_match_wins() -> None:
    plan = plan_with(
        '[[rule]]\nmatch="blocks.3.weight"\nbits=8\n'
        '[[rule]]\nmatch="re:blocks\\\\.\\\\d+\\\\.weight"\nbits=5\n'
        '[[rule]]\nmatch="re:.*"\ntype="keep"'
    )
    rules = {entry.name: entry.rule for entry in plan.tensors}
    assert rules["blocks.3.weight"].qmax == 127
    assert rules["blocks.4.weight"].qmax == 15
    assert rules["conv.bias"].type == "keep"


def test_every_offender_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        plan_with('[[rule]]\nmatch="re:norm.*"\nbits=6\n[[rule]]\nmatch="re:blocks.*"\nbits=6')
    text = str(caught.value)
    assert "norm.num_batches_tracked: int cannot hold int64 values" in text
    for name in ("conv.weight", "conv.bias", "mix", "emb.weight"):
        assert f"{name}: no rule matches it" in text


def test_tied_tensors_cannot_have_two_rules() -> None:
    with pytest.raises(ConfigError, match="tied tensors under different rules"):
        plan_with('[[rule]]\nmatch="head.weight"\nbits=8\n[[rule]]\nmatch="re:.*"\ntype="keep"')


def test_float16_overflow_is_an_offence() -> None:
    recipe = parse_recipe('[[rule]]\nmatch="re:.*"\ntype="float16"', name="r")
    tensors = {"big": torch.tensor([70_000.0]), "fine": torch.tensor([1.0])}
    with pytest.raises(ConfigError, match=r"big: float16 ends at 65504") as caught:
        make_plan(tensors, dict.fromkeys(tensors, "vector"), {}, recipe)
    assert len(caught.value.items) == 1


def test_empty_tensor_cannot_be_an_integer_grid() -> None:
    recipe = parse_recipe('[[rule]]\nmatch="re:.*"', name="r")
    with pytest.raises(ConfigError, match="at least one weight"):
        make_plan({"e": torch.empty(0, 8)}, {"e": "buffer"}, {}, recipe)


def test_patterns_without_a_match_are_warned_about() -> None:
    plan = plan_with(
        '[[rule]]\nmatch=["blocks.3.wieght", "re:.*attn.*"]\nbits=8\n'
        '[[rule]]\nmatch=["class:buffer", "re:.*"]\ntype="keep"'
    )
    assert len(plan.warnings) == 2
    assert (
        "'blocks.3.wieght' of rule 1 matched no tensor; did you mean 'blocks.3.weight'?"
        in (plan.warnings[0])
    )
