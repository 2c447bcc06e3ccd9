"""`tally convert`: other people's records as CloudEvents.

`access-log` reads a web server's log in the combined or common format, one event a line, for the
sample catalog `config/catalogs/web.yaml`. Converting the same log again, also after it has grown or
was packed, gives the same events with the same ids, so that repeats are recognised: the id is the
line's number and hash, the source the file's name without its folder and `.gz`.

A request line that is none (`-`, or what a port scanner sent) is traffic all the same: it gets an
event with method and path `""`. What follows the size (referrer, user agent, or what a server was
told to add) is not looked at, except in a last line without a line end, which must be whole. A line
that does not parse is reported with its number, can be kept, and does not stop the others.
"""

from __future__ import annotations

import gzip
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import IO, Annotated, Final, NamedTuple, cast

import msgspec
import typer
from xxhash import xxh3_64_hexdigest

from cli import report
from domain.ports import TallyError
from telemetry.plain import plain

LINE_BYTES_MAX: Final = 1024 * 1024
"""A line of this size or more does not parse."""
REPORTED_MAX: Final = 20
"""How many lines that do not parse are named on standard error; the rejects file has all."""
_PROGRESS_LINES: Final = 5_000

_FIELDS: Final = (
    r'(?P<client>\S+) \S+ [^\[]+\[(?P<time>[^\]]{1,40})\] "(?P<request>(?:[^"\\]|\\.)*)" '
    r"(?P<status>\d{3}) (?P<bytes>\d+|-)"
)
_LINE: Final = re.compile(_FIELDS + r"(?:\s.*)?", re.ASCII | re.DOTALL)
_WHOLE_LINE: Final = re.compile(_FIELDS + r'(?: "(?:[^"\\]|\\.)*" "(?:[^"\\]|\\.)*")?\s*', re.ASCII | re.DOTALL)
_TIME: Final = re.compile(r"(\d\d)/(\w{3})/(\d{4}):(\d\d:\d\d:\d\d) ([+-]\d\d)([0-5]\d)", re.ASCII)
_REQUEST: Final = re.compile(r"([!#$%&'*+.^_`|~\w-]+) ([^?#]*?)(?:[?#].*?)?(?: HTTP/[\d.]+)?", re.ASCII | re.DOTALL)
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Converted(NamedTuple):
    """How many lines became events, and how many did not parse."""

    events: int
    rejected: int


def convert_access_log(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An access log in the combined or common format, plain or .gz.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The NDJSON file to write; else standard output.")
    ] = None,
    rejects: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file for the lines that do not parse.")
    ] = None,
) -> None:
    """Turn a web server's access log into http.access events (NDJSON), for `tally run --catalog web`.

    Converting a log again, also when it has grown or was packed, gives the same events with the same ids.
    """
    with report.steps("lines", None, shown=out is not None) as advance:
        result = convert_file(file, out, rejects, _report, advance)
    if result.rejected > REPORTED_MAX:
        _report(f"... and {result.rejected - REPORTED_MAX:,} more lines that do not parse")
    _report(
        f"{file}: {result.events + result.rejected:,} lines, {result.events:,} events, "
        f"{result.rejected:,} lines that do not parse"
    )


def _report(text: str) -> None:
    typer.echo(plain(text), err=True)


def convert_file(
    file: Path, out: Path | None, rejects: Path | None, report: Callable[[str], None], progress: Callable[[int], None]
) -> Converted:
    """Convert one access log.

    Args:
        out: replaced in one step when all is written; None for standard output.
        rejects: likewise; gets each line that does not parse, as `file:number: line`.
        report: is told the place of the first `REPORTED_MAX` lines that do not parse.
        progress: called now and then with the number of lines read since the last call.

    Raises:
        TallyError: a file cannot be opened, written, or read to its end (a damaged `.gz`).
    """
    _check_different(file, out, rejects)
    source = f"access-log:{file.name.removesuffix('.gz')}"
    number = rejected = 0
    with ExitStack() as stack:
        log = stack.enter_context(_open(file))
        sink = stack.enter_context(_replacing(out)) if out else sys.stdout.buffer
        kept = stack.enter_context(_replacing(rejects)) if rejects else None
        for number, line in enumerate(_lines(log, file), start=1):
            if event := to_event(line, number, source):
                sink.write(event + b"\n")
            else:
                rejected += 1
                if rejected <= REPORTED_MAX:
                    report(f"{file}:{number}: not a line of an access log")
                if kept:
                    kept.write(f"{file}:{number}: ".encode() + line.rstrip(b"\r\n") + b"\n")
            if number % _PROGRESS_LINES == 0:
                progress(_PROGRESS_LINES)
    return Converted(number - rejected, rejected)


