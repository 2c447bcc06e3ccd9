"""`tally query`: read-only SQL over the data, also while a flow runs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from clickhouse_connect.driver.client import Client

from cli.options import DataDir, settings_with
from config.clickhouse_client import clickhouse_options
from config.settings import Settings
from domain.ports import TallyError
from engines import clickhouse
from engines.data_directory import DataDirectory
from engines.reader import json_lines, open_reader
from engines.statements import parse_statement
from sinks.migrate import DATABASE


def query_command(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="A SELECT; plain table names are those of docs/tables.md.")],
    data_dir: DataDir = None,
) -> None:
    """Run SQL and print JSON lines; decimals and 64-bit integers are strings, so that none is rounded."""
    statement = readable(sql)
    with _ended_by_ctrl_c(), _client(settings_with(data_dir)) as client:
        for block in json_lines(client, statement):
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()


def readable(sql: str) -> str:
    """The one statement to be run, without a semicolon at its end.

    Raises:
        TallyError: it is none, several, or one that does not read.
    """
    text = sql.strip().rstrip(";").rstrip()
    statement = parse_statement(text.encode("utf-8", "surrogateescape"))
    if not statement.kind:
        raise TallyError("there is no SQL to run: write, for instance, tally query 'SHOW TABLES'")
    if statement.several:
        raise TallyError("tally query runs one statement: run the others on their own")
    if statement.into_outfile:
        raise TallyError("tally query writes no file: leave INTO OUTFILE out, and redirect its output with >")
    if not statement.reads or statement.kind == "CHECK":
        raise TallyError(f"tally query only reads, and {statement.kind} does not: write a SELECT")
    if statement.reaches_files:
        raise TallyError("tally query reads this deployment's tables only: leave file() out")
    if statement.format is not None:
        raise TallyError(f"tally query prints JSON lines: leave FORMAT {statement.format} out")
    return text


@contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once: a query has nothing to put in order, and may run for long."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _client(settings: Settings) -> Iterator[Client]:
    if settings.clickhouse_url is not None:
        with clickhouse.connect(**clickhouse_options(settings) | {"cluster": None}) as client:
            yield client
    else:
        with open_reader(DataDirectory(settings.data_dir), DATABASE) as client:
            yield client
