"""The `[pack]` table of a run's configuration: what becomes of the trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from qpack.recipe import builtin_names
from qpack.sections import NotPaths, Section

AnyPath = Annotated[Path, Field(strict=False)]


class PackSection(Section):
    """Options of `qpack pack` that a configuration can set; see `qpack.options.PackOptions`."""

    budget: Annotated[int, Field(ge=1)]
    """Bytes of the whole file, decoder included."""
    form: Literal["pyz", "qpk"] = "pyz"
    """With its decoder, or data alone."""
    recipe: Annotated[AnyPath | Mapping[str, Any] | None, NotPaths(builtin_names())] = None
    """A recipe's name or file, or its tables inline; none: the recipe `default`."""
    knob: Literal["c", "k", "qmax", "qmax-floor"] | None = None
    """What the budget search turns; none: the recipe's."""
    codecs: tuple[str, ...] | None = Field(default=None, strict=False)
    """Codecs to choose from; none: all that are installed."""
    stdlib_codecs: bool = False
    """Only codecs that Python itself can decode."""
    calib_tokens: Annotated[int, Field(ge=1)] = 65_536
    sens_tokens: Annotated[int, Field(ge=1)] = 16_384
    """The first so many of them get a backward pass too, for output sensitivities."""
    tune: Annotated[int, Field(ge=0)] = 0
    """Steps of tuning: row and column steps and small tensors are trained after the budget search,
    the integers stay."""
    tune_tokens: Annotated[int, Field(ge=1)] = 262_144
    """Tuning reads on in the calibration shard up to so many tokens, those of calibration among
    them; never what is scored."""
    val_tokens: Annotated[int, Field(ge=1)] = 131_072
    """Targets scored for the report; all, if there are fewer."""
    window: Annotated[int, Field(ge=1)] | None = None
    """Tokens of context in a window, for calibration and for scoring; none: those of a training
    sequence."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    code: tuple[AnyPath, ...] = Field(default=(), strict=False)
    """Source files to embed and to count."""
    embed_tokenizer: bool = False
