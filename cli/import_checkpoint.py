"""`qpack import`: a foreign checkpoint as one of qpack's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from qpack.errors import ConfigError

from .options import ForceOption, check_input, check_output
from .output import Output


def import_checkpoint(
    output: Output,
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Weights: .safetensors, or a state dict in .pt.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT", help="The checkpoint to write.")
    ],
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One configuration value; repeatable."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A JSON file of configuration values."),
    ] = None,
    architecture: Annotated[
        str, typer.Option(metavar="NAME", help="The importer, if the file does not say which.")
    ] = "gpt",
    force: ForceOption = False,
) -> None:
    """Turn a foreign checkpoint into a qpack checkpoint.

    Names and shapes tell most of the configuration; --set and --config give what they cannot.
    """
    hints = {**read_config(config), **parse_assignments(assignments or [])}
    check_input(source)
    check_output(out, force=force, inputs=[source])

    from qpack.checkpoint import fingerprint, write_checkpoint
    from qpack.importing import import_file

    checkpoint = import_file(source, hints=hints, architecture=architecture)
    write_checkpoint(out, checkpoint, force=force)
    document = {
        "schema": "qpack.import/1",
        "path": str(out),
        "architecture": checkpoint.architecture,
        "config": checkpoint.config,
        "tensors": len(checkpoint.tensors),
        "parameters": sum(tensor.numel() for tensor in checkpoint.tensors.values()),
        "aliases": checkpoint.aliases,
        "fingerprint": fingerprint(checkpoint.tensors),
    }
    output.result(document, lambda: show_import(document))
    output.next(f"qpack eval {out} --tokens SHARD --tokenizer MODEL")


def read_config(path: Path | None) -> dict[str, Any]:
    """The JSON object in the file `path`; empty without one."""
    if path is None:
        return {}
    try:
        values = json.loads(check_input(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object", hint='write {"key": value, ...}')
    return values


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`key=value` strings; a value is JSON where it parses as such, else a string."""
    bad = [text for text in assignments if not text.partition("=")[0] or "=" not in text]
    if bad:
        raise ConfigError("--set takes KEY=VALUE", items=bad, hint="--set rope_base=10000")
    return {key: parse_value(value) for key, _, value in (t.partition("=") for t in assignments)}


def parse_value(text: str) -> Any:
    """`10000`, `true`, `[1, 2]` as what they mean in JSON; anything else as it stands."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def show_import(document: dict[str, Any]) -> str:
    """What was imported, for a person."""
    lines = [
        f"{document['path']}  {document['parameters']:,} parameters in "
        f"{document['tensors']} tensors",
        f"architecture {document['architecture']}",
        *(f"  {key} = {json.dumps(value)}" for key, value in document["config"].items()),
    ]
    return "\n".join(lines)
