"""Each kind of failure has its exit code, says what to do, and leaves stdout empty."""

from __future__ import annotations

import errno
import json
import signal
import sys
import types
from pathlib import Path

import pytest

from qpack import errors
from qpack.cli.command import invoke
from qpack.cli.output import Output
from qpack.cli.settings import Settings

from .conftest import Runner

CODES = {
    errors.InputError: 3,
    errors.ConfigError: 3,
    errors.CheckpointError: 3,
    errors.DataError: 3,
    errors.CalibrationError: 3,
    errors.OutputExistsError: 3,
    errors.ArtifactError: 4,
    errors.TruncatedError: 4,
    errors.CorruptError: 4,
    errors.UnsupportedError: 4,
    errors.TooLargeError: 4,
    errors.MismatchError: 4,
    errors.BudgetError: 5,
    errors.VerifyError: 6,
    errors.EvaluationError: 6,
    errors.ResourceError: 7,
    errors.SetupError: 8,
}


def fail(error: BaseException, **settings: object) -> int:
    """Exit code of a command that raises `error`."""

    def command(output: Output) -> None:
        raise error

    return invoke(command, Output(Settings(**settings)), {})  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "code"), CODES.items())
def test_own_errors(kind, code, capsys) -> None:
    assert fail(kind("what", items=["where 1", "where 2"], hint="do this")) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: what\n  where 1\n  where 2\n  fix: do this\n"


def test_the_table_of_codes_is_whole() -> None:
    classes = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.QpackError)
    }
    assert classes - {errors.QpackError, errors.OtherRankError} == set(CODES)


def test_what_another_rank_has_told_is_not_told_again(capsys) -> None:
    assert fail(errors.OtherRankError(5)) == 5
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_torchrun_gets_the_message(tmp_path, monkeypatch, capsys) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    fail(errors.DataError("no such shard", items=("a.bin",), hint="look again"))
    read = ProcessFailure(local_rank=0, pid=1, exitcode=3, error_file=str(path))
    last = str(ChildFailedError("qpack", {0: read}))
    assert all(text in last for text in ("no such shard", "a.bin", "fix: look again"))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "no" / "folder"))
    assert fail(errors.DataError("no such shard")) == 3
    assert "no such shard" in capsys.readouterr().err


def test_json_errors_are_one_object_on_stderr(capsys) -> None:
    error = errors.BudgetError("too small", items=["tok_emb 524,288 B"], hint="raise the budget")
    assert fail(error, json=True) == 5
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err) == {
        "schema": "qpack.error/1",
        "error": "BudgetError",
        "exit_code": 5,
        "message": "too small",
        "items": ["tok_emb 524,288 B"],
        "hint": "raise the budget",
    }


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 7, "out of memory: MemoryError"),
        (OSError(errno.ENOSPC, "No space left on device", "m.qpk"), 7, "m.qpk: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "m.qpk"), 3, "m.qpk: Permission"),
        (ModuleNotFoundError("x", name="torch"), 8, "needs the package torch"),
        (ModuleNotFoundError("x", name="torch.nn"), 8, "needs the package torch"),
    ],
)
def test_what_the_machine_did(error, code, message, capsys) -> None:
    assert fail(error) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["CUDA out of memory", "can't allocate memory: 1 bytes"])
def test_torch_out_of_memory(text: str, capsys, monkeypatch) -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    torch = types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
    monkeypatch.setitem(sys.modules, "torch", torch)
    kind = OutOfMemoryError if text.startswith("CUDA") else RuntimeError
    assert fail(kind(text)) == 7
    assert "--calib-tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [ValueError("odd\nmore"), ModuleNotFoundError("x", name="qpack.gone")]
)
def test_a_bug_saves_its_traceback(error, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert fail(error) == 1
    text = capsys.readouterr().err
    assert "this is a bug in qpack" in text and "Traceback" not in text
    (saved,) = tmp_path.glob("qpack-traceback-*.txt")
    assert str(saved) in text
    assert "Traceback" in saved.read_text() and "qpack 0.1.0" in saved.read_text()


def test_a_bug_is_told_even_where_nothing_can_be_saved(capsys, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere/at/all")
    assert fail(ValueError("odd")) == 1
    assert "run again with --debug" in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys) -> None:
    assert fail(errors.DataError("what"), debug=True) == 3
    text = capsys.readouterr().err
    assert text.startswith("Traceback") and text.endswith("error: what\n")


def test_interrupted(capsys) -> None:
    assert fail(KeyboardInterrupt()) == 130
    assert "interrupted; unfinished output was not written" in capsys.readouterr().err


def test_usage(qpack: Runner) -> None:
    outcome = qpack("unpack", "model.qpk")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "error: Missing option '-o' / '--out'.\n  fix: qpack unpack --help\n"


@pytest.mark.parametrize("asked", [["--json"], ["--progress=json"], ["--progress", "json"]])
def test_usage_as_json(qpack: Runner, asked: list[str]) -> None:
    outcome = qpack("inspect", *asked, "--bogus")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.error["error"] == "UsageError"
    assert outcome.error["exit_code"] == 2


def test_unknown_command_suggests(qpack: Runner) -> None:
    outcome = qpack("pakc")
    assert outcome.code == 2
    assert "Did you mean 'pack'" in outcome.err


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_missing_input(qpack: Runner, tmp_path: Path, command: str) -> None:
    outcome = qpack(command, tmp_path / "gone.qpk")
    assert (outcome.code, outcome.out) == (3, "")
    assert "gone.qpk: no such file" in outcome.err


SLOW_COMMAND = """
import os, signal, time
from qpack.cli import main as module
def slow(output, **options):
    output.say("working")
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)
module.doctor = slow
slow.__signature__ = __import__("inspect").Signature(
    [__import__("inspect").Parameter("output", 1)])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_control_c_says_so_and_exits_130(fresh_qpack: Runner) -> None:
    outcome = fresh_qpack("doctor", before=SLOW_COMMAND)
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.splitlines() == [
        "working",
        "note: stopping; press Ctrl-C again to stop at once",
        "error: interrupted; unfinished output was not written",
        "  fix: run the same command again, with --force where it says that an output exists",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
def test_a_second_control_c_skips_the_clean_up(fresh_qpack: Runner) -> None:
    stubborn = SLOW_COMMAND.replace(
        "    time.sleep(30)",
        "    time.sleep(30)\n"
        "  except KeyboardInterrupt:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(30)",
    ).replace('    output.say("working")', "  try:\n    pass")
    outcome = fresh_qpack("doctor", before=stubborn)
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.splitlines() == ["note: stopping; press Ctrl-C again to stop at once"]


def test_our_signal_handler_does_not_stay(qpack: Runner) -> None:
    before = signal.getsignal(signal.SIGINT)
    qpack("inspect", "gone.qpk")
    assert signal.getsignal(signal.SIGINT) is before
