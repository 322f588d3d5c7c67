from __future__ import annotations

import os
from pathlib import Path

import pytest

from qpack.errors import ConfigError
from qpack.runs.document import read_document

from .fake import FakeTrainer, register_fake

TOML = 'trainer = "fake"\n[fake]\nsource = "w.st"\nrate = 0.25\n[pack]\nrecipe = "../r.toml"\n'


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    register_fake(monkeypatch)


def write(folder: Path, text: str = TOML) -> Path:
    path = folder / "conf.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    document = read_document(write(tmp_path))
    assert (document.name, document.trainer) == ("fake", FakeTrainer)
    assert document.source == str(tmp_path / "conf.toml")
    assert document.tables == {
        "fake": {"source": str(tmp_path / "w.st"), "rate": 0.25},
        "pack": {"recipe": str(tmp_path / "../r.toml")},
    }


def test_a_relative_file_keeps_its_paths_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub")
    monkeypatch.chdir(tmp_path)
    tables = read_document("sub/conf.toml").tables
    assert tables["fake"]["source"] == os.path.join("sub", "w.st")  # noqa: PTH118 as text


def test_overrides_are_relative_to_the_current_folder(tmp_path: Path) -> None:
    document = read_document(
        write(tmp_path), overrides=["fake.source=mine.st", "fake.rate=1e-3", "pack.budget=5"]
    )
    assert document.tables["fake"] == {"source": "mine.st", "rate": 0.001}
    assert document.tables["pack"]["budget"] == 5


def test_the_trainer_can_be_overridden(tmp_path: Path) -> None:
    path = write(tmp_path, '[checkpoint]\npath = "w.pt"\n')
    document = read_document(path, overrides=["trainer=checkpoint"])
    assert document.name == "checkpoint"
    assert document.tables == {"checkpoint": {"path": str(tmp_path / "w.pt")}}
    assert read_document(path).name == "reference"


def test_a_preset_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    document = read_document("gptq-int5")
    assert document.name == "reference" and document.source == "gptq-int5"
    assert not Path(str(document.tables["data"]["tokenizer"])).is_absolute()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = ", "not valid TOML"),
        ("trainer = 3", "expected the name of a trainer"),
        ('trainer = "fkae"', 'unknown trainer "fkae" (did you mean "fake"?)'),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_document(write(tmp_path, text))
    assert words in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "conf.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not a text file"):
        read_document(path)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("gptq-int6", 'no preset "gptq-int6" (did you mean "gptq-int5"?)'),
        ("gptq-int5.toml", "the preset is called gptq-int5, without a suffix"),
        ("some/where.toml", "some/where.toml: no such file"),
        ("gone.toml", "give a TOML file, or a preset"),
    ],
)
def test_what_is_neither_file_nor_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read_document(source)
    assert words in str(caught.value)


def test_bad_overrides_come_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--set cannot be used"):
        read_document(tmp_path / "gone.toml", overrides=["nonsense"])
