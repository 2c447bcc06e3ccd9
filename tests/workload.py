"""Input that leaves nothing out: a catalog with every feature, and files with every kind of good and bad line.

The same arguments give the same bytes. A subject's events and their repeats share a file. Numbers
are written as text from the start, so that no float ever stands between the seed and the file.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests import workload_bad

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US
SKEW_US = 5 * MINUTE_US
ACCEPT_WITHIN_US = 35 * DAY_US
SPAN_US = 100 * DAY_US


def instant(text: str) -> int:
    """Microseconds since 1970 of an ISO string."""
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


START = instant("2026-02-20T00:00:00+00:00")
HOT = tuple(
    instant(text)
    for text in (
        "2026-03-08T07:00:00+00:00",  # New York springs forward
        "2026-03-08T05:00:00+00:00",  # Havana: 00:00 becomes 01:00
        "2026-03-22T02:00:00+00:00",  # Casablanca, after Ramadan
        "2026-03-29T01:00:00+00:00",  # Berlin, London
        "2026-04-04T15:00:00+00:00",  # Lord Howe falls back by half an hour
        "2026-04-05T03:00:00+00:00",  # Santiago: 24:00 becomes 23:00
        "2026-04-23T22:00:00+00:00",  # Cairo: 00:00 becomes 01:00
        "2026-11-01T05:00:00+00:00",  # Havana: 01:00 becomes 00:00
        "2026-11-01T06:00:00+00:00",  # New York falls back
        "2026-03-31T18:15:00+00:00",  # the month's end in Kathmandu
        "2026-02-28T00:00:00+00:00",
        "2026-03-01T05:00:00+00:00",
        "2026-03-31T04:00:00+00:00",  # a billing period of New York's 31st
        "2026-04-30T04:00:00+00:00",
        "2026-03-31T23:00:00+00:00",
        "2026-04-09T22:00:00+00:00",  # a subscription ends
        "2026-05-31T00:00:00+00:00",
    )
)
SUBJECTS = (
    "cust-ny", "cust-lordhowe", "cust-havana", 'cust "{é}"\n🙂', "cust-berlin", "cust-1", "cust-kathmandu",
    "cust-ending", "cust-santiago", "cust-switch", "cust-leap", "{braces}:*?", "nul\0and\u2028", "cust-bare",
    'a"b\\c', "顧客-👩‍👩‍👧", " ", "-", "null", "e\u0301", "\u00e9",
)  # fmt: skip
SUBSCRIPTIONS = 0.2
"""How many subscription events there are for each event."""
PLANS = ("starter", "pro", "lab", "bare")
ZONES = ("America/New_York", "Asia/Kathmandu", "America/Havana", "Pacific/Kiritimati", "Europe/London", "UTC")
SOURCES = ("svc-a", "svc/β", "https://example.com/x?y=1#z", 'urn:"quoted"\t')
TEXTS = ("", 'a"b', "new\nline", "{x}", "日本", "🙂", "nul\0", "\u2028", '["a","b"]', "back\\slash", "\x7f", " pad ")
REGIONS = ("eu-west-1",) * 6 + ("us-east-1",) * 4 + ("new\nline",) * 2 + TEXTS


class Integer(str):
    """A JSON integer as text."""


class Decimal(str):
    """A JSON number as text: a `number` property's, whose formatting does not matter."""


@dataclass(frozen=True)
class Event:
    source: str
    id: str
    type: str
    subject: str
    time: int | None
    log_time: int | None
    data: dict[str, Any]


def kitchen_sink_catalog() -> str:
    """A catalog (YAML) that uses every feature."""
    return (Path(__file__).parent / "kitchen_sink.yaml").read_text(encoding="utf-8")


