"""Late QAT: what the forward sees, when it begins, and what is put back."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from qpack.errors import ConfigError
from qpack.quant.qat import LateQAT, Start
from qpack.recipe import builtin_recipe, parse_recipe

from .qat_net import (
    NOW,
    RULES,
    Net,
    exported,
    gradients_of,
    loss_of,
    loss_on,
    recipe_of,
    rounded,
    some_tokens,
    switched,
    values_of,
)


@pytest.fixture
def no_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_weights_are_what_the_exporter_rounds_to(rule: str) -> None:
    model, recipe = Net(), recipe_of(rule)
    expected, before = exported(model, recipe), values_of(model)
    qat = switched(LateQAT(model, recipe, match=("re:.*",), start=NOW))
    with qat.quantized():
        within = values_of(model)
    for name in ("table.weight", "up.weight", "down.weight"):
        assert torch.equal(within[name], expected[name])
        assert not torch.equal(within[name], before[name])
    assert torch.equal(within["up.bias"], before["up.bias"])
    assert qat.skipped == {"up.bias": "stored as float32"}
    after = values_of(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(("knob", "value"), [("k", 6.5), ("qmax", 42), ("qmax-floor", 9)])
def test_weights_are_those_of_the_knob(knob: str, value: float) -> None:
    text = f'[knob]\nname = "{knob}"\nlow = 2\n[[rule]]\nmatch = "re:.*weight"\nknob = true\n'
    recipe = parse_recipe(text + '[[rule]]\nmatch = "re:.*"\ntype = "float32"', name="r")
    model = Net()
    expected = exported(model, recipe, value)
    qat = switched(LateQAT(model, recipe, start=NOW, knob=value))
    with qat.quantized():
        assert torch.equal(model.up.weight, expected["up.weight"])


def test_default_recipe_on_linear_layers() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    expected = exported(model, builtin_recipe("record"), 12.85)
    qat = switched(LateQAT(model, builtin_recipe("record"), start=NOW))
    assert qat.names == ("0.weight", "2.weight")
    with qat.quantized():
        assert all(torch.equal(model.get_parameter(n), expected[n]) for n in qat.names)


def check_compiled_forward_changes(backend: str) -> None:
    """The loss changes at the switch, to that of the quantized weights, without a new graph."""
    torch._dynamo.utils.counters.clear()
    model, tokens = Net(), some_tokens()
    compiled = torch.compile(loss_on, backend=backend, fullgraph=True)
    qat = LateQAT(model, recipe_of(), match=("re:.*",), start=Start(step=2))
    before = compiled(model, tokens).item()
    losses = []
    for step in range(4):
        qat.on_step(step, step / 4, 1.0)
        with qat.quantized():
            loss = compiled(model, tokens)
            loss.backward()
            losses.append(loss.item())
    assert losses[:2] == [before] * 2
    assert losses[2] == losses[3]
    assert abs(losses[2] - before) > 1e-3
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for parameter, Q in zip(model.parameters(), quantized_values(qat, model), strict=True):
        parameter.data.copy_(Q)
    assert compiled(model, tokens).item() == pytest.approx(losses[3], rel=1e-6)
    assert loss_on(model, tokens).item() == pytest.approx(losses[3], rel=1e-5)


def quantized_values(qat: LateQAT, model: nn.Module) -> list[Tensor]:
    with qat.quantized():
        return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.usefixtures("no_compiled_code")
def test_compiled_forward_changes_at_the_switch() -> None:
    check_compiled_forward_changes("aot_eager")


@pytest.mark.slow  # the first graph of a process takes inductor half a minute
@pytest.mark.usefixtures("no_compiled_code")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method:DeprecationWarning")
def test_compiled_forward_changes_at_the_switch_with_inductor() -> None:
    check_compiled_forward_changes("inductor")


def test_autocast_keeps_no_casts_of_other_weights() -> None:
    model = Net()
    qat = switched(LateQAT(model, recipe_of(), start=NOW))
    with torch.autocast("cpu", torch.bfloat16):
        first = loss_of(model).item()
        with qat.quantized():
            within = loss_of(model).item()
        last = loss_of(model).item()
    assert within != first == last


# -- the switch ----------------------------------------------------------------------------------


def first_step(start: Start, rates: list[float]) -> int | None:
    qat = LateQAT(Net(), recipe_of(), start=start)
    on = [
        step
        for step, rate in enumerate(rates)
        if qat.on_step(step, step / len(rates), rate) or qat.on_step(step, step / len(rates), rate)
    ]
    assert len(on) <= 1
    assert qat.active is bool(on)
    return on[0] if on else None


WARMDOWN = [0.05, 0.1, 0.5, 1.0, 1.0, 0.6, 0.2, 0.15, 0.1, 0.05]


@pytest.mark.parametrize(
    ("start", "step"),
    [
        (Start(lr_scale=0.15), 8),
        (Start(lr_scale=0.01), None),
        (Start(progress=0.45), 5),
        (Start(progress=0.0), 0),
        (Start(step=3), 3),
        (Start(step=99), None),
        (Start(step=7, progress=0.6, lr_scale=0.15), 6),
    ],
)
def test_start_at_the_first_condition_and_once(start: Start, step: int | None) -> None:
    assert first_step(start, WARMDOWN) == step


def test_a_rate_that_was_always_small_has_not_fallen() -> None:
    assert first_step(Start(lr_scale=0.15), [0.1] * 5) is None
    assert first_step(Start(lr_scale=0.15), [0.1, 0.1, 0.09]) == 2


def test_nothing_happens_before_the_switch() -> None:
    model = Net()
    qat = LateQAT(model, recipe_of(), start=Start(step=5))
    before = values_of(model)
    with qat.quantized():
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert not qat.active


def test_starts_that_are_none() -> None:
    with pytest.raises(ConfigError, match="no start"):
        Start()
    with pytest.raises(ConfigError) as caught:
        Start(lr_scale=0.0, progress=1.5, step=-1)
    assert len(caught.value.items) == 3
    with pytest.raises(ConfigError, match="soft_rounding"):
        LateQAT(Net(), recipe_of(), start=NOW, soft_rounding=(0.0, 16.0))


# -- putting things back -------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [None, (2.0, 2.0)])
def test_an_exception_leaves_everything_as_it_was(soft: tuple[float, float] | None) -> None:
    model = Net()
    qat = switched(LateQAT(model, recipe_of(), match=("re:.*",), start=NOW, soft_rounding=soft))
    before = values_of(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(ZeroDivisionError), qat.quantized():
        assert not torch.equal(model.up.weight, before["up.weight"])
        raise ZeroDivisionError
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(torch.equal(g, torch.ones_like(g)) for g in gradients_of(model).values())
    with qat.quantized():  # and it can be entered again
        assert not torch.equal(model.up.weight, before["up.weight"])


def test_nesting_is_refused() -> None:
    model = Net()
    for start in (NOW, Start(step=9)):
        qat = LateQAT(model, recipe_of(), start=start)
        qat.on_step(0, 0.0, 1.0)
        before = values_of(model)
        with qat.quantized():
            with pytest.raises(RuntimeError, match="quantized already"), qat.quantized():
                pass
            with pytest.raises(RuntimeError, match="within"):
                qat.on_step(1, 0.1, 1.0)
            with pytest.raises(RuntimeError, match="within"):
                qat.mean_error()
            with pytest.raises(RuntimeError, match="within"):
                qat.load_state_tensors({})
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_backward_outside_is_an_error_and_no_wrong_gradient() -> None:
    model = Net()
    qat = switched(LateQAT(model, recipe_of(), start=NOW))
    with qat.quantized():
        loss = loss_of(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_optimizer_inside_is_an_error() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    qat = switched(LateQAT(model, recipe_of(), start=NOW))
    before = values_of(model)
    said = r"step the optimizer outside \(down.weight, up.weight"
    with pytest.raises(RuntimeError, match=said), qat.quantized():
        loss_of(model).backward()
        optimizer.step()
    assert torch.equal(model.up.weight, before["up.weight"])


def test_replaced_parameters_are_found_by_name() -> None:
    model = Net()
    qat = switched(LateQAT(model, recipe_of(), start=NOW))
    rounded(qat, model)
    model.load_state_dict(
        {n: 2 * p for n, p in values_of(model).items()}
        | {"head.weight": 2 * model.head.weight.detach()},
        assign=True,
    )
    before = model.up.weight.detach().clone()
    assert torch.equal(rounded(qat, model), exported(model, recipe_of())["up.weight"])
    assert not torch.equal(rounded(qat, model), before)
