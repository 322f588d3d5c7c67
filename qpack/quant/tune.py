"""Tuning after quantization: steps and small tensors learn to make up for the integers' errors.

The integers stay. Row steps, column steps and float tensors are trained against the float model,
KL(float || quantized) a token, with Adam on the calibration batches in a seeded order, its rate
falling to zero along a cosine. Every few steps the contents are rounded to what the file would
store and measured on held-out batches; the best of them are the result, the untuned ones included.
So what tuning returns is never worse on the held-out batches than what it was given.

How far to move follows from the loss. With h the curvature of an offset (the diagonal of the Fisher
information, from a few batches), a move of `delta / sqrt(h)` of all n offsets at once costs
`n delta^2 / 2`. At `delta = sqrt(2 KL / n)` that is the whole KL: an update's length is a tenth of
it. Without these scales the steps that matter most overshoot at a rate that moves the others.

On a CPU the same inputs give the same bytes. On other devices some backward passes add up in no
fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qpack.errors import CalibrationError, ConfigError
from qpack.eval.modes import evaluating
from qpack.eval.remember import Remembering, first_output
from qpack.progress import SILENT, Progress, Task
from qpack.quant.corrections import Corrections
from qpack.quant.divergence import LIKELIHOODS, divergence, sampled_slope, slope
from qpack.tensors import Contents
from qpack.torch_tensors import to_torch

RATES = (0.1, 0.02, 0.004)
"""First length of an update, of all offsets, in delta. Where all outputs depend on sums of many
offsets, the diagonal says too little: a rate at which the first measurement is worse than before
gives way to the next. Measured on a model of 0.7 M weights in 40 steps: 0.05 and 0.2 leave 1 % more
KL than 0.1; after 120 steps there is no difference."""

BETAS, EPSILON = (0.9, 0.99), 1e-20

CURVATURE_PIECES = 8
"""Pieces that the curvature is measured on. One value each would be noise: half of each is the
mean over its tensor."""

CHECKS = 8
"""Times that the held-out batches are measured, evenly spread over the steps."""

PATIENCE = 3
"""Measurements in a row without a better one that end the tuning."""

PIECE_TOKENS = 2_048
"""Batches of tokens are cut into pieces of this many: activations of a backward pass are large."""

STEP_PIECES = 2
"""Pieces a step."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tuning:
    """What tuning is asked to do, and on what."""

    model: nn.Module
    """the float model"""
    batches: Sequence[Tensor]
    """calibration batches, first axis the examples"""
    held_out: Sequence[Tensor]
    """batches that nothing else was fitted to"""
    steps: int
    likelihood: str = "categorical"
    """`categorical`: outputs are logits; `gaussian`: plain values"""
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tuned:
    """The better contents of the two, and how much better."""

    contents: Contents
    steps: int
    """of the best state; 0: tuning did not pay, and the contents are those given"""
    before: float
    """held-out KL a token in nats (or relative squared error) of the contents given"""
    after: float
    """the same of the contents here, as stored"""
    measured: tuple[tuple[int, float], ...] = ()
    """(steps, held-out distance) of each measurement"""


def tune(
    contents: Contents,
    tuning: Tuning,
    *,
    progress: Progress = SILENT,
) -> Tuned:
    """Train steps and float tensors of `contents` towards `tuning.model`.

    The model is left as it was.
    Raises `ConfigError` for impossible settings, `CalibrationError` without batches.
    """
    check_tuning(tuning)
    reference = Remembering(tuning.model)
    corrections = Corrections(contents, tuning.model)
    search = _Search(contents, corrections, tuning, reference)
    with (
        evaluating(tuning.model),
        progress.stage("tune", total=tuning.steps, unit="steps") as task,
    ):
        search.measure(0, contents)
        _measure_scales(corrections, tuning)
        for rate in RATES:
            if _descend(corrections, search, rate, task):
                break
            corrections.reset()
    return search.result()


def check_tuning(tuning: Tuning) -> None:
    """Raise for settings that tuning cannot work with, before anything slow."""
    if tuning.likelihood not in LIKELIHOODS:
        known = ", ".join(LIKELIHOODS)
        raise ConfigError(f"likelihood {tuning.likelihood!r}: expected one of {known}")
    if tuning.steps < 1:
        raise ConfigError(f"tune = {tuning.steps}: expected at least 1 step")
    for name, batches in (("calibration", tuning.batches), ("held-out", tuning.held_out)):
        if not sum(batch.numel() for batch in batches):
            raise CalibrationError(
                f"no {name} batches to tune on", hint="calibrate on more tokens, or do not tune"
            )


@dataclass
class _Search:
    """The best contents measured so far."""

    given: Contents
    corrections: Corrections
    tuning: Tuning
    reference: Remembering
    contents: Contents = field(init=False)
    steps: int = field(init=False, default=0)
    best: float = field(init=False, default=math.inf)
    measured: list[tuple[int, float]] = field(init=False, default_factory=list)

    @property
    def unit(self) -> str:
        """What is measured."""
        return "KL" if self.tuning.likelihood == "categorical" else "error"

    def measure(self, steps: int, contents: Contents) -> bool:
        """Measure `contents` on the held-out batches; keep them if they are the best so far."""
        value = held_out_divergence(contents, self.tuning, self.reference)
        self.measured.append((steps, value))
        better = not self.measured[1:] or value < self.best  # NaN is never better
        if better:
            self.contents, self.steps, self.best = contents, steps, value
        return better

    def result(self) -> Tuned:
        """What the search came to."""
        return Tuned(
            contents=self.contents,
            steps=self.steps,
            before=self.measured[0][1],
            after=self.best,
            measured=tuple(self.measured),
        )


