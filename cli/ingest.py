"""`tally ingest`: take events in over HTTP."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import typer

from api.catalogs import Catalogs
from api.counts import IngestCounts
from api.ingest import Ingest, Limits
from api.keys import KeysFile
from api.metrics import recorder
from api.publisher import Publisher
from api.server import Serving, serve
from cli.options import CatalogOption, read_catalog, start_logging
from config.catalog import load_history
from config.clickhouse_client import clickhouse_options
from config.kafka_client import kafka_options
from config.settings import Settings, load_settings
from domain.catalog import History
from domain.ports import TallyError
from engines import clickhouse_server
from flows.catalogs import applied_history
from telemetry.health import Verdict
from telemetry.server import StatusServer

_STOP_MARGIN_SECONDS = 5


def ingest_command(
    catalog: CatalogOption = None,
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="The port; 0: a free one.")
    ] = 8400,
) -> None:
    """Take CloudEvents in over HTTP, `POST /v1/events`, and store them in Kafka for the flow.

    An event is acknowledged once Kafka has it. Needs TALLY_KAFKA_BROKERS, a file of API keys
    (TALLY_INGEST_KEYS_FILE), and a catalog: --catalog, or the one that the flow applied in ClickHouse
    (TALLY_CLICKHOUSE_URL). SIGTERM and Ctrl-C finish what is on its way and exit with 0; SIGHUP reads keys and
    catalog again.
    """
    settings = load_settings()
    options = _kafka_options(settings)
    keys = _keys(settings)
    catalogs = Catalogs(_loader(catalog, settings))
    start_logging(settings, serves=True)
    logging.getLogger("kafka").setLevel(logging.CRITICAL)  # the publisher says when Kafka is away, once
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # anybody may send what is not HTTP, at any rate
    counts = IngestCounts()
    publisher = Publisher(options, settings.kafka_topic, settings.ingest_kafka_wait_seconds)
    ingest = Ingest(
        publisher=publisher,
        catalogs=catalogs,
        keys=lambda: keys.ring,
        limits=Limits(settings.ingest_body_bytes_max, settings.ingest_inflight_bytes_max, settings.ingest_read_seconds),
        counts=counts,
        now_us=lambda: time.time_ns() // 1000,
    )
    serving = Serving(
        host=host,
        port=port,
        read_seconds_max=settings.ingest_read_seconds,
        connections_max=settings.ingest_connections_max,
        catalog_seconds=settings.ingest_catalog_seconds,
        stop_seconds_max=settings.ingest_kafka_wait_seconds + _STOP_MARGIN_SECONDS,
    )
    with _status(settings, ingest, counts):
        serve(serving, ingest, publisher, catalogs, keys, announce=_announce)


def _status(settings: Settings, ingest: Ingest, counts: IngestCounts) -> AbstractContextManager[object]:
    """The metrics and both probes on a port of their own, if there is one; a process that answers there lives."""
    if settings.metrics_port is None:
        return nullcontext()
    return StatusServer(
        settings.metrics_host,
        settings.metrics_port,
        metrics=recorder(counts).text,
        alive=Verdict,
        ready=lambda: Verdict(tuple(f"{name}: {fault}" for name, fault in ingest.faults().items())),
    )


def _announce(host: str, port: int) -> None:
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"listening on http://{shown}:{port}")


def _kafka_options(settings: Settings) -> dict[str, Any]:
    if settings.kafka_brokers is None:
        raise TallyError(
            "tally ingest stores events in Kafka, and no broker is set: set TALLY_KAFKA_BROKERS to host:port. "
            "Without Kafka, write events to NDJSON files and count them by tally run --source 'file:GLOB'."
        )
    return kafka_options(settings)


def _keys(settings: Settings) -> KeysFile:
    if settings.ingest_keys_file is None:
        raise TallyError(
            "tally ingest lets nobody in without a key: set TALLY_INGEST_KEYS_FILE to a file of keys. "
            "`tally ingest-key NAME --file keys.yaml` makes one."
        )
    return KeysFile(settings.ingest_keys_file)


def _loader(given: str | None, settings: Settings) -> Callable[[], History]:
    """How the catalog is read, at the start and again later."""
    if given is not None:
        read_catalog(given)  # a faulty file is refused at the start; later the one read before stays in force

        def from_file() -> History:
            text = read_catalog(given)
            assert text is not None, "a catalog was given"
            return load_history([(1, 0, text)])

        return from_file
    if settings.clickhouse_url is None:
        raise TallyError(
            "tally ingest judges events by a catalog: give it --catalog, or set TALLY_CLICKHOUSE_URL to the database "
            "in which the flow keeps the applied one"
        )
    options = clickhouse_options(settings) | {"cluster": None}  # it only reads

    def from_clickhouse() -> History:
        with clickhouse_server.connect(**options) as client:
            return applied_history(client)

    return from_clickhouse
