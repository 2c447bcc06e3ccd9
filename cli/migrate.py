"""`tally migrate`: bring the ClickHouse schema up to this version."""

from __future__ import annotations

import typer

from cli.options import DataDir, settings_with
from config.clickhouse_client import clickhouse_options
from config.settings import Settings
from engines import clickhouse
from engines.clickhouse import EmbeddedClickHouse
from engines.clickhouse_server import database_of, named_errors
from engines.data_directory import QUERY_WAIT_SECONDS_MAX, DataDirectory
from sinks import migrate
from sinks.cluster import require_cluster

_STATEMENT_SECONDS = 600
"""A migration may rewrite a table; ON CLUSTER waits for the slowest replica (180 s by default)."""


def migrate_command(data_dir: DataDir = None) -> None:
    """Bring the ClickHouse schema up to this version. Embedded runs do so by themselves.

    Needed once after each update when TALLY_CLICKHOUSE_URL names a server. What is applied is not applied again.
    """
    settings = settings_with(data_dir)
    if settings.clickhouse_url is not None:
        done = _on_server(settings)
    else:
        directory = DataDirectory(settings.data_dir)
        with (
            directory.acquire(query_wait_seconds_max=QUERY_WAIT_SECONDS_MAX),
            EmbeddedClickHouse(directory.clickhouse) as engine,
        ):
            with engine.client() as client:
                migrate.create_database(client)
            with engine.client(migrate.DATABASE) as client:
                done = migrate.migrate(client)
    for migration in done:
        typer.echo(f"applied {migration.name}")
    if not done:
        typer.echo("the schema is current")


def _on_server(settings: Settings) -> list[migrate.Migration]:
    options = clickhouse_options(settings)
    options["timeout_seconds"] = max(options["timeout_seconds"], _STATEMENT_SECONDS)
    cluster = settings.clickhouse_cluster
    with clickhouse.connect(**options, database="default") as client, named_errors():
        if cluster is not None:
            require_cluster(client, cluster)
        migrate.create_database(client, database_of(options["url"]), cluster)
    with clickhouse.connect(**options) as client, named_errors():
        return migrate.migrate(client, cluster)
