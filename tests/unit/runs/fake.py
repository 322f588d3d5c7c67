"""A trainer that copies a checkpoint, remembers how it was asked, and can be told to fail."""

from __future__ import annotations

import shutil
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from qpack import plugins
from qpack.errors import ConfigError
from qpack.options import PackOptions
from qpack.packing import PackSection
from qpack.plugins import TRAINERS
from qpack.progress import Progress
from qpack.runs.document import Document
from qpack.sections import Section, read_section
from qpack.training import Checked, Trained, TrainRequest


class FakeSection(Section):
    """The table `[fake]`."""

    source: Annotated[Path, Field(strict=False)]
    rate: float = 0.5


class FakeConfig(Section):
    """The whole configuration."""

    fake: FakeSection
    pack: PackSection | None = None


class FakeTrainer:
    """What tests look at afterwards: `requests`. What they set: `given`, `interrupt`."""

    TABLES = FakeConfig

    def __init__(self, given: PackOptions) -> None:
        self.given = given
        self.requests: list[TrainRequest] = []
        self.interrupt = False

    def check(self, request: TrainRequest) -> Checked:
        section = read_section(FakeConfig, request.config, what="the fake").fake
        if not section.source.is_file():
            raise ConfigError("no such file", items=[f"fake.source: {section.source}"])
        return Checked(
            settings={"fake": {"rate": section.rate}}, files={"fake.source": section.source}
        )

    def train(self, request: TrainRequest, *, progress: Progress) -> Trained:
        self.requests.append(request)
        if self.interrupt:
            raise KeyboardInterrupt
        source = read_section(FakeConfig, request.config, what="the fake").fake.source
        out = request.folder / "model.safetensors"
        shutil.copy(source, out)
        assert self.given.calib is not None
        return Trained(
            checkpoint=out,
            tokenizer=self.given.tokenizer,
            calibration=self.given.calib,
            sequence=64,
            details={"steps": 7, "note": None},
        )

    def document(self, **fake: object) -> Document:
        """A configuration that trains on the given checkpoint and packs it."""
        tables = {
            "fake": {"source": str(self.given.checkpoint), **fake},
            "pack": {
                "budget": 40_000, "calib_tokens": 1024, "form": "qpk", "stdlib_codecs": True,
                "device": "cpu",
            },
        }  # fmt: skip
        return Document(source="fake.toml", name="fake", trainer=self, tables=tables)


def register(monkeypatch: pytest.MonkeyPatch, group: str, **values: str) -> None:
    """Add entry points to what is installed."""
    points = [EntryPoint(name, value, group) for name, value in values.items()]
    real = entry_points()
    monkeypatch.setattr(
        plugins,
        "entry_points",
        lambda *, group: EntryPoints([*real.select(group=group), *points]).select(group=group),
    )


def register_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the class itself the trainer `fake`, as an installed package would."""
    register(monkeypatch, TRAINERS, fake=f"{__name__}:FakeTrainer", broken="json:dumps")
