"""Results on stdout, everything else on stderr; colour, quiet, pipes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qpack.cli.output import Output
from qpack.cli.settings import ProgressMode, Settings, use_color

from .artifacts import write_artifact
from .conftest import PROGRAM, Runner, clean_environment


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_doctor_parts_the_streams(qpack: Runner) -> None:
    outcome = qpack("doctor")
    assert outcome.code == 0
    assert outcome.out.startswith("qpack 0.1.0, Python 3.")
    assert outcome.err == "next: qpack demo\n"
    assert "\x1b" not in outcome.out + outcome.err


def test_json_is_one_document_alone(qpack: Runner) -> None:
    outcome = qpack("doctor", "--json", "-q")
    assert outcome.document["schema"] == "qpack.doctor/1"
    assert outcome.document["usable"] is True
    assert outcome.err == ""


@pytest.mark.parametrize(
    ("quiet", "seen"),
    [(0, ["note", "warning", "error"]), (1, ["warning", "error"]), (2, ["error"])],
)
def test_quiet(quiet: int, seen: list[str], capsys) -> None:
    output = Output(Settings(quiet=quiet))
    output.note("a")
    output.warn("b")
    output.error("c", items=(), hint=None)
    captured = capsys.readouterr()
    assert [line.partition(":")[0] for line in captured.err.splitlines()] == seen
    assert captured.out == ""


def test_json_progress_makes_every_line_json(capsys) -> None:
    output = Output(Settings(progress=ProgressMode.json))
    output.note("a")
    output.progress.warn("b")
    output.error("c", items=["d"], hint=None, exit_code=3)
    records = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert records[:2] == [
        {"event": "note", "message": "a"},
        {"event": "warning", "message": "b"},
    ]
    assert records[2]["message"] == "c"


@pytest.mark.parametrize(
    ("variables", "settings", "expected"),
    [
        ({}, Settings(), True),
        ({"NO_COLOR": "1"}, Settings(), False),
        ({"TERM": "dumb"}, Settings(), False),
        ({}, Settings(color=False), False),
    ],
)
def test_color_on_a_terminal(variables, settings, expected, monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert use_color(Terminal(), settings) is expected
    assert use_color(io.StringIO(), settings) is False


@pytest.mark.parametrize("refuse", [False, True])
def test_color_reaches_the_terminal(refuse: bool, monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    if refuse:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    Output(Settings()).error("[bold] what", items=["where"], hint="do")
    text = terminal.getvalue()
    assert ("\x1b[" in text) is not refuse
    assert "[bold] what" in text  # a tensor's name is never read as markup


def test_not_a_number_is_not_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Output(Settings(json=True)).result({"bpb": float("nan")}, str)


def run_into_closed_pipe(
    *arguments: str, stream: str, folder: Path
) -> subprocess.CompletedProcess[bytes]:
    """Run qpack with one of its streams a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    other = "stderr" if stream == "stdout" else "stdout"
    try:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments],
            cwd=folder,
            env=clean_environment(),
            check=False,
            timeout=120,
            **{stream: writer, other: subprocess.PIPE},
        )
    finally:
        os.close(writer)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes differ")
@pytest.mark.parametrize("arguments", [("inspect", "tiny.qpk", "-q"), ("--help",), ("--version",)])
def test_a_reader_that_leaves_is_no_error(arguments: tuple[str, ...], tmp_path: Path) -> None:
    write_artifact(tmp_path / "tiny.qpk")
    done = run_into_closed_pipe(*arguments, stream="stdout", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes differ")
def test_nobody_reads_stderr_and_the_work_goes_on(tmp_path: Path) -> None:
    write_artifact(tmp_path / "tiny.qpk")
    done = run_into_closed_pipe("inspect", "tiny.qpk", "--json", stream="stderr", folder=tmp_path)
    assert done.returncode == 0
    assert json.loads(done.stdout)["schema"] == "qpack.inspect/1"
