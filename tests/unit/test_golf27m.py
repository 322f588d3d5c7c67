"""The main job on the real 27 M-parameter checkpoint: minutes on two cores."""

from pathlib import Path

import numpy as np
import pytest
import torch

from qpack import inspect, verify
from qpack.checkpoint import build_model, fingerprint, write_checkpoint
from qpack.codec.entropy import zero_order_bits
from qpack.eval.bpb import compare
from qpack.importing import import_file
from qpack.inputs import token_batches
from qpack.options import PackOptions
from qpack.pipeline import pack_checkpoint
from qpack.quant import grid
from qpack.quant.calibrate import collect
from qpack.quant.engine import Quantizer
from qpack.quant.plan import classify, make_plan
from qpack.recipe import parse_recipe
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard
from qpack.torch_tensors import to_torch

pytestmark = pytest.mark.slow

RECORD = """
[knob]
name = "none"
[[rule]]
match = "re:blocks.*(attn|mlp).*weight"
bits = 6
scale = "sigma"
k = 12.85
[[rule]]
match = "re:.*"
type = "keep"
"""


@pytest.fixture
def two_threads() -> None:
    """The default tier runs on one thread a worker; this file may use the machine."""
    torch.set_num_threads(2)


@pytest.mark.usefixtures("two_threads")
def test_pack_to_twelve_million_bytes(shared_data: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "golf27m.safetensors"
    write_checkpoint(checkpoint, import_file(shared_data / "models/golf27m_sp1024.safetensors"))
    out = tmp_path / "golf27m.pyz"
    report = pack_checkpoint(
        PackOptions(
            checkpoint=checkpoint,
            budget_bytes=12_000_000,
            out=out,
            tokenizer=shared_data / "tokenizers/fineweb_1024_bpe.model",
            calib=shared_data / "shards/fineweb_train_sp1024.bin",
            val=shared_data / "shards/fineweb_val_head_sp1024.bin",
            device="cpu",
        )
    )
    assert 11_994_000 <= out.stat().st_size == report["artifact_bytes"] <= 12_000_000
    assert len(report["probes"]) <= 5
    assert report["choice"]["chosen"] == "by sensitivity"
    assert report["gap"] < 0.005
    assert report["kl"] < 0.009
    assert max(stage["peak_rss_bytes"] for stage in report["stages"]) < 6 * 2**30
    assert verify(out, sha256=report["sha256"])
    assert inspect(out)["bytes"] == out.stat().st_size


@pytest.mark.usefixtures("two_threads")
def test_the_solver_reaches_the_published_figures(shared_data: Path) -> None:
    """k = 12.85: 3.355 bits with 16 a row of scale, KL .0155 on the first 65,536 tokens."""
    checkpoint = import_file(shared_data / "models/golf27m_sp1024.safetensors")
    model = build_model(checkpoint)
    tokens = np.asarray(read_shard(shared_data / "shards/fineweb_train_sp1024.bin")[:65_536])
    statistics = collect(
        model, token_batches(tokens, 1024), fingerprint=fingerprint(checkpoint.tensors)
    )
    plan = make_plan(checkpoint.tensors, classify(model), {}, parse_recipe(RECORD, name="record"))
    quantizer = Quantizer(checkpoint.tensors, plan, statistics)
    integers = quantizer.quantize(0)
    bits = sum(zero_order_bits(t.integers) + 16 * len(t.row_codes) for t in integers.values())
    weights = sum(t.integers.size for t in integers.values())
    assert weights == 25_952_256
    assert bits / weights == pytest.approx(3.355, abs=0.005)
    for name, tensor in integers.items():
        steps = grid.step_values(torch.from_numpy(tensor.row_codes), tensor.octave)
        nearest = grid.round_to_nearest(
            quantizer.weights[name], steps, torch.full_like(steps, 31.0)
        )
        ours = quantizer.errors(name, torch.from_numpy(tensor.dequantize()))
        assert ours.sum() < quantizer.errors(name, nearest * steps[:, None]).sum(), name
    tensors = checkpoint.tensors | {name: to_torch(t) for name, t in integers.items()}
    quantized = type(checkpoint)(
        tensors=tensors,
        architecture=checkpoint.architecture,
        config=checkpoint.config,
        aliases={},
        name="quantized",
    )
    _, score = compare(
        model,
        build_model(quantized),
        read_shard(shared_data / "shards/fineweb_val_head_sp1024.bin"),
        Tokenizer.load(shared_data / "tokenizers/fineweb_1024_bpe.model"),
        max_tokens=65_536,
    )
    assert score.kl == pytest.approx(0.0155, rel=0.05)
