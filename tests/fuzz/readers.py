"""Bytes that come as files and as bodies: read to their end, or refused with a message, in bounded memory."""

from __future__ import annotations

import gzip
import tempfile
import threading
from email.message import Message
from io import BufferedReader, BytesIO
from pathlib import Path

from domain.ports import TallyError
from engines.http_body import PIECE_BYTES, BadBody, Body, parse_form
from sources.files import FileSource
from tests.oracle import events as oracle

_BODY_BYTES_MAX = 64 * 1024
_FOLDER = tempfile.TemporaryDirectory(prefix="tally-fuzz-")


def file(data: bytes) -> None:
    """A file, read on after each batch by a reader made anew; the first byte says how long batches are."""
    rows_max, content = (data[:1] or b"\1")[0] % 7 + 1, data[1:]
    path = Path(_FOLDER.name) / "events.ndjson"
    path.write_bytes(content)
    assert _read(path, rows_max) == _events(content)


def packed(data: bytes) -> None:
    """A `.gz`: what it unpacks to, or what is wrong with it."""
    path = Path(_FOLDER.name) / "events.ndjson.gz"
    path.write_bytes(data)
    try:
        found = _read(path, 1000)
    except TallyError:
        return
    with gzip.open(path) as unpacked:
        assert found == _events(unpacked.read())


def _events(content: bytes) -> list[tuple[int, int, bytes]]:
    return [
        (number, index, event)
        for number, line in enumerate(oracle.lines(content))
        for index, event in enumerate(oracle.payloads(line))
    ]


def _read(path: Path, rows_max: int) -> list[tuple[int, int, bytes]]:
    registry, stop = path.with_name("registry.json"), threading.Event()
    registry.unlink(missing_ok=True)
    source = FileSource(str(path), registry, batch_rows_max=rows_max, stop=stop)
    state = None
    read: list[tuple[int, int, bytes]] = []
    while True:
        part = source.build_part("source", "0", state)
        try:
            for batch in part.next_batch():
                read += zip(batch.offsets, batch.indexes, batch.payloads, strict=True)
        except StopIteration:
            return read
        finally:
            state = part.snapshot()
            part.close()


def body(data: bytes) -> None:
    """A request's headers and body as they arrive at the ClickHouse front; a form, if it says so."""
    head, _, rest = data.partition(b"\r\n\r\n")
    headers = Message()
    for each in head.decode("latin-1").split("\r\n"):
        name, _, value = each.partition(":")
        headers[name] = value
    try:
        pieces = [*Body(BufferedReader(BytesIO(rest)), headers, _BODY_BYTES_MAX).pieces()]
        assert sum(map(len, pieces)) <= _BODY_BYTES_MAX
        assert all(len(piece) <= PIECE_BYTES for piece in pieces)
        parse_form(b"".join(pieces), headers.get("Content-Type", ""))
    except BadBody:
        return
