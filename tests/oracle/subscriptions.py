"""Subscriptions that events make: the rules of ADR 0015, one event at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo, available_timezones

from tests.oracle.calendars import add_months, billing_period, day_start
from tests.oracle.catalogs import Catalog

TYPE = "tallyflow.subscription"
_STRING = {"type": "string"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["action"],
    "additionalProperties": False,
    "properties": {
        "action": {"type": "string", "enum": ["create", "change", "end"]},
        "plan": _STRING,
        "start": _STRING,
        "end": _STRING,
        "timezone": _STRING,
    },
}
_NEVER = 10**18
_KEYS = {"create": {"plan", "start", "end", "timezone"}, "change": {"plan"}, "end": {"end"}}


def sound(data: dict[str, Any], plans: dict[str, Any]) -> bool:
    """Whether data that keeps to `SCHEMA` says something that can be meant."""
    others = data.keys() - {"action"}
    if not others <= _KEYS[data["action"]]:
        return False
    if data["action"] != "end" and data.get("plan") not in plans:
        return False
    if "timezone" in data and data["timezone"] not in available_timezones():
        return False
    days = {key: day(data[key]) for key in ("start", "end") if key in data}
    if None in days.values():
        return False
    return len(days) < 2 or str(days["start"]) < str(days["end"])


def day(text: str) -> date | None:
    match = re.fullmatch("([0-9]{4})-([0-9]{2})-([0-9]{2})", text)
    try:
        found = date(*map(int, match.groups())) if match else None
    except ValueError:
        return None
    return found if found and 2000 <= found.year <= 2100 else None


@dataclass
class Live:
    """A subscription that events made."""

    start: date
    end: date | None
    zone: str
    plans: list[tuple[int, str]]
    """(from when, plan)"""

    @property
    def first(self) -> int:
        return day_start(self.zone, self.start)

    @property
    def last(self) -> int:
        return _NEVER if self.end is None else day_start(self.zone, self.end)

    def plan(self, instant: int) -> str:
        return [plan for since, plan in self.plans if since <= instant][-1]


@dataclass(frozen=True)
class Terms:
    """What a usage event falls under, if a live subscription covers it."""

    plan: str
    zone: str
    start: date


class SubscriptionEvent(Protocol):
    """What is looked at of an event."""

    @property
    def subject(self) -> str: ...
    @property
    def time(self) -> int: ...
    @property
    def data(self) -> Any: ...
    @property
    def catalog(self) -> Catalog: ...


@dataclass
class Register:
    """The live subscriptions of each subject, in each partition by itself."""

    known: dict[tuple[int, str], list[Live]] = field(default_factory=dict)

    def terms(self, partition: int, event: SubscriptionEvent) -> Terms | None:
        for live in self.known.get((partition, event.subject), []):
            if live.first <= event.time < live.last:
                return Terms(live.plan(event.time), live.zone, live.start)
        return None

    def take(self, partition: int, event: SubscriptionEvent) -> dict[str, Any] | None:
        """Apply a subscription event; the row that it makes, None if it is refused."""
        lives = self.known.setdefault((partition, event.subject), [])
        action, data = event.data["action"], event.data
        if action == "create":
            return self._create(lives, event, data)
        meant = [live for live in lives if live.first <= event.time < live.last] or sorted(
            (live for live in lives if live.first > event.time), key=lambda live: live.first
        )
        if not meant:
            return None
        live = meant[0]
        return _change(live, event, data) if action == "change" else self._end(lives, live, event, data)

    def _create(self, lives: list[Live], event: SubscriptionEvent, data: Any) -> dict[str, Any] | None:
        zone = data.get("timezone") or event.catalog.zone
        start = day(data["start"]) if "start" in data else _today(zone, event.time)
        assert start is not None
        end = day(data["end"]) if "end" in data else None
        if end is not None and end <= start:
            return None
        live = Live(start, end, zone, [])
        if overlaps(live.first, live.last, lives, event):
            return None
        live.plans.append((live.first, data["plan"]))
        lives.append(live)
        return _row(event, live, data["plan"], live.first)

    def _end(self, lives: list[Live], live: Live, event: SubscriptionEvent, data: Any) -> dict[str, Any] | None:
        if "end" in data:
            end = day(data["end"])
            assert end is not None
            if end < live.start or end < _today(live.zone, event.time):
                return None
        elif event.time < live.first:
            end = live.start
        else:
            end = next(d for d in _anniversaries(live) if day_start(live.zone, d) > event.time)
            end = end if live.end is None else min(end, live.end)
        others = [other for other in lives if other is not live]
        if overlaps(live.last, day_start(live.zone, end), others, event):
            return None
        live.end = end
        if end == live.start:
            lives.remove(live)
        return _row(event, live, "", day_start(live.zone, end))


def _change(live: Live, event: SubscriptionEvent, data: Any) -> dict[str, Any] | None:
    since = live.first
    if event.time >= live.first:
        since = billing_period(live.zone, live.start, None, event.time)[1]
    if since >= live.last:
        return None
    live.plans = [(us, plan) for us, plan in live.plans if us < since] + [(since, data["plan"])]
    return _row(event, live, data["plan"], since)


def overlaps(first: int, last: int, lives: list[Live], event: SubscriptionEvent) -> bool:
    """Whether an instant of [first, last) is covered by a live subscription or a seed."""
    taken = [(live.first, live.last) for live in lives]
    for seed in event.catalog.subscriptions.get(event.subject, []):
        taken.append((day_start(seed.zone, seed.start), _NEVER if seed.end is None else day_start(seed.zone, seed.end)))
    return any(max(first, low) < min(last, high) for low, high in taken)


def _anniversaries(live: Live) -> Iterator[date]:
    """The days on which billing periods begin, after the first."""
    months = 0
    while True:
        months += 1
        yield add_months(live.start, months, live.start.day)


def _today(zone: str, instant: int) -> date:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=instant)
    return moment.astimezone(ZoneInfo(zone)).date()


def _row(event: SubscriptionEvent, live: Live, plan: str, since: int) -> dict[str, Any]:
    return {
        "subject": event.subject,
        "action": event.data["action"],
        "plan": plan,
        "start": live.start,
        "end": live.end,
        "timezone": live.zone,
        "effective_from": since,
    }
