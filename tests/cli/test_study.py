"""`qpack study`: its three studies on a small model, printed and written."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from qpack.cli.main import build
from qpack.eval.studies.run import STUDIES

from .conftest import Outcome, Runner
from .given import Files


@pytest.fixture
def run(qpack: Runner, files: Files, checkpoint: Path):  # type: ignore[no-untyped-def]
    def study(name: str, *more: object) -> Outcome:
        return qpack(
            "study", name, checkpoint, "--tokens", files.shard, "--tokenizer", files.tokenizer,
            "--window", 32, "--device", "cpu", *more,
        )  # fmt: skip

    return study


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("hashed-ngram", {"buckets": 16, "chunk-tokens": 64}),
        # Compiling the mixture takes long.
        pytest.param("byte-spread", {"positions": 5}, marks=pytest.mark.slow),
        ("train-first", {"epochs": 2, "chunk-tokens": 128}),
    ],
)
def test_each_says_what_was_claimed_measured_and_honest(
    run,  # type: ignore[no-untyped-def]
    name: str,
    settings: dict[str, int],
    tmp_path: Path,
) -> None:
    out = tmp_path / "study.json"
    options = [part for key, value in settings.items() for part in (f"--{key}", value)]
    outcome = run(name, *options, "--max-tokens", 400, "--json", "-o", out)
    assert outcome.code == 0, outcome.err
    document = outcome.document
    assert (document["schema"], document["study"]) == ("qpack.study/1", name)
    assert document["claimed"]["claimed_bits_per_byte"] > 0
    assert document["violation"]
    assert document["wrong"].isascii()
    assert document["honest"]["bpb_network"] > 0
    assert set(document["inputs"]) == {"model", "tokens", "tokenizer"}
    assert json.loads(out.read_text()) == document
    used = document["settings"]
    assert {key: used[key.replace("-", "_")] for key in settings} == settings


def test_as_text_the_claim_is_called_no_score(run) -> None:  # type: ignore[no-untyped-def]
    outcome = run("hashed-ngram", "--buckets", 16, "--chunk-tokens", 64, "--max-tokens", 200)
    assert outcome.code == 0, outcome.err
    first, claim, *_ = outcome.out.splitlines()
    assert first == "claimed, and no score"
    assert claim.split()[:4] == ["claimed", "bits", "per", "byte"]
    assert "sum over alphabet" in outcome.out
    assert "honest, on the same tokens" in outcome.out


@pytest.mark.parametrize("name", STUDIES)
def test_defaults_are_those_of_the_settings(name: str) -> None:
    import importlib

    module_name, settings_name = STUDIES[name]
    module = importlib.import_module(f"qpack.eval.studies.{module_name}")
    defaults = asdict(getattr(module, settings_name)())
    command = build().commands["study"].commands[name]
    options = {parameter.name: parameter.default for parameter in command.params}
    assert {key: options[key] for key in defaults} == defaults


def test_refusals_come_before_the_work(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "there.json"
    out.write_text("{}")
    refused = run("byte-spread", "-o", out)
    assert (refused.code, refused.out) == (3, "")
    refused = run("hashed-ngram", "--buckets", 100)
    assert refused.code == 3
    assert "buckets = 100: must be a power of two" in refused.err
    assert run("train-first", "--held-out", 1).code == 3


def test_an_unknown_study_is_named(files: Files) -> None:
    from qpack.errors import ConfigError
    from qpack.eval.evaluation import Inputs
    from qpack.eval.studies.run import study_file

    inputs = Inputs(model=files.foreign, tokens=files.shard, tokenizer=files.tokenizer)
    with pytest.raises(ConfigError, match="hashed-ngram"):
        study_file("hashed-ngrams", inputs, {})
