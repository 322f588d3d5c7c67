"""A small real SentencePiece model, and models whose scores can be computed by hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from torch import Tensor, nn

from qpack.checkpoint import Checkpoint, write_checkpoint
from qpack.options import PackOptions
from qpack.plugins import ARCHITECTURES, load_plugin
from qpack.tokenizer import Tokenizer
from qpack.tokens import write_shard

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind it at all.",
    "In 1984 there were 365 days; a leap year has 366 of them.",
    "Caf\u00e9, na\u00efve, \u65e5\u672c\u8a9e and \u20ac42: text is more than ASCII.",
    "A model that is trained on the text that it is scored on is not a model of text.",
]


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Text that the tokenizer neither changes nor shortens."""
    return SENTENCES


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 384-piece byte-fallback BPE model with the challenge's options."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(SENTENCES * 4),
        model_writer=model,
        model_type="bpe",
        vocab_size=384,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        hard_vocab_limit=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tiny.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_path)


class TableModel(nn.Module):
    """A bigram model: the logits after each token are a row of a table."""

    def __init__(self, table: Tensor) -> None:  # (vocab, vocab)
        super().__init__()
        self.table = nn.Parameter(table)
        self.vocab_size = table.shape[0]
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.shapes.append(tuple(tokens.shape))
        return self.table[tokens]


@pytest.fixture(scope="session")
def table_model() -> type[TableModel]:
    return TableModel


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1234)


BUDGET = 40_000
"""What the model of `given` is packed to where a test does not say."""


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> PackOptions:
    """A checkpoint of 40,000 weights, its tokenizer and a shard, as options."""
    folder = tmp_path_factory.mktemp("given")
    vocab_size = Tokenizer.load(tokenizer_path).vocab_size
    config = {"vocab_size": vocab_size, "num_layers": 2, "model_dim": 48, "num_heads": 4}
    config |= {"num_kv_heads": 2, "bigram_vocab_size": 64, "bigram_dim": 16, "smear_gate": True}
    model = load_plugin(ARCHITECTURES, "gpt")(config)
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(value.shape, generator=generator) * 0.1
        for name, value in model.state_dict().items()
    }
    checkpoint = Checkpoint(
        tensors=tensors, architecture="gpt", config=model.config.to_dict(), aliases={}, name="tiny"
    )
    write_checkpoint(folder / "model.safetensors", checkpoint)
    rng = np.random.default_rng(0)
    write_shard(folder / "text.bin", rng.integers(4, vocab_size, 3000).astype(np.uint16))
    return PackOptions(
        checkpoint=folder / "model.safetensors",
        budget_bytes=BUDGET,
        out=folder / "unused.qpk",
        tokenizer=tokenizer_path,
        calib=folder / "text.bin",
        calib_tokens=1024,
        val_tokens=512,
        window=64,
        device="cpu",
    )
