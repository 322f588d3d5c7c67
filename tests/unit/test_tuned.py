"""Tuned files keep to the budget: what they grow by is saved in the integers."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import qpack
from qpack import tuned as module
from qpack.artifact.writer import render
from qpack.codec.registry import resolve
from qpack.errors import CalibrationError, ConfigError
from qpack.fit import Fitted, Fitter
from qpack.inputs import read_inputs
from qpack.options import PackOptions
from qpack.pipeline import calibration_batches, pack_checkpoint, tuning_batches
from qpack.quant.engine import Quantizer
from qpack.quant.plan import classify, make_plan, untied
from qpack.quant.tune import Tuning
from qpack.recipe import parse_recipe
from qpack.stages import RunLog
from qpack.tensors import QuantizedTensor
from qpack.tokens import read_shard, write_shard
from qpack.tuned import TuningRecord, fit_tuned

from .quant.tune_nets import Net, token_batches
from .test_pipeline import with_out

RECIPE = """
[knob]
name = "k"
[[rule]]
match = ["class:embedding", "class:matrix"]
scale = "sigma"
bits = 6
knob = true
[[rule]]
match = ["class:vector"]
type = "float16"
[[rule]]
match = ["class:buffer"]
type = "keep"
"""
CODECS = resolve(["zstd"])
ROOM = 1_700


@pytest.fixture(scope="module")
def net() -> Net:
    return Net()


def fitter_of(net: Net) -> Fitter:
    tensors, aliases = untied(net)
    plan = make_plan(tensors, classify(net), aliases, parse_recipe(RECIPE, name="own"))
    return Fitter(
        Quantizer(tensors, plan, None), tensors, aliases=aliases, metadata={}, files=(),
        form="qpk", codecs=CODECS,
    )  # fmt: skip


def tuning_of(net: Net, **changes: object) -> Tuning:
    given = Tuning(
        model=net,
        batches=token_batches(4, seed=1),
        held_out=token_batches(2, seed=2),
        steps=12,
    )
    return replace(given, **changes)  # type: ignore[arg-type]


def run(fitter: Fitter, tuning: Tuning, log: RunLog) -> tuple[Fitted, Fitted, TuningRecord]:
    """(untuned, tuned, record) at a budget that the untuned file uses to the last byte."""
    fitted = fitter.fit(ROOM)
    budget = fitted.search.num_bytes
    done = fit_tuned(fitter, fitted, tuning, budget, form="qpk", codecs=CODECS, progress=log)
    return fitted, *done


def test_a_tuned_file_fits_and_is_nearer(net: Net) -> None:
    log = RunLog()
    plain, tuned, record = run(fitter_of(net), tuning_of(net), log)
    assert record.kept and record.after < record.before and record.steps == 12
    data = render(tuned.encoded, form="qpk")
    assert len(data) == tuned.search.num_bytes <= plain.search.num_bytes
    assert tuned.contents is tuned.encoded.contents
    assert any("over the budget" in note for note in log.notes), "the first file had grown"
    assert tuned.search.value > plain.search.value, "so the integers became coarser"
    assert all(t.octave == 64 for t in tuned.contents.tensors if isinstance(t, QuantizedTensor))


def test_what_does_not_pay_is_not_kept(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qpack.quant.tune.held_out_divergence", lambda *_: 1.0)
    log = RunLog()
    plain, tuned, record = run(fitter_of(net), tuning_of(net, steps=2), log)
    assert tuned is plain
    assert (record.kept, record.before, record.after) == (False, 1.0, 1.0)
    assert any("not kept" in note and "more steps" in note for note in log.notes)


def test_a_file_that_never_fits_is_not_kept(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "file_bytes", lambda *_: ROOM + 10)
    fitter = fitter_of(net)
    rooms: list[int] = []
    fit = fitter.fit
    monkeypatch.setattr(fitter, "fit", lambda room: (rooms.append(room), fit(room))[1])
    log = RunLog()
    plain, tuned, record = run(fitter, tuning_of(net, steps=4), log)
    assert tuned is plain and not record.kept and record.after == record.before
    assert record.reason == "no tuned file within the budget was nearer on held-out tokens"
    assert not any("more steps" in note for note in log.notes)
    assert len(rooms) == module.ROUNDS + 1
    assert all(now < before for before, now in pairwise(rooms))


def test_a_pack_says_what_tuning_did(given: PackOptions, tmp_path: Path) -> None:
    """Random weights on random tokens: little to learn, but never a loss and never unsaid."""
    out, path = tmp_path / "m.qpk", tmp_path / "r.json"
    report = pack_checkpoint(
        with_out(given, out, recipe="record", tune=4, report=path, codecs=("rans",))
    )
    tuning = report["tuning"]
    assert 0 < tuning["after"] <= tuning["before"]
    assert tuning["kept"] == (tuning["after"] < tuning["before"])
    assert tuning["steps"] == 4 and tuning["measured"][0]["steps"] == 0
    assert out.stat().st_size == report["artifact_bytes"] <= report["budget_bytes"]
    verdict = "kept" if tuning["kept"] else "not kept"
    assert f"4 steps of tuning were {verdict}" in path.with_suffix(".md").read_text()
    assert "tune" in [stage["name"] for stage in report["stages"]]
    with pytest.raises(CalibrationError, match="no held-out batches"):
        pack_checkpoint(with_out(given, tmp_path / "n.qpk", tune=1, window=1024))


def test_tuning_reads_on_in_the_shard_but_not_what_is_scored(
    given: PackOptions, tmp_path: Path
) -> None:
    assert given.calib is not None
    shard, first = read_shard(given.calib), given.calib_tokens
    after = first + given.val_tokens + 1
    copy = tmp_path / "copy.bin"
    copy.write_bytes(given.calib.read_bytes())
    for val in (None, copy):
        for asked, count in ((first + 40, 40), (10_000_000, len(shard) - after), (first - 1, 0)):
            inputs = read_inputs(
                with_out(given, tmp_path / "m.qpk", val=val, tune=1, tune_tokens=asked)
            )
            assert np.array_equal(inputs.tuning, shard[after : after + count])
            assert inputs.sources["validation"]["first_token"] == first
    other = tmp_path / "other.bin"
    write_shard(other, shard[::-1])
    inputs = read_inputs(with_out(given, tmp_path / "m.qpk", val=other, tune=1))
    assert np.array_equal(inputs.tuning, shard[first:])
    assert len(read_inputs(with_out(given, tmp_path / "m.qpk", tune_tokens=10_000)).tuning) == 0


def test_calibration_tokens_alone_may_be_tuned_on(given: PackOptions) -> None:
    options = replace(given, tune=1, tune_tokens=given.calib_tokens)
    inputs = read_inputs(options)
    batches = calibration_batches(inputs, options, RunLog())[0]
    found = tuning_batches(inputs, batches, options)
    assert len(found) == len(batches) and all(len(batch) for batch in found)


def test_a_module_is_tuned_to_its_outputs(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(40, 60), torch.nn.Tanh(), torch.nn.Linear(60, 20)
        )
    batches = [torch.randn(32, 40, generator=generator) for _ in range(16)]
    for steps in (0, 20):
        report = qpack.pack(
            model, calibration=batches, budget=5_000, out=tmp_path / f"{steps}.qpk",
            recipe="record", tune=steps,
        )  # fmt: skip
        assert (report["tuning"] is None) == (steps == 0)
    assert report["tuning"]["after"] < report["tuning"]["before"]
    assert report["quality"]["relative_output_error"] < 1e-4
    with pytest.raises(ConfigError, match="at least 1 step"):
        qpack.pack(
            model,
            calibration=batches,
            budget=5_000,
            out=tmp_path / "n.qpk",
            recipe="record",
            tune=-1,
        )


def test_the_same_again_is_the_same_file(net: Net) -> None:
    files = [
        render(run(fitter_of(net), tuning_of(net, steps=4), RunLog())[1].encoded, form="qpk")
        for _ in range(2)
    ]
    assert files[0] == files[1]
