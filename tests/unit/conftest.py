"""A small real SentencePiece model, and models whose scores can be computed by hand."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import sentencepiece
import torch
from torch import Tensor, nn

from qpack.tokenizer import Tokenizer

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
