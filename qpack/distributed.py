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

    Tensors on GPUs go through NCCL where every rank has one of its own, all others through gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _active():
        yield
        return
    local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if torch.cuda.is_available() and torch.cuda.device_count() >= local:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
