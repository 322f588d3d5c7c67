from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from qpack.artifact.encode import encode
from qpack.artifact.writer import render
from qpack.checkpoint import (
    Checkpoint,
    build_model,
    check_finite,
    checkpoint_from_artifact,
    fingerprint,
    load,
    read_checkpoint,
    read_model,
    write_checkpoint,
)
from qpack.codec.registry import resolve
from qpack.errors import ArtifactError, CheckpointError, ConfigError, OutputExistsError
from qpack.tensors import Contents
from qpack.torch_tensors import to_raw

from .models import gpt_checkpoint, register_tied

TOKENS = torch.tensor([[3, 1, 4, 1, 5]])


def assert_same(first: Checkpoint, second: Checkpoint) -> None:
    assert fingerprint(first.tensors) == fingerprint(second.tensors)
    for field in ("architecture", "config", "aliases"):
        assert getattr(first, field) == getattr(second, field), field


def tied(**changes: Any) -> Checkpoint:
    table = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    values: dict[str, Any] = {
        "tensors": {"table.weight": table, "count": torch.tensor(7)},
        "architecture": "tied",
        "config": {"vocab_size": 6},
        "aliases": {"head.weight": "table.weight"},
        "name": "tied",
    }
    return Checkpoint(**{**values, **changes})


def write_artifact(path: Path, checkpoint: Checkpoint, **metadata: str) -> None:
    contents = Contents(
        tensors=tuple(to_raw(name, tensor) for name, tensor in checkpoint.tensors.items()),
        aliases=checkpoint.aliases,
        metadata=metadata,
    )
    encoded = encode(contents, codecs=resolve(None, stdlib_only=True))
    path.write_bytes(render(encoded, form=path.suffix.removeprefix(".")))


# Files


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for checkpoint in (gpt_checkpoint(), tied()):
        write_checkpoint(path, checkpoint, force=True)
        found = read_checkpoint(path)
        assert_same(found, checkpoint)
        assert found.name == "model"


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = gpt_checkpoint()
    backwards = dict(reversed(checkpoint.tensors.items()))
    write_checkpoint(tmp_path / "a", checkpoint)
    write_checkpoint(tmp_path / "b", dataclasses.replace(checkpoint, tensors=backwards))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_programs_read_what_is_written(tmp_path: Path) -> None:
    checkpoint = gpt_checkpoint()
    write_checkpoint(tmp_path / "a", checkpoint)
    assert fingerprint(safetensors.torch.load_file(tmp_path / "a")) == fingerprint(
        checkpoint.tensors
    )


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(OutputExistsError):
        write_checkpoint(path, gpt_checkpoint())
    assert path.read_bytes() == b"precious"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    write_checkpoint(whole, gpt_checkpoint())
    data = whole.read_bytes()
    cut, empty, text = (tmp_path / f"{name}.safetensors" for name in ("cut", "empty", "text"))
    cut.write_bytes(data[:-1])
    empty.write_bytes(b"")
    text.write_text("not a checkpoint at all, but long enough to be one")
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    for path in (cut, empty, text, folder, tmp_path / "none.safetensors"):
        for read in (read_checkpoint, read_model, load):
            with pytest.raises(CheckpointError, match=path.name):
                read(path)


def test_every_tensor_of_a_dtype_that_cannot_be_stored_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.zeros(2, dtype=torch.complex64), "b": torch.zeros(2)}
    tensors["c"] = tensors["b"].to(torch.float8_e8m0fnu)
    safetensors.torch.save_file(tensors, path, metadata={"qpack.architecture": "gpt"})
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert caught.value.items == ("a: torch.complex64", "c: torch.float8_e8m0fnu")


