"""Which values of a model's configuration contradict each other: one message for each rule broken.

The types and ranges of single keys are in `config.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import GPTConfig

MAX_LAYERS = 1_024
"""A file may claim any number, and layers take time to build even without memory."""
LANES = ("lanes", "routed")
"""Forms of `parallel` in which the stream splits in two."""


def contradictions(config: GPTConfig) -> list[str]:
    """What is wrong with a configuration whose keys are each in range; empty if nothing is."""
    parts = (_widths, _tables, _positions, _options, _orders)
    return [problem for part in parts for problem in part(config)]


def order_problems(config: GPTConfig, order: Sequence[int]) -> list[str]:
    """Why the blocks cannot run in this order; empty if they can."""
    num_layers = config.num_layers
    outside = sorted({index for index in order if not 0 <= index < num_layers})
    if outside:
        return [f"layer_order: {outside} is not among the blocks 0 to {num_layers - 1}"]
    if not order:
        return ["layer_order: is empty"]
    first = config.parallel_from
    if config.parallel in LANES and first is not None:
        lanes = [index >= first for index in order]
        if lanes != sorted(lanes):
            return [
                f"layer_order: goes back below block {first}, where the lanes of parallel ="
                f" {config.parallel!r} begin"
            ]
    return []


def _widths(c: GPTConfig) -> Iterator[str]:
    hidden = c.mlp_mult * c.model_dim
    if c.model_dim % c.num_heads:
        yield f"model_dim = {c.model_dim}: must be a multiple of num_heads = {c.num_heads}"
    if c.num_heads % c.num_kv_heads:
        yield f"num_heads = {c.num_heads}: must be a multiple of num_kv_heads = {c.num_kv_heads}"
    if hidden < 0.5 or abs(hidden - round(hidden)) > 1e-6:
        yield f"mlp_mult = {c.mlp_mult}: times model_dim must be a whole number, is {hidden}"
    if isinstance(c.mlp_slope, tuple) and len(c.mlp_slope) != c.num_layers:
        yield f"mlp_slope: has {len(c.mlp_slope)} slopes for num_layers = {c.num_layers} blocks"


def _tables(c: GPTConfig) -> Iterator[str]:
    for name in ("bigram", "trigram"):
        rows, width = getattr(c, f"{name}_vocab_size"), getattr(c, f"{name}_dim")
        if not (rows == width == 0 or (rows >= 2 and width >= 1)):
            sizes = f"{name}_vocab_size = {rows}, {name}_dim = {width}"
            yield f"{sizes}: both 0, or at least 2 rows of 1"
    if (c.engram != "off") != (c.engram_rows >= 1) or (c.engram_rows >= 1) != (c.engram_dim >= 1):
        sizes = f"engram_rows = {c.engram_rows}, engram_dim = {c.engram_dim}"
        wanted = "must be 0" if c.engram == "off" else "must be at least 1"
        yield f"engram = {c.engram!r}, {sizes}: the sizes {wanted}"
    if bool(c.value_embed_layers) != (c.value_embed_dim >= 1):
        yield f"value_embed_layers, value_embed_dim = {c.value_embed_dim}: give both, or neither"


def _positions(c: GPTConfig) -> Iterator[str]:
    if c.rotary_dims % 2 or c.rotary_dims > c.head_dim:
        yield f"rope_dims = {c.rotary_dims}: must be even and at most a head's {c.head_dim}"
    if c.rope_ntk and c.rotary_dims < 4:
        yield f"rope_ntk = True: needs at least 4 rope_dims, not {c.rotary_dims}"
    if (c.smear_mask_bos or c.document_mask) and c.bos_token >= c.vocab_size:
        yield f"bos_token = {c.bos_token}: is not below vocab_size = {c.vocab_size}"


def _options(c: GPTConfig) -> Iterator[str]:
    if c.smear_mask_bos and not c.smear_gate:
        yield "smear_mask_bos = True: needs smear_gate"
    if c.xsa_gated and not c.xsa_layers:
        yield "xsa_gated = True: needs xsa_layers"
    if c.skip_gates and not c.unet_skips:
        yield "skip_gates = True: needs unet_skips"
    if c.unet_skips and len(c.virtual_order) < 2:
        yield "unet_skips = True: needs at least 2 layers"


def _orders(c: GPTConfig) -> Iterator[str]:
    for name in ("xsa_layers", "value_embed_layers"):
        indices = getattr(c, name)
        if len(set(indices)) < len(indices) or any(i >= c.num_layers for i in indices):
            yield f"{name} = {list(indices)}: must be different blocks of 0 to {c.num_layers - 1}"
    if (c.parallel == "off") != (c.parallel_from is None):
        yield f"parallel = {c.parallel!r}, parallel_from = {c.parallel_from}: give both, or neither"
    if c.parallel_from is not None and c.parallel_from >= c.num_layers:
        yield f"parallel_from = {c.parallel_from}: must be below num_layers = {c.num_layers}"
    if c.layer_order is None:
        return
    problems = order_problems(c, c.layer_order)
    idle = sorted(set(range(c.num_layers)) - set(c.layer_order))
    if idle and not problems:
        problems = [f"layer_order: blocks {idle} never run"]
    if len(c.layer_order) > MAX_LAYERS:
        problems.append(f"layer_order: has {len(c.layer_order)} steps, more than {MAX_LAYERS:,}")
    yield from problems
