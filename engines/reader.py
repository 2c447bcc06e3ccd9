"""Reading a data directory from another command: through the running flow's front, else a front of its own.

Either way a reader sees the same: read-only statements over this deployment's tables, streamed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import cast

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError

from domain.ports import TallyError
from engines.clickhouse import UNKNOWN_DATABASE, EmbeddedClickHouse
from engines.data_directory import DataDirectory, DirectoryInUse
from engines.front import ClickHouseFront

WAIT_SECONDS_MAX = 10.0
"""A flow that has just started holds the lock, but does not answer yet; one that ends, the reverse."""
_WAIT_SECONDS = 0.1
_PIECE_BYTES = 256 * 1024

_JSON_SETTINGS = {
    "readonly": "1",  # the strictest: no writes, no other settings, no tables made of files or other servers
    "output_format_json_quote_64bit_integers": "1",
    "output_format_json_quote_decimals": "1",
    "output_format_json_escape_forward_slashes": "0",
}
_EXCEPTION = re.compile(r"(?:Code: \d+\. DB::Exception: )+(.*)", re.DOTALL)
_NOISE = re.compile(
    r"""\s*(?:FORMAT\ )?JSONEachRow\.? | \s*Expected\ one\ of:.*(?=\(SYNTAX_ERROR\))
    | \n\d+\ [0-9a-f]{16}\s*\Z | \(version\ [^)]*\) | \(for\ url\ [^)]*\) | \bdefault:\ (?=Cannot)""",
    re.VERBOSE | re.DOTALL,
)
"""Our FORMAT clause, the list of every token there is, marks, ClickHouse's version, and the address of the front."""


@contextmanager
def open_reader(
    directory: DataDirectory, database: str = "default", wait_seconds_max: float = WAIT_SECONDS_MAX
) -> Iterator[Client]:
    """A read-only client over the directory's ClickHouse, valid inside the block.

    Who gets the directory's lock opens the engine and keeps it until the block ends, with a front that
    serves other readers meanwhile: then nobody else runs, and a `front.json` that is there was left by a
    run that was killed. Who does not get it asks the front of the process that has it.

    Raises:
        TallyError: there is no data yet, no such database, or the directory's holder does not answer.
    """
    if not directory.clickhouse.is_dir():
        raise TallyError(f"there is no data in {directory.path} yet: let `tally run` make it, or check --data-dir")
    deadline = time.monotonic() + wait_seconds_max
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(directory.acquire(reads=True))
            except DirectoryInUse as error:
                client = _through_front(directory, database)
                if client is None and time.monotonic() > deadline:
                    raise DirectoryInUse(f"{error} (it does not answer queries)") from None
            else:
                directory.remove("front")
                engine = held.enter_context(EmbeddedClickHouse(directory.clickhouse))
                held.enter_context(ClickHouseFront(engine, directory))
                client = _through_front(directory, database)
            if client is not None:
                held.callback(client.close)
                yield client
                return
            time.sleep(_WAIT_SECONDS)


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


def json_lines(client: Client, sql: str) -> Iterator[bytes]:
    """The rows of one statement as JSON, in blocks of whole lines, as they arrive.

    Decimals and integers of 64 bits or more are strings, so that no reader rounds them.

    Args:
        client: Of an HTTP interface.
        sql: One statement without FORMAT.

    Raises:
        TallyError: ClickHouse refuses the statement, or fails on the way; one line.
    """
    client.server_settings.pop("readonly", None)  # clickhouse-connect would not send what it knows to be fixed
    try:
        with closing(cast(HTTPResponse, client.raw_stream(sql, settings=_JSON_SETTINGS, fmt="JSONEachRow"))) as stream:
            yield from _checked(stream)
    except (ClickHouseError, HTTPError) as error:
        raise TallyError(_explained(str(error))) from error


def _checked(stream: HTTPResponse) -> Iterator[bytes]:
    """Cut what arrives into whole lines. An error on the way comes in the place of a row: rows begin with `{`."""
    rest = b""
    while piece := stream.read1(_PIECE_BYTES):
        rest += piece
        whole = rest.rfind(b"\n") + 1
        rows = rest[:whole]
        if rows and not (rows[:1] == b"{" and rows.count(b"\n") == rows.count(b"\n{") + 1):
            end = re.search(rb"(?:\A|(?<=\n))[^{]", rows)
            assert end is not None
            yield rest[: end.start()]
            raise TallyError(_explained(_to_end(stream, rest[end.start() :])))
        yield rows
        rest = rest[whole:]
    if rest:
        raise TallyError(_explained(rest.decode("utf-8", "replace")))


def _to_end(stream: HTTPResponse, text: bytes) -> str:
    """What went wrong in the middle of an answer; the connection is cut off behind it."""
    with suppress(HTTPError, OSError):
        while piece := stream.read1(_PIECE_BYTES):
            text += piece
    return text.decode("utf-8", "replace")


def _explained(message: str) -> str:
    """ClickHouse's own words in one line, without its code, version, address and list of all tokens."""
    found = _EXCEPTION.search(message)
    told = (found[1] if found else message).split("\r\n")[0].replace("(JSONEachRow)", "(the end)")
    text = " ".join(_NOISE.sub(" ", told).split())
    hint = ": a query reads this deployment's tables, and brings no settings" if "(READONLY)" in text else ""
    return f"ClickHouse: {text}{hint}"
