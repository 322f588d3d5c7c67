"""What one step of test-time training is, and which weights it moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from qpack.errors import ConfigError, DataError
from qpack.eval import learner
from qpack.eval.adapt_settings import AdaptSettings
from qpack.eval.learner import Learner
from qpack.eval.lessons import IGNORED
from tests.unit.trainer.model.tiny import some_tokens, tiny


class Blocks(nn.Module):
    """All of its weights are in blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Embedding(37, 37)])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.blocks[0](tokens)
        return logits


def learn(model: nn.Module, *, rate: float = 1.0, times: int = 1, **changes: Any) -> Learner:
    """A learner after some lessons of three sequences."""
    usual = {"learning_rate": 0.1, "epochs": 1, "batch": 2}
    found = Learner(model, AdaptSettings(**{**usual, **changes}))
    tokens = some_tokens(3, 9)
    for _ in range(times):
        found.learn(tokens[:, :-1], tokens[:, 1:], rate)
    return found


def moved(found: Learner, model: nn.Module) -> set[str]:
    """Names of the weights that differ from the model's."""
    pairs = zip(found.model.named_parameters(), model.parameters(), strict=True)
    return {name for (name, after), before in pairs if not torch.equal(after, before)}


def test_a_step_is_sgd_with_momentum_on_the_clipped_mean(table_model: type[nn.Module]) -> None:
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = torch.tensor([[0, 1, 2], [3, 3, 0]])
    targets = torch.tensor([[1, 2, 4], [0, IGNORED, IGNORED]])
    settings = AdaptSettings(learning_rate=0.5, clip=0.1, momentum=0.9, epochs=2, batch=2)
    found = Learner(table_model(table.clone()), settings)
    found.learn(inputs, targets, 0.3)

    weights, velocity = table.clone(), torch.zeros_like(table)
    for _ in range(2):
        gradient = torch.zeros_like(table)
        for context, target in [(0, 1), (1, 2), (2, 4), (3, 0)]:
            gradient[context] += weights[context].softmax(0) / 4
            gradient[context, target] -= 1 / 4
        gradient *= min(1.0, 0.1 / (float(gradient.norm()) + 1e-6))
        velocity = 0.9 * velocity + gradient
        weights -= 0.5 * 0.3 * velocity
    torch.testing.assert_close(found.model.table.detach(), weights)


def test_frozen_blocks_do_not_move() -> None:
    model = tiny(layer_order=[0, 1, 2, 1, 2, 3, 4])
    everything = moved(learn(model), model)
    assert {name.split(".")[1] for name in everything if name.startswith("blocks.")} == set("01234")
    for change, frozen in [({"freeze_first": 2}, "01"), ({"freeze_recurrent": True}, "12")]:
        still = {
            name for name in everything if name.startswith(tuple(f"blocks.{i}." for i in frozen))
        }
        assert moved(learn(model, **change), model) == everything - still


def test_factors_scale_the_steps_of_blocks() -> None:
    model = tiny()
    scaled = learn(model, block_factors=(0.5, 1.0, 0.0, 1.0, 2.0), clip=0.0, batch=3).model
    plain = learn(model, clip=0.0, batch=3).model
    for i, factor in enumerate((0.5, 1.0, 0.0, 1.0, 2.0)):
        before, a, b = (m.blocks[i].attn.c_q.weight.detach() for m in (model, plain, scaled))
        torch.testing.assert_close(b - before, factor * (a - before))
    torch.testing.assert_close(scaled.tok_emb.weight, plain.tok_emb.weight)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_reset_restores_weights_and_optimiser(optimizer: str) -> None:
    model = tiny()
    found = learn(model, optimizer=optimizer, times=2)
    assert moved(found, model)
    found.reset()
    assert not moved(found, model)
    tokens = some_tokens(3, 9)
    found.learn(tokens[:, :-1], tokens[:, 1:], 1.0)
    for name, value in learn(model, optimizer=optimizer).model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value), name


def test_backward_passes_in_pieces_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    whole = learn(model, batch=3).model
    monkeypatch.setitem(learner.MICRO_TOKENS, "cpu", 8)
    pieces = learn(model, batch=3).model
    for a, b in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_bfloat16_is_near() -> None:
    model = tiny(dtype=torch.float32)
    exact, rough = learn(model).model, learn(model, precision="bfloat16").model
    step = exact.tok_emb.weight - model.tok_emb.weight
    error = rough.tok_emb.weight - exact.tok_emb.weight
    assert 0.0 < error.norm() < 0.5 * step.norm()


def test_divergence_is_an_error() -> None:
    model = tiny()
    with torch.no_grad():
        model.blocks[1].mlp_scale[0] = float("inf")
    with pytest.raises(DataError, match="not finite"):
        learn(model)


def test_settings_that_do_not_suit_the_model_are_named(table_model: type[nn.Module]) -> None:
    with pytest.raises(ConfigError) as caught:
        learn(tiny(), block_factors=(1.0,), freeze_first=6, freeze_recurrent=True)
    found = [item.partition(" ")[0].rstrip(":") for item in caught.value.items]
    assert found == ["block_factors", "freeze_first", "freeze_recurrent"]
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        learn(Blocks(), freeze_first=1)
    with pytest.raises(ConfigError, match=r"table: torch\.bfloat16"):
        learn(table_model(torch.zeros(37, 37, dtype=torch.bfloat16)))
