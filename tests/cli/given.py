"""A model of 30,000 weights as somebody else wrote it, with its tokenizer and a token shard."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file

from qpack.plugins import ARCHITECTURES, load_plugin
from qpack.tokens import write_shard

VOCAB_SIZE = 300
CONFIG = {
    "vocab_size": VOCAB_SIZE, "num_layers": 2, "model_dim": 48, "num_heads": 4, "num_kv_heads": 2,
}  # fmt: skip
TEXT = [
    "A checkpoint and a budget go in; one file that fits the budget comes out.",
    "Whoever has the file has the model: it needs nothing but Python to be read.",
]


@dataclass(frozen=True)
class Files:
    """What a user has before the first command."""

    foreign: Path
    tokenizer: Path
    shard: Path


def make_files(folder: Path) -> Files:
    """Write them to `folder`: foreign weights, tokenizer, and a shard of some thousand tokens."""
    made = Files(folder / "foreign.safetensors", folder / "t.model", folder / "text.bin")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXT * 20), model_writer=model, model_type="bpe",
        vocab_size=VOCAB_SIZE, byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3,
    )  # fmt: skip
    made.tokenizer.write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    config = {**CONFIG, "vocab_size": pieces.vocab_size()}
    rng = np.random.default_rng(0)
    lines = [pieces.encode(TEXT[i]) for i in rng.integers(0, 2, 200)]
    write_shard(made.shard, np.array([t for line in lines for t in [1, *line]], dtype=np.uint16))
    module = load_plugin(ARCHITECTURES, "gpt")(config)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(value.shape, generator=generator) * 0.05
        for name, value in module.state_dict().items()
        if not name.startswith("lm_head")
    }
    save_file(state, made.foreign, metadata={"config": json.dumps(config)})
    return made
