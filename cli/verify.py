"""`qpack verify`: check every byte of an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from .options import ArtifactArgument, check_input
from .output import Output


def verify(
    output: Output,
    artifact: ArtifactArgument,
    sha256: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="The digest that you were told elsewhere."),
    ] = None,
) -> None:
    """Check an artifact: every digest, bound and value, and which decoder it carries.

    This finds damage. Against a forger give --sha256 with a digest from a source that you trust.
    Nothing in the file is run. Needs no torch.
    """
    check_input(artifact)

    from qpack.artifact.inspect import verify as verify_artifact

    from .show import show_verification

    checked = verify_artifact(artifact, sha256=sha256)
    output.result({**checked, "schema": "qpack.verify/1"}, lambda: show_verification(checked))
    warn_of_decoder(output, checked)
    output.next(f"qpack unpack {artifact} -o {artifact.with_suffix('.safetensors').name}")


def warn_of_decoder(output: Output, document: Mapping[str, Any]) -> None:
    """Warn of a program in the file that is not one of ours, intact as the file may be."""
    status = (document.get("decoder") or {}).get("status", "")
    if status.startswith("unknown"):
        output.warn("the decoder in this file is of no release of qpack: do not run it; unpack it")
