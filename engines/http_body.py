"""Reading the body of an HTTP request: framed, decompressed and bounded, in constant memory."""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Iterator
from email.message import Message
from importlib import import_module
from io import BufferedIOBase
from typing import Any

PIECE_BYTES = 256 * 1024
_LINE_BYTES_MAX = 4096
_TRAILER_LINES_MAX = 100


class BadBody(Exception):
    """The body cannot be read: a message for the client, and the HTTP status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Body:
    """The body of one request, read once from front to back.

    Args:
        stream: the connection, at the first byte behind the headers.
        headers: the request's; Content-Length or chunked, and Content-Encoding, are heeded.
        bytes_max: more than this, received or decompressed, is refused.
    """

    def __init__(self, stream: BufferedIOBase, headers: Message, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._received = self._taken(_framed(stream, headers))
        self._encoding = headers.get("Content-Encoding", "identity").strip().lower()
        self._pieces = self._decoded()
        self.exhausted = False
        """Everything was taken from the connection: it can be used again."""

    def pieces(self) -> Iterator[bytes]:
        """What has not been read yet, in pieces of at most `PIECE_BYTES`.

        Raises:
            BadBody: it is cut off, not framed or not compressed as announced, or too large.
        """
        size = 0
        for piece in self._pieces:
            size += len(piece)
            if size > self._bytes_max:
                raise BadBody(f"the request body is larger than {self._bytes_max} bytes", 413)
            yield piece

    def read(self, bytes_max: int) -> tuple[bytes, bool]:
        """Up to about `bytes_max` bytes (a piece more), and whether that was all."""
        parts: list[bytes] = []
        size = 0
        for piece in self._pieces:
            parts.append(piece)
            size += len(piece)
            if size >= bytes_max:
                return b"".join(parts), False
        return b"".join(parts), True

    def drain(self, bytes_max: int) -> None:
        """Read on and forget, so that a client that is still sending gets to see the answer."""
        try:
            for piece in self._received:
                bytes_max -= len(piece)
                if bytes_max < 0:
                    return
        except BadBody:
            return

    def _taken(self, framed: Iterator[bytes]) -> Iterator[bytes]:
        yield from framed
        self.exhausted = True

    def _decoded(self) -> Iterator[bytes]:
        match self._encoding:
            case "identity" | "":
                yield from self._received
            case "gzip" | "deflate" | "lz4" | "zstd":
                yield from _decompressed(self._received, self._encoding)
            case other:
                raise BadBody(f"Content-Encoding {other!r} is not supported: use gzip, deflate, lz4 or zstd")


def _framed(stream: BufferedIOBase, headers: Message) -> Iterator[bytes]:
    if "Transfer-Encoding" in headers:
        if headers["Transfer-Encoding"].strip().lower() != "chunked":
            raise BadBody("the only supported Transfer-Encoding is chunked", 501)
        yield from _chunked(stream)
        return
    length = headers.get("Content-Length", "0").strip()
    if not re.fullmatch(r"[0-9]{1,18}", length):
        raise BadBody(f"Content-Length {length[:40]!r} is no number of bytes")
    yield from _exactly(stream, int(length))


def _chunked(stream: BufferedIOBase) -> Iterator[bytes]:
    while True:
        line = stream.readline(_LINE_BYTES_MAX)
        size = line.partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", size):
            raise BadBody("the chunked request body is cut off or broken")
        if int(size, 16) == 0:
            break
        yield from _exactly(stream, int(size, 16))
        if stream.readline(_LINE_BYTES_MAX).strip():
            raise BadBody("the chunked request body is broken")
    for _ in range(_TRAILER_LINES_MAX):
        if not stream.readline(_LINE_BYTES_MAX).strip():
            return
    raise BadBody("the chunked request body has too many trailers")


def _exactly(stream: BufferedIOBase, size: int) -> Iterator[bytes]:
    while size > 0:
        piece = stream.read(min(size, PIECE_BYTES))
        if not piece:
            raise BadBody("the request body is cut off")
        size -= len(piece)
        yield piece


def _decompressed(received: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Frame after frame: clients compress each block on its own and send them one behind the other."""
    decompressor: Any = None
    try:
        for piece in received:
            while piece or (decompressor is not None and _has_more(decompressor)):
                decompressor = decompressor or _decompressor(encoding)
                output = decompressor.decompress(piece, PIECE_BYTES)
                piece = getattr(decompressor, "unconsumed_tail", b"")
                if output:
                    yield output
                if decompressor.eof:
                    piece, decompressor = decompressor.unused_data or b"", None
    except BadBody:
        raise
    except Exception as error:  # each library has an error class of its own
        raise BadBody(f"the request body is not valid {encoding}: {error}") from error
    if decompressor is not None:
        raise BadBody(f"the {encoding} request body is cut off")


def _has_more(decompressor: Any) -> bool:
    """Output was held back by the bound on its size (zlib gives its input back instead)."""
    return not getattr(decompressor, "needs_input", True)


def _decompressor(encoding: str) -> Any:
    """An object with `decompress(data, max_length)`, `eof`, `unused_data`."""
    match encoding:
        case "gzip":
            return zlib.decompressobj(31)
        case "deflate":
            return zlib.decompressobj(15)
        case "lz4":
            name, maker = "lz4.frame", "LZ4FrameDecompressor"
        case _:
            name, maker = ("compression" if sys.version_info >= (3, 14) else "backports") + ".zstd", "ZstdDecompressor"
    try:
        return getattr(import_module(name), maker)()
    except ImportError as error:
        raise BadBody(f"Content-Encoding {encoding} needs the Python module {name} on the serving side") from error


def parse_form(body: bytes, content_type: str) -> dict[str, bytes]:
    """The fields of a `multipart/form-data` body (RFC 7578).

    Raises:
        BadBody: it has no boundary, or a file in it (ClickHouse's external data).
    """
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_boundary()
    if not boundary:
        raise BadBody("a multipart body needs a boundary")
    fields: dict[str, bytes] = {}
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"))[1:]:
        if part.startswith(b"--"):
            break
        head, separator, value = part.partition(b"\r\n\r\n")
        disposition = re.search(rb"(?i)content-disposition:[^\r\n]*", head)
        name = re.search(rb'[; ]name="([^"]*)"', disposition[0]) if disposition else None
        if not separator or disposition is None or name is None:
            raise BadBody("a part of the multipart body has no name")
        if b"filename=" in disposition[0]:
            raise BadBody("external data (files in a multipart body) is not supported here", 501)
        fields[name[1].decode("utf-8", "replace")] = value
    return fields
