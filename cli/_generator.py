"""Sample input with a known outcome: usage events as NDJSON files, and `truth.json` beside them.

Events are `api.request` for the sample catalog `config/catalogs/api.yaml`, over three days of
January 2026: a few subjects use much and most use little, some events arrive days late, some twice,
some are wrong in every way that producers get things wrong. A subject's events and their repeats
are in one file, as a producer that keys messages by subject would have it.

Guarantees: the same parameters give the same bytes, on any machine (only integer arithmetic on
Mersenne Twister output decides); `truth.json` states how many events there are of each kind and
what each subject used, as a flow with an age limit of 35 days must count it.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any, Final

from xxhash import xxh3_64_intdigest

from cli._broken import BROKEN, oversized
from domain.ports import TallyError
from domain.values import DAY_US, FUTURE_SKEW_US, HOUR_US, MINUTE_US, SECOND_US, Reason

START: Final = datetime(2026, 1, 12, tzinfo=UTC)
START_US: Final = int(START.timestamp()) * SECOND_US
SPAN_US: Final = 3 * DAY_US
ACCEPT_WITHIN_US: Final = 35 * DAY_US
"""The age limit of the sample catalog."""

SHARES: Final = {
    "duplicate": 0.02,
    "conflict": 0.002,
    "late": 0.01,
    "too_late": 0.001,
    "time_in_future": 0.001,
    "broken": 0.005,
}
"""What part of the events is of each kind; all others are plain ones."""

_PARTS: Final = 1 << 20
_KINDS: Final = tuple(SHARES)
_BOUNDS: Final = tuple(accumulate(int(share * _PARTS) for share in SHARES.values()))
_BATCH_PARTS: Final = int(0.002 * _PARTS)
_BATCH_EVENTS: Final = (2, 3, 5, 8, 13, 20, 40, 100)
_OVERSIZED_FROM_EVENTS: Final = 10_000
"""One event larger than a MiB is in the middle of every sample of at least this size."""

_CHUNK_EVENTS: Final = 10_000
_EARLIER_MAX: Final = 4096
"""How many earlier events are kept for repeats: half recent ones, half from the whole run."""

REGIONS: Final = ("us-east-1", "eu-west-1", "eu-west-1", "ap-south-1")
METHODS: Final = ("GET", "GET", "GET", "GET", "GET", "POST", "PUT", "DELETE")
STATUSES: Final = (200, 200, 200, 200, 200, 200, 200, 200, 200, 200, 201, 204, 304, 404, 429, 500)
ENDPOINTS: Final = tuple(
    f"/v1/{name}" for name in ("items", "items", "orders", "search", "users", "files", "carts", "é")
)
_DETAILS: Final = tuple(
    f'"region":"{region}","method":"{method}","status":{status},"endpoint":"{endpoint}"}}}}'
    for endpoint in ENDPOINTS
    for status in STATUSES
    for method in METHODS
    for region in REGIONS
)


def generate(
    events: int, subjects: int, files: int, seed: int, out: Path, progress: Callable[[int], None]
) -> dict[str, Any]:
    """Write `events-N.ndjson` and `truth.json` into the folder `out`; return what `truth.json` holds.

    Args:
        events: how many, repeats and broken ones included; at least 1, like all counts.
        progress: called now and then with the number of events written since the last call.

    Raises:
        TallyError: the folder cannot be written, or holds event files that this run would not replace.
    """
    if min(events, subjects, files) < 1:
        raise ValueError("events, subjects and files must be at least 1")
    paths = [out / f"events-{number}.ndjson" for number in range(files)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        if strangers := sorted(set(out.glob("events-*.ndjson")) - set(paths)):
            raise TallyError(f"{strangers[0]} is from another run. Remove it, or choose another folder with --out.")
        truth = _Run(events, subjects, seed, paths).write(progress)
        (out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise TallyError(f"cannot write to {out}: {error.strerror}. Choose another folder with --out.") from error
    return truth


@dataclass(slots=True)
class _File:
    """The lines of one file that are not written yet, and a CloudEvents batch that is being filled."""

    path: Path
    lines: list[str] = field(default_factory=list)
    batch: list[str] = field(default_factory=list)
    batch_events: int = 0
    messages: int = 0
    events: int = 0

    def add(self, line: str) -> None:
        self.events += 1
        if not self.batch_events:
            self.lines.append(line)
            return
        self.batch.append(line)
        if len(self.batch) == self.batch_events:
            self.end_batch()

    def end_batch(self) -> None:
        if self.batch:
            self.lines.append("[" + ",".join(self.batch) + "]")
        self.batch = []
        self.batch_events = 0

    def write(self, mode: str) -> None:
        """Append what is there (or begin the file); lone surrogates stand for bytes that are not UTF-8."""
        text = "".join(line + "\n" for line in self.lines)
        with self.path.open(mode) as file:
            file.write(text.encode("utf-8", "surrogateescape"))
        self.messages += len(self.lines)
        self.lines = []


class _Run:
    """One call of `generate`: the random numbers, the files, and the books on what was written."""

    def __init__(self, events: int, subjects: int, seed: int, paths: list[Path]) -> None:
        self._parameters = {"events": events, "subjects": subjects, "files": len(paths), "seed": seed}
        self._events = events
        self._bits = Random(f"tally generate {seed}").getrandbits  # noqa: S311 # samples, the same for a seed
        self._id_base = self._bits(64)
        self._names = [f"cust-{number}" for number in range(1, subjects + 1)]
        self._files = [_File(path) for path in paths]
        self._file_of = [self._files[xxh3_64_intdigest(name.encode()) % len(paths)] for name in self._names]
        # Zipf: the n-th subject has 1/n of the first one's events.
        self._weights = list(accumulate(2**40 // number for number in range(1, subjects + 1)))
        self._requests = [0] * subjects
        self._bytes = [0] * subjects
        self._written = dict.fromkeys(("plain", "late", "duplicate_exact", "duplicate_reformatted"), 0)
        self._rejected: dict[str, int] = {str(reason): 0 for reason in Reason}
        self._earlier: list[tuple[_File, str]] = []

    def write(self, progress: Callable[[int], None]) -> dict[str, Any]:
        for file in self._files:
            file.write("wb")
        for first in range(0, self._events, _CHUNK_EVENTS):
            last = min(first + _CHUNK_EVENTS, self._events)
            for number in range(first, last):
                self._event(number)
            for file in self._files:
                if last == self._events:
                    file.end_batch()
                file.write("ab")
            progress(last - first)
        return self._truth()

    def _event(self, number: int) -> None:
        base_us = START_US + number * SPAN_US // self._events
        kind = _KINDS[place] if (place := bisect_right(_BOUNDS, self._bits(20))) < len(_KINDS) else "plain"
        if self._events >= _OVERSIZED_FROM_EVENTS and number == self._events // 2:
            kind = "oversized"
        match kind:
            case "plain" | "late":
                self._accepted(number, base_us, late=kind == "late")
            case "duplicate" | "conflict" if self._earlier:
                self._repeat(base_us, conflict=kind == "conflict")
            case "too_late":
                age_us = ACCEPT_WITHIN_US + HOUR_US + self._below(30 * DAY_US)
                self._mistimed(number, base_us - age_us, base_us, Reason.TOO_LATE)
            case "time_in_future":
                ahead_us = FUTURE_SKEW_US + MINUTE_US + self._below(2 * HOUR_US)
                self._mistimed(number, base_us + ahead_us, base_us, Reason.TIME_IN_FUTURE)
            case "broken":
                self._broken(number, base_us)
            case "oversized":
                self._oversized(number, base_us)
            case _:
                self._accepted(number, base_us, late=False)

    def _accepted(self, number: int, base_us: int, *, late: bool) -> None:
        """A new event: on time within half a minute, or late by more than any daily window waits."""
        subject, size, draw = self._draw()
        delay_us = 26 * HOUR_US + self._below(7 * DAY_US) if late else (draw & 0x3FFFFFF) * 30 >> 6
        log_time = _time(base_us) if late or draw >> 26 & 1 else ""
        line = self._line(number, subject, size, draw >> 27, _time(base_us - delay_us), log_time)
        file = self._file_of[subject]
        if (draw >> 40 & (_PARTS - 1)) < _BATCH_PARTS and not file.batch_events:
            file.batch_events = _BATCH_EVENTS[draw >> 27 & 7]
        file.add(line)
        self._requests[subject] += 1
        self._bytes[subject] += size
        self._written["late" if late else "plain"] += 1
        self._remember(number, file, line)

    def _remember(self, number: int, file: _File, line: str) -> None:
        recent = _EARLIER_MAX // 2
        if len(self._earlier) < _EARLIER_MAX:
            self._earlier.append((file, line))
        elif number % max(1, self._events // recent) == 0:
            self._earlier[self._below(recent)] = (file, line)
        else:
            self._earlier[recent + number % recent] = (file, line)

    def _repeat(self, base_us: int, *, conflict: bool) -> None:
        file, line = self._earlier[self._below(len(self._earlier))]
        if not conflict and self._bits(1):
            file.add(line)
            self._written["duplicate_exact"] += 1
        else:
            event = json.loads(line)
            if conflict:
                self._change(event)
            file.add(self._reformat(event, base_us))
            self._written["duplicate_reformatted"] += not conflict
        self._rejected[Reason.CONFLICT if conflict else Reason.DUPLICATE] += 1

    def _change(self, event: dict[str, Any]) -> None:
        """Make it another event under the same key."""
        match self._bits(2):
            case 0:
                event["data"]["bytes"] += 1
            case 1:
                event["data"]["region"] = "us-west-2"
            case 2:
                event["data"]["status"] = 599
            case _:
                event["time"] = event["time"][:-2] + ("1Z" if event["time"][-2] == "0" else "0Z")

    def _reformat(self, event: dict[str, Any], base_us: int) -> str:
        """The same event as another producer or transport would write it, at a later log time."""
        time_us = _instant_us(event["time"])
        event["logtime"] = _time(max(base_us, time_us))
        draw = self._bits(5)
        if draw & 1:
            event["time"] = _time(time_us + 5 * HOUR_US + 30 * MINUTE_US)[:-1] + "987+05:30"
        if draw & 2:
            event = dict(reversed(event.items()))
        if draw & 4:
            event["traceparent"] = f"00-{self._bits(64):032x}-{draw:016x}-01"
        separators = (" , ", " :\t") if draw & 8 else (",", ":")
        return json.dumps(event, ensure_ascii=bool(draw & 16), separators=separators)

    def _mistimed(self, number: int, time_us: int, log_time_us: int, reason: Reason) -> None:
        subject, size, draw = self._draw()
        line = self._line(number, subject, size, draw >> 27, _time(time_us), _time(log_time_us))
        self._file_of[subject].add(line)
        self._rejected[reason] += 1

    def _broken(self, number: int, base_us: int) -> None:
        subject, size, draw = self._draw()
        reason, edit = BROKEN[(draw & 0xFFFF) % len(BROKEN)]
        line = edit(self._line(number, subject, size, draw >> 27, _time(base_us), ""))
        file = self._file_of[subject]
        if reason is Reason.MALFORMED:
            file.end_batch()  # it would make the whole batch malformed
        file.add(line)
        self._rejected[reason] += 1

    def _oversized(self, number: int, base_us: int) -> None:
        subject, size, draw = self._draw()
        self._file_of[subject].add(oversized(self._line(number, subject, size, draw >> 27, _time(base_us), "")))
        self._rejected[Reason.OVERSIZED] += 1

    def _draw(self) -> tuple[int, int, int]:
        """A subject's number, a size in bytes (from 0 to a MiB, mostly small), and more random bits."""
        draw = self._bits(160)
        subject = bisect_right(self._weights, (draw & ((1 << 53) - 1)) * self._weights[-1] >> 53)
        return subject, (draw >> 53 & 0xFFFFF) >> (draw >> 73 & 15), draw >> 77

    def _line(self, number: int, subject: int, size: int, draw: int, time: str, log_time: str) -> str:
        log_time = f'"logtime":"{log_time}",' if log_time else ""
        identity = (self._id_base + number * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        details = draw & 0xFFF
        return (
            f'{{"specversion":"1.0","id":"{identity:016x}","source":"/gateways/{REGIONS[details & 3]}",'
            f'"type":"api.request","subject":"{self._names[subject]}","time":"{time}",{log_time}'
            f'"data":{{"bytes":{size},{_DETAILS[details]}'
        )

    def _below(self, bound: int) -> int:
        return self._bits(64) * bound >> 64

    def _truth(self) -> dict[str, Any]:
        used = zip(self._names, self._requests, self._bytes, strict=True)
        return {
            "parameters": self._parameters,
            "messages": sum(file.messages for file in self._files),
            "events": sum(file.events for file in self._files),
            "accepted": sum(self._requests),
            "bytes": str(sum(self._bytes)),
            "rejected": {reason: count for reason, count in self._rejected.items() if count},
            "written": self._written,
            "files": {file.path.name: {"messages": file.messages, "events": file.events} for file in self._files},
            "subjects": {name: {"requests": str(n), "bytes": str(size)} for name, n, size in used if n},
        }


@lru_cache(maxsize=1 << 16)
def _second(seconds: int) -> str:
    return (START + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


def _time(time_us: int) -> str:
    return f"{_second((time_us - START_US) // SECOND_US)}.{time_us % SECOND_US:06d}Z"


def _instant_us(text: str) -> int:
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
