"""What importing costs, and what works on a machine without torch.

`BLOCK` makes imports of torch fail in a fresh process; the meta-tests show that it can.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .conftest import Outcome, Runner, clean_environment

HEAVY = ("torch", "sentencepiece")
BLOCK = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


def python(program: str) -> Outcome:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def loaded_by(statement: str) -> set[str]:
    """Top-level names of all modules in memory after `statement` in a fresh process."""
    outcome = python(f"{statement}\nimport sys; print(*sys.modules)")
    assert outcome.code == 0, outcome.err
    return {name.partition(".")[0] for name in outcome.out.split()}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import qpack", {"torch", "numpy", "rich", "typer"}),
        ("import qpack.cli.main", {"torch", "numpy", "rich"}),
        ("import qpack.artifact.reader, qpack.artifact.inspect, qpack.artifact.unpack", {"torch"}),
        ("import qpack.codec.registry, qpack.codec.select", {"torch"}),
        ("import qpack.report.markdown", {"torch", "numpy"}),
    ],
)
def test_imports_are_light(statement: str, absent: set[str]) -> None:
    assert loaded_by(statement) & absent == set()


def test_the_import_test_can_fail() -> None:
    assert "numpy" in loaded_by("import qpack.tensors")


def test_importing_qpack_is_quick() -> None:
    """100 ms is the promise; the best of five leaves the machine's other work out."""
    program = "import time; t = time.perf_counter(); import qpack; print(time.perf_counter() - t)"
    assert min(float(python(program).out) for _ in range(5)) < 0.1


def test_the_help_needs_no_torch(fresh_qpack: Runner) -> None:
    outcome = fresh_qpack("--help", before=BLOCK)
    assert (outcome.code, outcome.err) == (0, "")


def test_the_blocker_blocks() -> None:
    outcome = python(f"{BLOCK}\nimport torch")
    assert outcome.code == 1
    assert "No module named 'torch'" in outcome.err


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    from .artifacts import write_artifact

    return write_artifact(tmp_path / "tiny.qpk")


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_reading_needs_no_torch(fresh_qpack: Runner, artifact: Path, command: str) -> None:
    outcome = fresh_qpack(command, artifact, "--json", before=BLOCK)
    assert outcome.code == 0, outcome.err
    assert outcome.document["schema"] == f"qpack.{command}/1"


def test_unpacking_needs_no_torch(fresh_qpack: Runner, artifact: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    out = tmp_path / "weights.safetensors"
    outcome = fresh_qpack("unpack", artifact, "-o", out, before=BLOCK)
    assert outcome.code == 0, outcome.err
    assert set(load_file(out)) == {"head.weight", "norm.gain"}
    assert np.isfinite(load_file(out)["head.weight"]).all()


def test_what_needs_torch_says_so(fresh_qpack: Runner, artifact: Path) -> None:
    """The meta-test of the three above: a command that does need torch fails under the blocker."""
    outcome = fresh_qpack(
        "eval", artifact, "--tokens", artifact, "--tokenizer", artifact, before=BLOCK
    )
    assert outcome.code == 8, outcome.err
    assert "torch" in outcome.err and "qpack-lm[pack]" in outcome.err


def test_doctor_is_content_without_torch(fresh_qpack: Runner) -> None:
    outcome = fresh_qpack("doctor", "--json", before=BLOCK)
    assert outcome.code == 0, outcome.err
    assert not any(device["available"] for device in outcome.document["devices"])
