"""The kernel of a GPU finds the integers that the processor finds, to the last bit."""

import pytest
import torch

from qpack.quant.tcq import round_column
from qpack.trellis import STATES

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("bounds", [(0,), (0, 1, 700)])
@pytest.mark.parametrize("states", STATES)
def test_cuda_equals_the_cpu(states: int, bounds: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(states)
    u = 2.5 * torch.randn(5, 2000, generator=generator)
    shrink = 0.1 * torch.rand(5, 2000, generator=generator)
    here = torch.randint(states, (5, len(bounds)), generator=generator, dtype=torch.int32)
    at = here.cuda()
    there = round_column(u.cuda(), shrink.cuda(), bounds, states, at)
    assert torch.equal(there.cpu(), round_column(u, shrink, bounds, states, here))
    assert torch.equal(at.cpu(), here)


@pytest.mark.parametrize(("scale", "pull"), [(0.0, 0.1), (1e-3, 0.0), (1e4, 0.0), (1.0, 1e6)])
def test_cuda_equals_the_cpu_for_weights_of_any_size(scale: float, pull: float) -> None:
    u = scale * torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    shrink = torch.full_like(u, pull)
    there = round_column(u.cuda(), shrink.cuda(), (0, 499), 8)
    assert torch.equal(there.cpu(), round_column(u, shrink, (0, 499), 8))


def test_no_rows_and_no_matrices_are_no_work() -> None:
    for shape in ((0, 7), (3, 0)):
        nothing = torch.zeros(shape, device="cuda")
        assert round_column(nothing, nothing, (0,), 8).shape == shape
