"""What sections of a configuration contradict in each other, and what nothing reads."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from qpack.errors import ConfigError

from .model.config import GPTConfig

if TYPE_CHECKING:
    from .config import TrainConfig


def problems_of_model(table: Mapping[str, Any]) -> list[str]:
    """What is wrong with the model's table."""
    try:
        GPTConfig.from_mapping(table)
    except ConfigError as error:
        return [f"model.{item}" for item in error.items]
    return []


def contradictions(c: TrainConfig) -> list[str]:
    """What the sections contradict in each other."""
    found = []
    if c.phase and c.model.get("layer_order") is not None:
        found.append("model.layer_order: the last phase sets it; drop one of the two")
    for earlier, later in pairwise(c.phase):
        for start in ("at", "step"):
            a, b = getattr(earlier, start), getattr(later, start)
            if a is not None and b is not None and a >= b:
                found.append(f"phase: {start} = {a} comes before {start} = {b}, not after")
    most = c.loop.max_steps
    found += [
        f"phase.{i}: step = {phase.step} is never reached (loop.max_steps = {most})"
        for i, phase in enumerate(c.phase)
        if most is not None and phase.step is not None and phase.step >= most
    ]
    if not c.data.train and not c.data.text:
        found.append("data: give train (shards) or text (documents)")
    if c.data.train and c.data.text:
        found.append(
            "data: train and text contradict; give one (data.text = [] takes a preset's away)"
        )
    if c.data.train and c.data.tokenizer is None:
        found.append("data.tokenizer: missing (the SentencePiece model of the shards)")
    if (c.qat.enabled or c.average.ship == "best") and c.pack is None:
        found.append("pack: missing; qat and average.ship = 'best' use its recipe")
    only_by_rate = c.qat.start_progress is None and c.qat.start_step is None
    rate = c.qat.start_lr_scale
    if only_by_rate and rate is not None and rate <= c.schedule.floor:
        found.append(
            f"qat.start_lr_scale = {rate}: never reached, schedule.floor is {c.schedule.floor}"
        )
    return found


def unused(c: TrainConfig) -> list[str]:
    """Settings that were given and that nothing reads, each with the reason."""
    optim, average = c.optim.model_fields_set, c.average.model_fields_set
    muon = [key for key in type(c.optim).model_fields if key.startswith("momentum")]
    muon += ["orthogonalize", "ns_steps", "normalize", "precondition"]
    found = []
    if c.optim.matrix == "adamw":
        found += [f"optim.{key}: is for muon" for key in muon if key in optim]
    if not c.average.ema_decay:
        keys = ("ema_warmup", "ema_from", "ema_from_step")
        found += [f"average.{key}: there is no EMA" for key in keys if key in average]
    if not c.average.swa_every and "swa_below" in average:
        found.append("average.swa_below: there is no SWA")
    if c.average.ship not in ("mixture", "best") and "mix" in average:
        found.append("average.mix: no mixture is shipped")
    if c.schedule.warmdown_steps and "warmdown" in c.schedule.model_fields_set:
        found.append("schedule.warmdown: warmdown_steps takes its place")
    if c.loop.max_seconds is None and "reserve_seconds" in c.loop.model_fields_set:
        found.append("loop.reserve_seconds: there is no loop.max_seconds")
    return found
