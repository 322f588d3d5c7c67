"""What a figure was measured with: machine, versions. For reports and benchmark results."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from qpack import __version__

PACKAGES = ("torch", "numpy", "safetensors", "brotli", "zstandard", "sentencepiece")


def provenance(device: torch.device) -> dict[str, object]:
    """What every measured document carries."""
    return {
        "hardware": hardware(device),
        "packages": packages(),
        "qpack_version": __version__,
        "commit": commit(),
    }


def hardware(device: torch.device) -> dict[str, object]:
    """Processor, cores that this process may use, memory, accelerator."""
    found: dict[str, object] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found


def packages() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the source tree that runs, `+` where it was changed.

    Where no checkout is at hand (an installed wheel): what `QPACK_COMMIT` says, else None.
    """
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return os.environ.get("QPACK_COMMIT")

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "-s", "-uno") else "")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or sys.platform
