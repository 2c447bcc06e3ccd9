"""`tally check`: would a run start? Says what is wrong, and writes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from clickhouse_connect.driver.client import Client

from cli.options import CatalogOption, DataDir, read_catalog, settings_with
from config.catalog import load_catalog
from config.clickhouse_client import clickhouse_options
from config.redis_client import redis_options
from config.settings import Settings
from domain.instants import to_text
from domain.ports import TallyError
from domain.subscriptions import SUBSCRIPTION
from engines import clickhouse
from engines.clickhouse_server import named_errors
from engines.data_directory import DataDirectory
from engines.reader import open_reader
from engines.redis_server import find_executable
from flows.catalogs import DEFAULT_SAMPLE, judge_catalog
from flows.inputs import KAFKA, chosen, examine, file_pattern
from sinks import migrate
from sinks.cluster import require_cluster
from sources.files import matching
from sources.kafka import parse_accepted_loss
from sources.kafka_topic import TopicMissing
from stores.claims import RedisClaims
from telemetry.plain import shown

_REDIS_WAIT_SECONDS = 2
_KAFKA_WAIT_SECONDS = 5


def check_command(
    catalog: CatalogOption = None,
    source: Annotated[
        str | None,
        typer.Option("--source", metavar="kafka|file:GLOB", help="Checks that the topic or the files can be read."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Would a run start? Checks settings, catalog, input, services and data directory, and changes nothing.

    Each fault is named with its remedy. Exit code: 0 there is none, 1 there are some.
    """
    settings = settings_with(data_dir)
    steps: dict[str, Callable[[], str]] = {
        "catalog": lambda: _catalog(catalog, settings),
        "input": lambda: _input(source, settings),
        "redis": lambda: _redis(settings),
        "clickhouse": lambda: _clickhouse(settings),
        "data": lambda: _data(settings.data_dir),
    }
    faults = 0
    for name, step in steps.items():
        try:
            typer.echo(shown(f"{name:<11} ok: {step()}"))
        except TallyError as error:
            faults += 1
            typer.echo(shown(f"{name:<11} FAULT: {error}"))
    if faults:
        raise typer.Exit(1)


def _catalog(given: str | None, settings: Settings) -> str:
    """Whether it is valid, and may follow the one that is applied."""
    text = read_catalog(given)
    with _applied(settings) as (client, known):
        judged = None if client is None else judge_catalog(client, text)
    if not known:
        if text is None:
            return "none given; see clickhouse for whether one is applied"
        catalog, what = load_catalog(text), "is valid, and was not compared with the one applied (see clickhouse)"
    elif judged is None:
        if text is None:
            return f"none given; a first run begins with the sample {DEFAULT_SAMPLE}"
        catalog, what = load_catalog(text), "becomes version 1"
    else:
        last = judged.history.versions[-1]
        catalog, since = last.catalog, to_text(last.effective_from_us) if last.effective_from_us else "the beginning"
        what = f"{'is' if judged.added is None else 'becomes'} version {last.version}, from {since} on"
    declared = catalog.event_types.keys() - {SUBSCRIPTION}
    parts = ((declared, "event type"), (catalog.meters, "meter"), (catalog.plans, "plan"))
    return ", ".join([what, *(f"{len(some)} {name}{'' if len(some) == 1 else 's'}" for some, name in parts)])


@contextmanager
def _applied(settings: Settings) -> Iterator[tuple[Client | None, bool]]:
    """A client of the database with the applied catalogs, None without one, and whether that is known.

    It is not where ClickHouse cannot be used: another check says why.
    """
    directory = DataDirectory(settings.data_dir)
    if settings.clickhouse_url is not None:
        try:
            connected = clickhouse.connect(**clickhouse_options(settings))
        except TallyError:
            yield None, False
            return
        with connected as client, named_errors():
            yield (client if client.command("EXISTS TABLE catalogs") else None), True
    elif directory.read("deployment") is None:
        yield None, True
    else:
        with open_reader(directory, migrate.DATABASE) as client:
            yield client, True


def _input(source: str | None, settings: Settings) -> str:
    if source is None and settings.kafka_brokers is None:
        return "none given"
    source = chosen(source, settings)
    if source == KAFKA:
        return _topic(settings)
    count = len(matching(file_pattern(source)))
    return "1 file" if count == 1 else f"{count:,} files"


def _topic(settings: Settings) -> str:
    directory = DataDirectory(settings.data_dir)
    seconds_max = min(settings.kafka_wait_seconds, _KAFKA_WAIT_SECONDS)
    parse_accepted_loss(settings.kafka_accept_loss)
    try:
        topic = examine(settings, directory, make_for_us=None, seconds_max=seconds_max)
    except TopicMissing:
        if directory.read("topic") is not None:
            raise
        return f"the first run makes topic {settings.kafka_topic} with {settings.kafka_partitions} partitions"
    return f"topic {topic.name}, {topic.partitions} partitions, keeps messages {topic.lasts()}"


def _redis(settings: Settings) -> str:
    if settings.redis_url is None:
        return f"embedded, {find_executable().path}"
    claims = RedisClaims(
        settings.redis_url.get_secret_value(),
        shards=settings.claim_shards,
        accept_within_us=1,
        wait_seconds=min(settings.redis_wait_seconds, _REDIS_WAIT_SECONDS),
        options=redis_options(settings),
    )
    try:
        return claims.examine()
    finally:
        claims.close()


def _clickhouse(settings: Settings) -> str:
    if settings.clickhouse_url is None:
        clickhouse.require_embedded()
        return "embedded"
    with clickhouse.connect(**clickhouse_options(settings)) as client, named_errors():
        if settings.clickhouse_cluster is not None:
            require_cluster(client, settings.clickhouse_cluster)
        migrate.require_current(client, settings.clickhouse_cluster)
        return f"version {client.server_version}, migrated"


def _data(path: Path) -> str:
    """Whether a run could use the directory; one that no run has used is not touched."""
    directory = DataDirectory(path)
    if (directory.path / "lock").exists():
        with directory.acquire():
            return f"{directory.path} is free"
    parent = directory.path
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise TallyError(f"{directory.path} cannot be made: {parent} is no directory that this user may write to")
    return f"{directory.path} will be {'used' if parent == directory.path else 'made'}"
