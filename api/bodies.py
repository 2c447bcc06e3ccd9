"""Reading a request's body within bounds: of bytes, of time, and of memory over all requests.

The bound on bytes holds for what arrives and for what it unpacks to, whether or not a length was announced, so
neither a chunked body without an end nor a small one that unpacks to gigabytes gets further than the bound.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable
from typing import Final

from api.counts import IngestCounts

_GZIP: Final = 31
"""zlib's word for a gzip header and the largest window."""


class TooLarge(Exception):
    """The body, as sent or unpacked, is larger than allowed (413)."""


class TooSlow(Exception):
    """The body did not arrive in time (408)."""


class Busy(Exception):
    """The process holds as many bytes as it may (503)."""


class Undecodable(Exception):
    """The body is not in the encoding that its header names (400)."""


class UnknownEncoding(Exception):
    """A content encoding other than gzip (415)."""


class Budget:
    """The bytes that a process may hold in bodies. For the event loop's thread only."""

    def __init__(self, bytes_max: int, counts: IngestCounts) -> None:
        self._free = bytes_max
        self._counts = counts

    def take(self, count: int) -> None:
        """Reserve bytes.

        Raises:
            Busy: there are not so many free; nothing was reserved.
        """
        if count > self._free:
            raise Busy
        self._free -= count
        self._counts.inflight_bytes += count

    def give(self, count: int) -> None:
        """Free what was reserved."""
        self._free += count
        self._counts.inflight_bytes -= count


class Held:
    """What one request holds of the budget; given back by `release`, once."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._count = 0

    def grow(self, count: int) -> None:
        """Reserve more. Raises Busy."""
        self._budget.take(count)
        self._count += count

    def release(self) -> None:
        """Give everything back."""
        self._budget.give(self._count)
        self._count = 0


async def read_body(
    headers: Iterable[tuple[bytes, bytes]],
    chunks: AsyncIterator[bytes],
    held: Held,
    *,
    bytes_max: int,
    seconds_max: float,
) -> bytes:
    """The whole body, unpacked; its bytes are reserved in `held`.

    Raises:
        TooLarge, TooSlow, Busy, Undecodable, UnknownEncoding: as they say; `held` has to be released in any case.
    """
    names = dict(headers)
    encoding = names.get(b"content-encoding", b"").strip().lower()
    if encoding not in (b"", b"identity", b"gzip", b"x-gzip"):
        raise UnknownEncoding(encoding.decode("latin-1"))
    announced = names.get(b"content-length", b"")
    if announced.isdigit() and (len(announced) > 18 or int(announced) > bytes_max):
        raise TooLarge
    collect = _Unpacked(bytes_max, held) if encoding.endswith(b"gzip") else _Plain(bytes_max, held)
    try:
        async with asyncio.timeout(seconds_max):
            async for chunk in chunks:
                collect.add(chunk)
    except TimeoutError:
        raise TooSlow from None
    return collect.whole()


class _Plain:
    def __init__(self, bytes_max: int, held: Held) -> None:
        self._max = bytes_max
        self._held = held
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > self._max:
            raise TooLarge
        self._held.grow(len(chunk))
        self._parts.append(chunk)

    def whole(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)


class _Unpacked(_Plain):
    """Unpacks one gzip member as it arrives, and never more than one byte beyond the bound."""

    def __init__(self, bytes_max: int, held: Held) -> None:
        super().__init__(bytes_max, held)
        self._packed = 0
        self._unpack = zlib.decompressobj(_GZIP)

    def add(self, chunk: bytes) -> None:
        self._packed += len(chunk)
        if self._packed > self._max:
            raise TooLarge
        if self._unpack.eof and chunk:
            raise Undecodable("there is something after the end of the gzip data")
        try:
            super().add(self._unpack.decompress(chunk, self._max - self._size + 1))
        except zlib.error as error:
            raise Undecodable(f"it is not gzip: {error}") from None
        if self._unpack.unused_data:
            raise Undecodable("there is something after the end of the gzip data")

    def whole(self) -> bytes:
        # What `decompress` was not allowed to give out would have been beyond the bound, and was refused by `add`.
        assert not self._unpack.unconsumed_tail, "the bound leaves no tail"
        if not self._unpack.eof:
            raise Undecodable("the gzip data is cut short")
        return super().whole()
