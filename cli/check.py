"""`tally check`: would a run start? Says what is wrong before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cli.options import CatalogPath, DataDir, file_pattern, read_catalog, settings_with
from config.catalog import load_catalog
from config.settings import Settings
from domain.ports import TallyError
from engines import clickhouse
from engines.data_directory import DataDirectory
from engines.redis_server import find_executable
from sinks import migrate
from sources.files import matching
from stores.claims import RedisClaims


def check_command(
    catalog: CatalogPath = None,
    source: Annotated[str | None, typer.Option("--source", help="file:GLOB; checks that the files are there.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Check settings, catalog, input and services; each fault is named with its remedy. Exit code 1 on any."""
    settings = settings_with(data_dir)
    steps: dict[str, Callable[[], str]] = {
        "catalog": lambda: _catalog(catalog),
        "input": lambda: _input(source),
        "redis": lambda: _redis(settings),
        "clickhouse": lambda: _clickhouse(settings),
        "data": lambda: _data(settings.data_dir),
    }
    faults = 0
    for name, step in steps.items():
        try:
            typer.echo(f"{name:<11} ok: {step()}")
        except TallyError as error:
            faults += 1
            typer.echo(f"{name:<11} {error}", err=True)
    if faults:
        raise typer.Exit(1)


def _catalog(path: Path | None) -> str:
    text = read_catalog(path)
    if text is None:
        return "none given"
    catalog = load_catalog(text)
    return f"{len(catalog.event_types)} event types, {len(catalog.meters)} meters, {len(catalog.plans)} plans"


def _input(source: str | None) -> str:
    return "none given" if source is None else f"{len(matching(file_pattern(source)))} files"


def _redis(settings: Settings) -> str:
    if settings.redis_url is None:
        return f"embedded, {find_executable().path}"
    claims = RedisClaims(
        settings.redis_url.get_secret_value(), shards=settings.claim_shards, accept_within_us=1, wait_seconds=2
    )
    try:
        return claims.examine()
    finally:
        claims.close()


def _clickhouse(settings: Settings) -> str:
    if settings.clickhouse_url is None:
        clickhouse.require_embedded()
        return "embedded"
    with clickhouse.connect(settings.clickhouse_url.get_secret_value()) as client:
        migrate.require_current(client)
        return f"version {client.server_version}, migrated"


def _data(path: Path) -> str:
    directory = DataDirectory(path)
    if not directory.path.exists():
        return f"{directory.path} will be made"
    with directory.acquire():
        return f"{directory.path} is free"
