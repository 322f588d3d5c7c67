"""`qpack train`, `qpack run` and `qpack presets`, as a user would type them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import PROGRAM, Outcome, Runner, clean_environment
from .given import Files
from .test_import_cost import BLOCK


@pytest.fixture
def config(files: Files, tmp_path: Path) -> Path:
    """A configuration that packs the given weights."""
    path = tmp_path / "conf.toml"
    path.write_text(f"""# Weights that exist.
trainer = "checkpoint"

[checkpoint]
path = "{files.foreign}"
tokenizer = "{files.tokenizer}"
calibration = "{files.shard}"

[pack]
budget = 36_000
form = "qpk"
calib_tokens = 1_024
val_tokens = 640
window = 64
stdlib_codecs = true
device = "cpu"
""")
    return path


def test_run_resume_and_change(qpack: Runner, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = qpack("run", config, "-o", out, "--json", "--set", "checkpoint.set.rope_base=5000.0")
    assert outcome.code == 0, outcome.err
    report = outcome.document
    assert report["artifact_bytes"] == (out / "model.qpk").stat().st_size <= 36_000
    assert report["training"]["trainer"] == "checkpoint"
    assert report["command"][:2] == ["qpack", "run"]
    assert f"next: qpack verify {out / 'model.qpk'} --sha256 {report['sha256']}" in outcome.err
    assert sorted(path.name for path in out.iterdir()) == [
        "model.qpk", "model.safetensors", "report.json", "report.md", "run.json",
    ]  # fmt: skip

    outcome = qpack("run", config, "-o", out)
    assert (outcome.code, outcome.out) == (3, "")
    assert "--resume goes on with it, --force starts anew" in outcome.err

    outcome = qpack("run", config, "-o", out, "--resume")
    assert (outcome.code, outcome.out) == (3, "")
    assert "  checkpoint.set.rope_base: 5000.0 -> (not there)" in outcome.err

    changes = ["--set", "checkpoint.set.rope_base=5000.0"]
    outcome = qpack("run", config, "-o", out, "--resume", "--json", *changes)
    assert outcome.code == 0, outcome.err
    assert outcome.document == report
    assert "note: training is done already\nnote: the artifact is made already\n" in outcome.err


def test_train_then_run(qpack: Runner, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out put"
    outcome = qpack("train", config, "-o", out, "--json", "--set", "pack.budget=35_000")
    assert outcome.code == 0, outcome.err
    document = outcome.document
    assert document["schema"] == "qpack.trained/1"
    assert document["checkpoint"] == str(out / "model.safetensors")
    assert "note: [pack] is for `qpack run`" in outcome.err
    command = f"next: qpack run {config} -o '{out}' --set pack.budget=35_000 --resume"
    assert command in outcome.err
    outcome = qpack("run", config, "-o", out, "--set", "pack.budget=35_000", "--resume")
    assert outcome.code == 0, outcome.err
    assert "of 35,000 B" in outcome.out


def test_train_for_a_person(qpack: Runner, config: Path, tmp_path: Path) -> None:
    text = config.read_text()
    config.write_text(text[: text.index("[pack]")])
    outcome = qpack("train", config, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    facts = dict(line.split(maxsplit=1) for line in outcome.out.splitlines())
    assert facts["checkpoint"] == str(tmp_path / "out" / "model.safetensors")
    assert "next: qpack pack " in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "pack.bugdet=3"], ['pack.bugdet: unknown (did you mean "budget"?)']),
        (
            ["--set", "checkpoint.pth=x", "--set", "pack.budget=lots", "--set", "modle.x=1"],
            ['checkpoint.pth: unknown (did you mean "path"?)', "pack.budget = 'lots'", "modle: "],
        ),
        (["--set", "nonsense", "--set", "=2"], ["nonsense: expected section.key=value", "=2: "]),
        (["--set", "checkpoint.path.x=1"], ["checkpoint.path is a value, not a table"]),
        (["--set", "trainer=refernce"], ['(did you mean "reference"?)']),
        (
            ["--set", "checkpoint.path=a.pt", "--set", "checkpoint.calibration=b.bin"],
            ["checkpoint.path: a.pt", "checkpoint.calibration: b.bin"],
        ),
        (["--set", "pack.recipe=gone.toml"], ["gone.toml: cannot be read as a recipe"]),
        (["--set", 'pack.codecs=["broti"]'], ["brotli"]),
    ],
)
def test_what_is_refused(
    qpack: Runner, config: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    outcome = qpack("run", config, "-o", tmp_path / "out", *arguments)
    assert (outcome.code, outcome.out) == (3, ""), outcome.err
    for word in words:
        assert word in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_missing_preset(qpack: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (
        ["train", "tinny", "-o", "x"],
        ["run", "tinny", "-o", "x"],
        ["presets", "tinny"],
    ):
        outcome = qpack(*command)
        assert (outcome.code, outcome.out) == (3, "")
        assert 'no preset "tinny" (did you mean "tiny"?)' in outcome.err


def test_presets_are_listed_and_printed(qpack: Runner, root: Path, tmp_path: Path) -> None:
    listed = qpack("presets")
    assert listed.code == 0
    names = [line.split()[0] for line in listed.out.splitlines()]
    assert names == sorted(path.stem for path in (root / "trainer" / "presets").glob("*.toml"))
    document = qpack("presets", "--json").document
    assert [row["name"] for row in document["presets"]] == names
    assert listed.out.splitlines()[0].endswith(document["presets"][0]["summary"])
    text = (root / "trainer" / "presets" / "gptq-int5.toml").read_text(encoding="utf-8")
    assert qpack("presets", "gptq-int5").out.rstrip("\n") == text.rstrip("\n")
    assert qpack("presets", "gptq-int5", "--json").document["toml"] == text


def test_presets_need_no_torch(fresh_qpack: Runner) -> None:
    outcome = fresh_qpack("presets", before=BLOCK)
    assert outcome.code == 0, outcome.err
    assert "gptq-int5" in outcome.out


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_an_interrupt_says_how_to_go_on(fresh_qpack: Runner, files: Files, tmp_path: Path) -> None:
    config = tmp_path / "conf.toml"
    config.write_text(f"""trainer = "script"
