"""`tally demo`: what a newcomer should see, in one command, with nothing but this package."""

from __future__ import annotations

import glob
import shlex
import shutil
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer
from clickhouse_connect.driver.client import Client

from cli import report
from cli._generator import generate
from cli.options import settings_with
from cli.run import BOOKS_OPEN, count
from config.catalog import sample_text
from domain.ports import TallyError
from engines.data_directory import DataDirectory
from flows.run import stopping_on_signals
from flows.start import start

_MARK = "made-by-tally-demo"


def demo_command(
    events: Annotated[int, typer.Option(metavar="N", min=1, help="How many sample events.")] = 50_000,
    subjects: Annotated[int, typer.Option(metavar="N", min=1, help="How many customers.")] = 200,
    seed: Annotated[int, typer.Option(metavar="N", help="The same seed gives the same demo.")] = 1,
    data_dir: Annotated[
        Path, typer.Option("--data-dir", metavar="DIR", help="A folder that every demo makes anew.")
    ] = Path(".tally-demo"),
) -> None:
    """Generate sample events, count them, and show usage, cost, signals, and that the books balance."""
    settings = settings_with(data_dir).model_copy(update={"redis_url": None, "clickhouse_url": None})
    make_room(data_dir)
    out = report.console()
    with report.steps("generating", events) as advance:
        truth = generate(events, subjects, 4, seed, data_dir / "events", advance)
    out.print(
        f"{truth['events']:,} events of {subjects:,} customers, in {truth['messages']:,} lines: among them repeats, "
        "conflicting repeats, late and broken ones.\n"
    )
    stop = threading.Event()

    def show(client: Client) -> None:
        report.top_usage(client, out)
        report.signals(client, out)

    files = f"file:{glob.escape(str(data_dir))}/events/*.ndjson"
    with (
        stopping_on_signals(stop, report.stopping),
        start(settings, catalog=sample_text("api"), source=files, stop=stop) as deployment,
    ):
        books = count(deployment, stop, show)
    right = stop.is_set() or books.accepted == truth["accepted"]
    if not right:
        report.warn(f"{truth['accepted']:,} events should have been accepted: please report this")
    program = "tally" if shutil.which("tally") else sys.argv[0]
    out.print(
        f"\nAsk further, for instance:\n  {program} query --data-dir {shlex.quote(str(data_dir))} "
        '"SELECT * FROM usage_by_window ORDER BY value DESC LIMIT 5"',
        soft_wrap=True,
    )
    if not (books.balanced and right):
        raise typer.Exit(BOOKS_OPEN)


def make_room(path: Path) -> None:
    """Make the folder, or empty it if it is one that a demo made.

    Raises:
        TallyError: it is something else, in use, or cannot be written.
    """
    made_here = (path / _MARK).is_file()
    try:
        if path.exists() and not made_here and (not path.is_dir() or any(path.iterdir())):
            raise TallyError(f"{path} exists and was not made by a demo: name another folder with --data-dir")
        with DataDirectory(path).acquire():
            (path / _MARK).touch()
            for part in path.iterdir():
                if part.is_dir() and not part.is_symlink():
                    shutil.rmtree(part)
                elif part.name not in (_MARK, "lock"):
                    part.unlink()
    except OSError as error:
        raise TallyError(f"{path} cannot be made anew: {error}. Name another folder with --data-dir.") from error
