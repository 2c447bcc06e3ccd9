"""The binary form of claims: what `claim.lua` takes and gives. Pure; the two files change together.

A record of `RECORD_BYTES` is a bucket's name (3 bytes), a field (13) and a value (21). The value is
content u64, partition u32, offset u48, index u24, big-endian: written by the client as one piece, so
that the script cuts three strings an id and builds none.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import groupby, product
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_digest

from domain.ports import Claim, ClaimRequests
from domain.values import Position

ByteRows = npt.NDArray[np.uint8]
"""Two dimensions: one row of bytes a record."""

LAYOUT = 1
"""Raised when keys or values change their form: claims in another form are dropped and remade."""
BUCKET_MASKS = (0x3F, 0x3F, 0x0F)
"""Bits of the digest's first three bytes that name a bucket: 65,536 a shard and generation."""
BUCKET_BASE = 0x30
"""Added to each of them: bucket names are printable ASCII ("0" to "o")."""
BUCKET_BYTES, DIGEST_BYTES, VALUE_BYTES = 3, 16, 21
RECORD_BYTES = DIGEST_BYTES + VALUE_BYTES


CALL_ROWS_MAX = 5_000
"""Records of one call: bounds how long Redis serves nobody else (5,000 take about 10 ms)."""


class Packed(NamedTuple):
    """What one call claims: of a batch, (a part of) the records of one shard."""

    shard: int
    last: bool
    """With this call the shard has been given all of the batch."""
    rows: npt.NDArray[np.intp]
    """The requests' indexes."""
    runs: bytes
    """Runs of equal generation: (generation u32, records u32), big-endian."""
    records: bytes


def pack(partition: int, requests: ClaimRequests, *, seed: int, shards: int, generation_us: int) -> list[Packed]:
    """The calls for every shard, also for those with nothing to claim; order within a shard is kept."""
    records = _records(partition, requests, seed)
    log_times = requests.log_times_us
    same = not log_times or min(log_times) // generation_us == max(log_times) // generation_us
    generations = [log_time // generation_us for log_time in (log_times[:1] if same else log_times)]
    shard_of = records[:, DIGEST_BYTES - 4 : DIGEST_BYTES].copy().view("<u4").ravel() % shards
    packed = []
    for shard in range(shards):
        rows = np.flatnonzero(shard_of == shard) if shards > 1 else np.arange(len(records))
        for begin in range(0, max(len(rows), 1), CALL_ROWS_MAX):
            some = rows[begin : begin + CALL_ROWS_MAX]
            here = generations if same else [generations[row] for row in some.tolist()]
            last = begin + CALL_ROWS_MAX >= len(rows)
            packed.append(Packed(shard, last, some, _runs(here, len(some)), records[some].tobytes()))
    return packed


def unpack(packed: Packed, indexes: Sequence[int], values: bytes) -> dict[int, Claim]:
    """The script's answer: by the requests' index, the first claim of each key that is somebody else's."""
    rows = np.frombuffer(values, dtype=np.uint8).reshape(-1, VALUE_BYTES)
    contents, *positions = (_numbers(rows[:, begin:end]) for begin, end in ((0, 8), (8, 12), (12, 18), (18, 21)))
    claims = map(Claim, map(Position, *positions), contents)
    requests = cast(list[int], packed.rows[np.array(indexes, np.intp)].tolist())
    return dict(zip(requests, claims, strict=True))


def bucket_names() -> list[str]:
    """Every bucket that a generation of a shard can have."""
    letters = [[chr(BUCKET_BASE + bits) for bits in range(mask + 1)] for mask in BUCKET_MASKS]
    return ["".join(name) for name in product(*letters)]


def _records(partition: int, requests: ClaimRequests, seed: int) -> ByteRows:
    """One row a request. A key is hashed with its source's length before it: no two keys read alike."""
    prefixes = {source: f"{len(source)}:{source}".encode() for source in set(requests.sources)}
    keys = zip(requests.sources, requests.ids, strict=True)
    digests = b"".join([xxh3_128_digest(prefixes[source] + id_.encode(), seed) for source, id_ in keys])
    records = np.empty((len(requests.ids), RECORD_BYTES), dtype=np.uint8)
    records[:, :DIGEST_BYTES] = np.frombuffer(digests, dtype=np.uint8).reshape(-1, DIGEST_BYTES)
    records[:, :BUCKET_BYTES] &= np.array(BUCKET_MASKS, dtype=np.uint8)
    records[:, :BUCKET_BYTES] += np.uint8(BUCKET_BASE)
    records[:, 16:24] = _big_endian(requests.contents, 8)
    records[:, 24:28] = np.frombuffer(struct.pack(">I", partition), dtype=np.uint8)
    records[:, 28:34] = _big_endian(requests.offsets, 6)
    records[:, 34:37] = _big_endian(requests.indexes, 3)
    return records


def _big_endian(numbers: Sequence[int], width: int) -> ByteRows:
    wide = np.array(numbers, dtype=">u8").view(np.uint8).reshape(-1, 8)
    assert not wide[:, : 8 - width].any(), f"a number needs more than {width} bytes"
    return wide[:, 8 - width :]


def _numbers(columns: ByteRows) -> list[int]:
    """The reverse of `_big_endian`."""
    wide = np.zeros((len(columns), 8), dtype=np.uint8)
    wide[:, 8 - columns.shape[1] :] = columns
    return cast(list[int], wide.view(">u8").ravel().tolist())


def _runs(generations: Sequence[int], count: int) -> bytes:
    """`Packed.runs`; a single generation stands for all records."""
    if count == 0:
        return b""
    if len(generations) == 1:
        return struct.pack(">II", generations[0], count)
    return b"".join(struct.pack(">II", generation, len(list(run))) for generation, run in groupby(generations))
