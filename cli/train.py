"""`qpack train`: from a configuration to a model."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .output import Output

ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A TOML file, or a preset: see qpack presets.")
]
FolderOption = Annotated[
    Path, typer.Option("-o", "--out", metavar="DIR", help="Folder for everything it makes.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a value: loop.max_seconds=60; repeatable."
    ),
]
SeedOption = Annotated[
    int | None, typer.Option(min=0, help="Seed of every random choice: sets loop.seed.")
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on where the run in DIR stopped; refuses a changed configuration."
    ),
]
AgainOption = Annotated[
    bool,
    typer.Option(
        "--force", help="Start anew over what is in DIR; with --resume, only what has changed."
    ),
]


def train(
    output: Output,
    config: ConfigArgument,
    out: FolderOption,
    overrides: SetOption = None,
    seed: SeedOption = None,
    resume: ResumeOption = False,
    force: AgainOption = False,
) -> None:
    """Train a model as a configuration says.

    Any trainer that is installed: qpack's own, a script, or a checkpoint that exists. On several
    GPUs: torchrun --nproc_per_node=N -m qpack.trainer, with the same arguments.
    """
    from qpack.runs.document import read_document
    from qpack.runs.run import run as run_stages

    from .show import show_facts

    overrides = with_seed(overrides, seed)
    document = read_document(config, overrides=overrides)
    with resumable(resume_command("train", config, out, overrides)):
        outcome = run_stages(
            document, out, pack=False, resume=resume, force=force, progress=output.progress
        )
    done = outcome.training
    if done is None:
        return  # one of several ranks under torchrun: the first one reports
    output.result(done, lambda: show_facts(done))
    if "pack" in document.tables:
        output.next(resume_command("run", config, out, overrides))
    else:
        output.next(
            f"qpack pack {done['checkpoint']} --budget 16MB --calib {done['calibration']}"
            f" --tokenizer {done['tokenizer']} -o model.pyz"
        )


def with_seed(overrides: list[str] | None, seed: int | None) -> list[str]:
    """The changes of `--set`, and that of `--seed`."""
    return [*(overrides or ()), *(() if seed is None else (f"loop.seed={seed}",))]


@contextmanager
def resumable(command: str) -> Iterator[None]:
    """Within: an interrupt says how to go on, with `command`."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(command) from error


def resume_command(name: str, config: str, out: Path, overrides: list[str] | None) -> str:
    """What to type to go on with a run."""
    changes = [word for change in overrides or () for word in ("--set", change)]
    program = ["qpack", name]
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1 and name == "train":
        program = ["torchrun", f"--nproc_per_node={ranks}", "-m", "qpack.trainer"]
    return shlex.join([*program, config, "-o", str(out), *changes, "--resume"])
