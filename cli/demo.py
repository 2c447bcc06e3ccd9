"""`tally demo`: what a newcomer should see, in one command, with nothing but this package."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Annotated

import typer

from cli import report
from cli._generator import generate
from cli.options import settings_with
from config.catalog import sample_text
from domain.ports import TallyError
from flows.run import run, stopping_on_signals
from flows.start import start

_MARK = "made-by-tally-demo"


def demo_command(
    events: Annotated[int, typer.Option(min=1, help="How many sample events.")] = 50_000,
    subjects: Annotated[int, typer.Option(min=1, help="How many customers.")] = 200,
    seed: Annotated[int, typer.Option(help="The same seed gives the same demo.")] = 1,
    data_dir: Annotated[Path, typer.Option("--data-dir", help="Made anew by every demo.")] = Path(".tally-demo"),
) -> None:
    """Generate sample events, count them, and show usage, cost, signals, and that the books balance."""
    _make_room(data_dir)
    settings = settings_with(data_dir).model_copy(update={"redis_url": None, "clickhouse_url": None})
    out = report.console()
    truth = generate(events, subjects, 4, seed, data_dir / "events", lambda count: None)
    out.print(
        f"{truth['events']:,} events of {subjects:,} customers, in {truth['messages']:,} lines: among them repeats, "
        "conflicting repeats, late and broken ones.\n"
    )
    stop = threading.Event()
    pattern = str(data_dir / "events" / "*.ndjson")
    with (
        stopping_on_signals(stop),
        start(settings, catalog=sample_text("api"), files=pattern, stop=stop) as deployment,
    ):
        with report.progress(deployment.share_read, deployment.events_read):
            run(deployment, workers=1)
        client = deployment.client()
        report.top_usage(client, out)
        report.signals(client, out)
        balanced = report.outcome(client, out)
        client.close()
    out.print(
        f"\nAsk further, for instance:\n  tally query --data-dir {data_dir} "
        '"SELECT * FROM usage_by_window ORDER BY value DESC LIMIT 5"',
        highlight=False,
    )
    if not balanced:
        raise typer.Exit(3)


def _make_room(path: Path) -> None:
    """Make the folder empty, if it is one that a demo made."""
    if path.exists() and not (path / _MARK).exists():
        raise TallyError(f"{path} exists and was not made by a demo: name another folder with --data-dir")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    (path / _MARK).touch()