def generate(seed: int, events: int, subjects: int, files: int) -> list[bytes]:
    """The contents of `files` NDJSON files with about `events` good events, and every bad line besides.

    The last line of the first file is cut off in mid-word; that of the second is whole, but for its `\\n`.
    """
    rng = random.Random(seed)
    names = [SUBJECTS[n] if n < len(SUBJECTS) else f"cust-{n}" for n in range(subjects)]
    writers = [
        _Writer(rng, number, [*names[number::files], f"cust-{number}-new", f"cust-{number}-newer"])
        for number in range(files)
    ]
    billing = random.Random(f"{seed} subscriptions")
    for step in range(events):
        now = START + step * SPAN_US // events
        rng.choice(writers).step(now)
        if billing.random() < SUBSCRIPTIONS:
            billing.choice(writers).subscribe(billing, now)
    for number, recipe in enumerate(workload_bad.recipes()):
        writer = writers[number % files]
        writer.insert(recipe(writer.good))
    for writer in writers:
        writer.finish()
    contents = [b"".join(line + b"\n" for line in writer.lines) for writer in writers]
    contents[0] += b'{"specversion":"1.0","id":"cut off'
    return [contents[0], *(content[:-1] if n == 0 else content for n, content in enumerate(contents[1:]))]


class _Writer:
    """Writes one file."""

    zones: Sequence[str] = ZONES
    """Of subscriptions that events make."""

    def __init__(self, rng: random.Random, number: int, subjects: list[str]) -> None:
        self.rng = rng
        self.number = number
        self.subjects = subjects
        self.lines: list[bytes] = []
        self.written: list[tuple[Event, bytes]] = []
        self.subscribed: list[Event] = []
        self.ids = 0

    def step(self, now: int) -> None:
        """Append one line: an event, a repeat in some disguise, or a batch."""
        kind = self.rng.randrange(100) if self.written else 99
        if kind < 5:
            line = self._repeated()[1]
        elif kind < 10:
            line = self._write(self._reformatted(self._repeated()[0]))
        elif kind < 15:
            line = self._write(self._conflicting(self._repeated()[0]))
        elif kind < 17:
            line = self._write(self._reused(self._repeated()[0]))
        elif kind < 24:
            line = self._batch(now)
        else:
            line = self._write(self._event(now))
        self.lines.append(line)

    def subscribe(self, rng: random.Random, now: int) -> None:
        """Append a subscription event, which may or may not fit; now and then a repeat, or another with its key."""
        if self.subscribed and rng.random() < 0.1:
            again = rng.choice(self.subscribed)
            event = again if rng.random() < 0.5 else replace(again, data=again.data | {"action": "end"})
        else:
            time = now + rng.choice((0, 0, 0, -HOUR_US, -rng.randrange(9 * DAY_US), -rng.randrange(34 * DAY_US)))
            event = Event(
                source="billing",
                id=f"{self.number}-sub-{len(self.subscribed)}",
                type="tallyflow.subscription",
                subject=rng.choice(self.subjects),
                time=time,
                log_time=rng.choice((None, now, now + HOUR_US)),
                data=_subscription(rng, now, self.zones),
            )
            if rng.random() < 0.9:  # mostly of those who have none of the catalog's, and have begun if it is to change
                others = self.subjects[-3:]
                begun = [e.subject for e in self.subscribed if e.data["action"] == "create"]
                event = replace(event, subject=rng.choice((event.data["action"] != "create" and begun) or others))
            self.subscribed.append(event)
        self.lines.append(self._write(event) if rng.random() < 0.9 else b"[" + self._write(event) + b"]")

    def insert(self, line: bytes) -> None:
        """Put a line anywhere but at the end."""
        self.lines.insert(self.rng.randrange(len(self.lines) or 1), line)

    def finish(self) -> None:
        """Put in the batches that must be there (broken, with a bad element, large), and end with an event."""
        for element in workload_bad.ELEMENTS:
            self.insert(b"[" + self.good({}) + b" ,\t" + element + b"," + self.good({}) + b" ]\r")
        for broken in (b"[%b,%b,]", b"[%b %b]", b"[%b,NaN,%b]", b"[%b,\xff,%b]", b"[%b,%b", b"[%b,%b}", b"[%b],%b"):
            self.insert(broken % (self.good({}), self.good({})))
        if self.number == 0:
            large = ['{"bytes":7,"region":"large","pad":"%s"}' % ("x" * size) for size in (600_000, 1_100_000, 600_000)]
            self.insert(b"[" + b",".join(self.good({"data": data}) for data in large) + b"]")
        self.lines.append(self._write(self._event(START + SPAN_US)))

    def good(self, changes: dict[str, str | None]) -> bytes:
        """A fresh api.request with some attributes' JSON texts replaced, or left out (None)."""
        now = START + self.rng.randrange(SPAN_US)
        event = replace(self._event(now), type="api.request", data=self._api_request(), time=now, log_time=None)
        attributes: dict[str, str | None] = {name: _json(value) for name, value in _attributes(event, _zulu).items()}
        attributes |= changes
        return _object(attributes).encode()

    def _write(self, event: Event) -> bytes:
        line = self._render(event)
        self.written.append((event, line))
        return line

    def _repeated(self) -> tuple[Event, bytes]:
        near = self.rng.random() < 0.5
        return self.rng.choice(self.written[-20:] if near else self.written)

    def _event(self, now: int) -> Event:
        rng = self.rng
        self.ids += 1
        time = self._time(now)
        type_, data = rng.choice(
            [("api.request", self._api_request)] * 5
            + [("compute.run", self._compute_run)] * 2
            + [("storage.sample", self._storage_sample), ("user.login", self._user_login)] * 2
            + [("heartbeat", self._heartbeat)]
        )
        tail = rng.choice(TEXTS) if rng.random() < 0.1 else ""
        log_time = self._log_time(time)
        dated = log_time is None or rng.random() < 0.9
        return Event(
            source=rng.choice(SOURCES),
            id=f"{self.number}-{self.ids}{tail}",
            type=type_,
            subject=rng.choice(self.subjects),
            time=time if dated else None,
            log_time=log_time,
            data=data(),
        )

    def _time(self, now: int) -> int:
        rng = self.rng
        kind = rng.random()
        if kind < 0.75:
            return now + rng.randrange(-6 * HOUR_US, 6 * HOUR_US)
        if kind < 0.95:
            edge = rng.choice(HOT) + rng.choice((0, 0, 30, -30, 60, -60)) * MINUTE_US
            return edge + rng.choice((0, -1, 1, rng.randrange(-HOUR_US, HOUR_US)))
        return START + rng.randrange(SPAN_US)

    def _log_time(self, time: int) -> int | None:
        """None: there is no `logtime`. Every rule's limit is met exactly and passed by one microsecond."""
        rng = self.rng
        if rng.random() < 0.5:
            return None
        delays = (
            [rng.randrange(120 * SECOND_US)] * 12
            + [rng.randrange(HOUR_US, 20 * DAY_US), rng.randrange(HOUR_US, 8 * HOUR_US), rng.randrange(2 * HOUR_US)] * 2
            + [ACCEPT_WITHIN_US, ACCEPT_WITHIN_US + 1, ACCEPT_WITHIN_US + rng.randrange(9 * DAY_US)]
            + [-SKEW_US, -SKEW_US - 1, -rng.randrange(SKEW_US), -rng.randrange(3 * DAY_US)]
            + [-time % HOUR_US + HOUR_US, -time % HOUR_US + HOUR_US - 1, -time % DAY_US]  # on windows' and graces' ends
        )
        return time + rng.choice(delays)

    def _some(self, values: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name in required or self.rng.random() < 0.7}

    def _amount(self, largest: int) -> Decimal:
        digits = self.rng.choice((0, 0, 1, 2, 6, 12))
        fraction = "".join(self.rng.choice("0123456789") for _ in range(digits))
        return Decimal(f"{self.rng.randrange(largest)}" + (f".{fraction}" if digits else ""))

    def _api_request(self) -> dict[str, Any]:
        rng = self.rng
        sign = rng.choice(("", "", "", "-"))
        values: dict[str, Any] = {
            "bytes": Integer(rng.choice((0, 500, 1000, 1000, 2500, rng.randrange(10_000)))),
            "region": rng.choice(REGIONS),
            "method": rng.choice(("GET", "GET", "POST", "PUT", "ge\nt")),
            "status": Integer(rng.choice((200, 200, 404, 500, 503, 599))),
            "cost": Decimal(sign + self._amount(20)),
            "cached": rng.random() < 0.5,
            "tags": [rng.choice(TEXTS) for _ in range(rng.randrange(3))],
            "note": rng.choice((None, "n")),
            "client": self._some({"os": rng.choice(("linux", "mac", "")), "app": {"version": f"1.{rng.randrange(4)}"}}),
            "undeclared": rng.choice(("x", Integer(1), Decimal("1e999"), [None, {}])),
        }
        return self._some(values, ("bytes", "region"))

    def _compute_run(self) -> dict[str, Any]:
        rng = self.rng
        values: dict[str, Any] = {
            "seconds": self._amount(rng.choice((1, 10, 400))),
            "machine": rng.choice(("m1", "gpu42", "c0")),
            "zone": rng.choice("abc"),
            "gpu": rng.random() < 0.5,
            "started": "2026-03-01T10:00:00+01:00",
            "credits": Decimal(rng.choice(("-", "")) + self._amount(999)),
            "priority": Integer(rng.choice("123")),
        }
        return self._some(values, ("seconds", "machine"))

    def _storage_sample(self) -> dict[str, Any]:
        bucket = self.rng.choice(("main", "main", "🙂" * 12, "x"))
        level = self.rng.choice((None, Integer(100), Integer(-100), Integer(self.rng.randrange(-50, 50))))
        return self._some({"gigabytes": self._amount(60), "bucket": bucket, "level": level}, ("gigabytes",))

    def _user_login(self) -> dict[str, Any]:
        rng = self.rng
        user = rng.choice((f"user-{rng.randrange(9)}", rng.choice(TEXTS)))
        device = Integer(rng.choice((0, "-0", -7, rng.randrange(5))))
        trusted = rng.random() < 0.5
        return self._some({"user": user, "method": "sso", "device": device, "trusted": trusted}, ("user",))

    def _heartbeat(self) -> dict[str, Any]:
        return self._some({"beat": Integer(self.rng.randrange(-3, 10)), "extra": {}})

    def _reformatted(self, event: Event) -> Event:
        """The same event for who bills, in other words; `_render` adds what else may vary."""
        data = {name: _other_form(value) if isinstance(value, Decimal) else value for name, value in event.data.items()}
        if event.type != "compute.run":
            data["undeclared"] = self.rng.choice(TEXTS)
        if event.time is None or event.log_time is None or self.rng.random() < 0.7:
            return replace(event, data=data)
        return replace(event, data=data, log_time=event.log_time + self.rng.randrange(HOUR_US))

    def _conflicting(self, event: Event) -> Event:
        """The same key with something else to bill."""
        rng = self.rng
        other = self._event(event.time or START)
        match rng.randrange(4):
            case 0 if event.time is not None:
                return replace(event, time=event.time - 1)
            case 1:
                return replace(event, subject=rng.choice(self.subjects))
            case 2:
                return replace(event, type=other.type, data=other.data)
            case _:
                gone = rng.choice(sorted(event.data) or [""])
                return replace(event, data={name: value for name, value in event.data.items() if name != gone})

    def _reused(self, event: Event) -> Event:
        """The same key about two generations of claims later, where it may count as new again."""
        later = self.rng.choice((34, 36, 70, 71, 106)) * DAY_US
        time = event.time if event.time is not None else event.log_time
        assert time is not None
        return replace(event, time=time + later, log_time=None)

    def _batch(self, now: int) -> bytes:
        elements = [self._write(self._event(now)) for _ in range(self.rng.randint(1, 5))]
        if self.rng.random() < 0.3:
            elements.append(self.rng.choice(elements))
        if self.rng.random() < 0.3:
            elements.insert(0, self.rng.choice(workload_bad.ELEMENTS))
        return self.rng.choice((b"[%b]", b" [ %b]", b"[%b\t]\r")) % self.rng.choice((b",", b" ,\r ")).join(elements)

    def _render(self, event: Event) -> bytes:
        """One of the ways to write an event down."""
        rng = self.rng
        attributes = _attributes(event, self._timestamp)
        if rng.random() < 0.2:
            attributes |= {"datacontenttype": "application/json", "traceparent": rng.choice(TEXTS)}
        items = list(attributes.items())
        data = list(event.data.items())
        if rng.random() < 0.5:
            rng.shuffle(items)
            rng.shuffle(data)
        space = rng.choice(("", "", "", " ", "\t", "\r"))
        ascii_only = rng.random() < 0.5
        pairs = ((name, dict(data) if name == "data" else value) for name, value in items)
        return _object({name: _json(value, space, ascii_only) for name, value in pairs}, space).encode()

    def _timestamp(self, time: int) -> str:
        """One of the ways to write an instant down; what is finer than a microsecond is cut."""
        rng = self.rng
        if rng.random() < 0.6:
            return _zulu(time)
        offset = rng.choice((0, 60, -300, 345, -719, 23 * 60 + 59, -(23 * 60 + 59)))
        local = EPOCH + timedelta(microseconds=time, minutes=offset)
        fraction = f".{local.microsecond:06d}" + rng.choice(("", "0", "999", "9999999"))
        text = local.strftime("%Y-%m-%d") + rng.choice("Tt") + local.strftime("%H:%M:%S") + fraction
        if offset == 0:
            return text + rng.choice(("z", "-00:00"))
        return text + f"{'-' if offset < 0 else '+'}{abs(offset) // 60:02d}:{abs(offset) % 60:02d}"


