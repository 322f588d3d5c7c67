from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qpack.errors import ConfigError, DataError, OutputExistsError, ResourceError, SetupError
from qpack.progress import Silent
from qpack.tokens import read_shard, render_shard
from qpack.trainer.data import fineweb as module
from qpack.trainer.data.fineweb import Manifest, download_fineweb, plan

from .stand_in import COMMIT, REPOSITORY, StandIn, serving

pytest.importorskip("huggingface_hub")

MANIFEST = {
    "version": 1,
    "datasets": [
        {
            "name": "fineweb10B_sp320",
            "tokenizer_name": "sp_bpe_320",
            "stats": {"files_train": 3, "files_val": 1, "tokens_train": 9},
        },
        {
            "name": "fineweb10B_sp8192",
            "tokenizer_name": "sp_bpe_8192",
            "stats": {"files_train": 1, "files_val": 1},
        },
    ],
    "tokenizers": [
        {"name": "sp_bpe_320", "model_path": "tokenizers/fineweb_320_bpe.model"},
        {"name": "byte260", "path": "tokenizers/bytes.json"},
    ],
}
FOLDER = "datasets/fineweb10B_sp320"
CHUNK = 1000


def shard(seed: int, size: int = 200_000) -> bytes:
    tokens = np.random.default_rng(seed).integers(0, 320, size).astype(np.uint16)
    return render_shard(tokens)


@pytest.fixture(scope="module")
def contents(challenge_tokenizer: Any) -> dict[str, bytes]:
    names = ["val_000000", "train_000000", "train_000001", "train_000002"]
    shards = {f"datasets/{FOLDER}/fineweb_{n}.bin": shard(i) for i, n in enumerate(names)}
    return {
        "datasets/manifest.json": json.dumps(MANIFEST).encode(),
        "datasets/tokenizers/fineweb_320_bpe.model": challenge_tokenizer.path.read_bytes(),
        **shards,
    }


