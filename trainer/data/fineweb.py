"""The challenge's own FineWeb shards, from its repository on the Hugging Face hub.

A manifest lists data sets, one a tokenizer, with their numbers of shards, and tokenizers. All files
come from the commit that had the manifest. The first shards of a data set are a prefix of one
shuffled export; validation shards come whole. Layout and names are those of the script
`data/cached_challenge_fineweb.py` of `openai/parameter-golf`:

    datasets/manifest.json
    datasets/datasets/fineweb10B_sp1024/fineweb_{train,val}_000000.bin ...
    datasets/tokenizers/fineweb_1024_bpe.model

Here they lie without the first `datasets/`, as there. Files wait in a hidden folder until they are
whole and checked, so what is there is right, and a stopped download goes on with the file in which
it stopped. (A transfer that breaks off goes on where it did: the hub's client sees to that.)
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ValidationError

from qpack.errors import ConfigError, DataError, OutputExistsError, ResourceError
from qpack.plugins import did_you_mean
from qpack.progress import SILENT, Progress
from qpack.tokenizer import Tokenizer
from qpack.tokens import read_shard, sha256_file

from .hub import Hub, Remote
from .prepare import check_shards

SCHEMA = "qpack.fineweb/1"
REPOSITORY = "willdepueoai/parameter-golf"
ROOT = "datasets"
"""Folder of the repository that holds everything."""
MANIFEST = "manifest.json"
STAGING = ".hub"
PREFIX = "fineweb10B_"
"""Of the names of data sets; the variant follows."""
VARIANT = re.compile(r"sp[0-9]+")
SHA256 = re.compile(r"[0-9a-f]{64}")
CONNECTIONS = 8


class Stats(BaseModel):
    """How many shards a data set has."""

    files_train: int
    files_val: int


class DataSet(BaseModel):
    """A data set of the manifest."""

    name: str
    tokenizer_name: str
    stats: Stats


class TokenizerEntry(BaseModel):
    """A tokenizer of the manifest; those that are not SentencePiece's have no `model_path`."""

    name: str
    model_path: str | None = None


class Manifest(BaseModel):
    """What the repository holds."""

    datasets: list[DataSet]
    tokenizers: list[TokenizerEntry]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to fetch: of kind `train`, `val`, `tokenizer` or `manifest`."""

    kind: str
    name: str
    """below `ROOT` there, and below the output folder here"""


def download_fineweb(
    out: Path,
    *,
    variant: str = "sp1024",
    train_shards: int = 1,
    repository: str = REPOSITORY,
    endpoint: str | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Fetch a data set's first `train_shards` shards, all validation shards and its tokenizer.

    `variant` names the tokenizer, `sp` and its number of pieces; `endpoint` is another hub's
    address. Returns a report. Raises `SetupError` without the package `huggingface_hub`,
    `ConfigError` for a variant or number that is not to be had, `DataError` when the hub cannot be
    reached or holds something else, `OutputExistsError` for other files in the way (kept unless
    `force`), `ResourceError` when the disk is too small.
    """
    if not VARIANT.fullmatch(variant):
        raise ConfigError(
            f'variant "{variant}" is not of a SentencePiece tokenizer',
            hint="sp1024, or sp and another number of pieces",
        )
    hub = Hub(repository, out / STAGING, endpoint=endpoint)
    manifest = read_manifest(hub.fetch(hub.describe(f"{ROOT}/{MANIFEST}")))
    wanted = plan(manifest, variant, train_shards, repository=repository)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        remotes = list(pool.map(lambda item: hub.describe(f"{ROOT}/{item.name}"), wanted))
    files = dict(zip(wanted, remotes, strict=True))
    missing = _missing(out, files, force=force)
    total = sum(files[item].num_bytes for item in missing)
    _check_room(out, total)
    with progress.stage("download", total=total or None, unit="B") as task:
        for item in missing:
            path = hub.fetch(files[item], advance=task.advance)
            _check_whole(path, files[item])
            (out / item.name).parent.mkdir(parents=True, exist_ok=True)
            path.replace(out / item.name)
    shutil.rmtree(out / STAGING, ignore_errors=True)
    progress.note(f"{len(missing)} of {len(wanted)} files were fetched, the others were there")
    return _report(out, wanted, hub, progress)


def read_manifest(path: Path) -> Manifest:
    """The manifest `path`. Raises `DataError` that says what is not as it should be."""
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise DataError(f"{MANIFEST} does not list shards", items=problems) from error


