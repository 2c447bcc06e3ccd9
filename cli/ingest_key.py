"""`tally ingest-key`: make an API key for the HTTP ingest."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from api.keys import new_key


def ingest_key_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who will use it; stands in logs and metrics.")],
    type: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TYPE", help="An event type that it may send; may be repeated."),
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", metavar="SOURCE", help="A source that it may send; may be repeated.")
    ] = None,
    subject_prefix: Annotated[
        str | None, typer.Option("--subject-prefix", metavar="TEXT", help="What its subjects must begin with.")
    ] = None,
) -> None:
    """Make a random API key. Prints it on standard error, once, and its entry for the keys file on standard output.

    The file TALLY_INGEST_KEYS_FILE begins with a line `keys:`; each entry goes below: `tally ingest-key NAME >>
    keys.yaml`.
    """
    key, digest = new_key()
    entry: dict[str, Any] = {"name": name, "sha256": digest}
    for field, value in (("types", type), ("sources", source), ("subject_prefix", subject_prefix)):
        if value:
            entry[field] = value
    typer.echo(f"  - {json.dumps(entry, ensure_ascii=False)}")
    typer.echo(f"the key, shown only now: {key}", err=True)
