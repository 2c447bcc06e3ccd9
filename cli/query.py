"""`tally query`: read-only SQL over the data, also while a flow runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from clickhouse_connect.driver.exceptions import ClickHouseError

from cli.options import DataDir, settings_with
from domain.ports import TallyError
from engines import clickhouse
from engines.data_directory import DataDirectory
from engines.reader import open_reader
from sinks.migrate import DATABASE

_SETTINGS = {
    "output_format_json_quote_64bit_integers": 1,
    "output_format_json_quote_decimals": 1,
    "output_format_json_escape_forward_slashes": 0,
}


def query_command(
    sql: Annotated[str, typer.Argument(help="A SELECT; tables of DESIGN are in the current database.")],
    data_dir: DataDir = None,
) -> None:
    """Run SQL and print JSON lines; decimals and 64-bit integers are strings, so that none is rounded."""
    settings = settings_with(data_dir)
    try:
        if settings.clickhouse_url is not None:
            with clickhouse.connect(settings.clickhouse_url.get_secret_value()) as client:
                answer = client.raw_query(sql, settings={**_SETTINGS, "readonly": 2}, fmt="JSONEachRow")
        else:
            with open_reader(DataDirectory(settings.data_dir), DATABASE) as client:
                answer = client.raw_query(sql, settings=_SETTINGS, fmt="JSONEachRow")
    except ClickHouseError as error:
        raise TallyError(f"ClickHouse: {error}") from error
    sys.stdout.buffer.write(answer)
    sys.stdout.flush()
