"""The GPT of the Parameter Golf lineage (techniques.md 1): stem, layers with U-Net skips, head.

    e = E[token] + hash terms           x0 = smear(RMS(e))
    first half of the layers: x goes on a stack; second half: it comes back before the layer
    logits = c tanh((RMS(x) E^T + engram term) / c)

B batch, T tokens, D model width, V vocabulary. Parameter names are the lineage's.

Weights keep their dtype. With `compute_dtype` set, the stem is cast once, after its norm, and from
there everything but the logits is in that dtype; nothing relies on autocast. Where the model is
compiled (`torch.compiler.is_compiling`), gains are folded into weights and q, k and v are one
product; elsewhere each weight is multiplied by as it is stored, so that calibration recognises it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from qpack.errors import ConfigError

from .bigram import SCALE as BIGRAM_SCALE
from .bigram import bigram_rows
from .block import Block
from .cache import Cache
from .config import GPTConfig
from .context import Context
from .engram import EngramLogits, EngramStem
from .flops import matrix_flops
from .hashing import HashEmbedding, History, history
from .layers import Embedding, Linear, rms_norm
from .masks import block_mask, dense_mask, document_numbers
from .parallel import Lanes, merged
from .rope import rotation, stretched
from .rules import order_problems
from .skips import add_skip
from .smear import SmearGate
from .trigram import SCALE as TRIGRAM_SCALE
from .trigram import trigram_rows
from .values import ValueEmbedding


class GPT(nn.Module):
    """`module(tokens (B, T) int64) -> logits (B, T, V) float32`."""

    skip_weights: nn.Parameter | None
    skip_gates: nn.Parameter | None
    lane_merge: nn.Parameter | None

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.layer_order = config.virtual_order
        """Blocks in the order in which they run; `set_layer_order` changes it."""
        self.compute_dtype: torch.dtype | None = None
        """Of the stream and all products; None: the parameters' own."""
        self.attention_backend = "sdpa"
        """`flex`: FlexAttention, for compiled blocks alone: uncompiled it would hold all scores.
        With a cache SDPA computes the same."""
        self.add_skip, self.read_lanes = add_skip, read_lanes
        dim = config.model_dim
        self.tok_emb = Embedding(config.vocab_size, dim, std=0.005)
        self._add_tables(config)
        self.smear = SmearGate(dim) if config.smear_gate else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        shape = (config.num_skips, dim)
        skips = nn.Parameter(torch.ones(shape)) if config.unet_skips else None
        gates = nn.Parameter(torch.zeros(shape)) if config.skip_gates else None
        merge = nn.Parameter(torch.tensor(0.5)) if config.parallel == "lanes" else None
        self.register_parameter("skip_weights", skips)
        self.register_parameter("skip_gates", gates)
        self.register_parameter("lane_merge", merge)
        self.lm_head = None if config.tie_embeddings else Linear(dim, config.vocab_size, zero=True)

    def _add_tables(self, c: GPTConfig) -> None:
        """The tables beside the token embedding."""
        self.bigram = self.trigram = self.value_embed = None
        self.engram: EngramStem | EngramLogits | None = None
        if c.bigram_vocab_size:
            self.bigram = HashEmbedding(
                c.bigram_vocab_size, c.bigram_dim, c.model_dim, scale=BIGRAM_SCALE
            )
        if c.trigram_vocab_size:
            self.trigram = HashEmbedding(
                c.trigram_vocab_size, c.trigram_dim, c.model_dim, scale=TRIGRAM_SCALE
            )
        if c.engram != "off":
            kind, width = (
                (EngramStem, c.model_dim) if c.engram == "stem" else (EngramLogits, c.vocab_size)
            )
            self.engram = kind(c.engram_rows, c.engram_dim, width, num_heads=c.engram_heads)
        if c.value_embed_layers:
            self.value_embed = ValueEmbedding(c.vocab_size, c.value_embed_dim, c.kv_dim)

    def forward(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        scored_from: int = 0,
        adjust: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Logits (B, T - scored_from, V), float32, of the positions from `scored_from` on.

        With a cache, `tokens` follow those it has seen. Of the positions before `scored_from` the
        last block computes keys and values alone. `adjust(hidden, logits)` gives the logits that
        the softcap takes in, from those before it and what the head read, (B, T - scored_from, D).
        """
        if not 0 <= scored_from < tokens.size(1):
            raise ConfigError(f"scored_from {scored_from}: there are {tokens.size(1)} positions")
        seen = self._history(tokens, cache)
        hidden = self._hidden(tokens, seen, cache, scored_from)
        logits = nn.functional.linear(hidden, self._head.to(hidden.dtype)).float()
        if isinstance(self.engram, EngramLogits):
            logits = logits + self.engram(seen.after(scored_from), hidden.dtype).float()
        if adjust is not None:
            logits = adjust(hidden, logits)
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits

    def hidden(self, tokens: Tensor) -> Tensor:
        """What the head reads, (B, T, D): the stream after the last layer and its RMS norm."""
        return self._hidden(tokens, self._history(tokens, None), None)

    def readout(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, T, F) and matrix (V, F): logits before the softcap are their product.

        For a loss that never holds all logits. `tokens` are those that gave `hidden`. The features
        are in the dtype of `hidden`, the matrix in the parameters'.
        """
        if not isinstance(self.engram, EngramLogits):
            return hidden, self._head
        extra = self.engram.features(self._history(tokens, None), hidden.dtype)
        weight = torch.cat((self._head, self.engram.proj.weight), dim=1)
        return torch.cat((hidden, extra), dim=-1), weight

    @property
    def softcap(self) -> float:
        """Bound c of the logits, `c tanh(z / c)`; 0: none."""
        return self.config.logit_softcap

    def compile_regions(self, **options: Any) -> None:
        """Compile the parts of a forward pass, in place, with these options of torch.compile.

        The stem, each block, the skips and what is left are graphs of their own: blocks of a kind
        share one, so compiling takes a tenth of what the whole model's graph does, and another
        order of layers compiles nothing. The state dict does not change.
        """
        how = {"fullgraph": True, "dynamic": False, **options}
        for block in self.blocks:
            block.compile(**how)
        self.stem = torch.compile(self.stem, **how)  # type: ignore[method-assign]
        self.add_skip = torch.compile(self.add_skip, **how)
        self.read_lanes = torch.compile(self.read_lanes, **how)
        if self.value_embed is not None:
            self.value_embed.compile(**how)
        if isinstance(self.engram, EngramLogits):
            features = torch.compile(self.engram.features, **how)
            self.engram.features = features  # type: ignore[method-assign]

    def set_layer_order(self, order: Sequence[int] | None) -> None:
        """Run the blocks in this order from now on; None: the configuration's.

        For depth recurrence that begins during training (techniques.md 1.8); a compiled model
        compiles again. Raises ConfigError for blocks that do not exist, and for more steps than
        the configuration's order has: skip weights are there for that many.
        """
        chosen = self.config.virtual_order if order is None else tuple(order)
        problems = order_problems(self.config, chosen)
        most = len(self.config.virtual_order)
        if len(chosen) > most:
            problems.append(f"layer_order: has {len(chosen)} steps, the configuration's {most}")
        if problems:
            raise ConfigError("the layers cannot run in this order", items=problems)
        self.layer_order = chosen

    def num_matrix_flops(self, sequence: int) -> int:
        """Of a token's forward and backward pass, in sequences of that many: see `flops.py`."""
        return matrix_flops(self, self.config, self.layer_order, sequence)

    def new_cache(self, batch_size: int, max_tokens: int) -> Cache:
        """An empty cache for `forward`, for `batch_size` sequences of at most `max_tokens`.

        With `rope_ntk` the base is that of a context of `max_tokens` from the first token on: it
        cannot change as the context grows, because keys are stored rotated.
        """
        return Cache.empty(batch_size, max_tokens, self.layer_order)

    @property
    def _head(self) -> Tensor:
        """(V, D), the token embedding where it is tied."""
        return self.tok_emb.weight if self.lm_head is None else self.lm_head.weight

    def _history(self, tokens: Tensor, cache: Cache | None) -> History:
        if cache is None:
            return history(tokens)
        cache.check(tokens, self.layer_order)
        return history(tokens, cache.last_tokens, cache.num_tokens)

    def _hidden(
        self, tokens: Tensor, seen: History, cache: Cache | None, scored_from: int = 0
    ) -> Tensor:
        context = self._context(tokens, seen, cache)
        last = self._last(context, tokens, cache, scored_from) if scored_from else context
        lanes = self._layers(context, last, cache)
        x = self.read_lanes(lanes, self.lane_merge)
        if cache is not None:
            cache.remember(tokens)
        return x

    def _layers(self, context: Context, last: Context, cache: Cache | None) -> Lanes:
        """The residual stream after the last layer, whose context is `last`."""
        order, weights, gates = self.layer_order, self.skip_weights, self.skip_gates
        num_encoder = len(order) // 2 if weights is not None else 0
        x: Lanes = (context.x0,)
        stack: list[Lanes] = []
        for step, index in enumerate(order):
            if weights is not None and step >= num_encoder and stack:
                i = step - num_encoder
                gate = None if gates is None else gates[i]
                x = self.add_skip(x, stack.pop(), weights[i], gate)
            shared = last if step == len(order) - 1 else context
            x = self.blocks[index](x, shared, None if cache is None else cache.layers[step])
            if step < num_encoder:
                stack.append(x)
        return x

    def _context(self, tokens: Tensor, seen: History, cache: Cache | None) -> Context:
        c = self.config
        start, longest = 0, tokens.size(1)
        if cache is not None:
            start, longest = cache.num_tokens, cache.max_tokens
        base = c.rope_base
        if c.rope_ntk:
            base = stretched(base, dims=c.rotary_dims, num_tokens=longest, trained=c.train_seq_len)
        angles = rotation(
            start, tokens.size(1), dims=c.rotary_dims, base=base, device=tokens.device
        )
        x0 = self.stem(tokens, seen, cache)
        values = None if self.value_embed is None else self.value_embed(tokens, x0.dtype)
        return Context(x0, angles, self._mask(tokens, cache), values, start)

    def _mask(self, tokens: Tensor, cache: Cache | None) -> Tensor | BlockMask | None:
        documents, start = None, 0
        if self.config.document_mask:
            before = None if cache is None else cache.documents
            documents = document_numbers(tokens, self.config.bos_token, before)
        if cache is not None:
            start = cache.num_tokens
            if documents is not None and cache.documents is not None:
                documents = torch.cat((cache.documents, documents), dim=1)
            cache.documents = documents
        elif self.attention_backend == "flex":
            one = torch.zeros_like(tokens[:1]) if documents is None else documents
            return block_mask(one, masked=documents is not None)
        return dense_mask(start, tokens.size(1), documents, tokens.device)

    def _last(
        self, context: Context, tokens: Tensor, cache: Cache | None, scored_from: int
    ) -> Context:
        """The last block's context where only positions from `scored_from` on are read.

        Its queries begin within the keys, which only a dense mask can say.
        """
        documents = None
        if cache is not None:
            documents = cache.documents
        elif self.config.document_mask:
            documents = document_numbers(tokens, self.config.bos_token)
        start, count = context.start + scored_from, tokens.size(1) - scored_from
        mask = dense_mask(start, count, documents, tokens.device)
        return context._replace(mask=mask, read_from=scored_from)

    def stem(self, tokens: Tensor, seen: History, cache: Cache | None) -> Tensor:
        """x0, (B, T, D), in the dtype of the stream."""
        x = self.tok_emb(tokens)
        dtype = self.compute_dtype or x.dtype
        if self.bigram is not None:
            x = x + self.bigram(bigram_rows(seen, self.bigram.num_rows), dtype)
        if self.trigram is not None:
            x = x + self.trigram(trigram_rows(seen, self.trigram.num_rows), dtype)
        if isinstance(self.engram, EngramStem):
            x = x + self.engram(seen, dtype)
        x = rms_norm(x).to(dtype)
        if self.smear is None:
            return x
        before = None
        if cache is not None:
            before, cache.last_stem = cache.last_stem, x[:, -1:]
        starts = tokens == self.config.bos_token if self.config.smear_mask_bos else None
        smeared: Tensor = self.smear(x, before, starts)
        return smeared


def read_lanes(x: Lanes, merge: Tensor | None) -> Tensor:
    """The RMS norm of the merged stream, (B, T, D)."""
    return rms_norm(merged(x, merge))


def build(config: Mapping[str, Any]) -> GPT:
    """Entry point `gpt` of `qpack.architectures`: the model of a configuration.

    Matrices and tables are zero and gains at their starting values: fill them from a checkpoint, or
    draw them with `init.initialize`. Raises ConfigError as `GPTConfig.from_mapping`.
    """
    return GPT(GPTConfig.from_mapping(config))
