from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from qpack.errors import ConfigError
from qpack.progress import SILENT
from qpack.trainer.stages.process import Program, _Lines, run_program

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups differ")


def program(tmp_path: Path, text: str, **changes: object) -> Program:
    """A Python program of `text` that runs in a folder of its own."""
    cwd = tmp_path / "cwd"
    cwd.mkdir(exist_ok=True)
    values = {
        "command": [sys.executable, "-u", "-c", text],
        "cwd": cwd,
        "env": dict(os.environ),
        "log": tmp_path / "log.txt",
        "timeout_seconds": None,
    }
    return Program(**{**values, **changes})  # type: ignore[arg-type]


class Watch:
    """Progress that remembers notes beside the bar and when they came."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float]] = []

    @contextmanager
    def stage(self, name, *, total=None, unit=""):
        self.total, self.unit = total, unit
        yield self

    def advance(self, amount: float = 1.0, *, note: str = "") -> None:
        if note and note not in [known for known, _ in self.seen]:
            self.seen.append((note, time.monotonic()))

    def note(self, message: str) -> None: ...

    def warn(self, message: str) -> None: ...


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody waited for yet has ended too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone_soon(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def test_output_goes_to_the_log_and_to_progress_as_it_comes(tmp_path: Path) -> None:
    text = """
import os, sys, time
print("one", os.getcwd(), os.environ["MINE"], flush=True)
time.sleep(0.6)
print("two", file=sys.stderr)
sys.exit(3)
"""
    watch = Watch()
    made = program(tmp_path, text, env={**os.environ, "MINE": "set"})
    finished = run_program(made, progress=watch)
    assert finished.exit_code == 3
    first = f"one {(tmp_path / 'cwd').resolve()} set"
    assert finished.tail == (first, "two")
    assert made.log.read_text() == f"{first}\ntwo\n"
    (_, early), (_, late) = watch.seen
    assert late - early > 0.3  # the first line did not wait for the end
    assert finished.seconds > 0.5


def test_what_is_printed_last_is_not_lost(tmp_path: Path) -> None:
    text = "import os\nfor i in range(200): os.write(1, b'%d\\n' % i)\nos.write(1, b'no newline')"
    finished = run_program(program(tmp_path, text), progress=SILENT)
    assert finished.tail[-2:] == ("199", "no newline")
    assert (tmp_path / "log.txt").read_text().count("\n") == 200


def test_lines_of_progress_bars_and_split_characters() -> None:
    lines = _Lines()
    assert lines.feed("10 %\r20 %\r\n\u20ac".encode()[:-1]) == 2
    assert lines.feed("\u20ac".encode()[-1:] + b" \xff\n") == 1
    assert list(lines.tail) == ["10 %", "20 %", "\u20ac \ufffd"]
    lines.feed(b"rest")
    assert lines.note == "\u20ac \ufffd"
    lines.feed(b"", final=True)
    assert lines.note == "rest"
    lines.feed(b"x" * 500 + b"\n")
    assert len(lines.note) == 100


def test_what_it_leaves_running_neither_holds_us_up_nor_stays(tmp_path: Path) -> None:
    text = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
"""
    began = time.monotonic()
    finished = run_program(program(tmp_path, text), progress=SILENT)
    assert finished.exit_code == 0
    assert time.monotonic() - began < 10
    assert gone_soon(int(finished.tail[0]))


SLEEPER = """
import os, signal, subprocess, sys, time
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open("pids", "w").write(f"{os.getpid()} {child.pid}")
print("ready", flush=True)
time.sleep(60)
"""


def pids(tmp_path: Path) -> list[int]:
    return [int(word) for word in (tmp_path / "cwd" / "pids").read_text().split()]


@pytest.mark.parametrize("kind", ["polite", "stubborn"])
def test_a_timeout_takes_the_whole_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("qpack.trainer.stages.process.GRACE_SECONDS", 0.3)
    watch = Watch()
    made = program(
        tmp_path, "", command=[sys.executable, "-uc", SLEEPER, kind], timeout_seconds=1.0
    )
    with pytest.raises(ConfigError, match="took longer than 1 s and was stopped") as caught:
        run_program(made, progress=watch)
    assert caught.value.items == ("ready",)
    assert "script.timeout_seconds" in str(caught.value)
    assert (watch.total, watch.unit) == (1.0, "s")
    assert all(gone_soon(pid) for pid in pids(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_the_whole_group(tmp_path: Path, number: int) -> None:
    before = signal.getsignal(number)

    def send() -> None:
        while not (tmp_path / "cwd" / "pids").exists():
            time.sleep(0.02)
        time.sleep(0.1)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    with pytest.raises(KeyboardInterrupt):
        run_program(program(tmp_path, SLEEPER), progress=SILENT)
    assert all(gone_soon(pid) for pid in pids(tmp_path))
    assert signal.getsignal(number) is before


def test_what_cannot_be_started(tmp_path: Path) -> None:
    for command in (["no-such-program-anywhere"], ["nul\0l"]):
        with pytest.raises(ConfigError, match="cannot be started"):
            run_program(program(tmp_path, "", command=command), progress=SILENT)
