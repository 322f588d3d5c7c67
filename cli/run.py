"""`qpack run`: from a configuration to an artifact and its report."""

from __future__ import annotations

import sys

from .output import Output
from .train import (
    AgainOption,
    ConfigArgument,
    FolderOption,
    ResumeOption,
    SeedOption,
    SetOption,
    resumable,
    resume_command,
    with_seed,
)


def run(
    output: Output,
    config: ConfigArgument,
    out: FolderOption,
    overrides: SetOption = None,
    seed: SeedOption = None,
    resume: ResumeOption = False,
    force: AgainOption = False,
) -> None:
    """Train, pack and report: a configuration in, one file that fits its budget out.

    Works with every trainer. DIR/run.json records each stage; --resume skips those that are done.
    """
    from qpack.runs.document import read_document
    from qpack.runs.run import run as run_stages

    from .show import show_pack

    overrides = with_seed(overrides, seed)
    document = read_document(config, overrides=overrides)
    with resumable(resume_command("run", config, out, overrides)):
        outcome = run_stages(
            document,
            out,
            resume=resume,
            force=force,
            command=("qpack", *sys.argv[1:]),
            progress=output.progress,
        )
    report = outcome.report
    if not report:
        return  # one of several ranks under torchrun: the first one reports
    output.result(report, lambda: show_pack(report))
    output.next(f"qpack verify {report['path']} --sha256 {report['sha256']}")
    trained = outcome.trained
    if trained.validation is not None:
        quality = report["quality"]
        output.next(
            f"qpack eval {report['path']} --tokens {trained.validation} --tokenizer"
            f" {trained.tokenizer} --window {quality['window']} --max-tokens {quality['tokens']}"
        )
