from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from qpack.checkpoint import build_model, fingerprint, write_checkpoint
from qpack.errors import CheckpointError, ConfigError, QpackError
from qpack.importing import import_file, strip_prefixes

from .models import GPT_CONFIG, gpt_checkpoint


def state() -> dict[str, Tensor]:
    return dict(gpt_checkpoint().tensors)


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state().items()}


class Attack:
    """What a malicious checkpoint is: a pickle that calls a function when opened."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize(
    "content",
    [
        state(),
        OrderedDict(state()),
        {"model": state(), "step": 100, "args": {"lr": 0.1}},
        {"state_dict": state()},
        {"epoch": 3, "model_state_dict": state(), "optimizer": {"state": {}}},
        {"model": {"state_dict": prefixed("module."), "step": 1}},
        prefixed("_orig_mod."),
        prefixed("module._orig_mod."),
    ],
    ids=["plain", "ordered", "model", "state_dict", "model_state_dict", "twice", "compiled", "ddp"],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_state_dicts_of_training_scripts(tmp_path: Path, content: Any, suffix: str) -> None:
    path = tmp_path / f"final_model{suffix}"
    torch.save(content, path)
    checkpoint = import_file(path, hints={"rope_base": 500.0})
    assert checkpoint.name == "final_model"
    assert checkpoint.architecture == "gpt"
    assert checkpoint.config["rope_base"] == 500.0
    assert {key: checkpoint.config[key] for key in GPT_CONFIG} == GPT_CONFIG
    assert fingerprint(checkpoint.tensors) == fingerprint(state())
    build_model(checkpoint)


def test_parameters_and_views_become_plain_tensors(tmp_path: Path) -> None:
    tensors = {name: torch.nn.Parameter(tensor) for name, tensor in state().items()}
    weight = tensors["blocks.0.mlp.fc.weight"].detach()
    tensors["blocks.0.mlp.fc.weight"] = torch.nn.Parameter(weight.T.contiguous().T)
    torch.save(tensors, tmp_path / "model.pt")
    found = import_file(tmp_path / "model.pt").tensors
    assert fingerprint(found) == fingerprint(state())
    assert all(type(t) is Tensor and t.is_contiguous() for t in found.values())


def test_safetensors_with_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "golf.safetensors"
    metadata = {"config": json.dumps({**GPT_CONFIG, "logit_softcap": 15.0, "rope_base": 7.0})}
    safetensors.torch.save_file(state(), path, metadata=metadata)
    config = import_file(path, hints={"rope_base": 9.0, "logit_softcap": None}).config
    assert config["rope_base"] == 9.0  # options win
    assert config["logit_softcap"] == 30.0  # None takes a key out
    assert import_file(path).config["logit_softcap"] == 15.0


def test_a_qpack_checkpoint_imports_as_itself(tmp_path: Path) -> None:
    checkpoint = gpt_checkpoint()
    write_checkpoint(tmp_path / "model.safetensors", checkpoint)
    again = import_file(tmp_path / "model.safetensors")
    assert again.config == checkpoint.config
    assert fingerprint(again.tensors) == fingerprint(checkpoint.tensors)


def test_wrong_options_and_tensors_are_named(tmp_path: Path) -> None:
    tensors = state()
    tensors["blocks.0.extra"] = tensors.pop("blocks.0.attn_scale")
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(CheckpointError) as caught:
        import_file(tmp_path / "model.pt")
    assert caught.value.items == ("blocks.0.attn_scale: missing", "blocks.0.extra: unexpected")
    with pytest.raises(ConfigError, match='did you mean "rope_dims"'):
        import_file(tmp_path / "model.pt", hints={"rope_dim": 4})
    with pytest.raises(ConfigError, match='unknown importer "gtp"'):
        import_file(tmp_path / "model.pt", architecture="gtp")


def test_dtypes_that_cannot_be_stored_are_named(tmp_path: Path) -> None:
    torch.save({**state(), "smear.gate": torch.zeros(8) * 1j}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError) as caught:
        import_file(tmp_path / "model.pt")
    assert caught.value.items == ("smear.gate: torch.complex64",)


def test_nan_weights_are_named(tmp_path: Path) -> None:
    tensors = state()
    tensors["tok_emb.weight"][3, 2] = float("nan")
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="not finite") as caught:
        import_file(tmp_path / "model.pt")
    assert caught.value.items == ("tok_emb.weight: 1 NaN, 0 infinite of 152",)


@pytest.mark.parametrize("nest", [None, "model"])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, nest: str | None) -> None:
    target, path = tmp_path / "pwned", tmp_path / "evil.pt"
    content = {**state(), "x": Attack(target)}
    torch.save(content if nest is None else {nest: content}, path)
    with pytest.raises(CheckpointError, match="restricted reader"):
        import_file(path)
    assert not target.exists()
    torch.load(path, weights_only=False)  # noqa: TID251 proves that the attack is one
    assert target.exists()


def test_whole_modules_are_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="restricted reader") as caught:
        import_file(tmp_path / "model.pt")
    assert "state_dict" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"model": state() | {"step": 3}}, "step: int"),
        ({3: torch.zeros(1)}, "3: Tensor"),
        ({"w": torch.zeros(2, 2).to_sparse()}, "w: Tensor"),
        ({"w": torch.empty(2, device="meta")}, "w: Tensor"),
        ([1, 2], "holds no state dict"),
        ({}, "holds no state dict"),
        ({"model": {}}, "holds no state dict"),
        (torch.zeros(3), "holds no state dict"),
    ],
    ids=["number", "key", "sparse", "meta", "list", "empty", "nothing", "tensor"],
)
def test_what_is_no_state_dict(tmp_path: Path, content: Any, named: str) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=named):
        import_file(tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_cannot_be_read(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    torch.save(state(), whole) if suffix == ".pt" else safetensors.torch.save_file(state(), whole)
    data = whole.read_bytes()
    for name, content in {"cut": data[:-40], "empty": b"", "text": b"hello" * 20}.items():
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=path.name):
            import_file(path)
    for missing in (tmp_path / f"none{suffix}", tmp_path):
        with pytest.raises(CheckpointError, match=missing.name):
            import_file(missing)


def test_a_damaged_pickle_never_gives_a_foreign_error(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(state(), path)
    data = path.read_bytes()
    for position in range(0, len(data), len(data) // 150):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x5A]) + data[position + 1 :])
        try:
            import_file(path)
        except QpackError as error:
            assert error.exit_code == 3


@pytest.mark.parametrize("text", ["{", "[]", "3", "[" * 100_000])
def test_a_configuration_that_is_no_object(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(state(), path, metadata={"config": text})
    with pytest.raises(CheckpointError, match="not a JSON object"):
        import_file(path)


def test_prefixes_go_only_from_the_front() -> None:
    one = torch.zeros(1)
    assert list(strip_prefixes({"a.module.b": one, "module.c": one})) == ["a.module.b", "c"]
    with pytest.raises(CheckpointError, match="two tensors would be named c") as caught:
        strip_prefixes({"c": one, "module.c": one})
    assert caught.value.items == ("module.c",)


def test_golf27m_is_recognised(shared_data: Path) -> None:
    checkpoint = import_file(shared_data / "models" / "golf27m_sp1024.safetensors")
    assert len(checkpoint.tensors) == 116
    assert sum(tensor.numel() for tensor in checkpoint.tensors.values()) == 27_092_057
    assert checkpoint.config == {
        "vocab_size": 1_024,
        "num_layers": 11,
        "model_dim": 512,
        "num_heads": 8,
        "num_kv_heads": 4,
        "mlp_mult": 3.0,
        "tie_embeddings": True,
        "logit_softcap": 30.0,
        "rope_base": 10_000.0,
        "rope_dims": None,
        "bigram_vocab_size": 4_096,
        "bigram_dim": 128,
        "smear_gate": True,
        "unet_skips": True,
        "train_seq_len": 1_024,
    }
