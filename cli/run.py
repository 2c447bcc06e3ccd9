"""`tally run`: count usage events until the input ends, or until told to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer
from clickhouse_connect.driver.client import Client

from cli import report
from cli.options import CatalogOption, DataDir, Workers, read_catalog, settings_with, start_logging
from domain.instants import to_text
from domain.ports import TallyError
from flows.catalogs import DEFAULT_SAMPLE
from flows.inputs import KAFKA, chosen
from flows.processes import ALONE, Cluster
from flows.rebuild import LEDGER
from flows.run import run, stopping_on_signals
from flows.start import Deployment, start
from telemetry import logs

BOOKS_OPEN = 3
"""Exit code: the books do not balance."""

Source = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="kafka|file:GLOB|ledger",
        help="Where events come from: Kafka (the default where TALLY_KAFKA_BROKERS is set), or NDJSON files, also "
        "packed (.gz). `ledger` rebuilds lost state from the ledger first; --then says where to go on.",
    ),
]
Then = Annotated[
    str | None,
    typer.Option(
        "--then",
        metavar="kafka|file:GLOB",
        help="With --source ledger: where events come from behind the ledger. Kafka is the default as above.",
    ),
]


def run_command(
    source: Source = None,
    then: Then = None,
    catalog: CatalogOption = None,
    data_dir: DataDir = None,
    workers: Workers = 1,
    process: Annotated[
        int, typer.Option("--process", metavar="I", min=0, help="Which of the addresses this one is.")
    ] = 0,
    addresses: Annotated[
        str | None,
        typer.Option(
            "--addresses",
            metavar="HOST:PORT,...",
            help="All processes of one flow, the same for each.",
        ),
    ] = None,
) -> None:
    """Count usage events exactly once; run again, it goes on where it ended.

    Without servers in the settings everything runs embedded, in the data directory. SIGTERM and Ctrl-C end the input,
    keep what was counted, and exit with 0; a second one ends at once, and loses nothing either.

    Exit code: 0 all went well, 1 it could not start or go on, 2 wrong options, 3 the books do not balance.
    """
    settings = settings_with(data_dir)
    rebuilds = source == LEDGER
    if then is not None and not rebuilds:
        raise TallyError("--then says where to go on behind --source ledger: give both, or only --source")
    if rebuilds and then is None and settings.kafka_brokers is None:
        raise TallyError(
            "--source ledger needs to know where to go on: give --then 'file:GLOB', or set TALLY_KAFKA_BROKERS"
        )
    source = chosen(then if rebuilds else source, settings)
    start_logging(settings, serves=source == KAFKA)
    text, members = read_catalog(catalog), cluster(process, addresses)
    logs.logger().info(
        logs.Event.STARTING,
        version=version("tallyflow"),
        source=source,
        process=members.process,
        settings=settings.model_dump(mode="json", exclude_defaults=True),
    )
    stop = threading.Event()
    with (
        stopping_on_signals(stop, told),
        start(
            settings, catalog=text, source=source, stop=stop, rebuilds=rebuilds, workers=workers, cluster=members
        ) as deployment,
    ):
        announce(deployment, text)
        if not count(deployment, stop).balanced:
            raise typer.Exit(BOOKS_OPEN)


def told(at_once: bool) -> None:
    """A signal came: say what it does."""
    logs.logger().info(logs.Event.SIGNAL, at_once=at_once)
    report.stopping(at_once)


def count(
    deployment: Deployment, stop: threading.Event, show: Callable[[Client], None] = lambda client: None
) -> report.Books:
    """Run the flow with a progress bar, print what came of it, and return the books.

    Args:
        deployment: What `flows.start` opened.
        stop: Set by a signal.
        show: Prints what else there is to see, before the outcome.
    """
    logs.logger().info(
        logs.Event.RUNNING,
        topic=deployment.input.topic,
        partitions=len(deployment.input.partitions),
        workers=deployment.workers,
        catalog=deployment.applied.history.versions[-1].version,
        claims_rebuilt=deployment.reclaimed.claims,
    )
    with deployment.client() as client:
        before = report.books(client)
        source = deployment.input
        with report.progress(
            source.share_read, source.events_read, _waiting(deployment), rebuilt=source.share_rebuilt
        ) as clock:
            run(deployment)
        stopped = stop.is_set()
        logs.logger().info(
            logs.Event.STOPPED, reason="asked" if stopped else "end of input", events=deployment.input.events_read()
        )
        show(client)
        now = report.books(client)
        report.outcome(now, before, report.console())
    report.speed(deployment.input.events_read(), clock.seconds)
    if stopped:
        report.warn("stopped as asked; run again to go on")
    return now


def _waiting(deployment: Deployment) -> Callable[[], int] | None:
    """How many messages wait to be read, where that can be told."""
    lags = deployment.input.lags
    return None if lags is None else lambda: sum(lag.offsets for lag in lags().values())


def cluster(process: int, addresses: str | None) -> Cluster:
    """The processes that `--process` and `--addresses` name.

    Raises:
        TallyError: they do not fit, or an address has no port.
    """
    if addresses is None:
        if process:
            raise TallyError(f"--process {process} needs --addresses: host:port of every process, with commas between")
        return ALONE
    found = tuple(address.strip() for address in addresses.split(","))
    for address in found:
        host, _, port = address.rpartition(":")
        if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise TallyError(f"--addresses: {address!r} is no host:port")
    if len(set(found)) < len(found):
        raise TallyError("--addresses names a process twice")
    if process >= len(found):
        raise TallyError(f"--process {process}: --addresses has {len(found)}, counted from 0")
    return Cluster(process, found)


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
    if deployment.input.share_rebuilt is not None:
        report.warn("rebuilding the state from the ledger; then counting goes on at the log")
    if deployment.reclaimed.claims:
        report.warn(f"rebuilt {deployment.reclaimed.claims:,} claims from the ledger")
