"""R12: the same contents give the same bytes, whatever the process, hash seed or thread count."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.samples import artifact, varied

CHILD = """
import hashlib
from tests.samples import artifact, varied
print(hashlib.sha256(artifact(varied(), form="pyz")).hexdigest())
"""


@pytest.mark.parametrize("hash_seed", ["0", "1", "random"])
def test_same_bytes_in_another_process(hash_seed: str) -> None:
    expected = hashlib.sha256(artifact(varied(), form="pyz")).hexdigest()
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=Path(__file__).parents[2],
        env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == expected
