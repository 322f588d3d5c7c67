from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qpack.checkpoint import build_model, read_checkpoint
from qpack.errors import ConfigError, ResourceError
from qpack.eval.bpb import score
from qpack.progress import Silent, Task
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard, sha256_file, write_shard
from qpack.trainer import loop
from qpack.trainer.model.gpt import GPT

from .runs import changed, metrics, run

EVERYTHING: dict[str, Any] = {
    "model": {"smear_gate": True, "bigram_vocab_size": 64, "bigram_dim": 8, "num_layers": 4},
    "optim": {"normalize": "rows", "precondition": "mousse-kronecker"},
    "data": {"curriculum": 0.1},
    "average": {"ema_decay": 0.9, "swa_every": 2, "swa_below": 0.9, "ship": "mixture"},
    "qat": {"start_progress": 0.5, "soft_rounding": [1.0, 16.0]},
    "pack": {"budget": 60_000, "recipe": "record"},
    "phase": [{"at": 0.3, "layer_order": [0, 1, 2, 1, 2, 3]}],
}
"""State of every kind that a run can have."""


def test_it_learns_and_the_checkpoint_is_what_was_scored(
    config: dict[str, Any], shard: Path, val: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = changed(
        config, data={"val": [val]}, loop={"max_steps": 60, "val_tokens": 500, "log_every": 10}
    )
    result = run(config, tmp_path / "run")
    counts = np.bincount(read_shard(shard), minlength=384) + 1e-9
    frequencies = counts / counts.sum()
    unigram = -float((frequencies * np.log(frequencies)).sum())
    assert result.loss < unigram - 1.0
    assert (result.steps, result.tokens, result.device) == (60, 60 * 128, "cpu")
    checkpoint = read_checkpoint(result.checkpoint)
    assert checkpoint.architecture == "gpt"
    assert checkpoint.config["train_seq_len"] == 32
    again = score(build_model(checkpoint), read_shard(val), tokenizer, window=32, max_tokens=500)
    assert result.score is not None
    assert again.nats == pytest.approx(result.score.nats, rel=1e-12)
    assert result.sha256 == sha256_file(result.checkpoint)


def test_same_seed_same_file_and_no_global_state(config: dict[str, Any], tmp_path: Path) -> None:
    before = torch.get_rng_state()
    first = run(config, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = run(config, tmp_path / "b")
    other = run(changed(config, loop={"seed": 1}), tmp_path / "c")
    assert sha256_file(first.checkpoint) != sha256_file(other.checkpoint)
    tensors = [read_checkpoint(result.checkpoint).tensors for result in (first, again)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


class StopsAfter(Silent):
    """Asks the run to stop, as Ctrl-C does, after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    @contextmanager
    def stage(self, name: str, *, total: float | None = None, unit: str = "") -> Iterator[Task]:
        left = self.steps if name == "train" else -1

        class Counter:
            def advance(self, amount: float = 1.0, *, note: str = "") -> None:
                nonlocal left
                left -= bool(note)
                if left == 0:
                    signal.raise_signal(signal.SIGINT)

        yield Counter()


@pytest.mark.parametrize("sections", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("steps", [1, 4, 7, 11])
def test_interrupted_and_resumed_is_as_if_nothing_had_been(
    config: dict[str, Any], sections: dict[str, Any], steps: int, tmp_path: Path
) -> None:
    config = changed(config, **sections)
    whole = run(config, tmp_path / "whole" / "run")
    folder = tmp_path / "parts" / "run"
    with pytest.raises(KeyboardInterrupt):
        run(config, folder, progress=StopsAfter(steps))
    assert not (folder / "model.safetensors").exists()
    parts = run(config, folder, resume=True)
    assert parts.steps == whole.steps
    assert sha256_file(parts.checkpoint) == sha256_file(whole.checkpoint)
    lines = [
        [(row["step"], row["loss"]) for row in metrics(path) if "loss" in row]
        for path in (tmp_path / "whole" / "run", folder)
    ]
    assert lines[0] == lines[1]


def test_ctrl_c_leaves_signals_as_they_were(config: dict[str, Any], tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", progress=StopsAfter(2))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_resume_with_changes_is_refused_and_names_them(
    config: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(config, folder, progress=StopsAfter(3))
    other = changed(config, loop={"seed": 5}, optim={"matrix_lr": 0.03})
    with pytest.raises(ConfigError, match="another configuration") as caught:
        run(other, folder, resume=True)
    assert caught.value.items == ("optim.matrix_lr: 0.02 -> 0.03", "loop.seed: 0 -> 5")
    data = tmp_path / "text.bin"
    write_shard(data, read_shard(config["data"]["train"][0])[:-1])
    with pytest.raises(ConfigError) as caught:
        run(changed(config, data={"train": [data]}), folder, resume=True)
    assert [item.partition(":")[0] for item in caught.value.items] == ["data file 0 (text.bin)"]


def test_metrics_are_lines_of_json(config: dict[str, Any], tmp_path: Path, val: Path) -> None:
    config = changed(config, data={"val": [val]}, loop={"val_tokens": 64, "validations": 3})
    run(config, tmp_path / "run")
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "loss" in row] == [3, 6, 9, 12]
    assert [row["step"] for row in rows if "val_bpb" in row] == [4, 8, 12]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert all(row["tokens_per_second"] > 0 for row in rows if "loss" in row)


def test_late_qat_switches_on_and_says_how_far_the_weights_are(
    config: dict[str, Any], tmp_path: Path
) -> None:
    sections = {"qat": {"start_progress": 0.5}, "pack": {"budget": 60_000, "recipe": "record"}}
    run(changed(config, **sections), tmp_path / "on")
    run(config, tmp_path / "off")
    (row,) = [row for row in metrics(tmp_path / "on") if "qat_mean_error" in row]
    assert row["step"] == 6
    assert all(0 < error < 0.1 for error in row["qat_mean_error"].values())
    losses = [
        {row["step"]: row["loss"] for row in metrics(tmp_path / name) if "loss" in row}
        for name in ("on", "off")
    ]
    assert losses[0][6] == losses[1][6]
    assert losses[0][9] != losses[1][9]


def test_gradients_do_not_depend_on_how_a_batch_is_cut(
    config: dict[str, Any], tmp_path: Path
) -> None:
    results = [
        run(changed(config, loop={"accumulate": parts}), tmp_path / str(parts))
        for parts in (1, 2, 4)
    ]
    tensors = [read_checkpoint(result.checkpoint).tensors for result in results]
    for other in tensors[1:]:
        for name, tensor in tensors[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5)


def test_phases_run_in_their_order(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = GPT.set_layer_order

    def record(self: GPT, order: Any) -> None:
        seen.append(order if order is None else tuple(order))
        original(self, order)

    monkeypatch.setattr(GPT, "set_layer_order", record)
    phases = [
        {"at": 0.25, "layer_order": [0, 1, 1]},
        {"step": 9, "layer_order": [0, 1, 0, 1]},
    ]
    result = run(changed(config, phase=phases), tmp_path / "run")
    assert seen == [(0, 1)] * 3 + [(0, 1, 1)] * 6 + [(0, 1, 0, 1)] * 4
    assert read_checkpoint(result.checkpoint).config["layer_order"] == [0, 1, 0, 1]


def test_a_budget_of_time(config: dict[str, Any], tmp_path: Path) -> None:
    config = changed(config, loop={"max_steps": None, "max_seconds": 0.4, "reserve_seconds": 0.1})
    result = run(config, tmp_path / "run")
    assert result.steps >= 1
    assert 0.3 <= result.seconds < 30
    assert math.isfinite(result.loss)


def test_bfloat16_keeps_float32_weights(config: dict[str, Any], tmp_path: Path) -> None:
    result = run(changed(config, loop={"dtype": "bfloat16"}), tmp_path / "run")
    assert result.dtype == "bfloat16"
    tensors = read_checkpoint(result.checkpoint).tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("every", "message", "kept"),
    [
        (2, "weights are not finite after step 8", "the checkpoint of step 6 is kept"),
        (7, "the loss became nan at step 9", "the checkpoint of step 7 is kept"),
        (0, "the loss became nan at step 9", "no checkpoint was kept: set loop.checkpoint_every"),
    ],
)
def test_a_run_that_diverges_stops_and_keeps_the_last_good_checkpoint(
    config: dict[str, Any],
    every: int,
    message: str,
    kept: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = loop.lr_scale

    def breaks(section: Any, *, step: int, **keys: Any) -> float:
        return math.inf if step == 7 else original(section, step=step, **keys)

    monkeypatch.setattr(loop, "lr_scale", breaks)
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match=message) as caught:
        run(changed(config, loop={"checkpoint_every": every}), folder)
    assert caught.value.items[-1] == kept
    if "loss" in message:
        assert caught.value.items[0].startswith("batch: ")
    assert not (folder / "model.safetensors").exists()
    if every:
        state = json.loads((folder / "checkpoint" / "state.json").read_text())
        assert f"step {state['steps']} is" in kept


def test_short_memory_names_the_knob(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **keys: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("qpack.trainer.step.Passes.__call__", fail)
    with pytest.raises(ResourceError, match="out of memory in training") as caught:
        run(config, tmp_path / "run")
    assert "loop.accumulate (now 1)" in str(caught.value.hint)


def test_another_failure_is_not_called_a_lack_of_memory(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **keys: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("qpack.trainer.step.Passes.__call__", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(config, tmp_path / "run")


def test_the_loss_is_of_the_targets_that_count(config: dict[str, Any], tmp_path: Path) -> None:
    """Packed documents leave room, whose targets are ignored."""
    losses = []
    for windows in ("shuffled", "documents"):
        still = {"matrix_lr": 1e-9, "embedding_lr": 1e-9, "scalar_lr": 1e-9}
        changes = {"data": {"windows": windows}, "optim": still, "loop": {"sequence": 64}}
        losses.append(run(changed(config, **changes), tmp_path / windows).loss)
    assert losses == pytest.approx([math.log(384)] * 2, abs=0.02)  # logits are near 0 at the start


def test_a_run_may_be_watched_otherwise_when_it_is_resumed(
    config: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", progress=StopsAfter(4))
    other = changed(config, loop={"log_every": 1, "checkpoint_every": 2, "accumulate": 2})
    assert run(other, tmp_path / "run", resume=True).steps == 12