def plan(
    manifest: Manifest, variant: str, train_shards: int, *, repository: str = REPOSITORY
) -> list[Wanted]:
    """The files of a variant, as its repository's manifest lists them.

    Raises `ConfigError` for a variant that is not in it or more shards than there are, `DataError`
    when it lists no tokenizer for it, or one outside the repository.
    """
    sets = {found.name.removeprefix(PREFIX): found for found in manifest.datasets}
    if variant not in sets:
        raise ConfigError(
            f'{repository} has no variant "{variant}"{did_you_mean(variant, sets)}',
            hint=f"it has {', '.join(sorted(sets)) or 'none'}",
        )
    chosen = sets[variant]
    if not 0 <= train_shards <= chosen.stats.files_train:
        raise ConfigError(
            f"{chosen.name} has {chosen.stats.files_train} training shards, not {train_shards}",
            hint="lower --train-shards",
        )
    models = {entry.name: entry.model_path for entry in manifest.tokenizers}
    model = PurePosixPath(models.get(chosen.tokenizer_name) or "/")
    if model.is_absolute() or ".." in model.parts:
        raise DataError(f'{MANIFEST} has no model file of the tokenizer "{chosen.tokenizer_name}"')
    folder = f"datasets/{PREFIX}{variant}"
    val, train = range(chosen.stats.files_val), range(train_shards)
    return [
        Wanted("manifest", MANIFEST),
        Wanted("tokenizer", str(model)),
        *(Wanted("val", f"{folder}/fineweb_val_{i:06d}.bin") for i in val),
        *(Wanted("train", f"{folder}/fineweb_train_{i:06d}.bin") for i in train),
    ]


def _missing(out: Path, files: Mapping[Wanted, Remote], *, force: bool) -> list[Wanted]:
    """Files that are not there yet. Raises where others of their names are, without `force`."""
    there = [item for item in files if (out / item.name).exists()]
    with ThreadPoolExecutor() as pool:
        same = pool.map(lambda item: _problem(out / item.name, files[item]) is None, there)
        right = {item for item, is_same in zip(there, same, strict=True) if is_same}
    # The manifest grows with the repository; only what it lists has to stay.
    wrong = [item for item in there if item not in right and item.kind != "manifest"]
    if wrong and not force:
        raise OutputExistsError(
            f"files that are not those of the repository are in {out}",
            items=[item.name for item in wrong],
            hint="choose another -o, or --force to replace them",
        )
    return [item for item in files if item not in right]


def _problem(path: Path, remote: Remote) -> str | None:
    """Why `path` is not the file `remote`, if that can be told."""
    size = path.stat().st_size
    if size != remote.num_bytes:
        return f"{size:,} B in place of {remote.num_bytes:,}"
    if SHA256.fullmatch(remote.etag) and sha256_file(path) != remote.etag:
        return "its SHA-256 is another"
    return None


def _check_whole(path: Path, remote: Remote) -> None:
    """Raise unless the fetched file is what the hub says; a wrong one is not kept."""
    problem = _problem(path, remote)
    if problem is not None:
        path.unlink()
        raise DataError(f"{remote.name} came damaged: {problem}", hint="run the command again")
    if path.suffix == ".bin":
        read_shard(path)


def _check_room(out: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(out).free
    if num_bytes > free:
        raise ResourceError(
            f"{out}: {num_bytes:,} B are to be fetched, {free:,} B are free",
            hint="lower --train-shards or choose another disk",
        )


def _report(out: Path, wanted: Iterable[Wanted], hub: Hub, progress: Progress) -> dict[str, Any]:
    """Check every shard against the tokenizer and say what there is."""
    paths: dict[str, list[Path]] = {"train": [], "val": [], "tokenizer": [], "manifest": []}
    for item in wanted:
        paths[item.kind].append(out / item.name)
    (model,) = paths["tokenizer"]
    tokenizer = Tokenizer.load(model)
    check_shards([*paths["val"], *paths["train"]], tokenizer.vocab_size, progress=progress)
    return {
        "schema": SCHEMA,
        "repository": hub.repository,
        "commit": hub.commit,
        "tokenizer": {"path": str(model), "sha256": tokenizer.sha256},
        "vocab_size": tokenizer.vocab_size,
        **{
            part: {
                "shards": [str(path) for path in paths[part]],
                "tokens": sum(len(read_shard(path)) for path in paths[part]),
            }
            for part in ("train", "val")
        },
    }