[script]
command = [{json.dumps(sys.executable)}, "-c", "import os, signal, time; os.kill(os.getppid(), \
signal.SIGINT); time.sleep(60)"]
output = "*.pt"
tokenizer = "{files.tokenizer}"
calibration = "{files.shard}"
""")
    outcome = fresh_qpack("train", config, "-o", "out")
    assert (outcome.code, outcome.out) == (130, "")
    assert f"  fix: qpack train {config} -o out --resume" in outcome.err.splitlines()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["stages"]["train"] == {
        "done": False,
        **{
            key: json.loads((tmp_path / "out" / "run.json").read_text())["stages"]["train"][key]
            for key in ("fingerprint", "identity")
        },
    }


def two_ranks(program: list[str], tmp_path: Path) -> list[Outcome]:
    """`program` on two ranks, as torchrun would start it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, *program],
            cwd=tmp_path,
            env=clean_environment(**shared, WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outcomes = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        outcomes.append(Outcome(process.returncode, out, err))
    return outcomes


def test_two_ranks_train_and_one_speaks(config: Path, tmp_path: Path) -> None:
    program = ["-m", "qpack.trainer", str(config), "-o", "out", "--json"]
    first, second = two_ranks(program, tmp_path)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.document["checkpoint"] == os.path.join("out", "model.safetensors")  # noqa: PTH118
    assert (second.out, second.err) == ("", "")


@pytest.mark.slow
def test_two_ranks_tell_a_problem_once(config: Path, tmp_path: Path) -> None:
    program = ["-m", "qpack.trainer", str(config), "-o", "out", "--set", "pack.bugdet=3"]
    first, second = two_ranks(program, tmp_path)
    assert (first.code, second.code) == (3, 3)
    assert "pack.bugdet: unknown" in first.err
    assert (second.out, second.err) == ("", "")


@pytest.mark.slow
def test_two_ranks_run_the_whole_line(config: Path, tmp_path: Path) -> None:
    program = ["-c", PROGRAM, "run", str(config), "-o", "out", "--json"]
    first, second = two_ranks(program, tmp_path)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.document["artifact_bytes"] == (tmp_path / "out" / "model.qpk").stat().st_size
    assert second.out == ""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_interrupted_training_goes_on_to_the_same_model(files: Files, tmp_path: Path) -> None:
    config = tmp_path / "conf.toml"
    config.write_text(f"""
[model]
vocab_size = 300
num_layers = 2
model_dim = 48
num_heads = 4
num_kv_heads = 2
[data]
train = "{files.shard}"
tokenizer = "{files.tokenizer}"
[loop]
max_steps = 150
sequence = 64
batch_tokens = 256
log_every = 5
device = "cpu"
""")

    def command(folder: str, *more: str) -> list[str]:
        return [sys.executable, "-c", PROGRAM, "train", str(config), "-o", folder, "--json", *more]

    def train(folder: str, *more: str) -> Outcome:
        done = subprocess.run(
            command(folder, *more), cwd=tmp_path, env=clean_environment(), capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
        return Outcome(done.returncode, done.stdout, done.stderr)

    whole = train("whole")
    assert whole.code == 0, whole.err
    process = subprocess.Popen(
        command("parts"), cwd=tmp_path, env=clean_environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = tmp_path / "parts" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert f"  fix: qpack train {config} -o parts --resume" in err.splitlines()
    changed = train("parts", "--resume", "--set", "loop.seed=1")
    assert changed.code == 3 and changed.error["items"] == ["loop.seed: 0 -> 1"]
    parts = train("parts", "--resume")
    assert parts.code == 0, parts.err
    assert "note: going on with training" in parts.err
    assert parts.document["sha256"] == whole.document["sha256"]
