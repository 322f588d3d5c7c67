"""`qpack data`: token shards from text, from the challenge's repository, and what is in them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import ForceOption, check_input
from .output import Output

OutOption = Annotated[
    Path, typer.Option("-o", "--out", metavar="DIR", help="Folder for everything it makes.")
]


def data_tokenize(
    output: Output,
    text: Annotated[
        list[Path],
        typer.Argument(
            metavar="TEXT",
            help="Documents: .txt (one a file) or .jsonl (one a line, its text), also .xz or .zst;"
            " or standard-library.",
        ),
    ],
    out: OutOption,
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="SentencePiece model; or give --vocab-size."),
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Train a tokenizer of this many pieces on the text.")
    ] = None,
    val: Annotated[
        list[Path] | None,
        typer.Option(metavar="TEXT", help="Documents to validate on; repeatable."),
    ] = None,
    val_every: Annotated[
        int | None,
        typer.Option(min=0, help="Without --val: hold out every n-th document, 20; 0 none."),
    ] = None,
    shard_tokens: Annotated[int, typer.Option(min=1, help="Tokens a shard at most.")] = 100_000_000,
    workers: Annotated[int, typer.Option(min=0, help="Threads; 0 is one a core.")] = 0,
    force: ForceOption = False,
) -> None:
    """Make token shards of text, and a tokenizer if none is given.

    DIR gets train_000000.bin and on, val_000000.bin and on, and a manifest: the same command finds
    them made. The bytes are the same for any number of workers.
    """
    if (tokenizer is None) == (vocab_size is None):
        raise typer.BadParameter("give one of --tokenizer and --vocab-size")
    if val and val_every is not None:
        raise typer.BadParameter("give one of --val and --val-every")
    if tokenizer is not None:
        check_input(tokenizer)

    from qpack.plugins import DATA, load_plugin

    made = load_plugin(DATA, "tokenize")(
        text,
        out,
        val_text=val or (),
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        shard_tokens=shard_tokens,
        workers=workers,
        force=force,
        progress=output.progress,
        **({} if val_every is None else {"val_every": val_every}),
    )
    output.result(made, lambda: show_made(made))
    model = shlex.quote(made["tokenizer_path"])
    output.next(f"qpack data stats {shlex.quote(str(out))}/*.bin --tokenizer {model}")


def data_fineweb(
    output: Output,
    out: OutOption,
    variant: Annotated[
        str, typer.Option(help="Tokenizer: sp1024, or sp and another number of pieces.")
    ] = "sp1024",
    train_shards: Annotated[
        int, typer.Option(min=0, help="How many training shards, of 100,000,000 tokens.")
    ] = 1,
    repo: Annotated[
        str, typer.Option(metavar="OWNER/NAME", help="Data repository on the hub.")
    ] = "willdepueoai/parameter-golf",
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Another hub; also HF_ENDPOINT.")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Fetch the challenge's FineWeb shards and their tokenizer from the Hugging Face hub.

    Needs the extra `hub`. Files that are there are checked and kept; a stopped download goes on.
    """
    from qpack.plugins import DATA, load_plugin

    fetched = load_plugin(DATA, "fineweb")(
        out,
        variant=variant,
        train_shards=train_shards,
        repository=repo,
        endpoint=endpoint,
        force=force,
        progress=output.progress,
    )
    output.result(fetched, lambda: show_fetched(fetched))
    shards = shlex.join([*fetched["train"]["shards"][:1], *fetched["val"]["shards"][:1]])
    output.next(
        f"qpack data stats {shards} --tokenizer {shlex.quote(fetched['tokenizer']['path'])}"
    )


def data_stats(
    output: Output,
    shards: Annotated[list[Path], typer.Argument(metavar="SHARD", help="Token shards.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Their SentencePiece model, to count bytes."),
    ] = None,
) -> None:
    """Count tokens, documents and bytes of text in token shards."""
    if tokenizer is not None:
        check_input(tokenizer)

    from qpack.plugins import DATA, load_plugin

    found = load_plugin(DATA, "stats")(shards, tokenizer=tokenizer, progress=output.progress)
    output.result(found, lambda: show_counts(found))


def show_made(made: dict[str, Any]) -> str:
    """A row for each part, then the files."""
    from qpack.report.tables import rows_table

    rows = [
        {
            "part": name,
            "shards": len(counts["files"]),
            "documents": counts["documents"],
            "tokens": counts["tokens"],
            "bytes": counts["text_bytes"],
            "decoded_bytes": counts["decoded_bytes"],
            "changed": counts["changed"],
        }
        for name, counts in made["parts"].items()
    ]
    return f"{rows_table(rows)}\n\ntokenizer  {made['tokenizer_path']}"


def show_fetched(fetched: dict[str, Any]) -> str:
    """A row for each part, then where it is from."""
    from qpack.report.tables import rows_table

    rows = [
        {"part": name, "shards": len(fetched[name]["shards"]), "tokens": fetched[name]["tokens"]}
        for name in ("train", "val")
    ]
    return (
        f"{rows_table(rows)}\n\ntokenizer  {fetched['tokenizer']['path']}"
        f"\ncommit     {fetched['commit']} of {fetched['repository']}"
    )


def show_counts(found: dict[str, Any]) -> str:
    """A row for each shard, and the sum of several."""
    from qpack.report.tables import rows_table

    rows = list(found["shards"])
    if len(rows) > 1:
        rows.append({"name": "total", **found["total"]})
    return rows_table(rows)
