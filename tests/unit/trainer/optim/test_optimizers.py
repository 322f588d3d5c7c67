from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qpack.errors import CheckpointError
from qpack.trainer.config import OptimSection
from qpack.trainer.model.gpt import GPT, build
from qpack.trainer.model.init import initialize
from qpack.trainer.optim.optimizers import Optimizers

MODEL: dict[str, Any] = {
    "vocab_size": 40,
    "num_layers": 2,
    "model_dim": 16,
    "num_heads": 2,
    "num_kv_heads": 1,
    "bigram_vocab_size": 32,
    "bigram_dim": 8,
    "tie_embeddings": False,
}
SECTION: dict[str, Any] = {
    "matrix_lr": 0.02,
    "embedding_lr": 0.03,
    "head_lr": 0.004,
    "scalar_lr": 0.05,
    "matrix_decay": 0.1,
    "embedding_decay": 0.2,
    "momentum_warmup_steps": 4,
}


def model() -> GPT:
    made = build(MODEL)
    initialize(made, torch.Generator().manual_seed(0))
    return made


def section(**changes: Any) -> OptimSection:
    return OptimSection(**{**SECTION, **changes})


def set_gradients(of: GPT, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in of.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def weights(of: GPT) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in of.named_parameters()}


def test_rates_decays_and_momentum_follow_the_step() -> None:
    made = model()
    optimizers = Optimizers(made, section())
    set_gradients(made, 0)
    optimizers.step(lr_scale=0.5, step=2)
    got = [(group["lr"], group["weight_decay"]) for group in optimizers.param_groups]
    assert got == [(0.01, 0.1), (0.015, 0.2), (0.002, 0.0), (0.025, 0.0)]
    assert optimizers.param_groups[0]["momentum"] == pytest.approx(0.90)
    set_gradients(made, 1)
    optimizers.step(lr_scale=0.25, step=9)
    assert optimizers.param_groups[0]["lr"] == 0.005
    assert optimizers.param_groups[0]["momentum"] == 0.95


def test_gradients_are_used_up() -> None:
    made = model()
    optimizers = Optimizers(made, section())
    set_gradients(made, 0)
    optimizers.step(lr_scale=1.0, step=0)
    assert all(p.grad is None for p in made.parameters())


def test_every_parameter_moves_and_a_rate_of_zero_moves_none() -> None:
    made = model()
    optimizers = Optimizers(made, section())
    before = weights(made)
    set_gradients(made, 0)
    optimizers.step(lr_scale=0.0, step=0)
    assert all(torch.equal(t, before[name]) for name, t in weights(made).items())
    set_gradients(made, 1)
    optimizers.step(lr_scale=1.0, step=1)
    assert not any(torch.equal(t, before[name]) for name, t in weights(made).items())


@pytest.mark.parametrize("matrix", ["muon", "adamw"])
def test_clipping_is_by_the_global_norm_before_everything(matrix: str) -> None:
    """Two steps with gradients clipped beforehand are two steps that clip: the second shows how
    much the first counts in the momentum."""
    one, other = model(), model()
    clips = Optimizers(one, section(matrix=matrix, clip=0.3))
    plain = Optimizers(other, section(matrix=matrix, clip=0.0))
    for step, scale in enumerate((5.0, 1e-4)):
        set_gradients(one, step, scale)
        set_gradients(other, step, scale)
        want = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.3)
        torch.testing.assert_close(clips.step(lr_scale=1.0, step=step), want)
        plain.step(lr_scale=1.0, step=step)
    for name, tensor in weights(other).items():
        torch.testing.assert_close(weights(one)[name], tensor, rtol=1e-4, atol=1e-6)


def test_adamw_for_the_matrices() -> None:
    optimizers = Optimizers(model(), section(matrix="adamw"))
    assert optimizers.muon is None
    rates = [group["lr"] for group in optimizers.param_groups]
    assert rates == [0.03, 0.004, 0.02, 0.05]


@pytest.mark.parametrize("precondition", ["none", "mousse-diagonal", "mousse-kronecker"])
def test_going_on_is_bit_exact(precondition: str) -> None:
    options = section(precondition=precondition, normalize="rows")
    through = model()
    first = Optimizers(through, options)
    for step in range(5):
        set_gradients(through, step)
        first.step(lr_scale=1.0, step=step)
    saved = first.state_tensors()
    again = model()
    again.load_state_dict(weights(through))
    second = Optimizers(again, options)
    second.load_state_tensors(saved)
    for step in range(5, 12):
        for made, optimizers in ((through, first), (again, second)):
            set_gradients(made, step)
            optimizers.step(lr_scale=1.0, step=step)
    for name, tensor in weights(through).items():
        assert torch.equal(tensor, weights(again)[name])
    for name, tensor in first.state_tensors().items():
        assert torch.equal(tensor, second.state_tensors()[name])


def test_state_of_another_configuration_is_refused_by_name() -> None:
    saved = Optimizers(model(), section()).state_tensors()
    other = Optimizers(model(), section(precondition="mousse-diagonal"))
    lacking = dict(saved, extra=torch.zeros(()))
    del lacking["tok_emb.weight.exp_avg"]
    with pytest.raises(CheckpointError) as caught:
        other.load_state_tensors(lacking)
    assert "tok_emb.weight.exp_avg: missing" in caught.value.items
    assert "blocks.1.mlp.fc.weight.row_moment: missing" in caught.value.items
    assert caught.value.items[-1] == "extra: unknown"


def test_what_is_not_finite_is_not_hidden() -> None:
    for precondition in ("none", "mousse-diagonal", "mousse-kronecker"):
        made = model()
        optimizers = Optimizers(made, section(precondition=precondition))
        set_gradients(made, 0)
        weight = made.blocks[0].mlp.fc.weight  # type: ignore[union-attr]
        assert isinstance(weight.grad, Tensor)
        weight.grad[0, 0] = float("nan")
        assert optimizers.step(lr_scale=1.0, step=0).isnan()
        assert not bool(torch.isfinite(weight).all())
