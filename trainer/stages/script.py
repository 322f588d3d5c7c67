"""Stage `script`: any training script as a subprocess; its final weights are imported.

    trainer = "script"

    [script]
    command = ["torchrun", "--nproc_per_node=8", "train_gpt.py"]
    cwd = "parameter-golf"
    output = "final_model.pt"
    tokenizer = "parameter-golf/data/tokenizers/fineweb_1024_bpe.model"
    calibration = "parameter-golf/data/datasets/fineweb10B_sp1024/fineweb_train_000000.bin"

    [script.env]
    MAX_WALLCLOCK_SECONDS = "600"

What the script prints goes to `script.log` in the run's folder. Its weights are read as
`qpack import` reads them: safetensors, or a PyTorch file through the restricted unpickler.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from qpack.distributed import world_size
from qpack.errors import ConfigError
from qpack.packing import PackSection
from qpack.progress import Progress
from qpack.sections import Section, read_section
from qpack.training import Checked, Trained, TrainRequest

from .given import AnyPath, GivenFiles, check_data, data_settings, keep_model, missing, trained
from .process import Finished, Program, run_program

NAME = "script"
LOG = "script.log"
LIVE = {"PYTHONUNBUFFERED": "1"}
"""Else a Python script's output would come in blocks, minutes late."""

State = dict[Path, tuple[int, int]]


class ScriptSection(GivenFiles):
    """A program that trains, and the file in which it leaves its weights."""

    command: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    """Program and arguments. Not read by a shell; relative names are found from `cwd`."""
    path: AnyPath | None = None
    """Instead of it: a Python file, run by this Python."""
    args: tuple[str, ...] = Field((), strict=False)
    """Arguments of `path`."""
    env: Mapping[str, str] = {}
    """Variables of the environment, beside ours."""
    cwd: AnyPath | None = None
    """Folder to run in; none: the one in which qpack runs."""
    output: str
    """File of the final weights (.pt, .pth, .safetensors), from `cwd`; may be a pattern. Only a
    file that the script wrote counts, of several the last."""
    timeout_seconds: Annotated[float, Field(gt=0)] | None = None
    """Longest time that it may take; none: for ever."""

    @model_validator(mode="after")
    def _one_program(self) -> ScriptSection:
        if (self.command is None) == (self.path is None):
            raise ValueError("give one of command and path")
        if self.args and self.path is None:
            raise ValueError("args go with path; put them into command")
        if not self.output or Path(self.output).is_absolute():
            raise ValueError("output must be relative to cwd")
        if any("**" in part and part != "**" for part in Path(self.output).parts):
            raise ValueError("output: ** must be a whole part of a pattern")
        return self


class ScriptConfig(Section):
    """The whole configuration."""

    script: ScriptSection
    pack: PackSection | None = None


TABLES = ScriptConfig


def check(request: TrainRequest) -> Checked:
    """Raise `QpackError` unless all that the script and the pack need is there."""
    if world_size() > 1:
        raise ConfigError(
            "the script stage does not run under torchrun",
            hint="run qpack alone, and put torchrun first in script.command",
        )
    section = _section(request)
    files = section.files if section.path is None else {"path": section.path, **section.files}
    problems = missing(NAME, files)
    if section.cwd is not None and not section.cwd.is_dir():
        problems.append(f"{NAME}.cwd: {section.cwd}: no such folder")
    if problems:
        raise ConfigError("no such file", items=problems)
    check_data(section)
    own = section.model_dump(mode="json", include={"command", "args", "env", "output"})
    named = {f"{NAME}.{key}": path for key, path in files.items()}
    return Checked(
        settings={NAME: {**own, **data_settings(section)}},
        files=named | _files_of_command(section),
    )


def train(request: TrainRequest, *, progress: Progress) -> Trained:
    """Run the script to its end and import what it wrote.

    It is started from its beginning even when resumed. Raises `ConfigError` with the last lines of
    its output when it fails, takes too long or writes no weights.
    """
    section = _section(request)
    cwd = (section.cwd or Path()).resolve()
    log = request.folder / LOG
    program = Program(
        command=_command(section),
        cwd=cwd,
        env={**os.environ, **LIVE, **section.env},
        log=log,
        timeout_seconds=section.timeout_seconds,
    )
    if request.resume:
        progress.note("a script starts from its beginning; what it resumes is its own matter")
    before = _state(cwd, section.output)
    finished = run_program(program, progress=progress)
    if finished.exit_code != 0:
        raise ConfigError(
            f"the script failed with exit code {finished.exit_code}",
            items=finished.tail,
            hint=f"all that it printed is in {log}",
        )
    weights = _written(cwd, section.output, before, finished=finished, log=log)
    progress.note(f"the script took {finished.seconds:,.0f} s and wrote {weights.name}")
    sequence = keep_model(weights, section, request.folder)
    details = {"weights": weights.name, "script_seconds": round(finished.seconds, 3)}
    return trained(section, request.folder, sequence=sequence, details=details)


def _section(request: TrainRequest) -> ScriptSection:
    what = "the configuration of the script stage"
    return read_section(ScriptConfig, request.config, what=what).script


def _command(section: ScriptSection) -> list[str]:
    if section.command is not None:
        return list(section.command)
    assert section.path is not None
    return [sys.executable, str(section.path.resolve()), *section.args]


def _files_of_command(section: ScriptSection) -> dict[str, Path]:
    """Files that the command names, such as the script: another content is another run."""
    cwd = section.cwd or Path()
    named = {f"{NAME}.command.{i}": cwd / word for i, word in enumerate(section.command or ())}
    return {key: path for key, path in named.items() if _is_file(path)}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # an argument that no file can be called
        return False


def _state(cwd: Path, pattern: str) -> State:
    """Files that match, with what changes when they are written."""
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in cwd.glob(pattern)
        if path.is_file()
    }


def _written(cwd: Path, pattern: str, before: State, *, finished: Finished, log: Path) -> Path:
    """The weights that the script wrote. Raises `ConfigError` where it wrote none."""
    now = _state(cwd, pattern)
    new = [path for path, state in now.items() if before.get(path) != state]
    if not new:
        stale = [f"{path}: there before, and not written again" for path in sorted(now)]
        raise ConfigError(
            f"the script ended well but wrote no {pattern!r} in {cwd}",
            items=[*stale, *finished.tail],
            hint=f"set script.output to what it writes; all that it printed is in {log}",
        )
    return max(new, key=lambda path: (now[path], path))
