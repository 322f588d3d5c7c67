"""Tuning lowers what it measures, never makes it worse, and gives the same bytes again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from qpack.errors import CalibrationError, ConfigError
from qpack.quant import tune as module
from qpack.quant.tune import Tuning, tune
from qpack.tensors import Contents, QuantizedTensor
from qpack.torch_tensors import to_raw, to_torch

from .tune_nets import Net, coarse, token_batches


def tuning(model: nn.Module, **changes: object) -> Tuning:
    given = Tuning(
        model=model,
        batches=token_batches(4, seed=1),
        held_out=token_batches(2, seed=2),
        steps=24,
    )
    return replace(given, **changes)  # type: ignore[arg-type]


def stored_bytes(contents: Contents) -> list[bytes]:
    return [to_torch(tensor).numpy().tobytes() for tensor in contents.tensors]


def kl_of(model: Net, contents: Contents, batches: list[Tensor]) -> float:
    other = Net()
    other.load_state_dict({t.name: to_torch(t) for t in contents.tensors}, strict=False)
    with torch.no_grad():
        p, q = (torch.cat([m(batch) for batch in batches]).log_softmax(-1) for m in (model, other))
    kl: Tensor = (p.exp() * (p - q)).sum(-1).mean()
    return float(kl)


@pytest.fixture(scope="module")
def net() -> Net:
    return Net()


def test_the_distance_falls_and_is_that_of_the_stored_contents(net: Net) -> None:
    given = coarse(net)
    tuned = tune(given, tuning(net))
    assert tuned.after < 0.7 * tuned.before
    assert tuned.before == pytest.approx(kl_of(net, given, token_batches(2, seed=2)), rel=1e-4)
    assert tuned.after == pytest.approx(kl_of(net, tuned.contents, token_batches(2, 2)), rel=1e-4)
    assert tuned.after == min(value for _, value in tuned.measured)
    assert (tuned.steps, tuned.after) in tuned.measured
    unseen = token_batches(4, seed=3)
    assert kl_of(net, tuned.contents, unseen) < 0.8 * kl_of(net, given, unseen)


def test_integers_and_what_is_no_parameter_stay(net: Net) -> None:
    given = coarse(net)
    tuned = tune(given, tuning(net))
    for old, new in zip(given.tensors, tuned.contents.tensors, strict=True):
        if isinstance(old, QuantizedTensor):
            assert isinstance(new, QuantizedTensor) and new.integers is old.integers
        elif old.name == "calls":
            assert new is old
        else:
            assert new != old and to_torch(new).dtype == torch.float16


def test_the_same_again_is_the_same_bytes(net: Net) -> None:
    first, again = (tune(coarse(net), tuning(net)) for _ in range(2))
    assert stored_bytes(first.contents) == stored_bytes(again.contents)
    assert first.measured == again.measured
    other = tune(coarse(net), tuning(net, seed=1))
    assert stored_bytes(other.contents) != stored_bytes(first.contents)


def test_plain_outputs_are_tuned_by_their_squared_error() -> None:
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5))
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(32, 12, generator=generator) for _ in range(6)]
    given = coarse(model, qmax=2)
    tuned = tune(
        given,
        tuning(model, batches=batches[:4], held_out=batches[4:], likelihood="gaussian", steps=60),
    )
    assert tuned.after < 0.7 * tuned.before
    with torch.no_grad():
        y = torch.cat([model(batch) for batch in batches[4:]])
        model.load_state_dict({t.name: to_torch(t) for t in tuned.contents.tensors})
        error = (torch.cat([model(batch) for batch in batches[4:]]) - y).square().sum()
    assert tuned.after == pytest.approx(float(error / y.square().sum()), rel=1e-4)


def test_what_is_exact_is_returned_as_it_is(net: Net) -> None:
    exact = Contents(
        tensors=tuple(
            to_raw(name, t) for name, t in net.state_dict().items() if name[:4] != "head"
        ),
        aliases={"head.weight": "table.weight"},
        metadata={},
    )
    tuned = tune(exact, tuning(net, steps=3))
    assert tuned.contents is exact
    assert (tuned.steps, tuned.before, tuned.after) == (0, 0.0, 0.0)


def test_it_ends_early_where_nothing_gets_better(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([5.0, 4.0, 4.5, 4.25, 4.125, 0.0])
    monkeypatch.setattr(module, "held_out_divergence", lambda *_: next(values))
    tuned = tune(coarse(net), tuning(net, steps=80))
    assert (tuned.steps, tuned.before, tuned.after) == (10, 5.0, 4.0)
    assert [steps for steps, _ in tuned.measured] == [0, 10, 20, 30, 40]


def test_a_rate_that_makes_things_worse_gives_way(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tune(coarse(net), tuning(net))
    monkeypatch.setattr(module, "RATES", (5.0, *module.RATES))
    tuned = tune(coarse(net), tuning(net))
    assert tuned.contents != coarse(net)
    assert [steps for steps, _ in tuned.measured][:4] == [0, 3, 3, 6]
    assert tuned.measured[2:] == good.measured[1:], "the same as if it had never been tried"


def test_a_tuning_that_diverges_returns_what_it_was_given(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RATES", (1e4, 1e8))
    given = coarse(net)
    tuned = tune(given, tuning(net))
    assert tuned.contents is given and tuned.after == tuned.before


def test_the_model_is_left_as_it_was() -> None:
    net = Net().train()
    net.norm.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    tune(coarse(net), tuning(net, steps=2))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training and net.up.training and not net.norm.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_batches_of_many_tokens_are_cut(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: set[tuple[int, ...]] = set()
    monkeypatch.setattr(module, "PIECE_TOKENS", 64)
    hook = net.register_forward_pre_hook(lambda _, args: shapes.add(tuple(args[0].shape)))
    tune(coarse(net), tuning(net, steps=1))
    hook.remove()
    assert shapes == {(2, 32)}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"steps": 0}, ConfigError, "at least 1 step"),
        ({"likelihood": "poisson"}, ConfigError, "categorical, gaussian"),
        ({"batches": []}, CalibrationError, "no calibration batches"),
        ({"held_out": [torch.zeros(0, 4)]}, CalibrationError, "no held-out batches"),
    ],
)
def test_what_cannot_be_is_refused(
    net: Net, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tune(coarse(net), tuning(net, **changes))


@pytest.mark.gpu
def test_on_a_gpu_it_comes_to_the_same(net: Net) -> None:
    here, there = tune(coarse(net), tuning(net)), tune(coarse(net), tuning(Net().cuda()))
    assert there.before == pytest.approx(here.before, rel=1e-3)
    assert there.after == pytest.approx(here.after, rel=0.05)
