"""What a run trains and validates on: shards that are given, or made from text in its folder.

Everything is checked here, every shard by every token, before a model is built. Under `torchrun`
rank 0 does it and the others wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpack.distributed import on_first
from qpack.errors import ConfigError, DataError
from qpack.progress import SILENT, Progress
from qpack.tokens import check_vocab, read_shard, sha256_file

from ..config import DataSection
from .build import build_data
from .documents import expand
from .manifest import HELD_OUT, Request, tokenizer_of
from .shard_order import order_shards

FOLDER = "data"
"""In the run's folder."""
SHARD_TOKENS = 10_000_000
"""Of shards made here: enough of them to be put in an order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Data that a run can use."""

    tokenizer: Path
    train: list[Path]
    """shards, in the order in which they are read where they are not mixed"""
    val: list[Path]
    """shards; none, and nothing is validated"""
    report: dict[str, Any]
    """plain values: what was made, from what, and the order of the shards with its reason"""


def prepare_data(
    section: DataSection,
    *,
    vocab_size: int,
    folder: Path,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Prepared:
    """Find or make the tokenizer and the shards of `section`; what is made is in `folder`/data.

    `seed` is of the sample that a tokenizer is trained on. Raises `DataError` that names every
    file that is missing, is no shard, or has tokens beyond `vocab_size`, and whatever making shards
    raises; under `torchrun`, `OtherRankError` on all ranks but the first.
    """

    def work() -> dict[str, Any]:
        _check_section(section)
        found = _make(section, vocab_size, folder, seed, progress)
        train = found.train or find_shards(section.train, "data.train")
        val = found.val or find_shards(section.val, "data.val")
        check_shards([*train, *val], vocab_size, progress=progress)
        _check_tokenizer([*train, *val], found.tokenizer)
        _check_apart(train, val)
        if not val:
            progress.warn("there are no validation shards: nothing will be scored")
        order = order_shards(train, section.order, vocab_size=vocab_size, progress=progress)
        return {
            "tokenizer": str(found.tokenizer),
            "train": [str(path) for path in order.paths],
            "val": [str(path) for path in val],
            "report": {"made": found.report, "order": order.report},
        }

    plain = on_first(work)
    return Prepared(
        tokenizer=Path(plain["tokenizer"]),
        train=[Path(path) for path in plain["train"]],
        val=[Path(path) for path in plain["val"]],
        report=plain["report"],
    )


@dataclass(frozen=True, slots=True)
class _Made:
    tokenizer: Path
    train: list[Path]
    val: list[Path]
    report: dict[str, Any] | None


def _check_section(section: DataSection) -> None:
    """What the keys of the section tell together."""
    problems = []
    if section.val and section.val_text:
        problems.append("val, val_text: give one of them")
    if section.tokenizer is None and (section.train or section.val):
        problems.append("tokenizer: missing (the SentencePiece model of the shards)")
    if section.repeat and not section.text:
        problems.append("repeat: is for documents, give text")
    if not section.train and not section.text:
        problems.append("train, text: give one of them")
    if problems:
        raise ConfigError("[data] cannot be used", items=problems)


def _make(
    section: DataSection, vocab_size: int, folder: Path, seed: int, progress: Progress
) -> _Made:
    """Shards of the section's text, if it has any."""
    if not section.text and not section.val_text:
        assert section.tokenizer is not None, "checked before"
        return _Made(section.tokenizer, [], [], None)
    request = Request(
        text=section.text,
        val_text=section.val_text,
        val_every=0 if section.val else HELD_OUT,
        repeat=tuple(section.repeat.items()),
        tokenizer=section.tokenizer,
        vocab_size=vocab_size,
        documents_per_tokenizer=section.documents_per_tokenizer,
        seed=seed,
        shard_tokens=SHARD_TOKENS,
        workers=section.workers,
    )
    # The run's own folder: what is there was made for this run, from other text or settings.
    built = build_data(request, folder / FOLDER, force=True, progress=progress)
    return _Made(built.tokenizer, list(built.train), list(built.val), built.report)


def find_shards(entries: Iterable[Path], what: str) -> list[Path]:
    """The files that paths and patterns name, each once, sorted in a pattern.

    Raises `DataError` naming every pattern that matches nothing.
    """
    found: dict[Path, Path] = {}
    missing = []
    for entry in entries:
        paths = expand(entry)
        for path in paths:
            found.setdefault(path.resolve(), path)
        missing += [] if paths else [f"{entry}: matches no file"]
    if missing:
        raise DataError(f"{what}: shards are missing", items=missing)
    return list(found.values())


def check_shards(paths: Sequence[Path], vocab_size: int, *, progress: Progress = SILENT) -> None:
    """Read every token of every shard. Raises `DataError` that names all that cannot be used."""
    with progress.stage("check shards", total=len(paths), unit="shards") as task:

        def look(path: Path) -> int | str:
            try:
                return check_vocab(read_shard(path), vocab_size, path)
            except DataError as error:
                return error.message
            finally:
                task.advance()

        with ThreadPoolExecutor() as pool:
            found = list(pool.map(look, paths))
    problems = [answer for answer in found if isinstance(answer, str)]
    if problems:
        raise DataError(
            f"{len(problems)} of {len(paths)} shards cannot be used",
            items=problems,
            hint=f"give shards of a tokenizer of {vocab_size:,} pieces, or set model.vocab_size",
        )
    for path, largest in zip(paths, found, strict=True):
        if isinstance(largest, int) and largest < vocab_size // 2:
            progress.warn(
                f"{path.name}: no token is above {largest:,} of a vocabulary of {vocab_size:,};"
                " was it made with another tokenizer?"
            )


def _check_tokenizer(paths: Iterable[Path], tokenizer: Path) -> None:
    """Shards that say which tokenizer made them, in a manifest beside them, must have this one."""
    digest = sha256_file(tokenizer)
    others = []
    for path in paths:
        made_with = tokenizer_of(path)
        if made_with not in (None, digest):
            others.append(f"{path}: made with {str(made_with)[:12]}..., given {digest[:12]}...")
    if others:
        raise DataError(
            f"{tokenizer}: not the tokenizer of these shards",
            items=others,
            hint="give the tokenizer that lies beside them or that they were made with",
        )


def _check_apart(train: Iterable[Path], val: Iterable[Path]) -> None:
    both = {path.resolve() for path in train} & {path.resolve() for path in val}
    if both:
        raise DataError(
            "these shards would be both trained on and scored",
            items=sorted(str(path) for path in both),
            hint="keep validation shards out of data.train",
        )
