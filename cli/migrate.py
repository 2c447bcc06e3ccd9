"""`tally migrate`: bring the ClickHouse schema up to this version."""

from __future__ import annotations

import typer

from cli.options import DataDir, settings_with
from engines import clickhouse
from engines.clickhouse import EmbeddedClickHouse
from engines.data_directory import QUERY_WAIT_SECONDS_MAX, DataDirectory
from sinks import migrate


def migrate_command(data_dir: DataDir = None) -> None:
    """Bring the ClickHouse schema up to this version. Embedded runs do so by themselves.

    Needed once after each update when TALLY_CLICKHOUSE_URL names a server. What is applied is not applied again.
    """
    settings = settings_with(data_dir)
    if settings.clickhouse_url is not None:
        url = settings.clickhouse_url.get_secret_value()
        with clickhouse.connect(url, "default") as client:
            migrate.create_database(client)
        with clickhouse.connect(url) as client:
            done = migrate.migrate(client)
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
