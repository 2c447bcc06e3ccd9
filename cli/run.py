"""`tally run`: count usage events until the input ends, or until told to stop."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from cli import report
from cli.options import CatalogPath, DataDir, Workers, file_pattern, read_catalog, settings_with
from domain.instants import to_text
from flows.run import run, stopping_on_signals
from flows.start import Deployment, start

Source = Annotated[str, typer.Option("--source", help="Where events come from: file:GLOB (NDJSON, also .gz).")]


def run_command(
    source: Source,
    catalog: CatalogPath = None,
    data_dir: DataDir = None,
    workers: Workers = 1,
) -> None:
    """Count usage events exactly once; run again, it goes on where it ended.

    Without servers in the settings everything runs embedded, in the data directory. SIGTERM and Ctrl-C
    end the input, keep what was counted, and exit with 0.
    """
    settings = settings_with(data_dir)
    text, pattern = read_catalog(catalog), file_pattern(source)
    stop = threading.Event()
    with (
        stopping_on_signals(stop),
        start(settings, catalog=text, files=pattern, stop=stop) as deployment,
    ):
        announce(deployment)
        with report.progress(deployment.share_read, deployment.events_read):
            run(deployment, workers)
        client = deployment.client()
        balanced = report.outcome(client, report.console())
        client.close()
        if stop.is_set():
            report.warn("stopped as asked; run again to go on")
    if not balanced:
        raise typer.Exit(3)


def announce(deployment: Deployment) -> None:
    """Say what the start found that a user did not ask for."""
    applied = deployment.applied
    if applied.added is not None and applied.added > 1:
        version = applied.history.versions[-1]
        report.warn(
            f"catalog version {version.version} holds for log times from {to_text(version.effective_from_us)} on"
        )
    if deployment.reclaimed.claims:
        report.warn(f"rebuilt {deployment.reclaimed.claims:,} claims from the ledger")
