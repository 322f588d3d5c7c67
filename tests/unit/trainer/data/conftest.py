from __future__ import annotations

from pathlib import Path

import pytest

from qpack.tokenizer import Tokenizer
from qpack.trainer.data.vocabulary import train_tokenizer

from .corpus import TEXTS


@pytest.fixture(scope="session")
def challenge_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A small tokenizer that normalises text as the challenge's own does."""
    folder = tmp_path_factory.mktemp("challenge")
    return train_tokenizer([*TEXTS, "a plain document"], folder / "t.model", vocab_size=320)


@pytest.fixture(scope="session")
def model_path(challenge_tokenizer: Tokenizer) -> Path:
    return challenge_tokenizer.path
