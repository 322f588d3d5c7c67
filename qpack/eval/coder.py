"""A predictor at hand to code with: the model, its tokenizer, and what a file must say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from qpack.checkpoint import Checkpoint, build_model, read_model
from qpack.errors import DataError
from qpack.eval.network import Network
from qpack.eval.predictor import Mixture, Predictor
from qpack.tokenizer import Tokenizer
from qpack.tokens import sha256_file


@dataclass(frozen=True, kw_only=True, slots=True)
class Coder:
    """Made by `open_coder`."""

    predictor: Predictor
    tokenizer: Tokenizer
    model_name: str
    model_sha256: str
    """of the model's file"""
    settings: Mapping[str, Any]
    """what `build_predictor` makes the predictor of"""


def open_coder(model: Path, tokenizer: Path | None, settings: Mapping[str, Any]) -> Coder:
    """The predictor of `settings` on the checkpoint or artifact `model`, on the CPU.

    `tokenizer` None means the one that the artifact embeds. Raises `DataError` where there is none
    or it is not the model's, `ConfigError` for impossible settings, and what reading a model does.
    """
    checkpoint = read_model(model)
    pieces = find_tokenizer(checkpoint, tokenizer)
    network = build_model(checkpoint)
    return Coder(
        predictor=build_predictor(network, pieces, settings),
        tokenizer=pieces,
        model_name=checkpoint.name,
        model_sha256=sha256_file(model),
        settings=dict(settings),
    )


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


def build_predictor(model: nn.Module, tokenizer: Tokenizer, spec: Mapping[str, Any]) -> Predictor:
    """Stand-in until the registry exists."""
    network = Network(model, window=spec["window"], stride=spec["stride"])
    if spec.get("mix") == "ppm":
        from qpack.eval.ppm_mixer import PpmMixer, PpmSettings

        return Mixture(network, PpmMixer(PpmSettings(), tokenizer))
    return network
