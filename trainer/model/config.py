"""What a GPT of the challenge's lineage is: the JSON object kept in every checkpoint.

The first keys are the lineage's own, so its configurations can be used as they are. Everything here
changes what the model computes (or, `train_seq_len`, records how it was trained); nothing here is a
setting of training. Every technique is off unless its key turns it on, with its source in the file
that computes it. `rules.py` says which values contradict each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from qpack.errors import ConfigError
from qpack.sections import Section, read_section

from .rules import MAX_LAYERS, contradictions

Count = Annotated[int, Field(ge=1)]
Layers = Annotated[int, Field(ge=1, le=MAX_LAYERS)]
Size = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Slope = Annotated[float, Field(ge=0, le=1)]
Indices = Annotated[tuple[Size, ...], Field(strict=False)]
Slopes = Annotated[tuple[Slope, ...], Field(strict=False)]
OneOrEach = Annotated[
    Annotated[Slope, Tag("one")] | Annotated[Slopes, Tag("each")],
    Discriminator(lambda value: "each" if isinstance(value, list | tuple) else "one"),
]

FIRST_KEYS = frozenset(
    (
        "vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_mult",
        "tie_embeddings", "logit_softcap", "rope_base", "rope_dims", "bigram_vocab_size",
        "bigram_dim", "smear_gate", "unet_skips", "train_seq_len",
    )
)  # fmt: skip
"""Always written. Other keys are, where they are not at their defaults: an artifact pays for every
byte, and what older versions wrote stays what is written."""


class GPTConfig(Section):
    """Shape and options of a `GPT`. Lengths are in elements, `train_seq_len` is in tokens."""

    model_config = ConfigDict(protected_namespaces=())  # `model_dim` is the lineage's word

    vocab_size: Count
    """Tokens that the model knows."""
    num_layers: Layers
    """Blocks."""
    model_dim: Count
    """Width of the residual stream; heads are `model_dim / num_heads` wide."""
    num_heads: Count
    """Query heads."""
    num_kv_heads: Count
    """Key and value heads; each serves `num_heads / num_kv_heads` query heads."""
    mlp_mult: Positive = 3.0
    """Hidden width of the MLP over `model_dim`."""
    tie_embeddings: bool = True
    """The head is the token embedding; otherwise it is a matrix of its own (`lm_head`)."""
    logit_softcap: Annotated[float, Field(ge=0)] = 30.0
    """Logits are `c * tanh(z / c)`; 0 leaves them as they are."""
    rope_base: Positive = 10_000.0
    """Longest wavelength of the rotary embedding, over 2 pi."""
    rope_dims: Size | None = None
    """Leading elements of each head that are rotated; None means all of them."""
    bigram_vocab_size: Size = 0
    """Rows of the hashed bigram table; 0 means none."""
    bigram_dim: Size = 0
    """Width of the hashed bigram table."""
    smear_gate: bool = False
    """Mix each position of the stem with the one before."""
    unet_skips: bool = True
    """The first half's outputs, weighted, enter the second half's inputs, last one first."""
    train_seq_len: Count = 1_024
    """Context of training, in tokens. Longer contexts are computed just the same, unless
    `rope_ntk`."""

    rope_ntk: bool = False
    """Contexts longer than `train_seq_len` stretch `rope_base`."""
    trigram_vocab_size: Size = 0
    """Rows of the hashed trigram table; 0 means none."""
    trigram_dim: Size = 0
    """Width of the hashed trigram table."""
    engram: Literal["off", "stem", "logit"] = "off"
    """Hashed bigrams and trigrams by several hashes, added to the stem or to the logits."""
    engram_rows: Size = 0
    """Rows: for each hash (stem), or shared by all of them (logit)."""
    engram_dim: Size = 0
    """Width of a row."""
    engram_heads: Annotated[int, Field(ge=1, le=2)] = 2
    """Hashes of each order."""
    smear_mask_bos: bool = False
    """The smear gate brings nothing into the first token of a document."""
    bos_token: Size = 1
    """Token that begins a document, for `smear_mask_bos` and `document_mask`."""
    xsa_layers: Indices = ()
    """Blocks whose attention output loses its part along the position's own value."""
    xsa_gated: bool = False
    """...by a learned amount a head, none at first."""
    ln_scale: bool = False
    """Block l, from 0, scales its normalised inputs by 1 / sqrt(l + 1)."""
    value_embed_layers: Indices = ()
    """Blocks whose values receive an embedding of their token."""
    value_embed_dim: Size = 0
    """Width of its table."""
    mlp_slope: OneOrEach = 0.0
    """Slope a of the MLP's leaky_relu(u; a)^2; 0: relu squared; a list: one for each block."""
    skip_gates: bool = False
    """U-Net skips are mixed in by a gate in place of being added."""
    parallel: Literal["off", "stream", "lanes", "routed"] = "off"
    """Attention and MLP side by side: on one stream, on a lane each, or with learned routing."""
    parallel_from: Size | None = None
    """First block, by index, that does so."""
    layer_order: Indices | None = None
    """Blocks in the order in which they run, repeats allowed; None means each once."""
    document_mask: bool = False
    """Attention stays inside a document; documents begin at `bos_token`."""

    @model_validator(mode="after")
    def _consistent(self) -> GPTConfig:
        problems = contradictions(self)
        if problems:  # not a ValueError, so it leaves pydantic as it is: all problems, by name
            raise ConfigError("the model configuration contradicts itself", items=problems)
        return self

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.model_dim // self.num_heads

    @property
    def kv_dim(self) -> int:
        """Width of all keys, or all values, of a position."""
        return self.num_kv_heads * self.head_dim

    @property
    def rotary_dims(self) -> int:
        """Elements of a head that are rotated."""
        return self.head_dim if self.rope_dims is None else self.rope_dims

    @property
    def hidden_dim(self) -> int:
        """Width of the MLP's hidden layer."""
        return round(self.mlp_mult * self.model_dim)

    @property
    def virtual_order(self) -> tuple[int, ...]:
        """Blocks in the order in which they run."""
        return tuple(range(self.num_layers)) if self.layer_order is None else self.layer_order

    @property
    def num_skips(self) -> int:
        """Skip connections: decoder steps that receive an encoder step's output."""
        return len(self.virtual_order) // 2 if self.unet_skips else 0

    def slope(self, layer: int) -> float:
        """Slope of block `layer`'s MLP."""
        slopes = self.mlp_slope
        return slopes[layer] if isinstance(slopes, tuple) else slopes

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the lineage's keys, and what differs from the defaults."""
        written = FIRST_KEYS | self.model_dump(exclude_defaults=True).keys()
        return {key: value for key, value in self.model_dump(mode="json").items() if key in written}

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> GPTConfig:
        """The configuration of a JSON object; a null value means the default.

        Raises ConfigError naming every unknown key (with the likely one), missing key and wrong
        value, or else every contradiction.
        """
        given = {key: value for key, value in config.items() if value is not None}
        return read_section(cls, given, what="the model configuration")