def _subscription(rng: random.Random, now: int, zones: Sequence[str]) -> dict[str, Any]:
    """The data of a subscription event: often about today, sometimes days before or after it."""

    def day(*distances: int) -> str:
        return (EPOCH + timedelta(microseconds=now, days=rng.choice(distances))).date().isoformat()

    plan = rng.choice(PLANS)
    match rng.choice(("create", "create", "change", "change", "end")):
        case "create":
            start = day(-60, -9, -1, 0, 0, 0, 1, 6)
            data = {"action": "create", "plan": plan}
            data |= {"start": start} if rng.random() < 0.6 else {}
            data |= {"end": day(2, 7, 12, 20, 33, 70)} if rng.random() < 0.7 else {}
            return data | ({"timezone": rng.choice(zones)} if rng.random() < 0.6 else {})
        case "change":
            return {"action": "change", "plan": plan}
        case _:
            return {"action": "end"} | ({"end": day(-1, 0, 0, 1, 4, 15)} if rng.random() < 0.7 else {})


def _attributes(event: Event, timestamp: Callable[[int], str]) -> dict[str, Any]:
    attributes = {"specversion": "1.0", "id": event.id, "source": event.source, "type": event.type}
    attributes["subject"] = event.subject
    times = {"time": event.time, "logtime": event.log_time}
    attributes |= {name: timestamp(time) for name, time in times.items() if time is not None}
    return attributes | {"data": event.data}


def _zulu(time: int) -> str:
    """RFC 3339 with as few digits as the instant needs."""
    moment = EPOCH + timedelta(microseconds=time)
    fraction = f".{moment.microsecond:06d}".rstrip("0") if moment.microsecond else ""
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"


def _other_form(number: Decimal) -> Decimal:
    """Another way to write the same number."""
    if "e" in number:
        return number
    return Decimal(number + ("0" if "." in number else ".000") + ("" if len(number) % 2 else "e0"))


def _json(value: Any, space: str = "", ascii_only: bool = False) -> str:
    """JSON text, in which a number is written as it is."""
    if isinstance(value, Integer | Decimal):
        return str(value)
    if isinstance(value, dict):
        return _object({name: _json(item, space, ascii_only) for name, item in value.items()}, space)
    if isinstance(value, list):
        return "[" + ("," + space).join(_json(item, space, ascii_only) for item in value) + space + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


def _object(members: dict[str, str | None], space: str = "") -> str:
    """An object of JSON texts, without the absent ones (None)."""
    pairs = (f"{json.dumps(name)}{space}:{space}{text}" for name, text in members.items() if text is not None)
    return "{" + space + ("," + space).join(pairs) + "}" + space
