"""What tuning may change: its weights, its gradients against autograd's, and what is stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from qpack.quant import corrections
from qpack.quant.corrections import Corrections
from qpack.tensors import QuantizedTensor
from qpack.torch_tensors import to_torch

from .tune_nets import Net, coarse, token_batches


def run(net: Net, made: Corrections, tokens: Tensor) -> Tensor:
    weights, products = made.weights()
    with products:
        out: Tensor = functional_call(net, weights, (tokens,))
    return out


def plain(net: Net, made: Corrections, tokens: Tensor) -> Tensor:
    """The same by the formula, every weight differentiated by autograd."""
    contents = coarse(net)
    weights: dict[str, Tensor] = {}
    for tensor in contents.tensors:
        if not isinstance(tensor, QuantizedTensor):
            value = to_torch(tensor)
            if value.is_floating_point():
                value = value.float() + made.moves[f"values {tensor.name}"]
            weights[tensor.name] = value
            continue
        assert tensor.col_codes is not None
        leader = "up.weight" if tensor.name == "side.weight" else tensor.name
        rows = torch.from_numpy(tensor.row_codes / 16).float() + made.moves[f"rows {tensor.name}"]
        cols = torch.from_numpy(tensor.col_codes / 16).float() + made.moves[f"cols {leader}"]
        W = torch.from_numpy(tensor.integers).float() * 2 ** rows[:, None] * 2 ** cols[None, :]
        weights[tensor.name] = W.reshape(tensor.shape)
    weights |= {other: weights[name] for other, name in contents.aliases.items()}
    out: Tensor = functional_call(net, weights, (tokens,))
    return out


def test_without_offsets_the_weights_are_those_decoded() -> None:
    net = Net()
    contents = coarse(net)
    weights, _ = Corrections(contents, net).weights()
    assert set(weights) == set(net.state_dict())
    for tensor in contents.tensors:
        expected = to_torch(tensor).to(weights[tensor.name].dtype)
        torch.testing.assert_close(weights[tensor.name].detach(), expected, rtol=1e-6, atol=0)
    assert weights["head.weight"] is weights["table.weight"]


def test_gradients_are_those_of_autograd() -> None:
    """Tied table, shared columns, biases, a convolution; some products skip the gradient of W."""
    net, (tokens,) = Net(), token_batches(1, seed=0)
    made = Corrections(coarse(net), net)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for offset in made.moves.values():
            offset += 0.1 * torch.randn(offset.shape, generator=generator)
    outputs, gradients = [], []
    for way in (run, plain):
        output = way(net, made, tokens)
        (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum().backward()
        outputs.append(output.detach())
        gradients.append({key: offset.grad for key, offset in made.moves.items()})
        for offset in made.moves.values():
            offset.grad = None
    torch.testing.assert_close(outputs[0], outputs[1])
    for key, expected in gradients[1].items():
        assert expected is not None and bool(expected.abs().max() > 0), key
        torch.testing.assert_close(gradients[0][key], expected, rtol=1e-4, atol=1e-4)


def test_products_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """up, side, down and the tied head; the convolution and the lookup are not products."""
    seen: list[tuple[int, ...]] = []
    apply = corrections._Linear.apply

    def counted(x: Tensor, W: Tensor, *steps: Tensor) -> Tensor:
        seen.append(tuple(W.shape))
        out: Tensor = apply(x, W, *steps)
        return out

    monkeypatch.setattr(corrections._Linear, "apply", counted)
    net, (tokens,) = Net(), token_batches(1, seed=0)
    run(net, Corrections(coarse(net), net), tokens)
    assert seen == [(32, 16), (32, 16), (16, 32), (24, 16)]


def test_columns_that_are_equal_stay_equal() -> None:
    net = Net()
    made = Corrections(coarse(net), net)
    columns = [key for key in made.moves if key.startswith("cols ")]
    assert sorted(columns) == [
        "cols conv.weight", "cols down.weight", "cols table.weight", "cols up.weight",
    ]  # fmt: skip
    with torch.no_grad():
        made.moves["cols up.weight"].add_(torch.linspace(-1, 1, 16))
    stored = {t.name: t for t in made.rounded().tensors if isinstance(t, QuantizedTensor)}
    up, side = stored["up.weight"].col_codes, stored["side.weight"].col_codes
    assert up is not None and side is not None
    assert np.array_equal(up, side)
    before = next(t for t in coarse(net).tensors if t.name == "up.weight")
    assert isinstance(before, QuantizedTensor) and before.col_codes is not None
    assert not np.array_equal(up, 4 * before.col_codes)


@pytest.mark.parametrize("columns", [False, True])
def test_rounding_nothing_changes_no_bit(columns: bool) -> None:
    net = Net()
    contents = coarse(net, columns=columns)
    same = Corrections(contents, net).rounded()
    for old, new in zip(contents.tensors, same.tensors, strict=True):
        if isinstance(new, QuantizedTensor):
            assert new.octave == 64
            assert isinstance(old, QuantizedTensor) and new.integers is old.integers
        assert torch.equal(to_torch(new), to_torch(old))
        assert type(new) is type(old) and to_torch(new).dtype == to_torch(old).dtype
    assert same.aliases == contents.aliases


def test_steps_are_rounded_to_a_64th_of_an_octave_and_stay_representable() -> None:
    net = Net()
    contents = coarse(net)
    extreme = [
        replace(t, row_codes=np.full_like(t.row_codes, 128 * 16 - 1), octave=16)
        if t.name == "down.weight" and isinstance(t, QuantizedTensor)
        else t
        for t in contents.tensors
    ]
    made = Corrections(replace(contents, tensors=tuple(extreme)), net)
    with torch.no_grad():
        made.moves["rows up.weight"] += 0.37
        made.moves["rows down.weight"] += 5.0
    stored = {t.name: t for t in made.rounded().tensors if isinstance(t, QuantizedTensor)}
    old = next(t for t in contents.tensors if t.name == "up.weight")
    assert isinstance(old, QuantizedTensor)
    assert np.array_equal(stored["up.weight"].row_codes, 4 * old.row_codes + 24)  # 0.37 * 64
    assert set(stored["down.weight"].row_codes.tolist()) == {128 * 64 - 1}


def test_offsets_are_scaled_moves() -> None:
    net = Net()
    made = Corrections(coarse(net), net)
    assert not any(offset.any() for offset in made.offsets().values())
    made.scales["rows up.weight"] = torch.linspace(0, 1, 32)
    with torch.no_grad():
        made.moves["rows up.weight"] += 2.0
    moved = made.offsets()["rows up.weight"].detach()
    torch.testing.assert_close(moved, 2.0 * torch.linspace(0, 1, 32))
    assert made.are_finite
    with torch.no_grad():
        made.moves["values norm.bias"][3] = torch.nan
    assert not made.are_finite


def test_a_model_in_bfloat16_gets_weights_in_bfloat16() -> None:
    net, (tokens,) = Net().bfloat16(), token_batches(1, seed=0)
    made = Corrections(coarse(net.float()), net.bfloat16())
    output = run(net, made, tokens)
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert all(offset.grad is not None for offset in made.moves.values())
