"""Run a program with its output to a log and to progress, and never leave it behind.

The program gets a process group of its own. On Ctrl-C, SIGTERM or a timeout the whole group is
asked to end, and killed if it does not; whatever it started in the background goes with it.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from qpack.errors import ConfigError
from qpack.progress import Progress, Task

GRACE_SECONDS = 10.0
"""From asking the program to end to killing it."""
LOOK_SECONDS = 0.2
"""Between looks at the clock while the program says nothing."""
TAIL_LINES = 20
"""Of the output, for errors."""
NOTE_CHARACTERS = 100
"""Of the last line, beside the progress bar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What to run."""

    command: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    """The whole environment."""
    log: Path
    """File for what it prints, stdout and stderr together."""
    timeout_seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """How it ended."""

    exit_code: int
    seconds: float
    tail: tuple[str, ...]
    """Last lines that it printed."""


def run_program(program: Program, *, progress: Progress) -> Finished:
    """Run `program` to its end, whatever its exit code.

    Raises `ConfigError` where it cannot be started or takes longer than its timeout, and
    `KeyboardInterrupt` on Ctrl-C or SIGTERM; the process group is gone in every case.
    """
    began = time.monotonic()
    with program.log.open("wb") as log, _terminating():
        process = _start(program)
        reader = _Reader(process)
        try:
            with progress.stage(
                "script",
                total=program.timeout_seconds,
                unit="s" if program.timeout_seconds else "lines",
            ) as task:
                tail = _follow(process, reader, program, log=log, task=task)
            exit_code = process.wait()
        finally:
            _end(process)
            reader.close()
    seconds = time.monotonic() - began
    return Finished(exit_code=exit_code, seconds=seconds, tail=tail)


def _start(program: Program) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            program.command,
            cwd=program.cwd,
            env=dict(program.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:  # ValueError: a null character in an argument
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"the script cannot be started: {program.command[0]}: {reason}",
            hint="check script.command and script.cwd",
        ) from error


class _Lines:
    """Output as lines, the last of them kept. A carriage return begins a line anew: progress bars
    are lines here."""

    def __init__(self) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""

    def feed(self, chunk: bytes, *, final: bool = False) -> int:
        """Take in more output; returns how many lines it ended."""
        *lines, self._rest = re.split(r"[\r\n]+", self._rest + self._decoder.decode(chunk, final))
        if final:
            lines.append(self._rest)
        self.tail.extend(line for line in lines if line.strip())
        return len(lines)

    @property
    def note(self) -> str:
        """The last line, as far as it fits beside a progress bar."""
        return self.tail[-1].strip()[:NOTE_CHARACTERS] if self.tail else ""


class _Reader:
    """A thread that reads a program's output: pipes cannot be waited for everywhere."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._pipe = process.stdout
        self._chunks: queue.Queue[bytes] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def next(self) -> bytes:
        """The next output; empty where there is none for a while."""
        try:
            return self._chunks.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            return b""

    def close(self) -> None:
        """Give the pipe back, unless a program that escaped from the group still holds it."""
        self._thread.join(1.0)
        if not self._thread.is_alive():
            self._pipe.close()

    def _read(self) -> None:
        while chunk := os.read(self._pipe.fileno(), 1 << 16):
            self._chunks.put(chunk)


def _follow(
    process: subprocess.Popen[bytes],
    reader: _Reader,
    program: Program,
    *,
    log: IO[bytes],
    task: Task,
) -> tuple[str, ...]:
    """Copy output to the log as it comes, until the program ends; its last lines."""
    lines = _Lines()
    timeout = program.timeout_seconds
    began = last = time.monotonic()
    while True:
        ended = process.poll() is not None  # before the look: what it printed last is then there
        chunk = reader.next()
        log.write(chunk)
        log.flush()
        count, now = lines.feed(chunk), time.monotonic()
        task.advance(now - last if timeout else count, note=lines.note)
        last = now
        # What it left running may keep the pipe open for ever: an empty pipe is enough.
        if ended and not chunk:
            lines.feed(b"", final=True)
            return tuple(lines.tail)
        if timeout is not None and now - began > timeout:
            raise ConfigError(
                f"the script took longer than {timeout:g} s and was stopped",
                items=lines.tail,
                hint=f"raise script.timeout_seconds; all that it printed is in {program.log}",
            )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Make sure that the program and all that it started are gone."""
    if process.poll() is None:
        _signal(process, "SIGTERM")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    _signal(process, "SIGKILL")
    process.wait()


def _signal(process: subprocess.Popen[bytes], name: str) -> None:
    """Send a signal to the program's group."""
    if os.name != "posix":  # Windows: no groups; the program alone
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is gone
        os.killpg(process.pid, getattr(signal, name))


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """Within, SIGTERM stops us as Ctrl-C does: at once it would leave the program behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals cannot be caught here: an embedding program runs us
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