def test_safetensors_without_an_architecture(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="does not say which architecture") as caught:
        read_model(path)
    assert "qpack import" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("qpack.config", "{"),
        ("qpack.config", "[1]"),
        ("qpack.config", "[" * 100_000),
        ("qpack.aliases", "3"),
        ("qpack.aliases", '{"a": "nowhere"}'),
        ("qpack.aliases", '{"a": ["w"]}'),
        ("qpack.aliases", '{"w": "w"}'),
    ],
)
def test_metadata_that_does_not_hold(tmp_path: Path, key: str, text: str) -> None:
    path = tmp_path / "model.safetensors"
    metadata = {"qpack.architecture": "gpt", key: text}
    safetensors.torch.save_file({"w": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_checkpoint(path)


# Values


def test_a_fingerprint_is_of_names_dtypes_shapes_and_bytes() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    expected = hashlib.sha256(
        b'["a", "F32", [2, 3]]\n' + bytes(24) + b'["b", "F32", [1]]\n' + b"\x00\x00\x80\x3f"
    )
    assert fingerprint(base) == expected.hexdigest()
    assert fingerprint(dict(reversed(base.items()))) == fingerprint(base)
    others: list[dict[str, Tensor]] = [
        {**base, "a": torch.zeros(3, 2)},
        {**base, "a": torch.zeros(2, 3, dtype=torch.int32)},
        {**base, "b": torch.nextafter(torch.ones(1), torch.zeros(1))},
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"]},
    ]
    assert len({fingerprint(tensors) for tensors in (base, *others)}) == 6


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2]
)
def test_every_tensor_that_is_not_finite_is_named(dtype: torch.dtype) -> None:
    nan, inf = float("nan"), float("inf")
    tensors = {
        "fine": torch.tensor([1.0, -2.0]).to(dtype),
        "worst": torch.tensor([[nan, 1.0], [inf, -inf]]).to(dtype),
        "late": torch.cat((torch.zeros(999), torch.tensor([nan]))).to(dtype),
        "empty": torch.zeros(0).to(dtype),
        "indices": torch.tensor([1, 2]),
    }
    with pytest.raises(CheckpointError, match="2 tensors hold") as caught:
        check_finite(tensors)
    assert caught.value.items == (
        "worst: 1 NaN, 2 infinite of 4",
        "late: 1 NaN, 0 infinite of 1,000",
    )
    del tensors["worst"], tensors["late"]
    check_finite(tensors)


# Models


def test_a_built_model_is_frozen_float32_and_holds_the_tensors() -> None:
    checkpoint = gpt_checkpoint()
    model = build_model(checkpoint)
    assert not model.training
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad
        assert torch.equal(parameter, checkpoint.tensors[name].float()), name
    assert model(TOKENS).shape == (1, 5, 19)
    assert build_model(checkpoint, dtype=torch.bfloat16)(TOKENS).dtype == torch.float32


def test_every_tensor_that_does_not_fit_is_named() -> None:
    tensors = dict(gpt_checkpoint().tensors)
    del tensors["blocks.1.attn.c_v.weight"]
    tensors["tok_emb.weight"] = torch.zeros(18, 8)
    tensors["extra"] = torch.zeros(1)
    checkpoint = dataclasses.replace(gpt_checkpoint(), tensors=tensors, aliases={"x": "extra"})
    with pytest.raises(CheckpointError) as caught:
        build_model(checkpoint)
    assert caught.value.items == (
        "blocks.1.attn.c_v.weight: missing",
        "extra: aliased but no parameter",
        "extra: unexpected",
        "tok_emb.weight: shape (18, 8), expected (19, 8)",
        "x: an alias that is no parameter",
    )


def test_shapes_are_checked_before_memory_is_taken() -> None:
    checkpoint = gpt_checkpoint()
    config = {**checkpoint.config, "vocab_size": 2**40}  # 35 TB of embeddings
    with pytest.raises(CheckpointError, match=r"expected \(1099511627776, 8\)"):
        build_model(dataclasses.replace(checkpoint, config=config))


