"""One request to the ClickHouse front, run on the embedded engine.

Every request gets an engine connection of its own (a millisecond): settings, parameters and the
current database of one cannot be seen by another. Reads in formats that may be sent block by block
are streamed; other results are built in memory, up to `RESULT_BYTES_MAX`. Data of an insert is
passed on piece by piece as it arrives.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from engines.clickhouse import Connection
from engines.http_body import BadBody, Body, parse_form
from engines.statements import Statement, parse_statement

P = ParamSpec("P")
T = TypeVar("T")

QUERY_BYTES_MAX = 4 * 1024 * 1024
RESULT_BYTES_MAX = 512 * 1024 * 1024
HEAD_BYTES = 256 * 1024
"""An insert's statement, without its data, is looked for in this much of the body."""

_SETTINGS = {"max_memory_usage": str(2 * 1024**3), "max_execution_time": "600"}
"""A reader must not starve the flow that it reads; a request may set other values."""

_BOUND = {"max_result_bytes": str(RESULT_BYTES_MAX), "result_overflow_mode": "throw"}

# Parameters of ClickHouse's HTTP interface that are no settings of the engine, and need nothing here.
_IGNORED = frozenset(
    [
        "query",
        "database",
        "user",
        "password",
        "default_format",
        "readonly",
        "query_id",
        "quota_key",
        "role",
        "session_id",
        "session_timeout",
        "session_check",
        "stacktrace",
        "wait_end_of_query",
        "buffer_size",
        "client_protocol_version",
        "compress",
        "decompress",
        "enable_http_compression",
        "send_progress_in_http_headers",
        "http_headers_progress_interval_ms",
        "add_http_cors_header",
        "cancel_http_readonly_queries_on_client_close",
        "http_native_compression_disable_checksumming_on_decompress",
    ]
)
_STREAMED = frozenset({"Native", "TabSeparated", "TSV", "TabSeparatedRaw", "TSVRaw", "CSV", "JSONEachRow", "RowBinary"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ERROR = re.compile(r"Code: (\d+)\. DB::.*", re.DOTALL)
_STATUSES = {62: 400, 6: 400, 27: 400, 36: 400, 53: 400, 46: 404, 47: 404, 60: 404, 81: 404, 115: 404, 48: 501}
_STATUSES |= {164: 403, 358: 400, 497: 403, 516: 403}


class Refused(Exception):
    """An answer that is an error: ClickHouse's code, the HTTP status, and a message for the client."""

    def __init__(self, code: int, text: str, status: int | None = None) -> None:
        super().__init__(text if text.startswith("Code: ") else f"Code: {code}. DB::Exception: {text}")
        self.code = code
        self.status = status or _STATUSES.get(code, 500)

    @classmethod
    def by_engine(cls, error: Exception) -> Refused:
        found = _ERROR.search(str(error))
        return cls(1002, str(error)) if found is None else cls(int(found[1]), found[0].strip())


@dataclass(frozen=True)
class Request:
    """What the client asks for: URL parameters, body, and what the headers say beside them."""

    parameters: Mapping[str, str]
    body: Body
    content_type: str = ""
    database: str = ""
    format: str = ""
    reads_only: bool = True


class Stream:
    """The blocks of a running query: the first has been made (so it will hardly fail), the others follow."""

    def __init__(self, result: Any) -> None:
        self._result = result
        try:
            self._block = _run(next, result, None)
        except Refused:
            self.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        """Raises `Refused` if the query fails on the way."""
        while self._block is not None:
            yield self._block.bytes()
            self._block = _run(next, self._result, None)

    def close(self) -> None:
        """End the query; needed before its connection is closed."""
        self._result.close()


@dataclass
class Answer:
    """What goes back: the content, or a stream to be closed."""

    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    stream: Stream | None = None


def answer(connection: Connection, request: Request, tag: str) -> Answer:
    """Run the request; the connection must stay open until the answer's pieces are taken.

    Args:
        tag: marks the request's queries in `system.processes` (their setting `log_comment`).

    Raises:
        Refused: the engine, or a rule of this front, refuses the request.
        BadBody: the body cannot be read.
    """
    parameters, sql, rest_follows = _read_sql(request)
    statement = parse_statement(sql)
    if rest_follows and statement.data_start is None:
        tail, complete = request.body.read(QUERY_BYTES_MAX - len(sql))
        if not complete:
            raise Refused(62, f"the query is larger than {QUERY_BYTES_MAX} bytes", 413)
        statement = parse_statement(sql := sql + tail)
    _check(statement, parameters, request.reads_only)
    format_ = statement.format or parameters.get("default_format") or request.format or "TabSeparated"
    streams = _may_stream(statement, format_, parameters)
    _prepare(connection, parameters, request, _SETTINGS if streams else _SETTINGS | _BOUND, tag)
    if statement.data_start is not None:
        return _insert(connection, statement, sql[statement.data_start :], request.body)
    if streams:
        return _stream(connection, statement, format_)
    return _materialise(connection, statement, format_)


def _read_sql(request: Request) -> tuple[dict[str, str], bytes, bool]:
    """The parameters, the query with the beginning of the body behind it, and whether more follows."""
    parameters = dict(request.parameters)
    if request.content_type.lower().startswith("multipart/form-data"):
        body, complete = request.body.read(QUERY_BYTES_MAX)
        if not complete:
            raise BadBody(f"a multipart body may have {QUERY_BYTES_MAX} bytes", 413)
        fields = parse_form(body, request.content_type)
        sql = fields.pop("query", b"")
        parameters |= {name: value.decode("utf-8", "surrogateescape") for name, value in fields.items()}
        return parameters, sql or _encoded(parameters.get("query", "")), False
    sql = _encoded(parameters.get("query", ""))
    head, complete = request.body.read(HEAD_BYTES)
    return parameters, sql + b"\n" + head if sql else head, not complete


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _check(statement: Statement, parameters: Mapping[str, str], reads_only: bool) -> None:
    """What ClickHouse's HTTP interface refuses, and the embedded engine by itself would not."""
    if not statement.kind:
        raise Refused(62, "Empty query. (SYNTAX_ERROR)")
    if statement.several:
        raise Refused(62, "Syntax error (Multi-statements are not allowed). (SYNTAX_ERROR)")
    if statement.into_outfile:
        raise Refused(358, "INTO OUTFILE is not allowed over HTTP. (INTO_OUTFILE_NOT_ALLOWED)")
    if parameters.get("compress", "0") != "0" or parameters.get("decompress", "0") != "0":
        raise Refused(48, "compress and decompress are not supported: use Content-Encoding. (NOT_IMPLEMENTED)")
    if parameters.get("readonly") not in (None, "0", "1", "2"):
        raise Refused(36, "readonly must be 0, 1 or 2. (BAD_ARGUMENTS)")
    if reads_only and parameters.get("readonly") == "0":
        raise Refused(164, "Cannot modify 'readonly' setting in readonly mode. (READONLY)")
    if not statement.reads and (reads_only or parameters.get("readonly") in ("1", "2")):
        raise Refused(164, f"Cannot execute {statement.kind} in readonly mode. (READONLY)")


def _prepare(
    connection: Connection, parameters: Mapping[str, str], request: Request, defaults: Mapping[str, str], tag: str
) -> None:
    """Give the connection the request's database, settings and query parameters; readonly comes last."""
    database = parameters.get("database") or request.database
    if database:
        name = database.replace("\\", "\\\\").replace("`", "\\`")
        _run(connection.query, f"USE `{name}`")
    settings = {**defaults} | {name: value for name, value in parameters.items() if name not in _IGNORED}
    settings["log_comment"] = tag
    for name, value in settings.items():
        if not _NAME.fullmatch(name):
            raise Refused(115, f"Unknown setting {name!r}. (UNKNOWN_SETTING)")
        literal = value.replace("\\", "\\\\").replace("'", "\\'")
        _query(connection, _encoded(f"SET {name} = '{literal}'"))
    level = parameters.get("readonly", "2" if request.reads_only else "0")
    if level != "0":
        _run(connection.query, f"SET readonly = {level}")


def _may_stream(statement: Statement, format_: str, parameters: Mapping[str, str]) -> bool:
    """A stream's blocks are written one by one: only formats without a beginning and an end allow that."""
    framed = b"output_format_json_array_of_rows"
    return (
        statement.kind in ("SELECT", "WITH", "FROM")
        and statement.reads
        and format_ in _STREAMED
        and not statement.totals
        and framed not in statement.text
        and framed.decode() not in parameters
    )


def _stream(connection: Connection, statement: Statement, format_: str) -> Answer:
    result = _run(connection.send_query, statement.text, format_)
    return Answer(headers={"X-ClickHouse-Format": format_}, stream=Stream(result))


def _materialise(connection: Connection, statement: Statement, format_: str) -> Answer:
    result = _query(connection, statement.text, format_)
    body = result.bytes() or b""
    read = {"read_rows": str(result.rows_read()), "read_bytes": str(result.bytes_read())}
    headers = {"X-ClickHouse-Summary": json.dumps(read)}
    if statement.reads or body:
        headers["X-ClickHouse-Format"] = format_
    return Answer(body, headers)


def _insert(connection: Connection, statement: Statement, head: bytes, body: Body) -> Answer:
    """Pass on the data behind an INSERT. As in ClickHouse, whole blocks before a faulty row may stay."""
    insert = _run(connection.send_insert, statement.text, statement.format or "")
    try:
        if head:
            _run(insert.append, head)
        for piece in body.pieces():
            _run(insert.append, piece)
        result = _run(insert.finish)
    finally:
        insert.close()
    written = {"written_rows": str(result.rows_written), "written_bytes": str(result.bytes_written)}
    return Answer(headers={"X-ClickHouse-Summary": json.dumps(written)})


def _query(connection: Connection, sql: bytes, format_: str = "TabSeparated") -> Any:
    return _run(connection.query, sql, format_)


def _run(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the engine; what it raises is the client's answer."""
    try:
        return call(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise Refused.by_engine(error) from error


def failure_mark(error: Refused, mark: str) -> bytes:
    """What ClickHouse sends when a query fails after its answer has begun (since 25.11).

    Args:
        mark: the value of the answer's header X-ClickHouse-Exception-Tag.
    """
    text = str(error).encode("utf-8", "replace") + b"\n"
    tag = mark.encode()
    return b"\r\n__exception__\r\n" + tag + b"\r\n" + text + b"%d " % len(text) + tag + b"\r\n__exception__\r\n"


def new_mark() -> str:
    return secrets.token_hex(8)
