from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qpack.trainer import loss
from qpack.trainer.loss import IGNORED, nll_sum, reduce_reference

TOKENS, WIDTH, VOCAB = 50, 12, 37


def parts(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype)
    weight = 9 * torch.randn(VOCAB, WIDTH, generator=generator)
    targets = torch.randint(VOCAB, (TOKENS,), generator=generator)
    targets[3] = IGNORED
    weights = torch.rand(TOKENS, generator=generator)
    if dtype == torch.float64:
        weight, weights = weight.double(), weights.double()
    return features.requires_grad_(), weight.requires_grad_(), targets, weights


def plain(features: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, cap: float) -> Tensor:
    """The formula with torch's own parts, float64."""
    logits = features.double() @ weight.double().T
    logits = cap * torch.tanh(logits / cap) if cap else logits
    nll = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    return (nll * weights).sum()


@pytest.mark.parametrize("cap", [0.0, 30.0, 2.5])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("block", [VOCAB, 7 * VOCAB, 1 << 21], ids=["one row", "seven", "all"])
def test_value_and_gradients_are_the_formulas(
    cap: float, weighted: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss.BLOCK_ELEMENTS, "cpu", block)
    features, weight, targets, weights = parts(torch.float64)
    share = weights if weighted else torch.ones_like(weights)
    wanted = plain(features, weight, targets, share, cap)
    expected = torch.autograd.grad(wanted, (features, weight))
    got = nll_sum(features, weight, targets, softcap=cap, weights=weights if weighted else None)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-6)
    found = torch.autograd.grad(3.0 * got, (features, weight))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, 3.0 * theirs, rtol=1e-9, atol=1e-9)


def test_bfloat16_features_are_near_and_the_weight_gradient_is_float32() -> None:
    features, weight, targets, weights = parts(torch.bfloat16)
    wanted = plain(features, weight, targets, weights, 30.0)
    expected = torch.autograd.grad(wanted, (features, weight))
    got = nll_sum(features, weight, targets, softcap=30.0, weights=weights)
    found = torch.autograd.grad(got, (features, weight))
    assert (found[0].dtype, found[1].dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-2, atol=0)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


def test_an_ignored_target_neither_counts_nor_pulls() -> None:
    features, weight, targets, _ = parts(torch.float64)
    nll_sum(features, weight, targets, softcap=30.0).backward()
    assert features.grad is not None
    assert (features.grad[3] == 0).all()
    assert (features.grad[4] != 0).any()


def test_it_is_one_operator_of_a_compiled_graph() -> None:
    features, weight, targets, _ = parts(torch.float64)

    def run(features: Tensor, weight: Tensor) -> Tensor:
        return nll_sum(2 * features, weight, targets, softcap=30.0)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(run(features, weight), (features, weight))
    found = torch.autograd.grad(compiled(features, weight), (features, weight))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", [1_024, 8_192, 1_000, 20_000])
@pytest.mark.parametrize("cap", [0.0, 30.0])
def test_the_kernel_is_the_reference(vocab_size: int, cap: float) -> None:
    from qpack.trainer.loss_kernel import reduce_block

    generator = torch.Generator("cuda").manual_seed(0)
    logits = 20 * torch.randn(300, vocab_size, generator=generator, device="cuda")
    targets = torch.randint(vocab_size, (300,), generator=generator, device="cuda")
    targets[5] = IGNORED
    # Of bfloat16, two steps: the two round to its neighbours where they differ in the last bits.
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2**-6)):
        for weights in (None, torch.rand(300, generator=generator, device="cuda")):
            mine, theirs = (logits.to(dtype, copy=True) for _ in range(2))
            got = reduce_block(mine, targets, weights, cap)
            wanted = reduce_reference(theirs, targets, weights, cap)
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-3)
            torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=1e-5)