def test_architecture_and_configuration_must_be_known() -> None:
    checkpoint = gpt_checkpoint()
    with pytest.raises(ConfigError, match='unknown architecture "gpt2"'):
        build_model(dataclasses.replace(checkpoint, architecture="gpt2"))
    with pytest.raises(ConfigError, match='did you mean "rope_base"'):
        build_model(dataclasses.replace(checkpoint, config={**checkpoint.config, "rope_bas": 1}))


@pytest.mark.parametrize("ties", [False, True])
def test_aliases_are_tied_again(monkeypatch: pytest.MonkeyPatch, ties: bool) -> None:
    register_tied(monkeypatch)
    checkpoint = tied(config={"vocab_size": 6, "ties": ties})
    random_state = torch.get_rng_state()
    model = build_model(checkpoint)
    assert torch.equal(torch.get_rng_state(), random_state)  # though constructors draw
    assert model.get_parameter("head.weight") is model.get_parameter("table.weight")
    assert torch.equal(model.get_parameter("head.weight"), checkpoint.tensors["table.weight"])
    assert model.get_buffer("offset").tolist() == [0, 1, 2, 3, 4, 5]  # the module's own
    assert model.get_buffer("count").item() == 7
    assert model.get_buffer("count").dtype == torch.int64


def test_a_module_that_ties_by_itself_needs_no_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    register_tied(monkeypatch)
    model = build_model(tied(config={"vocab_size": 6, "ties": True}, aliases={}))
    assert model.get_parameter("head.weight") is model.get_parameter("table.weight")
    with pytest.raises(CheckpointError, match=r"head\.weight: missing"):
        build_model(tied(aliases={}))


def test_an_alias_of_another_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    register_tied(monkeypatch)
    bad = tied(tensors={**tied().tensors, "table.weight": torch.zeros(7, 4)})
    with pytest.raises(CheckpointError) as caught:
        build_model(bad)
    assert [item.partition(":")[0] for item in caught.value.items] == [
        "head.weight",
        "table.weight",
    ]


# Artifacts


@pytest.mark.parametrize("name", ["model.qpk", "model.pyz"])
def test_an_artifact_loads_as_its_checkpoint_does(tmp_path: Path, name: str) -> None:
    checkpoint = gpt_checkpoint()
    path, plain = tmp_path / name, tmp_path / "plain.safetensors"
    config = json.dumps(checkpoint.config)
    write_artifact(path, checkpoint, architecture="gpt", config=config, model_name="golf")
    write_checkpoint(plain, checkpoint)
    assert_same(read_model(path), checkpoint)
    assert checkpoint_from_artifact(path).name == "golf"
    assert torch.equal(load(path)(TOKENS), load(plain)(TOKENS))
    renamed = path.rename(tmp_path / "no_suffix")  # content tells, not the name
    assert_same(read_model(renamed), checkpoint)


def test_an_artifact_keeps_aliases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_tied(monkeypatch)
    path = tmp_path / "model.qpk"
    write_artifact(path, tied(), architecture="tied", config='{"vocab_size": 6}')
    assert_same(read_model(path), tied())
    model = load(path)
    assert model.get_parameter("head.weight") is model.get_parameter("table.weight")


def test_an_artifact_of_bare_weights_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.qpk"
    write_artifact(path, tied())
    with pytest.raises(CheckpointError, match="does not say which architecture") as caught:
        load(path)
    assert "qpack unpack" in (caught.value.hint or "")


def test_what_is_neither_checkpoint_nor_artifact(tmp_path: Path) -> None:
    junk, pickled = tmp_path / "junk", tmp_path / "final_model.pt"
    junk.write_bytes(b"certainly not a model")
    torch.save({}, pickled)
    with pytest.raises(ArtifactError):
        load(junk)
    with pytest.raises(CheckpointError, match="a PyTorch file") as caught:
        load(pickled)
    assert "qpack import" in (caught.value.hint or "")
