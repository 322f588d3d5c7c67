"""Files through a model and back, and text from it, as a user would type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Runner
from .given import Files

TEXT = b"A checkpoint and a budget\ngo in; one file  that fits comes out.\n\xff\x00"


@pytest.fixture(scope="module")
def artifact(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It embeds its tokenizer."""
    from qpack.checkpoint import write_checkpoint
    from qpack.importing import import_file
    from qpack.options import PackOptions
    from qpack.pipeline import pack_checkpoint

    folder = tmp_path_factory.mktemp("packed")
    write_checkpoint(folder / "model.safetensors", import_file(files.foreign), force=False)
    pack_checkpoint(
        PackOptions(
            checkpoint=folder / "model.safetensors",
            budget_bytes=200_000,
            out=folder / "model.pyz",
            tokenizer=files.tokenizer,
            calib=files.shard,
            calib_tokens=1024,
            val_tokens=512,
            window=64,
            device="cpu",
            recipe="record",
            embed_tokenizer=True,
        )
    )
    return folder / "model.pyz"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_bytes(TEXT)
    return path


def test_there_and_back(qpack: Runner, artifact: Path, text: Path) -> None:
    made = qpack("compress", text, "-m", artifact, "--window", 32, "--json")
    assert made.code == 0, made.err
    document = made.document
    out = Path(document["path"])
    assert out == text.with_name("text.qpz")
    assert document["bytes"] == out.stat().st_size
    assert document["text_bytes"] == len(TEXT)
    assert document["predictor"] == "sliding by 16"
    assert (document["setup"]["name"], document["setup"]["window"]) == (None, 32)
    parts = [document[f"{part}_bytes"] for part in ("header", "stream", "residual")]
    assert sum(parts) == document["bytes"] and all(parts)
    back = qpack("decompress", out, "-m", artifact, "-o", text.with_name("back"))
    assert back.code == 0, back.err
    assert text.with_name("back").read_bytes() == TEXT


def test_nothing_is_overwritten(qpack: Runner, artifact: Path, text: Path) -> None:
    assert qpack("compress", text, "-m", artifact, "-q").code == 0
    again = qpack("compress", text, "-m", artifact)
    assert again.code == 3 and "--force" in again.err
    forced = qpack("compress", text, "-m", artifact, "--force", "-q")
    assert forced.code == 0
    assert f" of {len(TEXT)} B, " in forced.out
    assert "for what the tokenizer loses" in forced.out and "of header and digest" in forced.out
    back = qpack("decompress", f"{text}.qpz", "-m", artifact, "-o", text)
    assert back.code == 3 and "--force" in back.err


def test_no_force_costs_an_input(qpack: Runner, artifact: Path, text: Path, tmp_path: Path) -> None:
    before = artifact.read_bytes()
    (tmp_path / "link").symlink_to(artifact)
    for command in (
        ("compress", text, "-m", artifact, "-o", text),
        ("compress", text, "-m", artifact, "-o", artifact),
        ("decompress", text, "-m", artifact, "-o", tmp_path / "link"),
        ("unpack", artifact, "-o", artifact),
    ):
        outcome = qpack(*command, "--force")
        assert outcome.code == 3 and "is an input" in outcome.err
    assert (text.read_bytes(), artifact.read_bytes()) == (TEXT, before)


def test_where_nothing_is_said_a_file_comes_back_under_its_name(
    qpack: Runner, artifact: Path, text: Path
) -> None:
    assert qpack("compress", text, "-m", artifact, "-q").code == 0
    packed = text.with_name("text.qpz")
    assert qpack("decompress", packed, "-m", artifact).code == 3  # the original is still there
    text.unlink()
    assert qpack("decompress", packed, "-m", artifact).code == 0
    assert text.read_bytes() == TEXT
    packed = packed.rename(text.with_name("other"))
    outcome = qpack("decompress", packed, "-m", artifact)
    assert outcome.code == 3 and "-o OUT" in outcome.err


@pytest.mark.parametrize(
    "asked",
    [
        ("compress", "{text}", "-m", "{model}", "--window", 65_537),
        ("generate", "{model}", "--window", 10**25),
        ("generate", "{model}", "--seed", 1 << 64),
    ],
)
def test_numbers_out_of_range_are_no_bugs(
    qpack: Runner, artifact: Path, text: Path, asked: tuple[object, ...]
) -> None:
    outcome = qpack(*(str(part).format(text=text, model=artifact) for part in asked))
    assert outcome.code in (2, 3), outcome.err
    assert not text.with_name("text.qpz").exists()


def test_windows_are_as_long_as_a_file_may_record() -> None:
    from qpack.eval.coder import WINDOW_MAX

    assert WINDOW_MAX == 65_536, "as --window says"


def test_what_does_not_fit_is_refused_and_nothing_written(
    qpack: Runner, files: Files, artifact: Path, text: Path
) -> None:
    packed, out = text.with_name("text.qpz"), text.with_name("back")
    assert qpack("compress", text, "-m", artifact, "-q").code == 0
    data = packed.read_bytes()

    def refused(*more: object) -> str:
        outcome = qpack("decompress", packed, "-o", out, *more)
        assert outcome.code == 4, outcome.err
        assert not out.exists()
        return outcome.err

    assert "SHA-256" in refused("-m", files.foreign)
    for damaged in (data[:-9], data[:100], data[:-50] + b"x" + data[-49:], data + b"x"):
        packed.write_bytes(damaged)
        refused("-m", artifact)


def test_a_mixture_that_there_is_not(qpack: Runner, artifact: Path, text: Path) -> None:
    outcome = qpack("compress", text, "-m", artifact, "--mix", "ngrams")
    assert outcome.code == 3 and 'did you mean "ngram"' in outcome.err
    assert not text.with_name("text.qpz").exists()


def test_text_comes_on_stdout(qpack: Runner, artifact: Path) -> None:
    asked = ("generate", artifact, "--prompt", "A check", "--tokens", 12, "--window", 8)
    plain = qpack(*asked)
    assert plain.code == 0, plain.err
    assert plain.out.startswith("A check") and plain.out.endswith("\n")
    assert qpack(*asked).out == plain.out
    document = qpack(*asked, "--json").document
    assert f"{document['prompt']}{document['text']}\n" == plain.out
    assert document["schema"] == "qpack.generate/1"
    assert qpack(*asked, "--seed", 3, "--temperature", 2).out != plain.out


def test_nothing_is_printed_of_a_text_that_cannot_be(qpack: Runner, artifact: Path) -> None:
    outcome = qpack("generate", artifact, "--prompt", "a\udcff")
    assert (outcome.code, outcome.out) == (3, "")
    assert "UTF-8" in outcome.err


def test_a_checkpoint_needs_its_tokenizer(qpack: Runner, files: Files, artifact: Path) -> None:
    checkpoint = artifact.with_name("model.safetensors")
    missing = qpack("generate", checkpoint)
    assert missing.code == 3 and "--tokenizer" in missing.err
    given = qpack("generate", checkpoint, "--tokenizer", files.tokenizer, "--json", "--tokens", 3)
    assert given.code == 0 and json.loads(given.out)["prompt"] == ""
