"""Second moments of output gradients: what runs hold, and what errors cost by them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qpack.quant import moments
from qpack.quant.calibrate import Sensing, collect
from qpack.quant.fisher import _gradient
from qpack.quant.moments import add_moments, empty_moments, joint_cost, run_slices


def test_runs_cover_all_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "RUN_ROWS", 4)
    for rows in (1, 3, 4, 5, 8, 11):
        covered = [row for run in run_slices(rows) for row in range(run.start, run.stop)]
        assert covered == list(range(rows))
        assert (
            len(run_slices(rows))
            == moments.num_runs(rows)
            == len(empty_moments(torch.zeros(1), rows))
        )


def test_each_run_is_a_diagonal_block_of_the_whole_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "RUN_ROWS", 4)
    g = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    found = empty_moments(g, 10)
    add_moments(found, g[:20])
    add_moments(found, g[20:])
    whole = g.T @ g
    for moment, run in zip(found, run_slices(10), strict=True):
        size = run.stop - run.start
        torch.testing.assert_close(moment[:size, :size], whole[run, run])
        assert not moment[size:].any() and not moment[:, size:].any()


def test_the_cost_of_an_error_is_the_double_sum_over_pairs_of_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(moments, "RUN_ROWS", 3)
    generator = torch.Generator().manual_seed(0)
    E, x = torch.randn(5, 4, generator=generator), torch.randn(30, 4, generator=generator)
    g = torch.randn(40, 5, generator=generator)
    G, H = empty_moments(g, 5), x.T @ x / 30
    add_moments(G, g / 40**0.5)
    whole = g.T @ g / 40
    expected = sum(
        float(whole[r, t] * (E[r] @ H @ E[t]))
        for r in range(5)
        for t in range(5)
        if r // 3 == t // 3
    )
    assert joint_cost(E, H, G) == pytest.approx(expected, rel=1e-5)


def test_calibration_gathers_them_of_all_weights_that_are_no_tables() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.twice = nn.Embedding(13, 8), nn.Linear(8, 8, bias=False)
            self.kept: list[torch.Tensor] = []

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            h = self.table(tokens)
            for _ in range(2):
                y = self.twice(h)
                if y.requires_grad:
                    y.retain_grad()
                    self.kept.append(y)
                h = h + torch.tanh(y)
            return nn.functional.linear(h, self.table.weight)

    model, tokens = Net(), torch.arange(24).reshape(4, 6) % 13
    found = collect(model, [tokens, tokens + 0], fingerprint="f", sensing=Sensing(seed=3))
    assert found.moments.keys() == {"twice.weight"}
    model.kept.clear()
    total = torch.zeros(8, 8)
    for index in range(2):
        y = model(tokens)
        generator = torch.Generator().manual_seed(3 * 1_000_003 + index)
        y.backward(_gradient(y.detach(), "categorical", generator))
        for kept in model.kept:
            assert kept.grad is not None
            g = kept.grad.reshape(-1, 8)
            total += g.T @ g
        model.kept.clear()
    torch.testing.assert_close(found.moments["twice.weight"][0], total / 48, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(
        found.moments["twice.weight"][0].diagonal(), found.sensitivities["twice.weight"]
    )
