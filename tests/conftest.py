"""What all tests share: threads, hypothesis, snapshots, and the real data where there is any."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Small tensors and two workers on two cores: more threads would only wait for one another, in this
# process and in those that tests start. Must be set before anything loads torch or numpy.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

from hypothesis import HealthCheck, settings  # noqa: E402  threads first

ROOT = Path(__file__).resolve().parents[1]

# A deadline measures the machine, not the code. `deep` is for a long search by hand.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", settings.get_profile("default"), max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-snapshots",
        action="store_true",
        help="rewrite tests/cli/snapshots from what the commands print now; then read the diff",
    )


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real shards, tokenizers and models; skips where it is not to be had."""
    folder = Path(os.environ.get("QPACK_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs real data: no folder {folder} (set QPACK_SHARED_DATA)")
    return folder