@pytest.fixture
def hub(contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    import huggingface_hub.file_download

    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    # What it keeps of a transfer that breaks off is whole chunks, of 10 MB.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    with serving(contents) as server:
        yield server


def fetch(hub: StandIn, out: Path, **options: Any) -> dict[str, Any]:
    options = {"variant": "sp320", "train_shards": 2} | options
    return download_fineweb(out, repository=REPOSITORY, endpoint=hub.address, **options)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_variant_comes_whole(hub: StandIn, tmp_path: Path) -> None:
    report = fetch(hub, tmp_path)
    assert files(tmp_path) == {
        "manifest.json",
        "tokenizers/fineweb_320_bpe.model",
        f"{FOLDER}/fineweb_val_000000.bin",
        f"{FOLDER}/fineweb_train_000000.bin",
        f"{FOLDER}/fineweb_train_000001.bin",
    }
    for name in files(tmp_path):
        assert (tmp_path / name).read_bytes() == hub.files[f"datasets/{name}"]
    assert report["commit"] == COMMIT
    assert report["train"]["tokens"] == 2 * report["val"]["tokens"] == 400_000
    assert [Path(path).name for path in report["train"]["shards"]] == [
        "fineweb_train_000000.bin",
        "fineweb_train_000001.bin",
    ]
    assert report["vocab_size"] == 320


def test_only_what_is_missing_is_fetched(hub: StandIn, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    hub.asked.clear()
    fetch(hub, tmp_path, train_shards=3)
    assert set(hub.got()) == {
        "datasets/manifest.json",
        f"datasets/{FOLDER}/fineweb_train_000002.bin",
    }


def ranges(hub: StandIn, name: str) -> list[int]:
    """Where each transfer of a file began."""
    asked = [text for method, got, text in hub.asked if (method, got) == ("GET", name)]
    return [int(text.removeprefix("bytes=").removesuffix("-") or 0) for text in asked]


def test_a_transfer_that_breaks_off_goes_on(hub: StandIn, tmp_path: Path) -> None:
    name = f"datasets/{FOLDER}/fineweb_train_000000.bin"
    hub.cut[name] = 2
    fetch(hub, tmp_path)
    first, second, third = ranges(hub, name)
    size = len(hub.files[name])
    assert first == 0
    assert size // 2 - CHUNK < second <= size // 2
    assert size * 3 // 4 - 2 * CHUNK < third <= size * 3 // 4
    assert (tmp_path / name.removeprefix("datasets/")).read_bytes() == hub.files[name]


def test_a_download_that_failed_keeps_whole_files(hub: StandIn, tmp_path: Path) -> None:
    name = f"datasets/{FOLDER}/fineweb_train_000000.bin"
    hub.cut[name] = 1000
    with pytest.raises(DataError, match=r"cannot get .*train_000000\.bin from http") as caught:
        fetch(hub, tmp_path)
    assert "goes on with the others" in (caught.value.hint or "")
    assert f"{FOLDER}/fineweb_val_000000.bin" in files(tmp_path)
    assert f"{FOLDER}/fineweb_train_000000.bin" not in files(tmp_path)
    hub.cut.clear()
    hub.asked.clear()
    fetch(hub, tmp_path)
    assert f"datasets/{FOLDER}/fineweb_val_000000.bin" not in hub.got()
    assert (tmp_path / name.removeprefix("datasets/")).read_bytes() == hub.files[name]


class Counting(Silent):
    """Adds up what each stage advances by."""

    def __init__(self) -> None:
        self.totals: dict[str, float | None] = {}
        self.done: Counter[str] = Counter()

    @contextmanager
    def stage(self, name: str, *, total: float | None = None, unit: str = "") -> Iterator[Any]:
        self.totals[name] = total
        self.name = name
        yield self

    def advance(self, amount: float = 1.0, *, note: str = "") -> None:
        self.done[self.name] += amount


def test_progress_counts_every_byte_once(hub: StandIn, tmp_path: Path) -> None:
    hub.cut[f"datasets/{FOLDER}/fineweb_val_000000.bin"] = 1
    progress = Counting()
    fetch(hub, tmp_path, progress=progress)
    expected = sum((tmp_path / file).stat().st_size for file in files(tmp_path))
    assert progress.totals["download"] == expected
    # The manifest was needed before, to know what else there is, and is not fetched twice.
    manifest = len(hub.files["datasets/manifest.json"])
    assert progress.done["download"] == expected - manifest


def test_a_damaged_file_is_not_kept(hub: StandIn, tmp_path: Path) -> None:
    name = f"datasets/{FOLDER}/fineweb_train_000001.bin"
    hub.damaged.add(name)
    with pytest.raises(DataError, match=r"train_000001\.bin came damaged: its SHA-256"):
        fetch(hub, tmp_path)
    assert not (tmp_path / name.removeprefix("datasets/")).exists()
    hub.damaged.clear()
    fetch(hub, tmp_path)
    assert (tmp_path / name.removeprefix("datasets/")).read_bytes() == hub.files[name]


def test_what_is_no_shard_is_refused(hub: StandIn, tmp_path: Path) -> None:
    hub.files[f"datasets/{FOLDER}/fineweb_train_000000.bin"] = b"x" * 2000
    with pytest.raises(DataError, match="is not a token shard"):
        fetch(hub, tmp_path)


def test_shards_of_another_vocabulary_are_all_named(hub: StandIn, tmp_path: Path) -> None:
    for number in range(2):
        tokens = np.full(10, 320 + number, dtype=np.uint16)
        name = f"datasets/{FOLDER}/fineweb_train_{number:06d}.bin"
        hub.files[name] = render_shard(tokens)
    with pytest.raises(DataError, match="2 of 3 shards cannot be used") as caught:
        fetch(hub, tmp_path)
    assert len(caught.value.items) == 2


def test_files_in_the_way_are_kept(hub: StandIn, tmp_path: Path) -> None:
    mine = tmp_path / FOLDER / "fineweb_val_000000.bin"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(OutputExistsError) as caught:
        fetch(hub, tmp_path)
    assert caught.value.items == (f"{FOLDER}/fineweb_val_000000.bin",)
    assert mine.read_bytes() == b"mine"
    fetch(hub, tmp_path, force=True)
    assert len(read_shard(mine)) == 200_000


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"variant": "byte260"}, ConfigError, "not of a SentencePiece tokenizer"),
        ({"variant": "sp32"}, ConfigError, r'no variant "sp32" \(did you mean "sp320"\?\)'),
        ({"train_shards": 4}, ConfigError, "has 3 training shards, not 4"),
        ({"variant": "sp8192", "train_shards": 1}, DataError, 'no model file of .* "sp_bpe_8192"'),
    ],
)
def test_what_the_manifest_does_not_have(
    hub: StandIn, tmp_path: Path, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fetch(hub, tmp_path, **options)
    assert all(name == "datasets/manifest.json" for name in hub.got())


@pytest.mark.parametrize("path", ["../../t.model", "/etc/t.model"])
def test_no_file_is_written_outside(path: str) -> None:
    table = json.loads(json.dumps(MANIFEST))
    table["tokenizers"][0]["model_path"] = path
    with pytest.raises(DataError, match="no model file"):
        plan(Manifest.model_validate(table), "sp320", 1)


def test_a_manifest_of_something_else(hub: StandIn, tmp_path: Path) -> None:
    hub.files["datasets/manifest.json"] = b'{"datasets": [{"name": "a"}]}'
    with pytest.raises(DataError, match="does not list shards") as caught:
        fetch(hub, tmp_path)
    assert "datasets.0.stats: Field required" in caught.value.items
    assert "tokenizers: Field required" in caught.value.items


def test_files_and_repositories_that_are_not_there(hub: StandIn, tmp_path: Path) -> None:
    del hub.files[f"datasets/{FOLDER}/fineweb_train_000001.bin"]
    with pytest.raises(DataError, match=r"has no file .*train_000001\.bin"):
        fetch(hub, tmp_path)
    with pytest.raises(DataError, match="has no data repository no/such"):
        download_fineweb(tmp_path, repository="no/such", endpoint=hub.address)


def test_a_hub_that_cannot_be_reached(hub: StandIn, tmp_path: Path) -> None:
    with serving({}) as gone:
        address = gone.address
    with pytest.raises(DataError, match=f"from {address}") as caught:
        download_fineweb(tmp_path, repository=REPOSITORY, endpoint=address)
    assert len(caught.value.items) == 1
    assert "HF_ENDPOINT" in (caught.value.hint or "")


def test_a_disk_that_is_too_small(
    hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(ResourceError, match="1,000 B are free"):
        fetch(hub, tmp_path)


def test_without_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SetupError, match="needs the package huggingface_hub") as caught:
        download_fineweb(tmp_path)
    assert caught.value.hint == "pip install 'qpack-lm[hub]'"
