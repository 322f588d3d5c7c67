"""The `[pack]` table of a run's configuration: what becomes of the trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from qpack.sections import Section

AnyPath = Annotated[Path, Field(strict=False)]


class PackSection(Section):
    """Options of `qpack pack` that a configuration can set; see `qpack.options.PackOptions`."""

    budget: Annotated[int, Field(ge=1)]
    """Bytes of the whole file, decoder included."""
    form: Literal["pyz", "qpk"] = "pyz"
    """With its decoder, or data alone."""
    recipe: AnyPath | Mapping[str, Any] | None = None
    """A recipe file, or its tables inline; none: the default recipe."""
    knob: Literal["k", "qmax", "qmax-floor"] | None = None
    """What the budget search turns; none: the recipe's."""
    codecs: tuple[str, ...] | None = Field(default=None, strict=False)
    """Codecs to choose from; none: all that are installed."""
    stdlib_codecs: bool = False
    """Only codecs that Python itself can decode."""
    calib_tokens: Annotated[int, Field(ge=1)] = 65_536
    sens_tokens: Annotated[int, Field(ge=1)] = 16_384
    """The first so many of them get a backward pass too, for output sensitivities."""
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
