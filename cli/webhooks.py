"""`tally webhooks`: deliver signals over HTTP; `tally webhooks replay`: deliver some again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from kafka.errors import KafkaError

from cli.options import start_logging
from config.clickhouse_client import clickhouse_options
from config.kafka_client import kafka_options
from config.settings import Settings, load_settings
from domain.instants import parse, to_datetime
from domain.ports import TallyError
from engines import clickhouse
from engines.clickhouse_server import named_errors
from flows.run import stopping_on_signals
from sinks import migrate
from telemetry.plain import plain
from webhooks import replay as replaying
from webhooks.deliverer import Deliverer
from webhooks.endpoints import Endpoints, load_endpoints
from webhooks.service import Service, open_consumer
from webhooks.status import serving
from webhooks.store import Store

FAILED_SHOWN_MAX = 20

webhooks = typer.Typer(
    help="Deliver signals over HTTP (Standard Webhooks).", rich_markup_mode=None, invoke_without_command=True
)
EndpointsFile = Annotated[
    Path | None, typer.Option("--endpoints", metavar="FILE", help="The endpoints; else TALLY_WEBHOOKS_FILE.")
]


@webhooks.callback()
def webhooks_command(context: typer.Context, endpoints: EndpointsFile = None) -> None:
    """Deliver the signals of the Kafka topic to the endpoints of a file, until SIGTERM or Ctrl-C.

    Needs TALLY_KAFKA_BROKERS and TALLY_CLICKHOUSE_URL (for dead letters). Several may run: they share the signals.
    docs/webhooks.md says what a receiver sees.
    """
    context.obj = endpoints
    if context.invoked_subcommand is not None:
        return
    settings = load_settings()
    loaded = _load(settings, endpoints)
    options = kafka_options(settings)
    start_logging(settings, serves=True)
    stop = threading.Event()
    with _store(settings) as store, stopping_on_signals(stop):
        service = Service(
            lambda: open_consumer(options, settings.signals_topic, settings.webhooks_group),
            lambda ended: Deliverer(
                loaded, store=store.write, ended=ended, undelivered_max=settings.webhooks_undelivered_max
            ),
            settings.webhooks_undelivered_max,
        )
        names = ", ".join(one.name for one in loaded.endpoints)
        typer.echo(f"delivering signals of {settings.signals_topic} to {names}")
        try:
            with serving(settings, service):
                service.run(stop)
        except KafkaError as error:
            raise TallyError(f"Kafka stopped the delivery of webhooks: {error}; start again") from error
        finally:
            service.close()
    counts = service.deliverer.total
    typer.echo(
        f"delivered {counts.delivered:,}, given up {counts.dead_letters:,}, "
        f"left for the next start {len(service.deliverer):,}"
    )


@webhooks.command("replay", short_help="Deliver signals again, under the same ids.")
def replay_command(
    context: typer.Context,
    since: Annotated[
        str,
        typer.Option("--since", metavar="TIME", help="From then on: 2026-01-31 or 2026-01-31T09:00:00Z."),
    ],
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before this time; else now.")] = None,
    endpoint: Annotated[str | None, typer.Option("--endpoint", metavar="NAME", help="To this endpoint only.")] = None,
    dead: Annotated[
        bool, typer.Option("--dead", help="Only what was given up in that time and not replayed since.")
    ] = False,
    endpoints: EndpointsFile = None,
) -> None:
    """Deliver signals of a time again, under the same webhook-ids: from ClickHouse, to the endpoints that want them.

    Without --dead, every signal of that time is sent, also those that were delivered. Exit code: 0 all were taken,
    3 some were not (they can be replayed again).
    """
    settings = load_settings()
    loaded = _load(settings, endpoints or context.obj)
    known = [one.name for one in loaded.endpoints]
    if endpoint is not None and endpoint not in known:
        raise TallyError(f"there is no endpoint {endpoint!r} in the file; there are {', '.join(known)}")
    begin, end = _instant(since, "--since"), datetime.now(UTC) if until is None else _instant(until, "--until")
    stop = threading.Event()
    with _store(settings) as store, stopping_on_signals(stop):
        queued = replaying.deliveries(loaded, store, begin, end, endpoint=endpoint, dead=dead)
        done = replaying.replay(loaded, store, queued, stop)
    for delivery in done.failed[:FAILED_SHOWN_MAX]:
        why = delivery.last_error or "not attempted"
        typer.echo(plain(f"failed: {delivery.id} to {delivery.endpoint}: {why}"))
    skipped = f", {done.skipped:,} of endpoints that are not in the file" if done.skipped else ""
    typer.echo(f"delivered {done.delivered:,}, failed {len(done.failed):,}{skipped}")
    if done.failed or stop.is_set():
        raise typer.Exit(3)


def _load(settings: Settings, given: Path | None) -> Endpoints:
    path = given or settings.webhooks_file
    if path is None:
        raise TallyError("no endpoints: give --endpoints FILE, or set TALLY_WEBHOOKS_FILE (see docs/webhooks.md)")
    return load_endpoints(path, os.environ)


@contextmanager
def _store(settings: Settings) -> Iterator[Store]:
    """The tables; refuses a database that is not migrated."""
    if settings.clickhouse_url is None:
        raise TallyError("TALLY_CLICKHOUSE_URL is not set: what cannot be delivered is kept in ClickHouse")
    options = clickhouse_options(settings)
    with named_errors(), clickhouse.connect(**options) as client:
        migrate.require_current(client, settings.clickhouse_cluster)
    store = Store(lambda: clickhouse.connect(**options))
    try:
        yield store
    finally:
        store.close()


def _instant(text: str, option: str) -> datetime:
    found = parse(f"{text}T00:00:00Z" if len(text) == 10 else text)
    if found is None:
        raise TallyError(f"{option} {text!r} is no time: write a day (UTC) or RFC 3339, such as 2026-01-31T09:00:00Z")
    return to_datetime(found)
