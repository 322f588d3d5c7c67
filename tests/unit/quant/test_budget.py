"""The search against size curves of known shape, with codec noise."""

import math
import random
from collections.abc import Callable

import pytest

from qpack.errors import BudgetError
from qpack.quant.budget import search
from qpack.recipe import Knob

WEIGHTS = 26_000_000


def curve(k: float) -> int:
    """Bytes of a Gaussian-like model: entropy of a rounded Gaussian of sigma 31 / k, smoothly."""
    sigma = 31.0 / k
    bits = 0.5 * math.log2(1 + 2 * math.pi * math.e * sigma * sigma)
    return 600_000 + int(WEIGHTS * bits / 8)


def noisy(k: float) -> int:
    """What a codec makes of it: 0.9 % above, with noise of 0.02 % that depends on the value."""
    return int(curve(k) * (1.009 + random.Random(repr(k)).uniform(-2e-4, 2e-4)))


@pytest.mark.parametrize("budget", [2_000_000, 8_000_000, 12_000_000, 16_000_000, 25_000_000])
def test_continuous_knob_fills_the_budget(budget: int) -> None:
    calls: list[float] = []

    def encode(k: float) -> int:
        calls.append(k)
        return noisy(k)

    result = search(Knob(name="k"), budget, estimate=curve, encode=encode)
    assert result.num_bytes == noisy(result.value) <= budget
    assert result.num_bytes >= 0.999 * budget
    assert len(calls) <= 5, "the real codec is slow"
    assert len(calls) == len(set(calls)), "no point is measured twice"
    assert [p.value for p in result.probes if p.kind == "codec"] == calls


def test_every_probe_is_recorded() -> None:
    result = search(Knob(name="k", low=2, high=60), 12_000_000, estimate=curve, encode=noisy)
    assert {p.kind for p in result.probes} == {"entropy", "codec"}
    assert all(p.fits == (p.num_bytes <= 12_000_000) for p in result.probes)


def c_curve(c: float) -> int:
    """Bytes of a model of 26 million weights at c: 3.4 bits at 1, flatter where few are left."""
    return 150_000 + int(WEIGHTS * 0.5 * math.log2(1 + 110.0 / c**2) / 8)


@pytest.mark.parametrize("budget", [3_000_000, 6_000_000, 9_000_000, 12_000_000, 16_000_000])
@pytest.mark.parametrize("ratio", [0.998, 1.0, 1.003])
def test_knob_c_needs_few_probes(budget: int, ratio: float) -> None:
    """A coder whose size the estimate knows within a part in 300."""
    result = search(
        Knob(name="c"),
        budget,
        estimate=c_curve,
        encode=lambda c: int(ratio * c_curve(c)),
        start=1.0,
        num_weights=WEIGHTS,
    )
    assert 0.9995 * budget <= result.num_bytes <= budget
    assert len(result.probes) <= 5 + (budget < 6_000_000)


def fill(budget: int, encode: Callable[[float], int]) -> tuple[float, int]:
    """Share of the budget that is used, and real probes, of a model whose curve is `c_curve`."""
    found = search(
        Knob(name="c"), budget, estimate=c_curve, encode=encode, start=1.0, num_weights=WEIGHTS
    )
    assert found.num_bytes == encode(found.value) <= budget
    return found.num_bytes / budget, sum(probe.kind == "codec" for probe in found.probes)


@pytest.mark.parametrize("ratio", [0.6, 0.7, 0.95, 1.0, 1.01, 1.05, 1.25, 1.6])
def test_knob_c_leaves_at_most_a_part_in_2000_free_under_noise(ratio: float) -> None:
    """Where the estimate is far off too."""

    def encode(c: float) -> int:
        return int(c_curve(c) * ratio * (1 + random.Random(repr(c)).uniform(-1e-4, 1e-4)))

    for budget in range(4_000_000, 15_000_000, 97_001):
        use, probes = fill(budget, encode)
        assert use >= 0.9995
        assert probes <= 5


