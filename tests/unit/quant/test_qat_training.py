"""Late QAT in training: gradients, steps that follow the weights, whole loops, resuming."""

import pytest
import torch
from torch import Tensor, nn

from qpack.errors import CheckpointError
from qpack.quant.calibrate import collect
from qpack.quant.candidates import step_candidates
from qpack.quant.grid import step_values
from qpack.quant.plan import make_plan
from qpack.quant.qat import ALL, LateQAT, Start
from qpack.quant.statistics import Statistics
from qpack.recipe import builtin_recipe

from .qat_net import (
    NOW,
    RULES,
    Net,
    exported,
    gradients_of,
    loss_of,
    recipe_of,
    rounded,
    some_tokens,
    switched,
    values_of,
)

# -- the gradient --------------------------------------------------------------------------------


def test_gradient_is_that_at_the_quantized_point() -> None:
    model, other = Net(), Net()
    expected = exported(model, recipe_of())
    with torch.no_grad():
        for name in ("up.weight", "down.weight"):
            other.get_parameter(name).copy_(expected[name])
    qat = switched(LateQAT(model, recipe_of(), start=NOW))
    with qat.quantized():
        loss_of(model).backward()
    loss_of(other).backward()
    ours, theirs = gradients_of(model), gradients_of(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_gradients_accumulate_within_and_over_contexts() -> None:
    model = Net()
    qat = switched(LateQAT(model, recipe_of(), match=("re:.*",), start=NOW))
    with qat.quantized():
        loss_of(model, 1).backward()
    one = gradients_of(model)
    with qat.quantized():
        loss_of(model, 1).backward()
        loss_of(model, 1).backward()
    assert all(torch.allclose(g, 3 * one[name]) for name, g in gradients_of(model).items())


SOFT_RULE = 'bits = 4\nscale = "sigma"\nk = 5.0'


def soft_by_hand(W: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """(Q(W), its steps) of `SOFT_RULE` in float64."""
    exact = W.std(dim=1, correction=0) * 5 / 7
    steps = torch.exp2((torch.log2(exact) * 16).round() / 16)
    return soft_at(W, steps, alpha), steps


def soft_at(W: Tensor, steps: Tensor, alpha: float) -> Tensor:
    u = (W / steps[:, None]).clamp(-7, 7)
    r = u - u.floor() - 0.5
    half = torch.tensor(alpha / 2).double()
    return (u.floor() + 0.5 + 0.5 * torch.tanh(alpha * r) / torch.tanh(half)) * steps[:, None]


@pytest.mark.parametrize("alpha", [1.0, 6.0])
def test_soft_gradient_by_finite_differences(alpha: float) -> None:
    """The steps are constants of the gradient, so the differences are taken at fixed steps."""
    model, other = Net().double(), Net().double().requires_grad_(False)
    soft = (alpha, alpha)
    recipe = recipe_of(SOFT_RULE)
    qat = switched(LateQAT(model, recipe, match=("up.weight",), start=NOW, soft_rounding=soft))
    W = model.up.weight.detach().clone()
    expected, steps = soft_by_hand(W, alpha)
    with qat.quantized():
        assert torch.allclose(model.up.weight, expected, atol=1e-5)
        loss_of(model).backward()
    gradient = model.up.weight.grad
    assert gradient is not None

    def at(W: Tensor) -> float:
        other.up.weight.copy_(soft_at(W, steps, alpha))
        return float(loss_of(other))

    for row, col in [(0, 0), (3, 17), (20, 5), (47, 31), (11, 2)]:
        nudge = torch.zeros_like(W)
        nudge[row, col] = 1e-6
        difference = (at(W + nudge) - at(W - nudge)) / 2e-6
        assert float(gradient[row, col]) == pytest.approx(difference, rel=1e-3, abs=1e-7)


def test_soft_gradients_are_kept_apart_from_earlier_ones() -> None:
    model = Net()
    soft = {"start": NOW, "soft_rounding": (3.0, 3.0), "match": ("re:.*",)}
    qat = switched(LateQAT(model, recipe_of(), **soft))  # type: ignore[arg-type]
    with qat.quantized():
        loss_of(model, 1).backward()
    one = gradients_of(model)
    assert one["table.weight"].abs().sum() > 0
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    places = {name: p.grad for name, p in model.named_parameters()}
    with qat.quantized():
        loss_of(model, 1).backward()
        loss_of(model, 1).backward()
    for name, gradient in gradients_of(model).items():
        assert torch.allclose(gradient, 1 + 2 * one[name], atol=1e-6)
        assert model.get_parameter(name).grad is places[name]
    with qat.quantized():
        pass
    for name, gradient in gradients_of(model).items():
        assert torch.allclose(gradient, 1 + 2 * one[name], atol=1e-6)


def test_sharpness_goes_from_one_end_to_the_other_over_the_rest() -> None:
    model = Net()
    start = Start(progress=0.5)
    qat = LateQAT(model, recipe_of(SOFT_RULE), start=start, soft_rounding=(1.0, 16.0))
    seen = []
    for step in range(11):
        qat.on_step(step, step / 10, 1.0)
        seen.append(qat.alpha)
        W = model.up.weight.detach().double()
        with qat.quantized():
            within = model.up.weight.detach().double()
        if step >= 5:
            assert torch.allclose(within, soft_by_hand(W, float(seen[-1] or 0))[0], atol=1e-5)
    assert seen[5:] == pytest.approx([1.0, 4.0, 7.0, 10.0, 13.0, 16.0])
    assert LateQAT(model, recipe_of(), start=start).alpha is None


# -- steps and percentiles -----------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["absmax", "sigma"])
def test_steps_follow_the_weights(rule: str) -> None:
    model = Net()
    recipe = recipe_of(RULES[rule])
    qat = switched(LateQAT(model, recipe, start=NOW))
    rounded(qat, model)
    with torch.no_grad():
        model.up.weight.mul_(torch.linspace(0.1, 3, 32))
    assert torch.equal(rounded(qat, model), exported(model, recipe)["up.weight"])


def test_percentiles_are_chosen_at_the_switch_and_frozen() -> None:
    recipe = recipe_of('qmax = 3\nscale = "percentile"')
    model = nn.Sequential(nn.Linear(900, 24, bias=False))
    W = model[0].weight.requires_grad_(False)
    W.copy_(torch.randn(24, 900, generator=torch.Generator().manual_seed(0)))
    W[:12, 0] = 9.0  # worth cutting
    W[12:].clamp_(-2, 2).round_()[:, 0] = 3.0  # on the grid if it is not cut
    qat = switched(LateQAT(model, recipe, start=NOW))
    choice = qat.state_tensors()["percentile.0.weight"]
    assert len(choice[:12].unique()) == len(choice[12:].unique()) == 1 != len(choice.unique())
    W.copy_(W.flip(0) * 2)
    rule = make_plan({"0.weight": W}, {"0.weight": "matrix"}, {}, recipe).tensors[0].rule
    candidates = torch.stack([step_values(codes, 64) for codes in step_candidates(W, rule)])
    steps = candidates.gather(0, choice.long()[None])[0][:, None]
    expected = (W / steps).round().clamp(-3, 3) * steps
    with qat.quantized():
        assert torch.equal(W, expected)
    assert not torch.equal(expected, exported(model, recipe)["0.weight"])
    assert torch.equal(qat.state_tensors()["percentile.0.weight"], choice)


def test_statistics_are_collected_at_the_switch_and_only_if_needed() -> None:
    calls = []

    def collected() -> Statistics:
        calls.append(1)
        return collect(model, [some_tokens()], fingerprint="f")

    model = Net()
    plain = LateQAT(model, recipe_of(), start=NOW, statistics=collected)
    switched(plain)
    assert calls == []
    recipe = recipe_of('qmax = 2\nscale = "percentile"')
    qat = LateQAT(model, recipe, start=Start(step=1), statistics=collected)
    qat.on_step(0, 0.0, 1.0)
    assert calls == []
    switched(qat, 1)
    with qat.quantized():
        pass
    assert calls == [1]
    free = switched(LateQAT(model, recipe, start=NOW))
    key = "percentile.down.weight"
    assert not torch.equal(qat.state_tensors()[key], free.state_tensors()[key])


# -- a whole loop, its record and its state ------------------------------------------------------


def test_mean_error_is_that_of_the_values() -> None:
    model = Net()
    qat = LateQAT(model, recipe_of(RULES["percentile"]), match=("re:.*",), start=NOW)
    before = qat.mean_error()
    switched(qat)
    found, w = qat.mean_error(), values_of(model)
    assert found == before
    with qat.quantized():
        Q = values_of(model)
    assert list(found) == ["down.weight", "table.weight", "up.weight", ALL]
    errors = {name: (w[name] - Q[name]).abs().double() for name in qat.names}
    for name, error in errors.items():
        assert found[name] == pytest.approx(float(error.mean()), rel=1e-6)
    every = torch.cat([error.flatten() for error in errors.values()])
    assert found[ALL] == pytest.approx(float(every.mean()), rel=1e-6)


def trained(qat_from: int | None, *, steps: int = 60) -> tuple[Net, list[float]]:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    recipe = recipe_of('bits = 2\nscale = "sigma"\nk = 1.5')
    start = Start(step=steps if qat_from is None else qat_from)
    qat = LateQAT(model, recipe, start=start)
    losses = []
    for step in range(steps):
        qat.on_step(step, step / steps, 1.0)
        with qat.quantized():
            loss = loss_of(model)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        for name, Q in exported(model, recipe).items():
            if name != "table.weight":
                model.get_parameter(name).copy_(Q)
    return model, losses


def test_a_plain_loop_learns_weights_that_survive_rounding() -> None:
    (with_qat, losses), (without, plain) = trained(30), trained(None)
    assert losses[:30] == plain[:30]
    assert losses[30] > losses[29]
    assert loss_of(with_qat).item() < 0.85 * loss_of(without).item()


@pytest.mark.parametrize("rule", ["sigma", "percentile"])
def test_a_resumed_run_goes_on_to_the_bit(rule: str) -> None:
    recipe = recipe_of(RULES[rule])

    def fresh(model: Net) -> LateQAT:
        return LateQAT(model, recipe, start=Start(lr_scale=0.5), soft_rounding=(1.0, 16.0))

    rates = [1.0, 0.8, 0.4, 0.3, 0.2, 0.1]
    for stop in range(1, len(rates)):
        results = []
        for resumed in (False, True):
            model = Net()
            qat = fresh(model)
            for step, rate in enumerate(rates):
                if step == stop and resumed:
                    state = qat.state_tensors()
                    qat = fresh(model)
                    qat.load_state_tensors({name: t.clone() for name, t in state.items()})
                qat.on_step(step, step / 6, rate)
                with qat.quantized():
                    loss_of(model).backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.sub_(0.1 * parameter.grad)  # type: ignore[operator]
                        parameter.grad = None
            results.append(values_of(model))
        assert all(torch.equal(results[0][name], w) for name, w in results[1].items())


def test_state_that_does_not_fit_is_refused() -> None:
    recipe = recipe_of(RULES["percentile"])
    qat = switched(LateQAT(Net(), recipe, start=NOW))
    state = qat.state_tensors()
    with pytest.raises(CheckpointError) as caught:
        qat.load_state_tensors({})
    assert caught.value.items == ("active: missing", "numbers: missing")
    wrong = {**state, "percentile.up.weight": torch.zeros(3)}
    del wrong["percentile.down.weight"]
    with pytest.raises(CheckpointError) as caught:
        qat.load_state_tensors(wrong)
    assert [item.partition(":")[0] for item in caught.value.items] == [
        "percentile.down.weight",
        "percentile.up.weight",
    ]


def test_global_random_state_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    model = nn.Linear(16, 16)
    torch.random.set_rng_state(state)
    qat = switched(LateQAT(model, builtin_recipe("record"), start=NOW))
    with qat.quantized():
        pass
    assert torch.equal(torch.random.get_rng_state(), state)
