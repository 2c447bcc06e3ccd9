"""Reading bodies: the bound holds for what is sent and what it unpacks to, and what is reserved is given back."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib
from collections.abc import AsyncIterator

import pytest

from api.bodies import Budget, Busy, Held, TooLarge, TooSlow, Undecodable, UnknownEncoding, read_body
from api.counts import IngestCounts

MAX = 10_000


def read(parts: list[bytes], headers: dict[bytes, bytes] | None = None, *, budget: int = 10 * MAX) -> bytes:
    counts = IngestCounts()
    held = Held(Budget(budget, counts))

    async def chunks() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    try:
        body = asyncio.run(read_body((headers or {}).items(), chunks(), held, bytes_max=MAX, seconds_max=5))
        assert counts.inflight_bytes == len(body)
        return body
    finally:
        held.release()
        assert counts.inflight_bytes == 0


GZIP = {b"content-encoding": b"gzip"}


def test_bodies_however_they_are_cut() -> None:
    body = random.Random(1).randbytes(MAX)
    assert read([body]) == body
    assert read([body[i : i + 7] for i in range(0, MAX, 7)]) == body
    packed = gzip.compress(body[: MAX // 2])
    assert read([packed], GZIP) == body[: MAX // 2]
    assert read([packed[i : i + 1] for i in range(len(packed))], GZIP) == body[: MAX // 2]
    assert read([], {}) == b""


def test_exactly_the_bound_is_allowed_and_a_byte_more_is_not() -> None:
    assert read([gzip.compress(bytes(MAX))], GZIP) == bytes(MAX)
    for parts, headers in (
        ([bytes(MAX + 1)], {}),
        ([bytes(MAX), b"x"], {}),
        ([], {b"content-length": str(MAX + 1).encode()}),
        ([gzip.compress(bytes(MAX + 1))], GZIP),
    ):
        with pytest.raises(TooLarge):
            read(parts, headers)


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(64 * 1024 * 1024), 9)
    assert len(bomb) > MAX
    for parts in ([bomb[:MAX]], [bomb[i : i + 100] for i in range(0, MAX, 100)]):
        with pytest.raises(TooLarge):
            read(parts, GZIP)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not gzip",
        zlib.compress(b"zlib"),
        gzip.compress(b"cut short", mtime=0)[:-1],
        gzip.compress(b"one", mtime=0) + gzip.compress(b"two", mtime=0),
        gzip.compress(b"one", mtime=0) + b"x",
    ],
)
def test_what_is_not_one_gzip_member_is_refused(body: bytes) -> None:
    for parts in ([body], [body[i : i + 1] for i in range(len(body))]):
        with pytest.raises(Undecodable):
            read(parts, GZIP)


def test_other_encodings_are_refused() -> None:
    for encoding in (b"br", b"deflate", b"gzip, gzip"):
        with pytest.raises(UnknownEncoding):
            read([b"x"], {b"content-encoding": encoding})


def test_the_budget_is_for_all_requests() -> None:
    with pytest.raises(Busy):
        read([bytes(600), bytes(600)], budget=1000)
    counts = IngestCounts()
    budget = Budget(1000, counts)
    first, second = Held(budget), Held(budget)
    first.grow(900)
    with pytest.raises(Busy):
        second.grow(200)
    first.release()
    first.release()
    second.grow(1000)
    assert counts.inflight_bytes == 1000


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(60)

    held = Held(Budget(MAX, IngestCounts()))
    with pytest.raises(TooSlow):
        asyncio.run(read_body([], chunks(), held, bytes_max=MAX, seconds_max=0.05))
