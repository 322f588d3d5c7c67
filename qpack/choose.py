"""Whether steps by sensitivity pay for this model: measured before the budget search, not assumed.

Sensitivities are estimates from few tokens, and models differ: in some, rows, columns and tensors
are so much alike that there is little to gain. So the model is quantized both with the recipe's
terms and with equal relative steps (no terms), at the same estimated size near the budget, and the
one whose outputs stay nearer to the float model's on held-out calibration tokens is packed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qpack.eval.modes import evaluating
from qpack.eval.remember import Remembering
from qpack.fit import Fitter
from qpack.progress import Progress
from qpack.quant.budget import nearby
from qpack.quant.engine import Quantizer
from qpack.quant.plan import Plan
from qpack.quant.tune import Tuning, held_out_divergence
from qpack.tensors import Contents


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judge:
    """The float model, and batches that nothing was fitted to."""

    model: nn.Module
    held_out: Sequence[Tensor]
    likelihood: str = "categorical"
    """`categorical`: outputs are logits, distances KL in nats a token; `gaussian`: plain values,
    relative squared errors"""

    def distances(self, all_contents: Sequence[Contents]) -> list[float]:
        """How far each of the decoded contents is from the float model."""
        tuning = Tuning(
            model=self.model,
            batches=(),
            held_out=self.held_out,
            steps=0,
            likelihood=self.likelihood,
        )
        reference = Remembering(self.model)
        with evaluating(self.model):
            return [held_out_divergence(c, tuning, reference) for c in all_contents]


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One way to set steps, as measured."""

    name: str
    c: float
    estimated_bytes: int
    distance: float
    """to the float model, on the held-out batches"""
    at_equal_bytes: float
    """the same, moved to the size of the first option: a bit more a weight is a quarter of it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What was compared, and what was chosen of it."""

    options: tuple[Option, ...]
    chosen: str
    reason: str

    def describe(self) -> dict[str, Any]:
        """Plain values for the report."""
        rows: list[Mapping[str, Any]] = [
            {
                "steps": option.name,
                "c": option.c,
                "bytes": option.estimated_bytes,
                "held_out_distance": option.distance,
                "at_equal_bytes": option.at_equal_bytes,
            }
            for option in self.options
        ]
        return {"chosen": self.chosen, "reason": self.reason, "options": rows}


BY_SENSITIVITY, EQUAL = "by sensitivity", "equal relative"


def concerns(plan: Plan) -> bool:
    """Whether there is something to choose: tensors with terms that follow knob c."""
    knob = plan.recipe.knob
    return knob.name == "c" and knob.choose and any(e.rule.terms for e in plan.turned)


def choose(
    quantizer: Quantizer,
    make_fitter: Callable[[Quantizer], Fitter],
    judge: Judge,
    budget_bytes: int,
    progress: Progress,
) -> tuple[Fitter, Quantizer, Choice]:
    """The better quantizer of the two, the fitter for it, and the evidence.

    Costs two passes more than the search needs anyway, and two runs over the held-out batches.
    """
    plan = quantizer.plan
    ours, other = quantizer, quantizer.with_terms(())
    fitter, other_fitter = make_fitter(ours), make_fitter(other)
    c, size = nearby(
        plan.recipe.knob,
        budget_bytes,
        estimate=fitter.estimate,
        start=plan.knob_start,
        num_weights=plan.turned_weights,
    )
    other_c, other_size = _same_size(plan, other_fitter, c, size)
    contents = [fitter.contents(c), other_fitter.contents(other_c)]
    distances = judge.distances(contents)
    first, second = distances[0], distances[1]
    second *= 4.0 ** (8 * (other_size - size) / max(1, plan.turned_weights))
    options = tuple(
        Option(name=name, c=at, estimated_bytes=num, distance=distance, at_equal_bytes=moved)
        for name, at, num, distance, moved in (
            (BY_SENSITIVITY, c, size, distances[0], first),
            (EQUAL, other_c, other_size, distances[1], second),
        )
    )
    better = second < first
    choice = Choice(
        options=options,
        chosen=EQUAL if better else BY_SENSITIVITY,
        reason=f"{min(first, second):.6f} against {max(first, second):.6f} on held-out batches, "
        "at equal bytes",
    )
    progress.note(f"steps {choice.chosen}: {choice.reason}")
    return (other_fitter, other, choice) if better else (fitter, ours, choice)


def _same_size(plan: Plan, fitter: Fitter, c: float, size: int) -> tuple[float, int]:
    """(c, bytes) of the other steps, corrected once along the curve's known slope."""
    found = fitter.estimate(c)
    octaves = 8 * (found - size) / max(1, plan.turned_weights)
    low, high = plan.recipe.knob.bounds
    c = min(max(c * 2.0 ** max(-1.0, min(1.0, octaves)), low), high)
    return c, fitter.estimate(c)
