"""What must hold before a run begins: its folder, its data, its batch and its device."""

from __future__ import annotations

from pathlib import Path

import torch

from qpack.distributed import world_size
from qpack.errors import ConfigError, InputError, OutputExistsError, ResourceError
from qpack.progress import Progress
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard

from . import resume as checkpoints
from .config import TrainConfig
from .data.prepare import Prepared
from .model.config import GPTConfig

MODEL, RECORD = "model.safetensors", "train.json"
OUTPUTS = (MODEL, RECORD, "metrics.jsonl", checkpoints.FOLDER)


def check_folder(folder: Path, *, resume: bool, force: bool) -> None:
    """Make the folder; raise where it holds a run that is neither resumed nor replaced."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot make the folder {folder}: {error.strerror}") from error
    there = [str(folder / name) for name in OUTPUTS if (folder / name).exists()]
    if there and not (resume or force):
        raise OutputExistsError(
            "the folder holds a run already",
            items=there,
            hint="--resume goes on with it, --force starts anew",
        )
    if force and resume:
        raise InputError("--resume and --force contradict each other")


def rows_per_pass(config: TrainConfig) -> int:
    """Sequences of one pass on one rank. Raises `ConfigError` when the batch cannot be shared."""
    loop = config.loop
    rows, left = divmod(loop.batch_tokens, loop.sequence * loop.accumulate * world_size())
    if left or not rows:
        raise ConfigError(
            f"loop.batch_tokens = {loop.batch_tokens:,} cannot be shared by {world_size()} ranks",
            items=[
                f"sequence {loop.sequence:,} x accumulate {loop.accumulate} x ranks must divide it"
            ],
        )
    return rows


def check_data(
    config: TrainConfig, gpt: GPTConfig, data: Prepared, tokenizer: Tokenizer, progress: Progress
) -> None:
    """Raise `ConfigError` for what the data cannot give that the configuration needs."""
    problems = []
    if config.average.ship == "best" and not data.val:
        problems.append("average.ship = 'best' chooses by validation text, and there is none")
    masks = [key for key in ("document_mask", "smear_mask_bos") if getattr(gpt, key)]
    if masks and gpt.bos_token != tokenizer.bos:
        keys = ", ".join(f"model.{key}" for key in masks)
        problems.append(
            f"{keys}: model.bos_token = {gpt.bos_token}, the tokenizer's is {tokenizer.bos}"
        )
    first = read_shard(data.train[0])
    if masks and not (first[: 1 << 22] == tokenizer.bos).any():
        progress.warn(f"{data.train[0].name}: no document begins in it: masks do nothing")
    if config.pack is not None and (config.qat.enabled or config.average.ship == "best"):
        window = config.pack.window or config.loop.sequence
        given = min(config.pack.calib_tokens, len(first))
        if given < window:
            problems.append(
                f"pack.calib_tokens: {given:,} tokens of the first shard, a window has {window:,}"
            )
    problems += [
        f"data.val: {path.name} has {len(read_shard(path))} token: no target to score"
        for path in data.val
        if len(read_shard(path)) < 2
    ]
    if problems:
        raise ConfigError("the data does not fit the configuration", items=problems)


def is_compiled(config: TrainConfig, device: torch.device) -> bool:
    """Whether the model is compiled."""
    choice = config.loop.compile
    return choice == "on" or (choice == "auto" and device.type == "cuda")


def attention_backend(config: TrainConfig, device: torch.device) -> str:
    """What attends. Raises `ConfigError` for FlexAttention where it could not be trained with."""
    possible = device.type == "cuda" and is_compiled(config, device)
    choice = config.loop.attention
    if choice == "flex" and not possible:
        raise ConfigError(
            "loop.attention = 'flex' needs a CUDA device and compiling",
            items=[f"device {device}, loop.compile = {config.loop.compile!r}"],
            hint="use 'auto' or 'sdpa'",
        )
    if choice != "auto":
        return choice
    return "flex" if possible and config.model.get("document_mask") else "sdpa"
