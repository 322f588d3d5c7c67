"""Is `torch.optim.Muon` as good as the trainer's Muon? One update of each, and the time of a step.

    python benchmarks/muon.py -o OUT.json

Over the matrices of the 27 M-parameter model (11 layers of 512, MLP 3x), random weights and random
gradients. Agreement: how far the two updates are apart, and each from the same in float64, after
one step, after five, and after five with the momentum rising, where torch's average weights old
gradients differently. Speed: seconds of a step, the ways in turn so that they share whatever else
the machine does; median and quartiles. `--device cuda` adds the compiled way.

Torch's products are bfloat16 everywhere, ours on CUDA alone: on a processor without such products,
its time says nothing about the algorithm. `ours_one_by_one`, each matrix a stack of its own, has
the precision of `ours` and torch's way of going through the matrices: what stacks alone give.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics as stats
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qpack.device import choose
from qpack.environment import provenance
from qpack.trainer.optim import mousse
from qpack.trainer.optim.muon import Muon
from qpack.trainer.optim.update import Rule

SHAPES = {(512, 512): 22, (256, 512): 22, (1536, 512): 11, (512, 1536): 11}
"""(rows, cols) -> how many: queries and outputs, keys and values, MLP in, MLP out."""
LR, MOMENTUM = 0.025, 0.95
RISE = (0.85, 0.875, 0.9, 0.925, 0.95)
PLAIN = Rule()
VARIANTS = {
    "polar_express": Rule(coefficients="polar-express"),
    "rows": Rule(normalization="rows"),
    "rows_columns_4": Rule(normalization="rows-columns", ns_steps=4),
    "mousse_diagonal": Rule(precondition="mousse-diagonal"),
    "mousse_kronecker": Rule(precondition="mousse-kronecker"),
}


def main() -> None:
    options = parse()
    device, _ = choose(options.device)
    measured_with = {**provenance(device), "load_average": os.getloadavg()[0]}
    ways: dict[str, Callable[[list[nn.Parameter]], Any]] = {
        "torch": torch_muon,
        "ours": our_muon,
        "ours_one_by_one": one_by_one,
    }
    if device.type == "cuda":
        ways["ours_compiled"] = lambda params: our_muon(params, compiled=True)
    seconds = time_steps(ways, device, options)
    result = {
        "schema": "qpack.bench-muon/1",
        "seed": options.seed,
        "matrices": {f"{rows}x{cols}": count for (rows, cols), count in SHAPES.items()},
        "weights": sum(rows * cols * count for (rows, cols), count in SHAPES.items()),
        "agreement": {
            "one_step": agreement([MOMENTUM], device, options.seed),
            "five_steps": agreement([MOMENTUM] * 5, device, options.seed),
            "five_steps_momentum_rising": agreement(list(RISE), device, options.seed),
        },
        "seconds": seconds,
        "product_dtype": {
            "torch": "bfloat16",
            "ours": "bfloat16" if device.type == "cuda" else "float32",
        },
        "torch_seconds_over": ratios(seconds, "torch"),
        "one_by_one_seconds_over": ratios(seconds, "ours_one_by_one"),
        "variants": time_variants(device, options),
        **measured_with,
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare Muon with torch's.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path)
    return parser.parse_args()


def torch_muon(params: list[nn.Parameter]) -> torch.optim.Muon:
    return torch.optim.Muon(params, lr=LR, momentum=MOMENTUM, weight_decay=0.0, nesterov=True)


def our_muon(params: list[nn.Parameter], *, compiled: bool = False, rule: Rule = PLAIN) -> Muon:
    return Muon(params, lr=LR, momentum=MOMENTUM, rule=rule, compiled=compiled)


def one_by_one(params: list[nn.Parameter]) -> Muon:
    groups = [{"params": [param]} for param in params]
    return Muon(groups, lr=LR, momentum=MOMENTUM)


def ratios(seconds: dict[str, Any], base: str) -> dict[str, float]:
    """Median seconds of `base` over those of each other way."""
    return {
        way: seconds[base]["median"] / found["median"]
        for way, found in seconds.items()
        if way != base
    }


def agreement(momenta: list[float], device: torch.device, seed: int) -> dict[str, Any]:
    """Relative Frobenius distances of the last update of one matrix of each shape.

    Gradients have one component in common, as those of neighbouring steps have.
    """
    updates = {
        "torch": last_update(torch_muon, momenta, seed, device=device),
        "ours": last_update(our_muon, momenta, seed, device=device),
        "exact": last_update(our_muon, momenta, seed, dtype=torch.float64),
    }
    return {
        f"{a}_to_{b}": {
            f"{rows}x{cols}": distance(updates[a][i], updates[b][i])
            for i, (rows, cols) in enumerate(SHAPES)
        }
        for a, b in (("torch", "ours"), ("torch", "exact"), ("ours", "exact"))
    }


def last_update(
    make: Callable[[list[nn.Parameter]], Any], momenta: list[float], seed: int, **where: Any
) -> list[Tensor]:
    """What the last step adds to zero weights, float64 on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    common = [torch.randn(shape, generator=generator) for shape in SHAPES]
    params = [nn.Parameter(torch.zeros(shape, **where)) for shape in SHAPES]
    optimizer = make(params)
    for momentum in momenta:
        optimizer.param_groups[0]["momentum"] = momentum
        for param, part in zip(params, common, strict=True):
            noise = torch.randn(param.shape, generator=generator)
            param.grad = (part + noise).to(**where)
            param.data.zero_()
        optimizer.step()
    return [param.detach().cpu().double() for param in params]


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def time_steps(
    ways: dict[str, Callable[[list[nn.Parameter]], Any]],
    device: torch.device,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Seconds of a step of each way; a step of each in turn, `repeats` times."""
    generator = torch.Generator().manual_seed(options.seed)
    shapes = [shape for shape, count in SHAPES.items() for _ in range(count)]
    grads = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
    steps: dict[str, Callable[[], None]] = {}
    for name, make in ways.items():
        params = [nn.Parameter(torch.zeros_like(grad)) for grad in grads]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        steps[name] = make(params).step
    found: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(options.repeats + 1):
        for name, step in steps.items():
            synchronize(device)
            begin = time.perf_counter()
            step()
            synchronize(device)
            if repeat:  # the first compiles and allocates
                found[name].append(time.perf_counter() - begin)
    return {name: summary(times) for name, times in found.items()}


def time_variants(device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """The same of the other rules; of Kronecker Mousse, only steps that do not decompose."""
    ways: dict[str, Callable[[list[nn.Parameter]], Any]] = {
        name: lambda params, rule=rule: our_muon(  # type: ignore[misc]
            params, rule=rule, compiled=device.type == "cuda"
        )
        for name, rule in VARIANTS.items()
    }
    found = time_steps(ways, device, argparse.Namespace(seed=options.seed, repeats=3))
    return {"seconds": found, "refresh_seconds": refresh_seconds(device, options.seed)}


def refresh_seconds(device: torch.device, seed: int) -> float:
    """The decompositions of Kronecker Mousse, every 10th step: one of each shape's stacks."""
    total = 0.0
    generator = torch.Generator().manual_seed(seed)
    for (rows, cols), count in SHAPES.items():
        shape = torch.Size((count, rows, cols))
        state = mousse.new_state("mousse-kronecker", shape, device)
        for _ in range(3):
            mousse.gather_kronecker(torch.randn(shape, generator=generator).to(device), state)
        synchronize(device)
        begin = time.perf_counter()
        mousse.refresh_kronecker(state)
        synchronize(device)
        total += time.perf_counter() - begin
    return total


def summary(times: list[float]) -> dict[str, float]:
    low, middle, high = stats.quantiles(times, n=4, method="inclusive")
    return {"median": middle, "quartile_1": low, "quartile_3": high}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
