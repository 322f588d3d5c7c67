"""`qpack unpack`: from an artifact back to safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import ArtifactArgument, ForceOption, check_input, check_output
from .output import Output


def unpack(
    output: Output,
    artifact: ArtifactArgument,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT", help="The safetensors file to write.")
    ],
    files: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the embedded files into this folder as well."),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Decode an artifact to safetensors.

    The bytes are those that the artifact's own decoder writes; nothing in the file is run.
    Needs no torch.
    """
    check_input(artifact)
    check_output(out, force=force, inputs=[artifact])

    from qpack.artifact.unpack import unpack as unpack_artifact
    from qpack.report.tables import describe_bytes

    unpack_artifact(artifact, out, force=force, files_dir=files)
    written = out.stat().st_size
    output.result(
        {"schema": "qpack.unpack/1", "path": str(out), "bytes": written},
        lambda: f"{out}  {describe_bytes(written)}",
    )
    output.next(f"qpack eval {out} --tokens SHARD --tokenizer MODEL")
