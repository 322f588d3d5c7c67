from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qpack.errors import CheckpointError
from qpack.trainer.average import Averages
from qpack.trainer.config import AverageSection


class Net(nn.Module):
    """Weights, a floating buffer, and a count that has no average."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3))
        self.gain = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def set_all(net: Net, value: float) -> None:
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.fill_(value)


def walk(averages: Averages, net: Net, steps: range, **scale: Any) -> list[float]:
    """Weights at these steps: wandering values, which are returned."""
    values = [float(np.sin(1.7 * step) * 10) for step in steps]
    for step, value in zip(steps, values, strict=True):
        set_all(net, value)
        averages.update(
            step=step, progress=step / 100, lr_scale=scale.get("lr_scale", 1.0 - step / 100)
        )
    return values


def value_of(tensors: dict[str, Tensor]) -> float:
    assert set(tensors) == {"weight", "gain", "mean", "count"}
    assert torch.equal(tensors["weight"], tensors["gain"].expand(2, 3))
    assert torch.equal(tensors["mean"], tensors["gain"].expand(2))
    return float(tensors["gain"])


@pytest.mark.parametrize("warmup", [False, True])
def test_ema_against_the_formula(warmup: bool) -> None:
    net = Net()
    averages = Averages(net, AverageSection(ema_decay=0.9, ema_warmup=warmup))
    want: float | None = None
    for t, value in enumerate(walk(averages, net, range(30))):
        decay = min(0.9, t / (t + 50)) if warmup else 0.9
        want = value if want is None else decay * want + (1 - decay) * value
    found = averages.candidates()
    assert value_of(found["ema"]) == pytest.approx(want, rel=1e-5)
    assert list(found) == ["last", "ema"]


def test_ema_of_a_constant_is_the_constant() -> None:
    net = Net()
    averages = Averages(net, AverageSection(ema_decay=0.997))
    set_all(net, 3.1)
    for step in range(50):
        averages.update(step=step, progress=0.0, lr_scale=1.0)
    assert value_of(averages.candidates()["ema"]) == pytest.approx(3.1, rel=1e-6)


@pytest.mark.parametrize("start", [{"ema_from": 0.2}, {"ema_from_step": 20}])
def test_ema_starts_late_with_the_weights_of_then(start: dict[str, Any]) -> None:
    net = Net()
    averages = Averages(net, AverageSection(ema_decay=0.9, **start))
    walk(averages, net, range(20))
    assert list(averages.candidates()) == ["last"]
    (first,) = walk(averages, net, range(20, 21))
    assert value_of(averages.candidates()["ema"]) == pytest.approx(first)
    (second,) = walk(averages, net, range(21, 22))
    want = 0.9 * first + 0.1 * second
    assert value_of(averages.candidates()["ema"]) == pytest.approx(want, rel=1e-5)


def test_swa_is_the_mean_of_every_nth_below_the_bound() -> None:
    net = Net()
    averages = Averages(net, AverageSection(swa_every=4, swa_below=0.85))
    values = walk(averages, net, range(40))
    # The factor of step s is 1 - s / 100: below .85 from step 16 on.
    want = np.mean([values[step] for step in range(16, 40) if (step + 1) % 4 == 0])
    assert value_of(averages.candidates()["swa"]) == pytest.approx(float(want), rel=1e-5)


def test_mixture() -> None:
    net = Net()
    section = AverageSection(ema_decay=0.9, swa_every=2, swa_below=1.0, ship="mixture", mix=0.3)
    averages = Averages(net, section)
    walk(averages, net, range(30))
    found = averages.candidates()
    assert list(found) == ["last", "ema", "swa", "mixture"]
    want = 0.3 * value_of(found["ema"]) + 0.7 * value_of(found["swa"])
    assert value_of(found["mixture"]) == pytest.approx(want, rel=1e-5)


def test_nothing_asked_for_is_nothing_kept() -> None:
    net = Net()
    averages = Averages(net, AverageSection())
    (value,) = walk(averages, net, range(1))
    assert value_of(averages.candidates()["last"]) == pytest.approx(value)
    assert set(averages.state_tensors()) == {"ema_updates", "swa_updates", "peak"}


def test_candidates_are_copies_in_the_models_dtype() -> None:
    """They are loaded into the model one after another, `last` perhaps after `ema`."""
    net = Net().bfloat16()
    averages = Averages(net, AverageSection(ema_decay=0.9))
    walk(averages, net, range(3))
    set_all(net, 7.0)
    found = averages.candidates()
    before = value_of(found["ema"])
    net.load_state_dict(found["ema"])
    assert value_of(found["last"]) == 7.0
    set_all(net, 100.0)
    assert value_of(found["ema"]) == before
    assert found["ema"]["weight"].dtype == torch.bfloat16
    assert averages.state_tensors()["ema.weight"].dtype == torch.float32


def test_going_on_is_bit_exact() -> None:
    section = AverageSection(ema_decay=0.9, ema_warmup=True, swa_every=3, swa_below=0.9)
    through, again = Net(), Net()
    first, second = Averages(through, section), Averages(again, section)
    walk(first, through, range(25))
    saved = first.state_tensors()
    walk(first, through, range(25, 50))
    second.load_state_tensors(saved)
    walk(second, again, range(25, 50))
    for name, tensor in first.state_tensors().items():
        assert torch.equal(tensor, second.state_tensors()[name])


def test_going_back_to_the_beginning() -> None:
    net = Net()
    averages = Averages(net, AverageSection(ema_decay=0.9))
    saved = averages.state_tensors()
    walk(averages, net, range(5))
    averages.load_state_tensors(saved)
    assert list(averages.candidates()) == ["last"]


def test_averages_of_another_model_are_refused_by_name() -> None:
    net = Net()
    averages = Averages(net, AverageSection(ema_decay=0.9))
    walk(averages, net, range(2))
    saved = averages.state_tensors()
    saved["ema.other"] = saved.pop("ema.gain")
    with pytest.raises(CheckpointError) as caught:
        averages.load_state_tensors(saved)
    assert caught.value.items == ("ema.gain: missing", "ema.other: unknown")


def test_weights_of_the_warm_up_are_in_no_swa() -> None:
    net = Net()
    averages = Averages(net, AverageSection(swa_every=1, swa_below=0.5))
    for step, scale in enumerate((0.2, 0.4, 1.0, 1.0, 0.4)):
        averages.update(step=step, progress=step / 5, lr_scale=scale)
    assert int(averages.state_tensors()["swa_updates"]) == 1
