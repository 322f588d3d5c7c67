"""A predictor at hand to code with: the model, its tokenizer, and what a file must say of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from qpack.checkpoint import Checkpoint, build_model, read_model
from qpack.errors import DataError
from qpack.eval import registry
from qpack.eval.network import Network
from qpack.eval.predictor import Predictor
from qpack.tokenizer import Tokenizer
from qpack.tokens import sha256_file

WINDOW_MAX = 1 << 16
"""Of a file that nobody vouches for: a cache is as long as its window."""
Context = Annotated[int, Field(ge=1, le=WINDOW_MAX)]


class Setup(BaseModel):
    """Which predictor, in plain values: a compressed file records it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    window: Context = 1024
    """Tokens of context at most."""
    stride: Context | None = None
    """Tokens between windows; None: the window, so that windows are disjoint."""
    isolate: bool = False
    """Whether contexts begin anew at BOS."""
    name: str | None = None
    """What is added to the network, by its name in `registry.py`; None: nothing."""
    settings: dict[str, Any] = {}
    """Of what is added; the rest is at its defaults."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coder:
    """Made by `open_coder`."""

    predictor: Predictor
    tokenizer: Tokenizer
    model_name: str
    model_sha256: str
    """of the model's file"""
    setup: Setup
    """with every setting"""


def open_coder(model: Path, tokenizer: Path | None, setup: Setup) -> Coder:
    """The predictor of `setup` on the checkpoint or artifact `model`, on the CPU.

    `tokenizer` None means the one that the artifact embeds. Raises `DataError` where there is none
    or it is not the model's, `ConfigError` for an impossible setup, `SetupError` where a package
    is missing, and what reading a model does.
    """
    if setup.name is not None:
        registry.check_settings([setup.name], {registry.section_of(setup.name): setup.settings})
    checkpoint = read_model(model)
    pieces = find_tokenizer(checkpoint, tokenizer)
    predictor, settings = build_predictor(build_model(checkpoint), pieces, setup)
    pieces.check_model(predictor.vocab_size)
    return Coder(
        predictor=predictor,
        tokenizer=pieces,
        model_name=checkpoint.name,
        model_sha256=sha256_file(model),
        setup=setup.model_copy(update={"settings": settings}),
    )


def build_predictor(
    model: nn.Module, tokenizer: Tokenizer, setup: Setup
) -> tuple[Predictor, dict[str, Any]]:
    """The predictor of `setup`, and every setting of what is added to the network."""
    isolate = tokenizer.bos if setup.isolate else None
    network = Network(model, window=setup.window, stride=setup.stride, isolate=isolate)
    if setup.name is None:
        return network, {}
    built = registry.build(setup.name, network, tokenizer, setup.settings)
    return built.predictor, dict(built.settings[registry.section_of(setup.name)])


def find_tokenizer(checkpoint: Checkpoint, path: Path | None) -> Tokenizer:
    """The tokenizer in the file `path`, or where that is None the one that came with the model.

    Raises `DataError` where there is none or it is not the model's own.
    """
    if path is not None:
        tokenizer = Tokenizer.load(path)
    else:
        embedded = [file for file in checkpoint.files if file.role == "tokenizer"]
        if not embedded:
            raise DataError(
                f"{checkpoint.name} embeds no tokenizer",
                hint="give it with --tokenizer, or pack with --embed-tokenizer",
            )
        tokenizer = Tokenizer.from_bytes(embedded[0].data, path=Path(embedded[0].name))
    checkpoint.check_tokenizer(tokenizer.sha256, tokenizer.path)
    return tokenizer
