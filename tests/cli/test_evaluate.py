"""`qpack eval` with all that it can be asked: rows, settings, probes, proofs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qpack import plugins
from qpack.cli.show import show_proof
from qpack.eval.network import Network
from qpack.eval.predictor import Session, Tokens
from qpack.plugins import PREDICTORS
from qpack.progress import SILENT, Progress
from qpack.tokenizer import Tokenizer

from .conftest import PROGRAM, Outcome, Runner
from .given import Files
from .test_run import two_ranks


@pytest.fixture
def run(qpack: Runner, files: Files, checkpoint: Path):  # type: ignore[no-untyped-def]
    def evaluate(*more: object) -> Outcome:
        return qpack(
            "eval", checkpoint, "--tokens", files.shard, "--tokenizer", files.tokenizer,
            "--window", 32, "--max-tokens", 300, "--device", "cpu", *more,
        )  # fmt: skip

    return evaluate


def rows(outcome: Outcome) -> dict[str, dict[str, Any]]:
    assert outcome.code == 0, outcome.err
    return {row["name"]: row for row in outcome.document["rows"]}


def test_the_plain_score_is_a_row_of_its_own(run) -> None:  # type: ignore[no-untyped-def]
    document = run("--json").document
    (row,) = document["rows"]
    shared = ("nats", "bytes", "tokens", "bpb", "seconds")
    assert {key: row[key] for key in shared} == {key: document[key] for key in shared}
    assert (row["name"], row["control"], row["probes"]) == ("disjoint", None, None)
    assert row["documents"] > 2
    assert row["bpb_error"] > 0
    assert document["kl"] is None


def test_sliding_windows_and_documents_apart_beside_their_control(run) -> None:  # type: ignore[no-untyped-def]
    found = rows(run("--stride", 8, "--isolate-documents", "--json"))
    assert list(found) == ["disjoint", "sliding by 8, documents apart"]
    control = found["sliding by 8, documents apart"]["control"]
    assert control["name"] == "disjoint"
    assert control["bpb"] == found["disjoint"]["bpb"]


def test_the_float_model_is_a_row_and_the_divergence_is_to_it(run, checkpoint: Path) -> None:  # type: ignore[no-untyped-def]
    document = run("--against", checkpoint, "--isolate-documents", "--json").document
    assert document["kl"] == 0.0
    (warning,) = document["warnings"]
    assert warning.startswith("float: no score differs from that of disjoint, documents apart")
    _, given, reference = document["rows"]
    assert reference["name"] == "float"
    assert reference["control"]["name"] == given["name"] == "disjoint, documents apart"
    assert (reference["control"]["gain"], reference["nats"]) == (0.0, given["nats"])
    assert reference["settings"] == given["settings"]


def test_mixtures_with_settings_and_probes(run) -> None:  # type: ignore[no-untyped-def]
    outcome = run(
        "--mix", "ngram", "--mix", "ppm", "--set", "ngram.max_order=3",
        "--check", "--set", "check.num_tokens=80", "--json",
    )  # fmt: skip
    found = rows(outcome)
    assert list(found) == ["disjoint", "disjoint + ngram", "disjoint + ppm"]
    mixed = found["disjoint + ngram"]
    assert mixed["settings"]["ngram"]["max_order"] == 3
    assert mixed["control"]["gain"] == found["disjoint"]["bpb"] - mixed["bpb"]
    assert all(p["passed"] for row in found.values() for p in row["probes"])


def test_adaptations_learn_within_their_probes(run) -> None:  # type: ignore[no-untyped-def]
    outcome = run(
        "--adapt", "sgd", "--set", "adapt.chunk_tokens=64", "--set", "adapt.learning_rate=0.05",
        "--check", "--set", "check.num_tokens=90", "--set", "check.positions=1", "--json",
    )  # fmt: skip
    found = rows(outcome)
    assert list(found) == ["disjoint", "disjoint + sgd"]
    assert found["disjoint + sgd"]["settings"]["adapt"]["chunk_tokens"] == 64
    assert found["disjoint + sgd"]["bpb"] != found["disjoint"]["bpb"]
    assert outcome.document["warnings"] == []


def test_a_text_that_nothing_is_learned_from_is_told(run) -> None:  # type: ignore[no-untyped-def]
    outcome = run("--adapt", "sgd", "--set", "adapt.chunk_tokens=300")
    assert outcome.code == 0, outcome.err
    assert "learns nothing from a text shorter than one" in outcome.err


def test_what_a_person_reads(run) -> None:  # type: ignore[no-untyped-def]
    outcome = run("--mix", "ppm", "--check", "--set", "check.num_tokens=40")
    assert outcome.code == 0, outcome.err
    first, *_ = outcome.out.splitlines()
    assert first.endswith("bits per byte")
    assert "disjoint + ppm" in outcome.out
    assert (
        "7 probes, on the first 40 tokens, passed by each of: disjoint, disjoint + ppm"
        in outcome.out
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--mix", "ngrams"), 'unknown predictor "ngrams" (did you mean "ngram"?)'),
        (("--mix", "ppm", "--adapt", "sgd", "--adapt", "sgd"), "sgd: asked for twice"),
        (("--adapt", "sgd", "--set", "adapt.optimizer=adamw"), "sgd was asked for"),
        (("--stride", "33"), "a stride of 33"),
        (("--mix", "ngram", "--set", "ngram.order=3"), "ngram.order: unknown"),
        (("--mix", "ngram", "--set", "ngram.max_order=99"), "max_order = 99"),
        (("--mix", "ngram", "--set", "ngram.max_order=few"), "ngram.max_order = 'few'"),
        (("--set", "ngram.max_order=3"), "changes what nothing here reads"),
        (("--set", "check.positions=3"), "changes what nothing here reads"),
        (("--check", "--set", "check.positions=0"), "positions = 0"),
    ],
)
def test_what_is_refused(
    run,
    options: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # type: ignore[no-untyped-def]
    """All of it before the model is read, which takes seconds where it is packed."""
    monkeypatch.delattr("qpack.eval.evaluation.read_model")
    outcome = run(*options)
    assert (outcome.code, outcome.out) == (3, "")
    assert words in outcome.err


def test_a_text_shorter_than_a_window(run) -> None:  # type: ignore[no-untyped-def]
    outcome = run("--window", 301)
    assert (outcome.code, outcome.out) == (3, "")
    assert "300 tokens to score are fewer than a window of 301" in outcome.err


def build_cheat(network: Network, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> Cheat:
    """As an installed package would."""
    del tokenizer, settings
    return Cheat(network)


class Cheat:
    """Adds to the probability of what comes, and of nothing else."""

    name = "cheat"

    def __init__(self, network: Network) -> None:
        self.network, self.vocab_size = network, network.vocab_size

    def start(self, first: int, *, num_tokens: int | None = None) -> Session:
        return self.network.start(first)

    def score(self, tokens: Tokens, *, progress: Progress = SILENT) -> NDArray[np.float64]:
        return np.log(0.5 * np.exp(self.network.score(tokens)) + 0.5)


def test_a_refused_predictor_leaves_no_score_of_anything(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    point = EntryPoint("cheat", f"{__name__}:build_cheat", PREDICTORS)
    known = plugins.entry_points

    def entry_points(*, group: str) -> EntryPoints:
        return EntryPoints([*known(group=group), point]).select(group=group)

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    believed = run("--mix", "cheat", "--json").document
    assert believed["rows"][1]["name"] == "cheat"
    assert "cheat: of another package, and not probed" in believed["warnings"][0]
    outcome = run("--mix", "cheat", "--check", "--set", "check.num_tokens=60", "--json")
    assert (outcome.code, outcome.out) == (6, "")
    assert 'the predictor "cheat" is refused' in outcome.error["message"]
    assert {item.partition(":")[0] for item in outcome.error["items"]} == {"target swap", "session"}


def test_a_proof(run) -> None:  # type: ignore[no-untyped-def]
    outcome = run("--stride", 16, "--prove", 90, "--json")
    assert outcome.code == 0, outcome.err
    (proof,) = outcome.document["proofs"]
    assert proof["agrees"]
    assert (proof["predictor"], proof["asked_bytes"]) == ("sliding by 16", 90)


def test_what_no_file_can_record_is_not_proved(run) -> None:  # type: ignore[no-untyped-def]
    outcome = run("--window", 70_000, "--prove", 90)
    assert outcome.code == 3 and "at most 65,536" in outcome.err


def test_a_proof_shows_the_file_beside_the_score() -> None:
    proof = {
        "predictor": "disjoint", "text_bytes": 1000, "stream_bpb": 1.5, "computed_bpb": 1.49,
        "file_bytes": 700, "file_bpb": 5.6, "header_bytes": 500,
    }  # fmt: skip
    _, shown = show_proof(proof).splitlines()
    assert "computed 1.490000" in shown and "file 700 B or 5.600000 bits per byte" in shown


@pytest.mark.slow
def test_a_proof_of_every_predictor_that_is_asked_for(run) -> None:  # type: ignore[no-untyped-def]
    outcome = run("--mix", "ngram", "--prove", 90)
    assert outcome.code == 0, outcome.err
    assert "proved by a file: disjoint\n" in outcome.out
    assert "proved by a file: disjoint + ngram\n" in outcome.out


@pytest.mark.slow
def test_two_ranks_score_what_one_does(run, files: Files, checkpoint: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    options = [
        "--adapt", "adamw", "--adapt", "lora", "--set", "adapt.chunk_tokens=64",
        "--set", "lora.chunk_tokens=8", "--set", "lora.targets=[\"head\"]", "--json",
    ]  # fmt: skip
    wanted = rows(run(*options))
    given = ["--tokens", str(files.shard), "--tokenizer", str(files.tokenizer)]
    where = ["--window", "32", "--max-tokens", "300", "--device", "cpu"]
    program = ["-c", PROGRAM, "eval", str(checkpoint), *given, *where, *options]
    first, second = two_ranks(program, tmp_path)
    found = rows(first)
    assert (second.code, second.out, second.err) == (0, "", "")
    for name, row in wanted.items():
        assert found[name]["bpb"] == pytest.approx(row["bpb"], abs=1e-4)
    first, second = two_ranks([*program, "--prove", "50"], tmp_path)
    assert (first.code, second.code) == (3, 3)
    assert "prove it without torchrun" in first.err
    assert second.err == ""
