"""Calibration: what errors in every weight cost, from forward and backward passes.

H = sum x x^T is the second moment of a weight's inputs, from forward passes. Of the first batches
backward passes give the output sensitivities as well (`qpack.quant.fisher`).

Every use of a weight in a product adds to its H, so a layer that runs twice counts both of its
inputs, and an expert that is routed to counts what reached it. The product of an input with itself
is computed once for all weights that receive that same tensor (q, k and v of a layer); weights
whose sums turn out identical share one H from then on. A tied embedding gets its H where it is
used as a matrix, that is from the head's input. Works on any `nn.Module` of one argument.

Under `torch.distributed` every rank takes its share of the batches and the sums are all-reduced,
so that all ranks hold the same statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qpack.distributed import rank, world_size
from qpack.errors import CalibrationError
from qpack.progress import SILENT, Progress
from qpack.quant.fisher import (
    GradientTap,
    Likelihood,
    backward,
    means,
    output_tensor,
    wanting_input_gradients,
)
from qpack.quant.frequencies import token_tables
from qpack.quant.grams import Grams
from qpack.quant.heads import Head
from qpack.quant.statistics import Statistics
from qpack.quant.tap import WeightTap


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensing:
    """How output sensitivities are gathered."""

    likelihood: Likelihood = "categorical"
    """what the model's outputs mean: logits along the last axis, or values with unit noise"""
    batches: int | None = None
    """the first so many batches have a backward pass; None: all"""
    seed: int = 0
    """of the labels that are drawn from the model"""

    @classmethod
    def of_tokens(cls, batches: Sequence[Tensor], tokens: int, *, seed: int = 0) -> Sensing:
        """As many of token `batches` as it takes for so many tokens; at least one."""
        count, there = 0, 0
        while count < len(batches) and (there < tokens or count == 0):
            there += batches[count].numel()
            count += 1
        return cls(batches=count, seed=seed)

    def covers(self, index: int) -> bool:
        """Whether batch `index` has a backward pass."""
        return self.batches is None or index < self.batches


def collect(
    model: nn.Module,
    batches: Sequence[Tensor],
    *,
    fingerprint: str,
    source: dict[str, str] | None = None,
    sensing: Sensing | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = SILENT,
) -> Statistics:
    """Run `model` on `batches` and return the statistics of every weight that it multiplies by.

    `batches`: what the model takes as its one argument, first axis the examples. `fingerprint`
    names the checkpoint that the statistics belong to. Without `sensing` there is no backward pass
    and there are no sensitivities. float32 throughout.
    Raises `CalibrationError` for no batches, or for activations or gradients that are not finite
    (all named).
    """
    if not batches or sum(batch.numel() for batch in batches) == 0:
        raise CalibrationError("the calibration set is empty", hint="give at least one batch")
    tap = GradientTap(dict(model.named_parameters()))
    with _evaluating(model):
        gathered = _gather(model, batches, sensing, tap, device=device, progress=progress)
    grams = gathered.grams
    _all_reduce(grams, model, device)
    sums, counts = grams.sums, {name: round(count) for name, count in grams.counts.items()}
    _check_finite(sums)
    _check_finite(grams.weighted)
    sensitivities = means(tap, gathered.places, gathered.head, device=device)
    members = _share(sums, counts)
    for name in [name for name, leader in members.items() if name != leader]:
        del sums[name], counts[name]
    _warn_of_few_inputs(sums, counts, progress)
    return Statistics(
        hessians=sums,
        counts=counts,
        members=members,
        fingerprint=fingerprint,
        source=dict(source or {}),
        weighted=_mean_weighted(grams, members, model),
        sensitivities=sensitivities.gradients,
        frequencies=sensitivities.lookups,
        table_sensitivities=sensitivities.looked_up,
        moments=sensitivities.moments,
        token_tables=token_tables(
            sensitivities.lookups, _sensed(batches, sensing), sensitivities.places
        ),
        sensitivity_tokens=sensitivities.places,
    )


def _sensed(batches: Sequence[Tensor], sensing: Sensing | None) -> list[Tensor]:
    """The batches of tokens that have a backward pass."""
    if sensing is None:
        return []
    return [
        batch
        for index, batch in enumerate(batches)
        if sensing.covers(index) and not batch.is_floating_point()
    ]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, with attention unfused so that its products can be seen; then as before."""
    modes = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes:
            module.training = training


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Gathered:
    """What this rank's batches gave."""

    grams: Grams
    head: Head
    places: int


