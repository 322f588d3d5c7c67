"""Late QAT as a run's configuration asks for it: `[qat]` on the recipe of `[pack]`.

The weights of the forward pass are those that `qpack pack` would ship, rounded to nearest, before
the model casts them to the dtype that it computes in.
"""

from __future__ import annotations

from pathlib import Path

from qpack.inputs import token_batches
from qpack.packing import PackSection
from qpack.quant.calibrate import collect
from qpack.quant.qat import LateQAT, Start
from qpack.quant.statistics import Statistics
from qpack.recipe import Recipe, read_recipe
from qpack.tokens import read_shard

from .config import TrainConfig
from .model.gpt import GPT
from .validate import exact


def build_qat(model: GPT, config: TrainConfig, calibration: Path | None = None) -> LateQAT | None:
    """The late QAT of `config` for `model`; None where it asks for none.

    `calibration` is a shard whose first `pack.calib_tokens` weigh the errors when percentile rules
    choose, at the switch, as they do in packing; without it all inputs count alike. Other rules
    need none. All ranks must switch at the same step, since they calibrate together.
    Raises `ConfigError` as `LateQAT` and `read_recipe`.
    """
    section, pack = config.qat, config.pack
    if not section.enabled:
        return None
    assert pack is not None, "the configuration was checked"

    def statistics() -> Statistics:
        assert calibration is not None
        tokens = read_shard(calibration)[: pack.calib_tokens]
        device = next(model.parameters()).device
        with exact(model):
            batches = token_batches(tokens, pack.window or config.loop.sequence)
            return collect(model, batches, fingerprint="in training", device=device)

    return LateQAT(
        model,
        recipe_of(pack),
        match=section.match,
        start=Start(
            lr_scale=section.start_lr_scale,
            progress=section.start_progress,
            step=section.start_step,
        ),
        knob=section.knob,
        soft_rounding=section.soft_rounding,
        statistics=None if calibration is None else statistics,
    )


def recipe_of(pack: PackSection) -> Recipe:
    """The recipe that `[pack]` will pack with."""
    recipe = read_recipe(pack.recipe)
    return recipe if pack.knob is None else recipe.with_knob(pack.knob)
