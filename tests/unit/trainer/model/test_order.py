"""Depth recurrence: the orders of techniques.md 1.8, their halves, and switching between them."""

from __future__ import annotations

import pytest
import torch

from qpack.trainer.model.config import GPTConfig

from . import reference
from .tiny import CONFIG, some_tokens, tiny
from .variants import RECUR

FIXED = [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 10]
LOOPED = [0, 1, 2, 3, 4, 5, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize(
    ("order", "steps", "skips"), [(None, 11, 5), (FIXED, 13, 6), (LOOPED, 17, 8)]
)
def test_skip_weights_are_there_for_the_virtual_order(
    order: list[int] | None, steps: int, skips: int
) -> None:
    config = GPTConfig.from_mapping({**CONFIG, "num_layers": 11, "layer_order": order})
    assert len(config.virtual_order) == steps
    assert config.num_skips == skips


def visited(order: list[int]) -> tuple[list[int], list[int]]:
    """Blocks that ran before the first skip came back, and after."""
    model = tiny(num_layers=11, layer_order=order)
    halves: tuple[list[int], list[int]] = ([], [])
    joined = []
    skip = model.add_skip
    model.add_skip = lambda *args: joined.append(1) or skip(*args)
    for index, block in enumerate(model.blocks):
        block.register_forward_pre_hook(
            lambda *_, index=index: halves[bool(joined)].append(index)  # type: ignore[misc]
        )
    model(some_tokens(1, 3))
    return halves


def test_the_halves_of_the_three_layer_loop_are_those_of_the_document() -> None:
    encoder, decoder = visited(LOOPED)
    assert encoder == [0, 1, 2, 3, 4, 5, 3, 4]
    assert decoder == [5, 3, 4, 5, 6, 7, 8, 9, 10]


def test_the_halves_of_the_fixed_order() -> None:
    assert visited(FIXED) == ([0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9, 10])


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [0, 1, 2, 1, 2, 3, 4], [4, 0, 0], [2]])
def test_a_switched_order_is_computed_as_if_configured(order: list[int]) -> None:
    """With the first skip weights, where it is shorter."""
    model = tiny(**RECUR)
    tokens = some_tokens(1, 6)
    model.set_layer_order(order)
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    config = model.config.model_dump(mode="json") | {"layer_order": order}
    expected = torch.from_numpy(reference.forward(weights, tokens[0].tolist(), config))
    torch.testing.assert_close(model(tokens)[0], expected.float(), rtol=5e-5, atol=5e-5)


def test_none_is_the_configurations_order() -> None:
    model = tiny(**RECUR)
    tokens = some_tokens(1, 6)
    with torch.no_grad():
        whole = model(tokens)
        model.set_layer_order([0, 1, 2, 3, 4])
        assert (model(tokens) != whole).any()
        model.set_layer_order(None)
        assert torch.equal(model(tokens), whole)
    assert model.layer_order == tuple(RECUR["layer_order"])


def test_the_ln_scale_of_a_repeated_block_is_that_of_its_index() -> None:
    model = tiny(ln_scale=True, **RECUR)
    scales = [1.0, 2**-0.5, 3**-0.5, 4**-0.5, 5**-0.5]
    assert [block.ln_scale.item() for block in model.blocks] == pytest.approx(scales)
    assert not any("ln_scale" in name for name in model.state_dict())
