"""The whole line with a trainer that takes no time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from qpack.errors import BudgetError, ConfigError, OutputExistsError, ResourceError
from qpack.options import PackOptions
from qpack.runs import run as module
from qpack.runs.document import Document
from qpack.runs.run import run

from .fake import FakeTrainer


@pytest.fixture
def fake(given: PackOptions) -> FakeTrainer:
    return FakeTrainer(given)


class Notes:
    """Progress that remembers what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, name, *, total=None, unit=""):
        from qpack.progress import SILENT

        return SILENT.stage(name)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.notes.append(f"warning: {message}")


def changed(document: Document, **pack: object) -> Document:
    """The same configuration with other values in `[pack]`."""
    tables = {**document.tables, "pack": {**document.tables["pack"], **pack}}
    return dataclasses.replace(document, tables=tables)


def count_packs(monkeypatch: pytest.MonkeyPatch) -> list[PackOptions]:
    """Every pack that is really made."""
    made: list[PackOptions] = []
    real = module.pack_checkpoint

    def counted(options, **more):
        made.append(options)
        return real(options, **more)

    monkeypatch.setattr(module, "pack_checkpoint", counted)
    return made


def test_the_whole_line_then_nothing_left_to_do(
    fake: FakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packs, folder, progress = count_packs(monkeypatch), tmp_path / "new" / "run", Notes()
    outcome = run(fake.document(), folder, command=("qpack", "run"), progress=progress)
    report = outcome.report
    assert report is not None and report["schema"] == "qpack.report/1"
    assert report["artifact_bytes"] == (folder / "model.qpk").stat().st_size <= 40_000
    assert report["training"]["trainer"] == "fake"
    assert report["training"]["source"] == "fake.toml"
    assert report["training"]["details"] == {"steps": 7, "note": None}
    assert report["quality"]["window"] == 64
    assert report["quality"]["tokens"] == 3000 - 1024 - 1
    assert json.loads((folder / "report.json").read_text()) == report
    assert "| steps | 7 |" in (folder / "report.md").read_text()
    assert "1,975 held-out targets are there: all are scored" in progress.notes
    stages = json.loads((folder / "run.json").read_text())["stages"]
    assert list(stages) == ["train", "pack", "report"]
    assert all(stage["done"] for stage in stages.values())

    again = run(fake.document(), folder, resume=True, progress=progress)
    assert again.report == report
    assert len(fake.requests) == len(packs) == 1
    assert progress.notes[-2:] == ["training is done already", "the artifact is made already"]


def test_a_changed_budget_is_refused_and_packs_alone_when_forced(
    fake: FakeTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(fake.document(), tmp_path)
    other = changed(fake.document(), budget=39_000)
    with pytest.raises(ConfigError, match="pack was begun") as caught:
        run(other, tmp_path, resume=True)
    assert caught.value.items == ("pack.budget: 40000 -> 39000",)
    outcome = run(other, tmp_path, resume=True, force=True)
    assert outcome.report is not None and outcome.report["artifact_bytes"] <= 39_000
    assert len(fake.requests) == 1


def test_a_changed_training_is_refused_and_runs_again_when_forced(
    fake: FakeTrainer, tmp_path: Path
) -> None:
    source = tmp_path / "weights.safetensors"
    source.write_bytes(fake.given.checkpoint.read_bytes())
    folder = tmp_path / "run"
    run(fake.document(source=str(source)), folder, pack=False)
    source.write_bytes(source.read_bytes() + b"\n")
    with pytest.raises(ConfigError, match="train was begun") as caught:
        run(fake.document(source=str(source), rate=0.75), folder, resume=True)
    rate, weights = caught.value.items
    assert rate == "fake.rate: 0.5 -> 0.75"
    assert weights.startswith("fake.source (weights.safetensors): sha256 ")
    run(fake.document(rate=0.75), folder, pack=False, resume=True, force=True)
    assert [request.force for request in fake.requests] == [False, True]
    assert not any(request.resume for request in fake.requests)


def test_training_alone_then_the_rest(fake: FakeTrainer, tmp_path: Path) -> None:
    progress = Notes()
    outcome = run(fake.document(), tmp_path, pack=False, progress=progress)
    assert outcome.report is None and outcome.training is not None
    assert outcome.training["checkpoint"] == str(tmp_path / "model.safetensors")
    assert "[pack] is for `qpack run`: training alone does not pack" in progress.notes
    assert not (tmp_path / "model.qpk").exists()
    assert run(fake.document(), tmp_path, resume=True).report is not None
    assert len(fake.requests) == 1


def test_an_interrupted_training_is_resumed(fake: FakeTrainer, tmp_path: Path) -> None:
    fake.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        run(fake.document(), tmp_path)
    with pytest.raises(OutputExistsError, match="holds a run already"):
        run(fake.document(), tmp_path)
    fake.interrupt = False
    with pytest.raises(ConfigError) as caught:
        run(fake.document(rate=0.75), tmp_path, resume=True)
    assert caught.value.items == ("fake.rate: 0.5 -> 0.75",)
    run(fake.document(), tmp_path, pack=False, resume=True)
    assert [request.resume for request in fake.requests] == [False, True]


def test_a_failed_pack_may_be_tried_with_other_options(fake: FakeTrainer, tmp_path: Path) -> None:
    with pytest.raises(BudgetError):
        run(changed(fake.document(), budget=900), tmp_path)
    assert run(fake.document(), tmp_path, resume=True).report is not None
    assert len(fake.requests) == 1


def test_resuming_nothing_starts(fake: FakeTrainer, tmp_path: Path) -> None:
    progress = Notes()
    run(fake.document(), tmp_path / "new", pack=False, resume=True, progress=progress)
    assert "holds no run to go on with: starting one" in progress.notes[-1]
    assert not fake.requests[0].resume


def test_what_is_there_is_kept(fake: FakeTrainer, tmp_path: Path) -> None:
    (tmp_path / "model.pyz").write_bytes(b"mine")
    for resume in (False, True):
        with pytest.raises(OutputExistsError) as caught:
            run(fake.document(), tmp_path, resume=resume)
        assert caught.value.items == (str(tmp_path / "model.pyz"),)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pyz"]
    run(fake.document(), tmp_path, pack=False, force=True)
    assert not (tmp_path / "model.pyz").exists()  # it is not of the new model


def test_a_folder_that_cannot_be_made(fake: FakeTrainer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="cannot make the folder"):
        run(fake.document(), tmp_path / "file" / "run")


def test_everything_wrong_is_told_before_anything_happens(
    fake: FakeTrainer, tmp_path: Path
) -> None:
    document = changed(fake.document(source="gone.st"), recipe={"rule": [{"match": "a", "b": 1}]})
    with pytest.raises(ConfigError, match="the run cannot start") as caught:
        run(document, tmp_path / "run")
    assert caught.value.items[0] == "fake.source: gone.st"
    assert "unknown key 'b'" in caught.value.items[1]
    assert fake.requests == [] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("pack", "items"),
    [
        ({"bugdet": 3}, ['pack.bugdet: unknown (did you mean "budget"?)']),
        ({"budget": 0, "form": "zip"}, ["pack.budget = 0: ", "pack.form = 'zip': "]),
        ({"code": ["gone.py"]}, ["pack.code: gone.py"]),
    ],
)
def test_bad_pack_tables(
    fake: FakeTrainer, tmp_path: Path, pack: dict[str, object], items: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(changed(fake.document(), **pack), tmp_path)
    assert len(caught.value.items) == len(items)
    for got, expected in zip(caught.value.items, items, strict=True):
        assert got.startswith(expected)


def test_no_pack_table(fake: FakeTrainer, tmp_path: Path) -> None:
    document = fake.document()
    del document.tables["pack"]
    with pytest.raises(ConfigError, match="pack: missing") as caught:
        run(document, tmp_path)
    assert "--set pack.budget=16000000" in str(caught.value)
    run(document, tmp_path, pack=False)
