"""Running under `torchrun`: one process group for the length of a command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


def rank() -> int:
    """This process's rank; 0 outside `torchrun`."""
    return dist.get_rank() if _active() else 0


def world_size() -> int:
    """Processes working together; 1 outside `torchrun`."""
    return dist.get_world_size() if _active() else 1


@contextmanager
def session() -> Iterator[None]:
    """Join the process group that `torchrun` describes, if it does and none is joined yet.

    NCCL where every rank has a GPU, gloo otherwise.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _active():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "nccl"
    dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
