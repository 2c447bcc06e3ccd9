"""`tally generate`: sample usage events with a known outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from cli._generator import generate


def generate_command(
    events: Annotated[int, typer.Option(min=1, help="How many events, repeats and broken ones included.")] = 100_000,
    subjects: Annotated[int, typer.Option(min=1, help="How many customers: cust-1 (the largest), cust-2, ...")] = 1000,
    files: Annotated[int, typer.Option(min=1, help="How many files; a customer's events are all in one.")] = 4,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 1,
    out: Annotated[Path, typer.Option(help="The folder to write to.")] = Path("sample"),
) -> None:
    """Write sample usage events as NDJSON, with repeats, conflicts, late and broken ones.

    They are api.request events for the sample catalog config/catalogs/api.yaml; truth.json, in the
    same folder, has what a run must make of them.
    """
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("events", total=events)
        truth = generate(events, subjects, files, seed, out, lambda count: bar.advance(task, count))
    typer.echo(
        f"Wrote {truth['events']:,} events in {truth['messages']:,} lines to {files} files in {out}; "
        f"{truth['accepted']:,} of them count. truth.json has the rest."
    )
