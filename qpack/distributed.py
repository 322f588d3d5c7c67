"""Running under `torchrun`: one process group for the length of a command."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from qpack.errors import OtherRankError, QpackError

T = TypeVar("T")


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
        # gloo's threads end with the last reference to the group, which frames of an exception may
        # hold; threads that outlive the interpreter abort the process (pytorch issue 190489).
        gc.collect()


def barrier() -> None:
    """Wait until every rank is here; nothing outside `torchrun`."""
    if _active():
        dist.barrier()


def on_first(work: Callable[[], T]) -> T:
    """What `work` gives on rank 0, as JSON carries it, on every rank; the others wait.

    Where it raises a `QpackError`, rank 0 raises that and the others `OtherRankError`: a problem is
    told once, and nobody waits for ever.
    """
    if world_size() == 1:
        return work()
    failure: QpackError | None = None
    answer: Any = None
    if rank() == 0:
        try:
            answer = {"value": work()}
        except QpackError as error:
            failure, answer = error, {"exit_code": error.exit_code}
    answer = _sent(answer)
    if failure is not None:
        raise failure
    if "exit_code" in answer:
        raise OtherRankError(int(answer["exit_code"]))
    value: T = answer["value"]
    return value


def _sent(value: Any) -> Any:
    """Rank 0's JSON value on every rank; as bytes, for what torch sends objects as is pickle."""
    data = json.dumps(value).encode("ascii") if rank() == 0 else b""
    length = torch.tensor([len(data)])
    dist.broadcast(length, src=0)
    buffer = torch.empty(int(length), dtype=torch.uint8)
    if rank() == 0:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    dist.broadcast(buffer, src=0)
    return json.loads(bytes(buffer.tolist()))


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()
