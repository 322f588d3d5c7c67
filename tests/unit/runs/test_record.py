from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from qpack.errors import ConfigError, DataError
from qpack.runs.record import FILE, Record, compare, fingerprint, flatten, identify

IDENTITY = {"a.b": "1", "file (x.bin)": "sha256 0"}


def finished(folder: Path) -> Record:
    """A record whose stage `train` made `out.bin`."""
    record = Record(folder, {"trainer": "t"})
    (folder / "out.bin").write_bytes(b"made")
    record.begin("train", IDENTITY)
    record.finish(
        "train", IDENTITY, products={"out": folder / "out.bin"}, result={"n": 1}, seconds=1.23456
    )
    return record


def test_flatten_counts_through_lists_of_tables() -> None:
    table = {"a": {"b": 1, "c": {"d": [1, 2]}}, "phase": [{"at": 0.5}, {"at": 0.7}], "e": None}
    assert dict(flatten(table)) == {
        "a.b": 1, "a.c.d": [1, 2], "phase.0.at": 0.5, "phase.1.at": 0.7, "e": None,
    }  # fmt: skip


def test_identity_is_settings_and_contents(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(b"abc")
    got = identify({"a": {"b": 1, "c": "s"}}, {"data.train.0": path})
    digest = hashlib.sha256(b"abc").hexdigest()
    assert got == {"a.b": "1", "a.c": '"s"', "data.train.0 (x.bin)": f"sha256 {digest}"}
    with pytest.raises(DataError, match=r"gone\.bin"):
        identify({}, {"x": tmp_path / "gone.bin"})


def test_differences_name_both_values() -> None:
    before, now = {"a": "1", "b": "2", "gone": "3"}, {"a": "1", "b": "4", "new": "5"}
    assert list(compare(before, now)) == [
        "b: 2 -> 4", "gone: 3 -> (not there)", "new: (not there) -> 5",
    ]  # fmt: skip


def test_what_is_on_disk(tmp_path: Path) -> None:
    finished(tmp_path)
    document = json.loads((tmp_path / FILE).read_text())
    assert document["schema"] == "qpack.run/1" and document["trainer"] == "t"
    assert document["stages"]["train"] == {
        "done": True,
        "seconds": 1.235,
        "products": {"out": {"file": "out.bin", "sha256": hashlib.sha256(b"made").hexdigest()}},
        "result": {"n": 1},
        "fingerprint": fingerprint(IDENTITY),
        "identity": IDENTITY,
    }


def test_decisions(tmp_path: Path) -> None:
    assert Record(tmp_path, {}).decide("train", IDENTITY, force=False) == "run"
    finished(tmp_path)
    record = Record.read(tmp_path, {})
    assert record.decide("train", IDENTITY, force=False) == "skip"
    assert record.decide("train", IDENTITY, force=True) == "skip"
    record.begin("train", IDENTITY)
    assert Record.read(tmp_path, {}).decide("train", IDENTITY, force=False) == "resume"


@pytest.mark.parametrize("done", [True, False])
def test_changes_are_refused_and_named(tmp_path: Path, done: bool) -> None:
    record = finished(tmp_path)
    if not done:
        record.begin("train", IDENTITY)
    changed = {**IDENTITY, "a.b": "2"}
    with pytest.raises(ConfigError, match="another configuration or other data") as caught:
        record.decide("train", changed, force=False)
    assert caught.value.items == ("a.b: 1 -> 2",)
    assert record.decide("train", changed, force=True) == "run"


def test_products_are_looked_at(tmp_path: Path) -> None:
    record = finished(tmp_path)
    (tmp_path / "out.bin").write_bytes(b"other")
    with pytest.raises(ConfigError, match="have changed since") as caught:
        record.decide("train", IDENTITY, force=False)
    assert caught.value.items == ("out.bin",)
    assert record.decide("train", IDENTITY, force=True) == "run"
    (tmp_path / "out.bin").unlink()
    assert record.decide("train", IDENTITY, force=False) == "resume"


def test_beginning_again_forgets_what_came_of_it(tmp_path: Path) -> None:
    record = finished(tmp_path)
    record.finish("pack", {}, products={}, result={}, seconds=0.0)
    record.begin("train", IDENTITY)
    assert list(Record.read(tmp_path, {}).stages) == ["train"]


def test_files_outside_the_folder_keep_their_path(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    record = Record(folder, {})
    outside = tmp_path / "shard.bin"
    assert record.relative(folder / "data" / "x.bin") == "data/x.bin"
    assert record.relative(outside) == str(outside.resolve())
    for path in (folder / "x.bin", outside):
        assert record.absolute(record.relative(path)).resolve() == path.resolve()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"stages": 3}', '{"stages": {"train": 3}}'])
def test_a_damaged_record(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match="not the record of a run"):
        Record.read(tmp_path, {})
