"""Loads that are not the usual one, as the contents of NDJSON files; the same arguments give the same bytes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from tests import workload, workload_bad
from tests.workload import DAY_US, instant

SUBJECTS = 20
FILES = 4


def _lines(contents: list[bytes]) -> list[list[bytes]]:
    return [content.split(b"\n")[:-1] for content in contents]


def _joined(files: list[list[bytes]]) -> list[bytes]:
    return [b"".join(line + b"\n" for line in lines) for lines in files]


def around(seed: int, events: int, start: str, days: int, hot: Sequence[str] = ()) -> list[bytes]:
    """Good events whose log times go on from a day for some days; many lie within an hour of the hot instants."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workload, "START", instant(start))
        patch.setattr(workload, "SPAN_US", days * DAY_US)
        patch.setattr(workload, "HOT", tuple(map(instant, hot or [start])))
        patch.setattr(workload_bad, "recipes", lambda: ())
        return workload.generate(seed, events, SUBJECTS, FILES)


def repeats(seed: int, events: int, share: float) -> list[bytes]:
    """Of all lines, this share are repeats of one that came before in the same file."""
    rng = random.Random(seed)

    def stormy(lines: list[bytes]) -> list[bytes]:
        out = lines[:1]
        rest = lines[:0:-1]
        while rest:
            out.append(rng.choice(out[-200:]) if rng.random() < share else rest.pop())
        return out

    return _joined([stormy(lines) for lines in _lines(around(seed, events, "2026-03-01T00:00:00+00:00", 20))])


def poison(seed: int, events: int, share: float) -> list[bytes]:
    """Of all lines, this share are garbage: bytes, JSON without sense, deep, long, cut off, and no UTF-8."""
    rng = random.Random(seed)

    def garbage(good: bytes) -> bytes:
        match rng.randrange(6):
            case 0:
                return rng.randbytes(rng.randrange(1, 300)).replace(b"\n", b"")
            case 1:
                return rng.choice(workload_bad.LINES)
            case 2:
                return good[: rng.randrange(len(good))]
            case 3:
                place = rng.randrange(len(good))
                return good[:place] + b"\xff" + good[place + 1 :]
            case 4:
                return good.replace(b'"data":', b'"deep":' + b"[" * 5_000 + b"]" * 5_000 + b',"data":')
            case _:
                return b'{"a":' * rng.randrange(1, 3_000) + b"0"

    def poisoned(lines: list[bytes]) -> list[bytes]:
        out = []
        for line in lines:
            out.append(line)
            while rng.random() < share:
                out.append(garbage(line if 0 < len(line) < 10_000 else b"{}"))
        out.insert(len(out) // 2, lines[0].replace(b'"data":', b'"long":"' + b"x" * 1_500_000 + b'","data":'))
        return out

    return _joined([poisoned(lines) for lines in _lines(around(seed, events, "2026-03-01T00:00:00+00:00", 20))])


def hot_subject(seed: int, events: int) -> list[bytes]:
    """Nearly everything is of one subject, in one file, and most of it of one day."""
    contents = around(seed, events, "2026-03-01T00:00:00+00:00", 2)
    hot = around(seed + 1, events * 9, "2026-03-02T00:00:00+00:00", 1)[0].split(b"\n")
    return [contents[0], *contents[1:], b"".join(_renamed(line) + b"\n" for line in hot if line.startswith(b"{"))]


def _renamed(line: bytes) -> bytes:
    """The event as one of the hot subject, under an id of its own."""
    head, found, rest = line.partition(b'"subject":')
    if not found:
        return line
    return head.replace(b'"id":"', b'"id":"hot-').replace(b'"id": "', b'"id": "hot-') + found + _after_text(rest)


def _after_text(rest: bytes) -> bytes:
    start = rest.index(b'"')
    end = start + 1
    while rest[end : end + 1] != b'"':
        end += 2 if rest[end : end + 1] == b"\\" else 1
    return b'"cust-hot"' + rest[end + 1 :]


def many_files(seed: int, events: int, files: int) -> list[bytes]:
    """One or a few events a file, in very many files: as many partitions, and as many tiny batches."""
    lines = [line for content in _lines(around(seed, events, "2026-03-01T00:00:00+00:00", 20)) for line in content]
    return _joined([lines[number::files] for number in range(files)])
