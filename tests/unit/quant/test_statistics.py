"""Statistics on disk: exact, bound to their checkpoint, refused when damaged."""

from pathlib import Path

import pytest
import torch

from qpack.errors import CalibrationError, OutputExistsError
from qpack.quant.statistics import Statistics, digest_of, load_statistics, save_statistics


def sample() -> Statistics:
    X = torch.randn(30, 7, generator=torch.Generator().manual_seed(1))
    return Statistics(
        hessians={"a": X.T @ X, "b": torch.ones(1, 1)},
        counts={"a": 30, "b": 1},
        members={"a": "a", "a2": "a", "b": "b"},
        fingerprint="abc",
        source={"name": "shard"},
        weighted={"a": X.T @ (X * torch.linspace(0, 2, 30)[:, None]) / 30},
        sensitivities={"a": torch.rand(5), "a2": torch.rand(3)},
        frequencies={"b": torch.rand(4)},
        table_sensitivities={"b": torch.rand(1)},
        moments={"a": (X[:, :5].T @ X[:, :5])[None]},
        token_tables={"b": 2},
        sensitivity_tokens=20,
    )


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "stats.safetensors"
    before = sample()
    save_statistics(path, before)
    after = load_statistics(path, fingerprint="abc", device="cpu")
    assert after.members == before.members
    assert after.counts == before.counts
    assert after.source == before.source
    assert after.sensitivity_tokens == 20 and after.token_tables == {"b": 2}
    for kind in ("sensitivities", "frequencies", "table_sensitivities"):
        old, new = getattr(before, kind), getattr(after, kind)
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old)
    assert after.moments.keys() == before.moments.keys()
    torch.testing.assert_close(after.moments["a"], before.moments["a"])
    assert after.weighted.keys() == before.weighted.keys()
    for old, new in ((before.hessians, after.hessians), (before.weighted, after.weighted)):
        for name, H in old.items():
            # The file keeps the upper triangle: H is symmetric up to the last bit of its sums.
            assert torch.equal(new[name].triu(), H.triu())
            assert torch.equal(new[name], new[name].T)


def test_another_checkpoints_statistics_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "stats.safetensors"
    save_statistics(path, sample())
    with pytest.raises(CalibrationError, match="another checkpoint") as caught:
        load_statistics(path, fingerprint="xyz", device="cpu")
    assert any("abc" in item for item in caught.value.items)


def test_damage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stats.safetensors"
    save_statistics(path, sample())
    data = path.read_bytes()
    for broken in (b"", data[:40], data[:-5], b"\0" * 64):
        path.write_bytes(broken)
        with pytest.raises(CalibrationError, match="cannot be read"):
            load_statistics(path, fingerprint="abc", device="cpu")
    with pytest.raises(CalibrationError, match="cannot be read"):
        load_statistics(tmp_path / "missing", fingerprint="abc", device="cpu")


def test_one_bit_of_a_value_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "stats.safetensors"
    save_statistics(path, sample())
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CalibrationError, match="SHA-256 is another"):
        load_statistics(path, fingerprint="abc", device="cpu")


def test_other_safetensors_are_refused(tmp_path: Path) -> None:
    import safetensors.torch

    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(CalibrationError, match="not a statistics file"):
        load_statistics(path, fingerprint="abc", device="cpu")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "stats.safetensors"
    save_statistics(path, sample())
    with pytest.raises(OutputExistsError):
        save_statistics(path, sample())
    save_statistics(path, sample(), force=True)


def test_statistics_that_do_not_agree_with_themselves(tmp_path: Path) -> None:
    import json

    import safetensors.torch

    def write(tensors: dict[str, torch.Tensor], **changes: object) -> Path:
        description = {
            "schema": "qpack.statistics/5", "counts": {"a": 3}, "members": {"a": "a"},
            "fingerprint": "abc", "source": {}, "sensitivity_tokens": 3,
            "token_tables": {},
        } | changes  # fmt: skip
        path = tmp_path / "s.safetensors"
        description = {"sha256": digest_of(description, tensors)} | description
        safetensors.torch.save_file(tensors, path, metadata={"qpack": json.dumps(description)})
        return path

    triangle, g = {"hessians/a": torch.ones(6)}, {"sensitivities/a": torch.ones(2)}
    load_statistics(write(triangle), fingerprint="abc", device="cpu")
    for tensors, changes, words in (
        ({"hessians/a": torch.ones(5)}, {}, "no triangle"),
        ({"hessians/a": torch.full((6,), float("nan"))}, {}, "not finite"),
        (triangle | {"weighted/a": torch.ones(5)}, {}, "weighted a: 5 values are no triangle"),
        (triangle | {"weighted/b": torch.ones(6)}, {}, "weighted b: no Hessian of its size"),
        (triangle | {"sensitivities/a": -torch.ones(2)}, {}, "sensitivities of a: values"),
        (triangle | {"frequencies/a": torch.ones(2)}, {}, "different tables"),
        (triangle | {"a": torch.ones(2)}, {}, "a: of an unknown kind"),
        (triangle | {"moments/a": torch.ones(1, 3)}, {}, "moments a: not one of each run"),
        (triangle | g | {"moments/a": torch.ones(2, 3)}, {}, "moments a: not one of each run"),
        (triangle | g | {"moments/a": torch.ones(1, 6)}, {}, "moments a: of another size"),
        (triangle | g | {"moments/a": torch.full((1, 3), torch.inf)}, {}, "not finite"),
        (triangle, {"sensitivity_tokens": -1}, "sensitivity_tokens"),
        (triangle, {"token_tables": {"a": 0}}, "token_tables"),
        (triangle, {"counts": {}}, "a: no count"),
        (triangle, {"counts": None}, "counts: missing"),
        (triangle, {"members": {"b": "c"}}, "c: no Hessian"),
        (triangle, {"sha256": "0" * 64}, "its SHA-256 is another"),
    ):
        with pytest.raises(CalibrationError, match="damaged") as caught:
            load_statistics(write(tensors, **changes), fingerprint="abc", device="cpu")
        assert words in str(caught.value)
