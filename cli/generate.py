"""`tally generate`: sample usage events with a known outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import report
from cli._generator import generate


def generate_command(
    events: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many events, repeats and broken ones included.")
    ] = 100_000,
    subjects: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many customers: cust-1 (the largest), cust-2, ...")
    ] = 1000,
    files: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many files; a customer's events are all in one.")
    ] = 4,
    seed: Annotated[int, typer.Option(metavar="N", help="The same seed gives the same files.")] = 1,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write to.")] = Path("sample"),
) -> None:
    """Write sample usage events as NDJSON, with repeats, conflicts, late and broken ones.

    They are api.request events for the sample catalog `api`; truth.json, in the same folder, has what a run must make
    of them.
    """
    with report.steps("events", events) as advance:
        truth = generate(events, subjects, files, seed, out, advance)
    typer.echo(
        f"Wrote {truth['events']:,} events in {truth['messages']:,} lines to {files} files in {out}; "
        f"{truth['accepted']:,} of them count. truth.json has the rest."
    )
