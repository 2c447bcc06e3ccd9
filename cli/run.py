"""`tally run`: count usage events until the input ends, or until told to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Annotated

import typer
from clickhouse_connect.driver.client import Client

from cli import report
from cli.options import CatalogOption, DataDir, Workers, file_pattern, read_catalog, settings_with
from domain.instants import to_text
from flows.catalogs import DEFAULT_SAMPLE
from flows.run import run, stopping_on_signals
from flows.start import Deployment, start

BOOKS_OPEN = 3
"""Exit code: the books do not balance."""

Source = Annotated[
    str,
    typer.Option("--source", metavar="file:GLOB", help="Where events come from: NDJSON files, also packed (.gz)."),
]


def run_command(
    source: Source,
    catalog: CatalogOption = None,
    data_dir: DataDir = None,
    workers: Workers = 1,
) -> None:
    """Count usage events exactly once; run again, it goes on where it ended.

    Without servers in the settings everything runs embedded, in the data directory. SIGTERM and Ctrl-C end the input,
    keep what was counted, and exit with 0; a second one ends at once, and loses nothing either.

    Exit code: 0 all went well, 1 it could not start or go on, 2 wrong options, 3 the books do not balance.
    """
    settings = settings_with(data_dir)
    text, pattern = read_catalog(catalog), file_pattern(source)
    stop = threading.Event()
    with (
        stopping_on_signals(stop, report.stopping),
        start(settings, catalog=text, files=pattern, stop=stop) as deployment,
    ):
        announce(deployment, text)
        if not count(deployment, workers, stop).balanced:
            raise typer.Exit(BOOKS_OPEN)


def count(
    deployment: Deployment, workers: int, stop: threading.Event, show: Callable[[Client], None] = lambda client: None
) -> report.Books:
    """Run the flow with a progress bar, print what came of it, and return the books.

    Args:
        deployment: What `flows.start` opened.
        workers: Threads.
        stop: Set by a signal.
        show: Prints what else there is to see, before the outcome.
    """
    with deployment.client() as client:
        before = report.books(client)
        with report.progress(deployment.share_read, deployment.events_read) as clock:
            run(deployment, workers)
        stopped = stop.is_set()
        show(client)
        now = report.books(client)
        report.outcome(now, before, report.console())
    report.speed(deployment.events_read(), clock.seconds)
    if stopped:
        report.warn("stopped as asked; run again to go on")
    return now


def announce(deployment: Deployment, catalog: str | None) -> None:
    """Say what the start found or chose that a user did not ask for."""
    applied = deployment.applied
    if catalog is None and applied.added is not None:
        report.warn(f"no catalog given: this deployment counts by the sample `{DEFAULT_SAMPLE}` (see --catalog)")
    if applied.added is not None and applied.added > 1:
        version = applied.history.versions[-1]
        report.warn(
            f"catalog version {version.version} holds for log times from {to_text(version.effective_from_us)} on"
        )
    if deployment.reclaimed.claims:
        report.warn(f"rebuilt {deployment.reclaimed.claims:,} claims from the ledger")