@pytest.mark.parametrize("ratio", [1.7, 2.0])
def test_an_estimate_much_too_low_near_the_coarse_end(ratio: float) -> None:
    """Where file after file is too large, more of the estimated curve is asked for."""
    floor = int(ratio * c_curve(20.0))
    for budget in range(floor + floor // 50, 4_000_000, 9_001):
        use, probes = fill(budget, lambda c: int(ratio * c_curve(c)))
        assert use >= 0.998
        assert probes <= 12


def test_patience_with_a_noisy_codec_ends() -> None:
    def encode(c: float) -> int:
        return int(c_curve(c) * (1 + random.Random(repr(c)).uniform(-1e-3, 1e-3)))

    found = [fill(budget, encode) for budget in range(4_000_000, 14_000_000, 97_001)]
    assert min(use for use, _ in found) >= 0.998
    assert max(probes for _, probes in found) == 6


@pytest.mark.parametrize("jump", [0.97, 1.003, 1.01])
def test_a_jump_in_the_curve_is_found(jump: float) -> None:
    """Where files become larger or smaller at once, budgets on both sides are filled."""
    edge = c_curve(0.9)

    def encode(c: float) -> int:
        return int(c_curve(c) * (jump if c < 0.9 else 1.0))

    for budget in range(8_000_000, 16_000_000, 9_001):
        most = edge if edge <= budget < jump * edge else budget
        assert fill(budget, encode)[0] * budget >= 0.9995 * most


def test_finest_end_is_taken_when_it_fits() -> None:
    result = search(Knob(name="k", low=8, high=60), 40_000_000, estimate=curve, encode=noisy)
    assert result.value == 8.0
    assert "finest end" in result.reason


def test_unreachable_budget_names_the_smallest_size() -> None:
    knob = Knob(name="k", low=2, high=60)
    with pytest.raises(BudgetError) as caught:
        search(knob, 1_000_000, estimate=curve, encode=noisy, largest=lambda k: [f"emb at {k:g}"])
    assert f"{noisy(60.0):,} B" in caught.value.message
    assert caught.value.items == ("emb at 60",)
    assert caught.value.exit_code == 5


def test_misleading_estimate_still_fits() -> None:
    """The estimate may be wrong by 8 % either way; the file still fits and is nearly full."""
    for bias in (0.92, 1.08):
        result = search(
            Knob(name="k"),
            12_000_000,
            estimate=lambda k, bias=bias: int(curve(k) * bias),  # type: ignore[misc]
            encode=noisy,
        )
        assert 0.999 * 12_000_000 <= result.num_bytes <= 12_000_000


def integer_curve(q: float) -> int:
    return 500_000 + int(WEIGHTS * (math.log2(q) + 0.3) / 8)


@pytest.mark.parametrize("name", ["qmax", "qmax-floor"])
def test_integer_knob_is_the_largest_that_fits(name: str) -> None:
    encode = {q: int(integer_curve(q) * 1.01) for q in range(31, 128)}
    for budget in range(17_800_000, 23_500_000, 700_000):
        result = search(Knob(name=name), budget, estimate=integer_curve, encode=lambda q: encode[q])
        best = max(q for q, size in encode.items() if size <= budget)
        assert result.value == best
        assert result.num_bytes == encode[best]


@pytest.mark.parametrize("ratio", [0.8, 0.9, 0.97, 1.03, 1.1, 1.2])
def test_integer_knob_needs_few_real_files(ratio: float) -> None:
    encode = {q: int(integer_curve(q) * ratio) for q in range(31, 128)}
    for budget in range(encode[31], 24_000_000, 190_001):
        result = search(
            Knob(name="qmax"), budget, estimate=integer_curve, encode=lambda q: encode[int(q)]
        )
        assert result.value == max(q for q, size in encode.items() if size <= budget)
        assert sum(probe.kind == "codec" for probe in result.probes) <= 6


def test_integer_lower_end_is_verified() -> None:
    with pytest.raises(BudgetError):
        search(Knob(name="qmax"), 12_000_000, estimate=integer_curve, encode=integer_curve)


def test_flat_curve_ends() -> None:
    """A model without turned weights: every value gives the same file."""
    result = search(Knob(name="k"), 5_000, estimate=lambda k: 4_000, encode=lambda k: 4_100)
    assert result.num_bytes == 4_100


@pytest.mark.parametrize("name", ["k", "qmax"])
def test_a_codec_far_above_the_entropy_is_no_excuse(name: str) -> None:
    """Whatever the estimate says, nothing over the budget is returned."""
    with pytest.raises(BudgetError, match="65,000"):
        search(Knob(name=name), 25_000, estimate=lambda v: 10_000, encode=lambda v: 65_000)


def test_a_small_file_whose_size_jumps_ends_near_its_budget() -> None:
    """Coarser steps can give a larger file; two such sizes are no line to follow."""

    def estimate(k: float) -> int:
        return 5_000 + int(43_000 * math.log2(100 / k) / 8)

    def encode(k: float) -> int:
        jump = random.Random(round(100 * math.log2(k))).randint(-250, 250)
        return estimate(k) + jump

    for budget in range(15_000, 40_000, 50):
        knob = Knob(name="k")
        result = search(knob, budget, estimate=estimate, encode=encode, num_weights=43_000)
        assert 0.96 * budget <= result.num_bytes <= budget, budget
