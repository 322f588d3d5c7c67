"""What a pack is asked to do. Plain values, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class PackOptions:
    """Options of `qpack pack`, one field each."""

    checkpoint: Path
    """a checkpoint, or an artifact to pack again"""
    budget_bytes: int
    """the whole file, decoder included, in decimal bytes"""
    out: Path
    """`.qpk` (data alone) or `.pyz` (with its decoder); the suffix decides"""
    tokenizer: Path
    calib: Path | None
    """a token shard; None: the model writes its own calibration text"""
    calib_tokens: int = 65_536
    """an eighth of them, at most `qpack.inputs.HELD_OUT_TOKENS`, is kept apart to judge by"""
    sens_tokens: int = 16_384
    """the first so many of them also get a backward pass, for output sensitivities"""
    tune: int = 0
    """steps of tuning after the budget search; 0: none"""
    tune_tokens: int = 262_144
    """tuning reads on in the calibration shard up to so many tokens, those of calibration among
    them, or as many as there are; never what is scored"""
    val: Path | None = None
    """None: the tokens of the calibration shard after the calibrated ones"""
    val_tokens: int = 32_768
    """targets scored"""
    window: int = 1_024
    """tokens a window, for calibration and for scoring"""
    recipe: str | Path | Mapping[str, Any] | None = None
    """a name, a file, or its tables; None: the default recipe"""
    knob: str | None = None
    """`c`, `k`, `qmax` or `qmax-floor`; None: the recipe's"""
    codecs: tuple[str, ...] | None = None
    """names to choose from; None: all that are installed"""
    stdlib_codecs: bool = False
    """only codecs that Python itself can decode"""
    code: tuple[Path, ...] = ()
    """source files to embed and count"""
    embed_tokenizer: bool = False
    save_stats: Path | None = None
    stats: Path | None = None
    """statistics saved earlier; replaces calibration"""
    device: str = "auto"
    seed: int = 0
    """of self-generated calibration text"""
    force: bool = False
    report: Path | None = None
    """JSON; Markdown is written beside it"""
    command: tuple[str, ...] = ()
    """as typed, for the report"""
