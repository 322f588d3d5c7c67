"""What must be equal for a predictor to compute the same rows to the last bit.

An arithmetic decoder that gets one bit of one row otherwise gives garbage from there on, and the
last bits of a sum depend on the order in which a library adds: on its version and build, on the
processor and the instructions it has, on the number of threads. So a compressed file carries these,
and a digest of what the coder is given for a few tokens, and is refused by name where any of them
differ. Threads are not refused but fixed: coding runs on one thread of the CPU.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata

import torch

from qpack import __version__
from qpack.environment import hardware
from qpack.eval.coding import probabilities
from qpack.eval.predictor import Mixture, Predictor

PACKAGES = ("constriction", "llvmlite", "numba", "numpy", "torch")
PROBE_TOKENS = 32
PROBE_STEP = 7919
"""A prime: the probe's tokens go through the vocabulary in large steps."""

Fingerprint = dict[str, str]
"""What it is -> its value here."""


def fingerprint(predictor: Predictor) -> Fingerprint:
    """Of the arithmetic of `predictor` on this machine, on one thread."""
    machine = hardware(torch.device("cpu"))
    return {
        "system": str(machine["system"]),
        "processor": str(machine["processor"]),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "mathematics": _mathematics(),
        "qpack": __version__,
        **{name: _version(name) for name in PACKAGES},
        "probe": probe(predictor),
    }


def differences(stored: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """One line for each value that is not the same in both."""
    names = [*stored, *(name for name in here if name not in stored)]
    return [
        f"{name}: {stored.get(name, 'not given')} there, {here.get(name, 'not known')} here"
        for name in names
        if stored.get(name) != here.get(name)
    ]


def probe(predictor: Predictor) -> str:
    """16 hexadecimal digits that depend on every bit of the rows of a short fixed stream.

    The network reads it token by token, then at once, as where a window begins with a part of the
    one before: other shapes, for which libraries have other routines.
    """
    digest = hashlib.sha256()
    stream = [i * PROBE_STEP % predictor.vocab_size for i in range(PROBE_TOKENS)]
    network = predictor.base if isinstance(predictor, Mixture) else predictor
    with single_thread():
        session = predictor.start(0, num_tokens=PROBE_TOKENS + 1)
        for token in stream:
            digest.update(probabilities(session).astype("<f8").tobytes())
            session.observe(token)
        session = network.start(0, num_tokens=PROBE_TOKENS + 1)
        for token in stream:
            session.observe(token)
        digest.update(probabilities(session).astype("<f8").tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def single_thread() -> Iterator[None]:
    """One thread for torch's operations on the CPU, then as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _mathematics() -> str:
    """The C library, whose logarithms compiled loops take; elsewhere the system's version."""
    return " ".join(filter(None, platform.libc_ver())) or platform.release()


def _version(package: str) -> str:
    if package == "torch":
        return str(torch.__version__)  # tells builds apart, where the package's version may not
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
