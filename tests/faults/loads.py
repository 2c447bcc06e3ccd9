"""Loads that are not the usual one, as the contents of NDJSON files; the same arguments give the same bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from datetime import timedelta

import pytest

from tests import workload, workload_bad
from tests.workload import DAY_US, EPOCH, instant

SUBJECTS = 20
FILES = 4


def _lines(contents: list[bytes]) -> list[list[bytes]]:
    return [content.split(b"\n")[:-1] for content in contents]


def _joined(files: list[list[bytes]]) -> list[bytes]:
    return [b"".join(line + b"\n" for line in lines) for lines in files]


def around(seed: int, events: int, start: str, days: int, hot: Sequence[str] = (), files: int = FILES) -> list[bytes]:
    """Good events whose log times go on from a day for some days; many lie within an hour of the hot instants."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workload, "START", instant(start))
        patch.setattr(workload, "SPAN_US", days * DAY_US)
        patch.setattr(workload, "HOT", tuple(map(instant, hot or [start])))
        patch.setattr(workload_bad, "recipes", lambda: ())
        return workload.generate(seed, events, SUBJECTS, files)


def seasons(seed: int, events: int, starts: Sequence[str], days: int) -> list[bytes]:
    """The files of `around` for each of the starts, one behind the other, without their unfinished lines."""
    parts = [_joined(_lines(around(seed + number, events, start, days))) for number, start in enumerate(starts)]
    return [b"".join(files) for files in zip(*parts, strict=True)]


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
    """Beside the usual files one with ten times as much, nearly all of one subject and of one day."""
    rng = random.Random(seed)
    hot = [_event(rng, number, "cust-hot", rng.randrange(DAY_US)) for number in range(10 * events)]
    return [*around(seed, events, "2026-03-01T00:00:00+00:00", 2), _joined([hot])[0]]


def many_files(seed: int, files: int) -> list[bytes]:
    """Two events and a repeat in each of very many files: as many partitions, and as many tiny batches."""
    rng = random.Random(seed)

    def few(number: int) -> list[bytes]:
        one, other = (_event(rng, f"{number}-{n}", f"cust-{number % SUBJECTS}", number * DAY_US // 99) for n in "ab")
        return [one, one, other]

    return _joined([few(number) for number in range(files)])


def _event(rng: random.Random, number: object, subject: str, since_us: int) -> bytes:
    """A request, logged at most 10 minutes after it was made."""
    made = EPOCH + timedelta(microseconds=instant("2026-03-01T00:00:00+00:00") + since_us)
    event = {
        "specversion": "1.0",
        "id": f"hot-{number}",
        "source": "svc-hot",
        "type": "api.request",
        "subject": subject,
        "time": made.isoformat(),
        "logtime": (made + timedelta(seconds=rng.randrange(600))).isoformat(),
        "data": {"bytes": rng.randrange(5_000), "region": rng.choice(["eu-west-1", "us-east-1"])},
    }
    return json.dumps(event).encode()