def _gather(
    model: nn.Module,
    batches: Sequence[Tensor],
    sensing: Sensing | None,
    tap: GradientTap,
    *,
    device: torch.device | str,
    progress: Progress,
) -> _Gathered:
    """Run this rank's batches: a pass with gradients where one is asked for, and one for H."""
    grams, head, places = Grams(), Head(), 0
    mine = range(rank(), len(batches), world_size())
    # A pass with gradients takes about as long as three without.
    work = {
        i: batches[i].numel() * (4 if sensing is not None and sensing.covers(i) else 1)
        for i in mine
    }
    uses = WeightTap(dict(model.named_parameters()), grams.observe)
    with progress.stage("calibrate", total=sum(work.values()), unit="tokens") as task:
        for i in mine:
            batch = batches[i].to(device)
            grams.expect({})
            if sensing is not None and sensing.covers(i):
                tap.forget()
                places += _sense(model, batch, i, sensing, tap)
                grams.expect(tap.shares)
            with torch.no_grad(), uses:
                output = model(batch)
            if sensing is not None and sensing.likelihood == "categorical":
                head.add(grams.last, output_tensor(output))
            task.advance(work[i])
    grams.finish()
    return _Gathered(grams=grams, head=head, places=places)


def _sense(model: nn.Module, batch: Tensor, index: int, sensing: Sensing, tap: GradientTap) -> int:
    """One batch forward and backward; returns its number of places."""
    with torch.enable_grad(), wanting_input_gradients(model), tap:
        if batch.is_floating_point():
            batch = batch.detach().requires_grad_()
        output = model(batch)
        return backward(output, sensing.likelihood, seed=sensing.seed, index=index, tap=tap)


def _share(sums: dict[str, Tensor], counts: dict[str, int]) -> dict[str, str]:
    """Weight -> leader: the first weight whose H and count are the same to the last bit."""
    leaders: dict[tuple[int, int, float], list[str]] = {}
    members = {}
    for name, H in sums.items():
        key = (H.shape[0], counts[name], float(H.trace()))
        same = (other for other in leaders.get(key, []) if torch.equal(sums[other], H))
        leader = next(same, None)
        if leader is None:
            leaders.setdefault(key, []).append(name)
        members[name] = leader or name
    return members


def _mean_weighted(grams: Grams, members: dict[str, str], model: nn.Module) -> dict[str, Tensor]:
    """Leader -> weighted H of its group as a mean over the group's rows and inputs; without those
    groups of which a weight has none."""
    rows = {name: p.shape[0] for name, p in model.named_parameters() if name in members}
    groups: dict[str, list[str]] = {}
    for name, leader in members.items():
        groups.setdefault(leader, []).append(name)
    return {
        leader: sum(
            (grams.weighted[name] * (rows[name] / grams.weights[name]) for name in names),
            torch.zeros_like(grams.weighted[names[0]]),
        )
        / sum(rows[name] for name in names)
        for leader, names in groups.items()
        if all(name in grams.weighted for name in names)
    }


def _all_reduce(grams: Grams, model: nn.Module, device: torch.device | str) -> None:
    """Sum over ranks. A rank whose batches never reached a weight contributes zeros."""
    if world_size() == 1:
        return
    parameters = {name: p for name, p in model.named_parameters() if p.ndim >= 2 and p.numel()}
    _sum_matrices(grams.sums, grams.counts, parameters, device)
    _sum_matrices(grams.weighted, grams.weights, parameters, device)
    unmatched = torch.tensor([int(name in grams.unmatched) for name in parameters], device=device)
    dist.all_reduce(unmatched)
    for name, ranks in zip(parameters, unmatched.tolist(), strict=True):
        if ranks and name in grams.weighted:
            del grams.weighted[name], grams.weights[name]


def _sum_matrices(
    sums: dict[str, Tensor],
    amounts: dict[str, float],
    parameters: dict[str, nn.Parameter],
    device: torch.device | str,
) -> None:
    """Sum matrices (cols, cols) and their amounts over ranks, in one order."""
    there = [float(amounts.get(name, 0)) for name in parameters]
    seen = torch.tensor(there, dtype=torch.float64, device=device)
    dist.all_reduce(seen)
    for (name, parameter), amount in zip(parameters.items(), seen.tolist(), strict=True):
        if amount > 0:
            cols = parameter[0].numel()
            dist.all_reduce(sums.setdefault(name, torch.zeros((cols, cols), device=device)))
            amounts[name] = amount


def _check_finite(sums: dict[str, Tensor]) -> None:
    bad = [name for name, H in sums.items() if not bool(torch.isfinite(H).all())]
    if bad:
        raise CalibrationError(
            "the model's activations are not finite on the calibration data, at the input of:",
            items=bad,
            hint="the model overflows, or its calibration inputs hold NaN: look at what it gives",
        )


def _warn_of_few_inputs(
    sums: dict[str, Tensor], counts: dict[str, int], progress: Progress
) -> None:
    few = [name for name, H in sums.items() if counts[name] < H.shape[0]]
    if few:
        worst = min(few, key=lambda name: counts[name] / sums[name].shape[0])
        progress.warn(
            f"{len(few)} Hessian(s) come from fewer inputs than columns, {worst} from "
            f"{counts[worst]:,} for {sums[worst].shape[0]:,}: give more calibration data"
        )
