"""A small model with a tied table, a looked-up table and layers, and its statistics by hand."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from qpack.quant.calibrate import collect
from qpack.quant.plan import Plan, classify, make_plan, untied
from qpack.quant.statistics import Statistics
from qpack.recipe import parse_recipe

PIECES, WIDTH = 64, 24


class Net(nn.Module):
    """q and k share an input; `hash` is only looked up; the table is the head too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.hash = nn.Embedding(PIECES, WIDTH), nn.Embedding(32, WIDTH)
        self.q, self.k = nn.Linear(WIDTH, 16, bias=False), nn.Linear(WIDTH, 16, bias=False)
        self.up, self.down = nn.Linear(32, 48, bias=False), nn.Linear(48, WIDTH, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) + self.hash(tokens % 31)
        x = x * torch.linspace(0.2, 3, WIDTH)
        x = x + self.down(self.up(torch.cat([self.q(x), self.k(x)], -1)).relu())
        out: Tensor = x @ self.table.weight.T
        return out


def case(rule: str = "", *, knob: str = "c") -> tuple[dict[str, Tensor], Plan, Statistics]:
    """Tensors, plan and statistics under rule rd with the given lines."""
    model = Net().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    tensors, aliases = untied(model)
    text = f'[knob]\nname = "{knob}"\n[[rule]]\nmatch = "re:.*"\nscale = "rd"\nknob = true\n{rule}'
    plan = make_plan(tensors, classify(model), aliases, parse_recipe(text, name="r"))
    tokens = torch.randint(0, PIECES - 4, (8, 64), generator=generator)
    return tensors, plan, with_sensitivities(collect(model, [tokens], fingerprint="f"), tensors)


def with_sensitivities(statistics: Statistics, tensors: dict[str, Tensor]) -> Statistics:
    """Uneven ones, made up."""
    generator = torch.Generator().manual_seed(1)

    def uneven(count: int) -> Tensor:
        return torch.exp(torch.randn(count, generator=generator))

    def moments(rows: int) -> Tensor:
        g = torch.randn(3 * rows, rows, generator=generator) + torch.randn(
            3 * rows, 1, generator=generator
        )
        return (g.T @ g / len(g))[None]

    return replace(
        statistics,
        sensitivities={name: uneven(len(tensors[name])) for name in statistics.members},
        frequencies={"table.weight": uneven(PIECES) / PIECES, "hash.weight": uneven(32) / 32},
        table_sensitivities={"table.weight": uneven(WIDTH), "hash.weight": uneven(WIDTH)},
        moments={
            name: moments(len(tensors[name])) for name in statistics.members if "table" not in name
        },
        sensitivity_tokens=512,
    )
