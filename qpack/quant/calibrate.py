"""Calibration: the input second moment `H = sum x x^T` of every weight, from forward passes.

One small pass finds which weights share their input (q, k and v of a layer; same input tensor at
every use): they share one H. Then every batch adds to each H once a use, so a layer that runs
twice counts both of its inputs. A tied embedding gets its H where it is used as a matrix, that is
from the head's input. Works on any `nn.Module` that takes one batch as its argument.

Under `torch.distributed` every rank takes its share of the batches and the sums are all-reduced,
so that all ranks hold the same statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from qpack.distributed import rank, world_size
from qpack.errors import CalibrationError
from qpack.progress import SILENT, Progress
from qpack.quant.statistics import Statistics
from qpack.quant.tap import WeightTap

_SYMMETRIC_BLOCK = 384
"""H of wider inputs is accumulated by blocks of its upper triangle: up to 40 % fewer products."""


def collect(
    model: nn.Module,
    batches: Sequence[Tensor],
    *,
    fingerprint: str,
    source: dict[str, str] | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = SILENT,
) -> Statistics:
    """Run `model` on `batches` and return the statistics of every weight that it multiplies by.

    `batches`: what the model takes as its one argument, first axis the examples. `fingerprint`
    names the checkpoint that the statistics belong to. float32 throughout.
    Raises `CalibrationError` for no batches, or for activations that are not finite (all named).
    """
    if not batches or sum(batch.numel() for batch in batches) == 0:
        raise CalibrationError("the calibration set is empty", hint="give at least one batch")
    parameters = dict(model.named_parameters())
    with _evaluating(model), torch.no_grad():
        groups = find_groups(model, parameters, batches[0][:1].to(device))
        sums, counts = _accumulate(
            model, parameters, groups, batches, device=device, progress=progress
        )
    _all_reduce(sums, counts)
    _check_finite(sums, groups)
    return Statistics(
        hessians=sums,
        counts=counts,
        members={name: leader for leader, names in groups.items() for name in names},
        fingerprint=fingerprint,
        source=dict(source or {}),
    )


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


def find_groups(
    model: nn.Module, parameters: Mapping[str, Tensor], example: Tensor
) -> dict[str, list[str]]:
    """Weights that receive the same input tensor at every use: leader -> members, in call order."""
    serials: dict[tuple[int, ...], int] = {}
    alive: list[Tensor] = []  # holds every input, so that no address is used twice
    uses: dict[str, list[int]] = {}

    def observe(name: str, x: Tensor, rows: Callable[[], Tensor]) -> None:
        alive.append(x)
        key = (x.data_ptr(), x._version, x.numel(), x.shape[-1])
        uses.setdefault(name, []).append(serials.setdefault(key, len(serials)))

    with WeightTap(parameters, observe):
        model(example)
    groups: dict[tuple[tuple[int, ...], int], list[str]] = {}
    for name, inputs in uses.items():
        cols = parameters[name][0].numel()
        groups.setdefault((tuple(inputs), cols), []).append(name)
    return {names[0]: names for names in groups.values()}


def _accumulate(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    groups: dict[str, list[str]],
    batches: Sequence[Tensor],
    *,
    device: torch.device | str,
    progress: Progress,
) -> tuple[dict[str, Tensor], dict[str, int]]:
    sums = {
        leader: torch.zeros((cols, cols), device=device)
        for leader in groups
        for cols in [parameters[leader][0].numel()]
    }
    counts = dict.fromkeys(groups, 0)

    def observe(name: str, x: Tensor, rows: Callable[[], Tensor]) -> None:
        if name in sums:
            inputs = rows().float()
            add_outer(sums[name], inputs)
            counts[name] += inputs.shape[0]

    mine = range(rank(), len(batches), world_size())
    total = sum(batches[i].numel() for i in mine)
    with progress.stage("calibrate", total=total, unit="tokens") as task:
        for i in mine:
            with WeightTap(parameters, observe):
                model(batches[i].to(device))
            task.advance(batches[i].numel())
    for H in sums.values():
        _mirror(H)
    return sums, counts


def add_outer(H: Tensor, rows: Tensor) -> None:
    """`H += rows^T rows`, upper blocks only for wide inputs (the lower ones are mirrored later)."""
    cols = H.shape[0]
    if cols <= 2 * _SYMMETRIC_BLOCK:
        H.addmm_(rows.T, rows)
        return
    for start in range(0, cols, _SYMMETRIC_BLOCK):
        stop = min(start + _SYMMETRIC_BLOCK, cols)
        H[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])


def _mirror(H: Tensor) -> None:
    """Make H exactly symmetric from its upper triangle."""
    upper = H.triu()
    H.copy_(upper + upper.triu(1).T)


def _all_reduce(sums: dict[str, Tensor], counts: dict[str, int]) -> None:
    if world_size() == 1:
        return
    for H in sums.values():
        dist.all_reduce(H)
    names = list(counts)
    device = next(iter(sums.values())).device if sums else torch.device("cpu")
    total = torch.tensor([counts[name] for name in names], dtype=torch.int64, device=device)
    dist.all_reduce(total)
    counts.update(zip(names, (int(n) for n in total), strict=True))


def _check_finite(sums: dict[str, Tensor], groups: dict[str, list[str]]) -> None:
    bad: Iterable[str] = [
        name
        for leader, names in groups.items()
        if not bool(torch.isfinite(sums[leader]).all())
        for name in names
    ]
    if bad:
        raise CalibrationError(
            "the model's activations are not finite on the calibration data, at the input of:",
            items=bad,
            hint="check the checkpoint with `qpack eval`; its loss is likely NaN",
        )
