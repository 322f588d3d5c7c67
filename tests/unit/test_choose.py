"""The choice of steps: both are measured at one size, and the better one is packed."""

from dataclasses import replace

import pytest
import torch

from qpack.choose import BY_SENSITIVITY, EQUAL, Judge, choose, concerns
from qpack.codec.registry import resolve
from qpack.fit import Fitter
from qpack.progress import SILENT
from qpack.quant.engine import Quantizer
from qpack.quant.plan import Plan
from qpack.recipe import Knob

from .quant.rd_net import PIECES, Net, case

BUDGET = 4_500


def judged(distances: list[float] | None = None) -> tuple[Quantizer, Judge]:
    """A quantizer of the example model, and a judge that measures, or says what it is told."""
    tensors, plan, statistics = case()
    model = Net().requires_grad_(False)
    model.load_state_dict(tensors | {"table.weight": tensors["table.weight"]})
    tokens = torch.randint(0, PIECES, (2, 32), generator=torch.Generator().manual_seed(5))
    judge = Judge(model=model, held_out=[tokens])
    if distances is not None:

        class Told(Judge):
            def distances(self, all_contents: object) -> list[float]:
                assert distances is not None
                return distances

        judge = Told(model=model, held_out=[tokens])
    return Quantizer(tensors, plan, statistics), judge


def make_fitter(quantizer: Quantizer) -> Fitter:
    return Fitter(
        quantizer,
        quantizer.weights,
        aliases={},
        metadata={},
        files=(),
        form="qpk",
        codecs=resolve(("lzma", "rans"), stdlib_only=False),
    )


def test_both_are_measured_at_the_same_estimated_size() -> None:
    quantizer, judge = judged()
    _, _, choice = choose(quantizer, make_fitter, judge, BUDGET, SILENT)
    ours, equal = choice.options
    assert (ours.name, equal.name) == (BY_SENSITIVITY, EQUAL)
    assert equal.estimated_bytes == pytest.approx(ours.estimated_bytes, rel=0.06)
    assert ours.estimated_bytes == pytest.approx(BUDGET, rel=0.03)
    assert min(ours.distance, equal.distance) > 0
    assert (equal.at_equal_bytes < equal.distance) == (equal.estimated_bytes < ours.estimated_bytes)
    best = min(choice.options, key=lambda option: option.at_equal_bytes)
    assert choice.chosen == best.name
    described = choice.describe()
    assert described["chosen"] == choice.chosen and len(described["options"]) == 2


@pytest.mark.parametrize(
    ("distances", "chosen"),
    [([0.1, 0.2], BY_SENSITIVITY), ([0.2, 0.1], EQUAL), ([0.1, 0.1], BY_SENSITIVITY)],
)
def test_what_is_nearer_is_packed(distances: list[float], chosen: str) -> None:
    quantizer, judge = judged(distances)
    fitter, used, choice = choose(quantizer, make_fitter, judge, BUDGET, SILENT)
    assert choice.chosen == chosen
    fitted = fitter.fit(BUDGET)
    assert fitted.search.num_bytes <= BUDGET
    codes = {len(set(t.row_codes.tolist())) for t in fitted.contents.tensors}  # type: ignore[union-attr]
    assert (codes == {1}) == (chosen == EQUAL)
    rules = {used.rule_at(entry, 1.0).terms for entry in used.plan.tensors}
    assert (rules == {()}) == (chosen == EQUAL)


def test_estimates_are_not_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes more than the search takes by itself."""
    passes: list[float] = []
    quantize = Quantizer.quantize

    def counted(self: Quantizer, value: float) -> object:
        passes.append(value)
        return quantize(self, value)

    monkeypatch.setattr(Quantizer, "quantize", counted)
    quantizer, judge = judged([0.1, 0.2])
    make_fitter(quantizer).fit(BUDGET)
    alone = len(passes)
    passes.clear()
    fitter, _, _ = choose(quantizer, make_fitter, judge, BUDGET, SILENT)
    fitter.fit(BUDGET)
    assert len(passes) <= alone + 2


def test_when_there_is_nothing_to_choose() -> None:
    def plan_of(rule: str = "", knob: Knob | None = None) -> Plan:
        plan = case(rule)[1]
        return plan if knob is None else replace(plan, recipe=replace(plan.recipe, knob=knob))

    assert concerns(plan_of())
    assert not concerns(plan_of("terms = []"))
    assert not concerns(plan_of(knob=Knob(name="c", choose=False)))
    assert not concerns(plan_of(knob=Knob(name="k")))
