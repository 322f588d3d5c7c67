"""The best of several weights *after quantization*: what ships is what counts.

Each candidate (last, EMA, SWA, mixture) is calibrated, quantized by the real engine with the knob
where its entropy meets the budget, and scored. No codec runs: sizes are estimates, with the same
error for all. The reason: averages that score alike as floats lose unequally in quantization, as
pull request 398 reports of a tight SWA and its EMA (techniques.md 2.4).

The score that decides is of the first `max_tokens` of the validation text. As the least of several
it is a little too good; the run's own validation, over more tokens, says what was got.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qpack.artifact.minify import pack_code
from qpack.errors import BudgetError, CalibrationError, ConfigError, DataError
from qpack.fit import Fitter
from qpack.inputs import token_batches
from qpack.progress import SILENT, Progress
from qpack.quant.budget import search
from qpack.quant.calibrate import Sensing, collect
from qpack.quant.engine import Quantizer
from qpack.quant.plan import Plan, classify, make_plan, untied
from qpack.recipe import Recipe
from qpack.tensors import EmbeddedFile
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard
from qpack.torch_tensors import to_torch

from .model.gpt import GPT
from .qat import recipe_of
from .validate import exact, validate

if TYPE_CHECKING:
    from .run import Run


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judge:
    """What candidates are quantized with and scored on."""

    recipe: Recipe
    budget_bytes: int
    """the whole file"""
    form: str
    """`qpk` or `pyz`"""
    calibration: NDArray[np.uint16]
    """(tokens,) of training text"""
    validation: NDArray[np.uint16]
    """(tokens,)"""
    tokenizer: Tokenizer
    window: int
    """tokens a window, for calibration and for scoring"""
    max_tokens: int
    """targets scored"""
    sens_tokens: int = 16_384
    """calibration tokens with a backward pass"""
    files: tuple[EmbeddedFile, ...] = ()
    """carried in the artifact, and counted"""

    def bpb(self, model: GPT) -> float:
        """Bits per byte of the model's present weights."""
        return validate(
            model,
            self.validation,
            self.tokenizer,
            window=self.window,
            max_tokens=self.max_tokens,
            device=next(model.parameters()).device,
        ).bpb


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Verdict:
    """The best candidate, and what each of them scored."""

    name: str
    rows: list[dict[str, Any]]
    """`weights` (the candidate), `select_bpb`, `select_bpb_quantized`, `knob` (None without one),
    `estimated_bytes`, `fits`; or `weights` and `error`"""


def choose(
    candidates: Mapping[str, Mapping[str, Tensor]],
    model: GPT,
    judge: Judge,
    *,
    progress: Progress = SILENT,
) -> Verdict:
    """The candidate with the fewest bits per byte after quantization; the first where two tie.

    `candidates` are state dicts of `model`, which has its own weights again afterwards. One that
    does not fit the budget at the coarsest knob is chosen only if none fits; one that gives no
    finite numbers is not chosen. Under `torch.distributed` all ranks call this together.
    Raises `ConfigError` for a recipe that does not fit the model, `DataError` where no candidate
    gives finite numbers.
    """
    own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    rows: list[dict[str, Any]] = []
    try:
        with progress.stage("choose", total=len(candidates), unit="candidates") as task:
            for name, tensors in candidates.items():
                rows.append({"weights": name, **_judged(model, tensors, judge)})
                task.advance(note=name)
    finally:
        model.load_state_dict(own)
    sound = [row for row in rows if "error" not in row]
    if not sound:
        raise DataError(
            "no weights to ship give finite numbers",
            items=[f"{row['weights']}: {row['error']}" for row in rows],
            hint="the model diverged in training: lower the learning rates",
        )
    best = min(sound, key=lambda row: (not row["fits"], row["select_bpb_quantized"]))
    return Verdict(name=best["weights"], rows=rows)


def _judged(model: GPT, tensors: Mapping[str, Tensor], judge: Judge) -> dict[str, Any]:
    """One candidate's row; the model's weights are its quantized ones afterwards."""
    model.load_state_dict(dict(tensors))
    device = next(model.parameters()).device
    try:
        floating = judge.bpb(model)
        with exact(model):
            batches = token_batches(judge.calibration, judge.window)
            statistics = collect(
                model,
                batches,
                fingerprint="in training",
                sensing=Sensing.of_tokens(batches, judge.sens_tokens),
                device=device,
            )
        weights, aliases = untied(model)
        plan = make_plan(weights, classify(model), aliases, judge.recipe)
        fitter = Fitter(
            Quantizer(weights, plan, statistics, device=device),
            weights,
            aliases=aliases,
            metadata={},
            files=judge.files,
            form=judge.form,
            codecs=(),
        )
        value, num_bytes = _knob(fitter, plan, judge.budget_bytes)
        decoded = {tensor.name: to_torch(tensor) for tensor in fitter.contents(value).tensors}
        model.load_state_dict(decoded | {name: decoded[to] for name, to in aliases.items()})
        quantized = judge.bpb(model)
    except (CalibrationError, DataError) as error:
        return {"error": error.message}
    return {
        "select_bpb": floating,
        "select_bpb_quantized": quantized,
        "knob": value if plan.turned else None,
        "estimated_bytes": num_bytes,
        "fits": num_bytes <= judge.budget_bytes,
    }


def _knob(fitter: Fitter, plan: Plan, budget_bytes: int) -> tuple[float, int]:
    """(knob value, estimated bytes): the finest that fits, else the coarsest."""
    knob = plan.recipe.knob
    low, high = knob.bounds
    if knob.name != "none" and plan.turned:
        try:
            # The estimate takes the codec's place: a good one comes within a few percent of it.
            found = search(knob, budget_bytes, estimate=fitter.estimate, encode=fitter.estimate)
            return found.value, found.num_bytes
        except BudgetError:  # packing will say so; here candidates are compared
            pass
    coarsest = low if knob.finer_upwards else high
    return coarsest, fitter.estimate(coarsest)


def choose_for(run: Run, candidates: Mapping[str, Mapping[str, Tensor]]) -> Verdict:
    """`choose` with the recipe, budget and files of the run's `[pack]`, calibrated on the first
    `pack.calib_tokens` of its training text, as packing will be.

    Raises `ConfigError` where the run has no validation text; otherwise as `choose`.
    """
    config, pack = run.config, run.config.pack
    if pack is None or run.validation is None:
        raise ConfigError(
            "average.ship = 'best' needs [pack] and validation text",
            hint="give data.val, or set average.ship to one of the averages",
        )
    files, _ = pack_code(pack.code)
    if pack.embed_tokenizer:
        path = run.data.tokenizer
        files += (EmbeddedFile(name=path.name, role="tokenizer", data=path.read_bytes()),)
    judge = Judge(
        recipe=recipe_of(pack),
        budget_bytes=pack.budget,
        form=pack.form,
        calibration=read_shard(run.data.train[0])[: pack.calib_tokens],
        validation=run.validation,
        tokenizer=run.tokenizer,
        window=pack.window or config.loop.sequence,
        max_tokens=config.loop.select_tokens,
        sens_tokens=pack.sens_tokens,
        files=files,
    )
    return choose(candidates, run.model, judge, progress=run.progress)