def to_event(line: bytes, number: int, source: str) -> bytes | None:
    """The `http.access` event of one line as JSON; None if the line does not parse.

    Bytes that are not UTF-8 are written as `\\xhh`, as Apache does.
    """
    if len(line) >= LINE_BYTES_MAX:
        return None
    text = line.rstrip(b"\r\n")
    pattern = _LINE if line.endswith(b"\n") else _WHOLE_LINE
    if (fields := pattern.fullmatch(text.decode("utf-8", "backslashreplace"))) is None:
        return None
    if (time := _rfc3339(fields["time"])) is None:
        return None
    request = _REQUEST.fullmatch(fields["request"])
    method, path = request.groups() if request else ("", "")
    status = fields["status"]
    return msgspec.json.encode(
        {
            "specversion": "1.0",
            "id": f"{number}-{xxh3_64_hexdigest(text)}",
            "source": source,
            "type": "http.access",
            "subject": fields["client"],
            "time": time,
            "data": {
                "bytes": 0 if fields["bytes"] == "-" else msgspec.Raw(_integer(fields["bytes"])),
                "method": method,
                "status": msgspec.Raw(_integer(status)),
                "status_class": f"{status[0]}xx",
                "path": path,
            },
        }
    )


def _integer(digits: str) -> bytes:
    """As a JSON number, of any length (which `int` refuses)."""
    return (digits.lstrip("0") or "0").encode()


@lru_cache(maxsize=4096)
def _rfc3339(text: str) -> str | None:
    """`17/May/2015:10:05:03 +0000` as `2015-05-17T10:05:03+00:00`; None if it is no time."""
    if (found := _TIME.fullmatch(text)) is None or found[2] not in _MONTHS:
        return None
    day, month, year, clock, hours, minutes = found.groups()
    time = f"{year}-{_MONTHS.index(month) + 1:02}-{day}T{clock}{hours}:{minutes}"
    try:
        datetime.fromisoformat(time)
    except ValueError:
        return None
    return time


def _lines(log: IO[bytes], file: Path) -> Iterator[bytes]:
    """Each line with its end; of one that is too long only the beginning."""
    number = 0
    try:
        while line := log.readline(LINE_BYTES_MAX):
            number += 1
            yield line
            while len(line) == LINE_BYTES_MAX and not line.endswith(b"\n"):
                line = log.readline(LINE_BYTES_MAX)
    except (OSError, EOFError, zlib.error) as error:
        raise TallyError(f"{file} cannot be read on after line {number}: {error}. Fetch the file again.") from error


def _check_different(file: Path, out: Path | None, rejects: Path | None) -> None:
    paths = [path.resolve() for path in (file, out, rejects) if path]
    if len(set(paths)) < len(paths):
        raise TallyError("the log, --out and --rejects must be different files. Choose another name.")


def _open(file: Path) -> IO[bytes]:
    try:
        return cast(IO[bytes], gzip.open(file)) if file.suffix.lower() == ".gz" else file.open("rb")
    except OSError as error:
        raise TallyError(f"{file} cannot be opened: {error.strerror}. Check its path and permissions.") from error


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that stands under its name only once it is complete."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        file = draft.open("wb")
    except OSError as error:
        raise TallyError(f"{path} cannot be written: {error.strerror}. Choose another name.") from error
    try:
        with file:
            yield file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
