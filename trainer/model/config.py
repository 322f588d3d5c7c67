"""What a GPT of the challenge's lineage is: the JSON object kept in every checkpoint.

The keys are the lineage's own, so its configurations can be used as they are. Everything here
changes what the model computes (or, `train_seq_len`, records how it was trained); nothing here is a
setting of training. Every problem of a configuration is named at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qpack.errors import ConfigError
from qpack.plugins import did_you_mean

BOOLS = ("tie_embeddings", "smear_gate", "unet_skips")
FLOATS = ("mlp_mult", "logit_softcap", "rope_base")
MAX_LAYERS = 1_024
"""A file may claim any number, and layers take time to build even without memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTConfig:
    """Shape and options of a `GPT`. Lengths are in elements, `train_seq_len` is in tokens."""

    vocab_size: int
    """Tokens that the model knows."""
    num_layers: int
    """Blocks."""
    model_dim: int
    """Width of the residual stream; heads are `model_dim / num_heads` wide."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key and value heads; each serves `num_heads / num_kv_heads` query heads."""
    mlp_mult: float = 3.0
    """Hidden width of the MLP over `model_dim`."""
    tie_embeddings: bool = True
    """The head is the token embedding; otherwise it is a matrix of its own (`lm_head`)."""
    logit_softcap: float = 30.0
    """Logits are `c * tanh(z / c)`; 0 leaves them as they are."""
    rope_base: float = 10_000.0
    """Longest wavelength of the rotary embedding, over 2 pi."""
    rope_dims: int | None = None
    """Leading elements of each head that are rotated; None means all of them."""
    bigram_vocab_size: int = 0
    """Rows of the hashed bigram table; 0 means none."""
    bigram_dim: int = 0
    """Width of the hashed bigram table."""
    smear_gate: bool = False
    """Mix each position of the stem with the one before."""
    unet_skips: bool = True
    """Add the first half's outputs, weighted, to the second half's inputs, last one first."""
    train_seq_len: int = 1_024
    """Context of training, in tokens. Longer contexts are computed just the same."""

    def __post_init__(self) -> None:
        problems = [*_type_problems(self)] or [*_problems(self)]
        if problems:
            raise ConfigError("the model configuration cannot be used", items=problems)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.model_dim // self.num_heads

    @property
    def rotary_dims(self) -> int:
        """Elements of a head that are rotated."""
        return self.head_dim if self.rope_dims is None else self.rope_dims

    @property
    def hidden_dim(self) -> int:
        """Width of the MLP's hidden layer."""
        return round(self.mlp_mult * self.model_dim)

    @property
    def num_skips(self) -> int:
        """Skip connections: decoder layers that receive an encoder layer's output."""
        return self.num_layers // 2 if self.unet_skips else 0

    def to_dict(self) -> dict[str, Any]:
        """All keys with their values: what a checkpoint records."""
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> GPTConfig:
        """The configuration of a JSON object; a null value means the default.

        Raises ConfigError naming every unknown key (with the likely one), missing key, wrong type
        and contradiction.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = [key for key in config if key not in fields]
        problems = [f"{key}: unknown{did_you_mean(key, fields)}" for key in unknown]
        given = {k: v for k, v in config.items() if k in fields and v is not None}
        problems += [
            f"{name}: missing"
            for name, field in fields.items()
            if field.default is dataclasses.MISSING and name not in given
        ]
        if problems:
            raise ConfigError("the model configuration has wrong keys", items=problems)
        return cls(**given)


def _type_problems(config: GPTConfig) -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in BOOLS:
            fits, wanted = isinstance(value, bool), "true or false"
        elif field.name in FLOATS:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            fits, wanted = number and math.isfinite(value), "a finite number"
        else:
            integer = isinstance(value, int) and not isinstance(value, bool)
            fits = integer or (value is None and field.name == "rope_dims")
            wanted = "an integer"
        if not fits:
            yield f"{field.name} = {value!r}: must be {wanted}"


def _problems(c: GPTConfig) -> Iterator[str]:
    counts = ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads", "train_seq_len")
    small = [name for name in counts if getattr(c, name) < 1]
    yield from (f"{name} = {getattr(c, name)}: must be at least 1" for name in small)
    yield from (
        f"{name} = {getattr(c, name)}: must be above 0"
        for name in ("mlp_mult", "rope_base")
        if getattr(c, name) <= 0
    )
    if c.num_layers > MAX_LAYERS:
        yield f"num_layers = {c.num_layers}: must be at most {MAX_LAYERS:,}"
    if not small:  # the rest divides by them
        yield from _contradictions(c)


def _contradictions(c: GPTConfig) -> list[str]:
    hidden = c.mlp_mult * c.model_dim
    rows, width = c.bigram_vocab_size, c.bigram_dim
    rules = {
        f"logit_softcap = {c.logit_softcap}: must be 0 (off) or above": c.logit_softcap >= 0,
        f"model_dim = {c.model_dim}: must be a multiple of num_heads = {c.num_heads}": (
            c.model_dim % c.num_heads == 0
        ),
        f"num_heads = {c.num_heads}: must be a multiple of num_kv_heads = {c.num_kv_heads}": (
            c.num_heads % c.num_kv_heads == 0
        ),
        f"mlp_mult = {c.mlp_mult}: times model_dim must be a whole number, is {hidden}": (
            hidden > 0.5 and abs(hidden - round(hidden)) < 1e-6
        ),
        f"rope_dims = {c.rotary_dims}: must be even and at most a head's {c.head_dim}": (
            c.rotary_dims % 2 == 0 and 0 <= c.rotary_dims <= c.head_dim
        ),
        f"bigram_vocab_size = {rows}, bigram_dim = {width}: both 0, or at least 2 rows of 1": (
            (rows == width == 0) or (rows >= 2 and width >= 1)
        ),
        "unet_skips = True: needs at least 2 layers": c.num_layers >= 2 or not c.unet_skips,
    }
    return [message for message, holds in rules.items() if not holds]
