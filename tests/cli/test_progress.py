"""Progress: silent when short, time left when long, never on stdout."""

from __future__ import annotations

import io
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from qpack.cli.output import Output
from qpack.cli.progress import Bars, Lines, Messages, Meter, choose_progress, describe
from qpack.cli.settings import ProgressMode, Settings


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lines(mode: ProgressMode = ProgressMode.plain) -> tuple[Lines, Clock]:
    clock = Clock()
    return Lines(Output(Settings(progress=mode)), clock=clock), clock


def test_a_short_stage_is_not_mentioned(capsys) -> None:
    progress, clock = lines()
    with progress.stage("read", total=2) as task:
        clock.now += 1.9
        task.advance(2)
    assert capsys.readouterr() == ("", "")


def test_a_long_stage_shows_the_time_left(capsys) -> None:
    progress, clock = lines()
    with progress.stage("calibrate", total=65_536, unit="tokens") as task:
        for _ in range(4):
            clock.now += 2.5
            task.advance(8_192, note="blocks.3")
        clock.now += 6.0
        task.advance(8_192)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "calibrate: 12 % (8,192 of 65,536 tokens), 0:18 left  blocks.3",
        "calibrate: 62 % (40,960 of 65,536 tokens), 0:10 left  blocks.3",
        "calibrate: done in 16.0 s",
    ]


def test_an_unknown_total(capsys) -> None:
    progress, clock = lines()
    with progress.stage("search") as task:
        clock.now += 3
        task.advance()
    assert capsys.readouterr().err.splitlines()[0] == "search: 1"


def test_json_lines(capsys) -> None:
    progress, clock = lines(ProgressMode.json)
    with progress.stage("train", total=100, unit="steps") as task:
        clock.now += 5
        task.advance(50)
    first, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert first == {
        "event": "progress", "stage": "train", "done": 50.0, "total": 100, "unit": "steps",
        "note": "", "seconds": 5.0, "seconds_left": 5.0,
    }  # fmt: skip
    assert last == {"event": "stage", "stage": "train", "seconds": 5.0}


def test_a_failed_stage_is_not_called_done(capsys) -> None:
    progress, clock = lines()
    with pytest.raises(ValueError, match="odd"), progress.stage("pack"):
        clock.now += 60
        raise ValueError("odd")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.0, "0:59 left"), (61.0, "1:01 left"), (3_661.0, "1:01:01 left")]
)
def test_time_left(seconds: float, text: str) -> None:
    clock = Clock()
    meter = Meter(2, "", clock=clock)
    clock.now += seconds
    meter.advance()
    assert describe("x", meter) == f"x: 50 % (1 of 2), {text}"


def test_a_meter_counts_in_threads() -> None:
    meter = Meter(None, "")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: meter.advance(), range(1000)))
    assert meter.done == 1000


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("settings", "on_terminal", "kind"),
    [
        (Settings(), True, Bars),
        (Settings(), False, Lines),
        (Settings(progress=ProgressMode.plain), True, Lines),
        (Settings(progress=ProgressMode.json), True, Lines),
        (Settings(progress=ProgressMode.none), True, Messages),
        (Settings(quiet=1), True, Messages),
    ],
)
def test_choice(settings, on_terminal, kind, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal() if on_terminal else io.StringIO())
    assert type(choose_progress(Output(settings))) is kind


def test_bars_on_a_terminal(monkeypatch, capsys) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("qpack.cli.progress.QUIET_SECONDS", 0.0)
    progress = Output(Settings()).progress
    with progress.stage("calibrate", total=4, unit="tokens") as task:
        task.advance(2, note="blocks.0")
        with progress.stage("inner"):
            progress.note("chose cpu")
        task.advance(2, note="[bold]")
        time.sleep(0.25)  # bars are drawn ten times a second
    text = terminal.getvalue()
    for part in ("calibrate", "4 of 4 tokens", "[bold]", "chose cpu", "inner", "done in"):
        assert part in text
    assert capsys.readouterr().out == ""


def test_none_shows_notes_and_warnings_only(capsys) -> None:
    progress = Output(Settings(progress=ProgressMode.none)).progress
    with progress.stage("x", total=1) as task:
        task.advance()
    progress.note("a")
    progress.warn("b")
    assert capsys.readouterr().err == "note: a\nwarning: b\n"