def held_out_divergence(contents: Contents, tuning: Tuning, reference: nn.Module) -> float:
    """Distance of the decoded `contents` from the float model on the held-out batches."""
    state = tuning.model.state_dict(keep_vars=True)
    weights = {tensor.name: to_torch(tensor).to(state[tensor.name]) for tensor in contents.tensors}
    weights |= {other: weights[name] for other, name in contents.aliases.items()}
    distance = amount = 0.0
    with torch.no_grad():
        for batch in _pieces(tuning.held_out):
            batch = batch.to(_device(tuning.model))
            output = _run(tuning.model, weights, batch)
            more = divergence(reference(batch), output, tuning.likelihood)
            distance, amount = distance + more[0], amount + more[1]
    return distance / amount if amount else 0.0


def _descend(corrections: Corrections, search: _Search, rate: float, task: Task) -> bool:
    """Train and measure. False, at once, if the first measurement is no better than what was."""
    steps = search.tuning.steps
    every = math.ceil(steps / CHECKS)
    stale = 0
    for step in _train(corrections, search, rate):
        task.advance(note=f"{search.unit} {search.best:.5f}")
        if step % every != 0 and step != steps:
            continue
        better = corrections.are_finite and search.measure(step, corrections.rounded())
        stale = 0 if better else stale + 1
        if stale and step == every:
            task.advance(-step)
            return False
        if stale == PATIENCE or not corrections.are_finite:
            break
    return True


def _train(corrections: Corrections, search: _Search, rate: float) -> Iterator[int]:
    """Move the offsets, a step at a time; gives the number of steps so far after each."""
    tuning, device = search.tuning, _device(search.tuning.model)
    pieces = _pieces(tuning.batches)
    order = _endless_order(len(pieces), tuning.seed)
    moves = list(corrections.moves.values())
    delta = math.sqrt(2.0 * search.best / max(1, sum(move.numel() for move in moves)))
    optimizer = torch.optim.Adam(moves, betas=BETAS, eps=EPSILON)
    for step in range(1, tuning.steps + 1):
        optimizer.param_groups[0]["lr"] = rate * delta * _schedule((step - 1) / tuning.steps)
        optimizer.zero_grad()
        for _ in range(STEP_PIECES):
            batch = pieces[next(order)].to(device)
            output = _output(corrections, tuning.model, batch)
            goal = slope(search.reference(batch), output, tuning.likelihood)
            output.backward(goal)  # type: ignore[no-untyped-call]
        optimizer.step()
        yield step


def _measure_scales(corrections: Corrections, tuning: Tuning) -> None:
    """Set the scales to one over the root of the curvature, per unit of the distance."""
    generator = torch.Generator().manual_seed(tuning.seed)
    curvature = {key: torch.zeros_like(move) for key, move in corrections.moves.items()}
    total = 0.0
    for piece in _pieces(tuning.batches)[:CURVATURE_PIECES]:
        output = _output(corrections, tuning.model, piece.to(_device(tuning.model)))
        output.backward(sampled_slope(output, tuning.likelihood, generator))  # type: ignore[no-untyped-call]
        total += divergence(output, output, tuning.likelihood)[1]
        for key, move in corrections.moves.items():
            if move.grad is not None:
                curvature[key] += move.grad.square()
                move.grad = None
    for key, sums in curvature.items():
        smooth = (0.5 / max(total, 1e-30)) * (sums + sums.mean())
        # what no output depends on stays where it is
        corrections.scales[key] = torch.where(smooth > 0, smooth.rsqrt(), 0.0)


def _output(corrections: Corrections, model: nn.Module, batch: Tensor) -> Tensor:
    """The model's output with the corrected weights, ready for a backward pass."""
    with torch.enable_grad():
        weights, products = corrections.weights()
        with products:
            return _run(model, weights, batch)


def _run(model: nn.Module, weights: Mapping[str, Tensor], batch: Tensor) -> Tensor:
    return first_output(functional_call(model, dict(weights), (batch,)))


def _pieces(batches: Sequence[Tensor]) -> list[Tensor]:
    """Batches of tokens cut into fewer rows; others as they are."""
    pieces: list[Tensor] = []
    for batch in batches:
        if batch.is_floating_point() or batch.ndim < 2:
            pieces.append(batch)
        else:
            pieces += torch.split(batch, max(1, PIECE_TOKENS // batch[0].numel()))
    return [piece for piece in pieces if piece.numel()]


def _endless_order(count: int, seed: int) -> Iterator[int]:
    """Indices, each once before any comes again, in a new order every time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _schedule(done: float) -> float:
    """Share of the first learning rate: half a cosine from 1 to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * done))


def _device(model: nn.Module) -> torch.device:
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
