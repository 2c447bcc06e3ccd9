"""Reading a data directory from another command: through the running flow, else directly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from domain.ports import TallyError
from engines.clickhouse import UNKNOWN_DATABASE, EmbeddedClickHouse
from engines.data_directory import DataDirectory, DirectoryInUse

WAIT_SECONDS_MAX = 10.0
"""A flow that has just started holds the lock, but does not answer yet; one that ends, the reverse."""
_WAIT_SECONDS = 0.1


@contextmanager
def open_reader(
    directory: DataDirectory, database: str = "default", wait_seconds_max: float = WAIT_SECONDS_MAX
) -> Iterator[Client]:
    """A read-only client over the directory's ClickHouse, valid inside the block.

    Who gets the directory's lock opens the engine itself and keeps it until the block ends: then
    nobody else runs, and a `front.json` that is there was left by a run that was killed. Who does
    not get it asks the front of the run that has it.

    Raises:
        TallyError: there is no data yet, no such database, or the directory's holder does not answer.
    """
    if not directory.clickhouse.is_dir():
        raise TallyError(f"there is no data in {directory.path} yet: let `tally run` make it, or check --data-dir")
    deadline = time.monotonic() + wait_seconds_max
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(directory.acquire())
            except DirectoryInUse as error:
                client = _through_front(directory, database)
                if client is None and time.monotonic() > deadline:
                    raise DirectoryInUse(f"{error} (it does not answer queries)") from None
            else:
                directory.remove("front")
                client = _directly(held.enter_context(EmbeddedClickHouse(directory.clickhouse)), database)
            if client is not None:
                held.callback(client.close)
                yield client
                return
            time.sleep(_WAIT_SECONDS)


def _directly(engine: EmbeddedClickHouse, database: str) -> Client:
    client = engine.client(database)
    client.command("SET readonly = 2")
    return client


def _through_front(directory: DataDirectory, database: str) -> Client | None:
    """None if there is no front yet, or none any more."""
    record = directory.read("front")
    if record is None:
        return None
    try:
        client = clickhouse_connect.get_client(
            host=record["host"],
            port=record["port"],
            username=record["user"],
            password=record["password"],
            database=database,
            autogenerate_session_id=False,
            settings={"readonly": "2"},
        )
    except (ClickHouseError, KeyError) as error:
        if getattr(error, "code", None) == UNKNOWN_DATABASE:
            raise TallyError(f"{directory.path} has no database {database!r} yet: let `tally run` make it") from error
        return None
    return client
