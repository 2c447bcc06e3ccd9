"""Subscriptions made by events of the log: what such an event may say, and what it changes.

The rules are those of `docs/adr/0015-subscriptions-in-the-log.md`. An event changes what later positions of
its partition fall under, never one before it, so every outcome follows from the log alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from domain import calendar
from domain.catalog import Catalog, EventType
from domain.schema import Fault, Schema, compile_schema
from domain.shape import step
from domain.values import FOREVER_US, Segment, SubscriptionAction, SubscriptionChange

SUBSCRIPTION = "tallyflow.subscription"
"""The event type that every catalog has."""

_ALLOWED: Mapping[str, tuple[str, ...]] = {
    SubscriptionAction.CREATE: ("plan", "start", "end", "timezone"),
    SubscriptionAction.CHANGE: ("plan",),
    SubscriptionAction.END: ("end",),
}
"""By action, the keys beside it."""

_TEXT = {"type": "string"}
_DATA = compile_schema(
    {
        "type": "object",
        "required": ["action"],
        "additionalProperties": False,
        "properties": {
            "action": {"type": "string", "enum": [action.value for action in SubscriptionAction]},
            **dict.fromkeys(("plan", "start", "end", "timezone"), _TEXT),
        },
    }
)
_GET: Mapping[str, Callable[[Any], Any]] = {
    key: _DATA.getter((key,)) for key in ("action", "plan", "start", "end", "timezone")
}
_DAY = re.compile(r"20\d\d-\d\d-\d\d|2100-\d\d-\d\d", re.ASCII)


@dataclass(frozen=True, slots=True)
class _SubscriptionSchema(Schema):
    """The schema of subscription events under one catalog: some of it depends on the action and on the plans."""

    plans: frozenset[str]

    def check(self, value: object) -> Fault | None:
        found = Schema.check(self, value)
        if found is None:
            assert isinstance(value, dict)
            found = _fault(value.get, self.plans)
            return found.under("data") if found else None
        return found


def subscription_type(plans: Iterable[str]) -> EventType:
    """The event type for a catalog with these plans."""
    known = frozenset(plans)

    def refine(data: Any) -> Fault | None:
        return _fault(lambda key: _GET[key](data), known)

    schema = _SubscriptionSchema(_DATA.shape, _DATA.type, refine, known)
    return EventType(SUBSCRIPTION, schema, "A subject's subscription begins, changes its plan or ends.")


def _fault(get: Callable[[str], Any], plans: frozenset[str]) -> Fault | None:
    """What is wrong with data that has the right keys and types; the first in a fixed order."""
    action = get("action")
    allowed = _ALLOWED[action]
    for key in ("plan", "start", "end", "timezone"):
        if get(key) is not None and key not in allowed:
            return Fault(step(key), f"has no place in {action}", f"leave it out; {action} takes {', '.join(allowed)}")
    plan, zone = get("plan"), get("timezone")
    if plan is None and "plan" in allowed:
        return Fault(step("plan"), "is missing", f"{action} needs it")
    if plan is not None and plan not in plans:
        return Fault(step("plan"), f"{plan!r} is not in the catalog")
    for key in ("start", "end"):
        if get(key) is not None and _day(get(key)) is None:
            return Fault(step(key), f"expected a day such as 2026-01-15, 2000 to 2100, got {get(key)!r}")
    if zone is not None and zone not in calendar.zone_names():
        return Fault(step("timezone"), f"{zone!r} is no time zone")
    if get("start") is not None and get("end") is not None and get("end") <= get("start"):
        return Fault(step("end"), f"{get('end')} is not after the start {get('start')}")
    return None


def _day(text: str) -> date | None:
    if not _DAY.fullmatch(text):
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Live:
    """One subscription that events made, as they have left it."""

    start: date
    end: date | None
    timezone: str
    plans: tuple[tuple[int, str], ...]
    """Each from an instant on, ascending; the first from the first instant."""

    def coverage(self) -> tuple[int, int]:
        return _coverage(self.timezone, self.start, self.end)

    def segments(self) -> tuple[Segment, ...]:
        """The spans of one plan each."""
        _, end_us = self.coverage()
        starts = [us for us, _ in self.plans]
        ends = [min(us, end_us) for us in (*starts[1:], end_us)]
        return tuple(
            Segment(start, end, plan, self.timezone, self.start.day, FOREVER_US)
            for (start, plan), end in zip(self.plans, ends, strict=True)
            if start < end
        )


def _coverage(zone: str, start: date, end: date | None) -> tuple[int, int]:
    start_us, end_us = calendar.coverage_us(zone, start, end)
    return start_us, FOREVER_US if end_us is None else end_us


Lives = tuple[Live, ...]
"""A subject's live subscriptions, ascending by start; none ends on its first day."""


def segments_of(lives: Lives) -> tuple[Segment, ...]:
    """All spans of a subject's live subscriptions."""
    return tuple(segment for live in lives for segment in live.segments())


@dataclass(frozen=True, slots=True)
class Occasion:
    """Where and when a subscription event stands."""

    offset: int
    element: int
    log_time_us: int
    time_us: int
    subject: str


def judge(lives: Lives, catalog: Catalog, data: Any, at: Occasion) -> SubscriptionChange | str:
    """What a valid subscription event changes, or why it is refused.

    Args:
        lives: The subject's live subscriptions before the event.
        catalog: In force at its log time.
        data: Its decoded data.
        at: Its place, subject and time.
    """
    match _GET["action"](data):
        case SubscriptionAction.CREATE:
            return _create(lives, catalog, data, at)
        case SubscriptionAction.CHANGE:
            return _change(lives, data, at)
        case _:
            return _end(lives, catalog, data, at)


def _create(lives: Lives, catalog: Catalog, data: Any, at: Occasion) -> SubscriptionChange | str:
    zone = _GET["timezone"](data) or catalog.timezone
    start = _day(_GET["start"](data) or "") or calendar.local_day(zone, at.time_us)
    end = _day(_GET["end"](data) or "")
    if end is not None and end <= start:
        return f"the end {end} is not after the start {start}"
    plan = _GET["plan"](data)
    start_us, end_us = _coverage(zone, start, end)
    rival = _rival(lives, catalog, at.subject, start_us, end_us)
    if rival:
        return f"overlaps {rival}: end that one first, or begin after it"
    return _row(at, SubscriptionAction.CREATE, plan, Live(start, end, zone, ((start_us, plan),)), start_us)


def _change(lives: Lives, data: Any, at: Occasion) -> SubscriptionChange | str:
    meant = _meant(lives, at.time_us)
    if meant is None:
        return _NO_SUBSCRIPTION
    start_us, end_us = meant.coverage()
    from_us = start_us
    if start_us <= at.time_us:
        _, from_us = calendar.billing_period(meant.timezone, meant.start, None, at.time_us)
    if from_us >= end_us:
        return f"the subscription ends on {meant.end}, before another billing period begins"
    return _row(at, SubscriptionAction.CHANGE, _GET["plan"](data), meant, from_us)


def _end(lives: Lives, catalog: Catalog, data: Any, at: Occasion) -> SubscriptionChange | str:
    meant = _meant(lives, at.time_us)
    if meant is None:
        return _NO_SUBSCRIPTION
    end = _day(_GET["end"](data) or "")
    if end is None:
        end = _next_day(meant, at.time_us)
    elif end < meant.start or end < calendar.local_day(meant.timezone, at.time_us):
        return f"the end {end} is before the first day {meant.start}, or before the day of the event"
    _, old_us = meant.coverage()
    ended = replace(meant, end=end)
    _, end_us = ended.coverage()
    others = tuple(live for live in lives if live is not meant)
    rival = _rival(others, catalog, at.subject, old_us, end_us)
    if rival:
        return f"until {end} it would overlap {rival}"
    return _row(at, SubscriptionAction.END, "", ended, end_us)


_NO_SUBSCRIPTION = "no subscription that events made covers the event's time or begins after it"


def _next_day(live: Live, time_us: int) -> date:
    """The day on which a subscription ends if none is named."""
    if time_us < live.coverage()[0]:
        return live.start
    _, next_us = calendar.billing_period(live.timezone, live.start, None, time_us)
    day = calendar.local_day(live.timezone, next_us)
    return day if live.end is None else min(day, live.end)


def _meant(lives: Lives, time_us: int) -> Live | None:
    """The subscription that covers a time, else the first that begins after it."""
    return next((live for live in lives if time_us < live.coverage()[1]), None)


def _rival(lives: Lives, catalog: Catalog | None, subject: str, start_us: int, end_us: int) -> str:
    """What else covers part of a span; "" for nothing."""
    for live in lives:
        low, high = live.coverage()
        if max(low, start_us) < min(high, end_us):
            return f"the subscription from {live.start} until {live.end or 'further notice'}"
    for seed in catalog.subscriptions.get(subject, ()) if catalog is not None else ():
        low, high = _coverage(seed.timezone, seed.start, seed.end)
        if max(low, start_us) < min(high, end_us):
            return f"the catalog's subscription from {seed.start} until {seed.end or 'further notice'}"
    return ""


def check_catalog(subscribed: Mapping[str, Iterable[Lives]], old: Catalog, new: Catalog, since_us: int) -> list[Fault]:
    """What subscriptions that events made forbid a catalog to become the next one.

    Args:
        subscribed: By subject, its subscriptions in each partition.
        old: The catalog in force.
        new: The catalog to follow it.
        since_us: The log time from which the new one would hold.
    """
    faults: list[Fault] = []
    on_gone: dict[str, list[str]] = {}
    for subject, some in subscribed.items():
        lives = tuple(live for one in some for live in one)
        for seed in new.subscriptions.get(subject, ()):
            rival = _rival(lives, None, subject, *_coverage(seed.timezone, seed.start, seed.end))
            if rival and seed not in old.subscriptions.get(subject, ()):
                path = f"subscriptions ({subject} from {seed.start})"
                faults.append(
                    Fault(path, f"overlaps {rival}, which events made", "leave it out, or end that one first")
                )
        for segment in segments_of(lives):
            if segment.end_us > since_us and segment.plan not in new.plans:
                on_gone.setdefault(segment.plan, []).append(subject)
    for plan, subjects in sorted(on_gone.items()):
        count = len(set(subjects))
        message = f"is gone, but events subscribed {count} subject{'s' * (count > 1)} to it, such as {min(subjects)!r}"
        faults.append(Fault(f"plans.{plan}", message, "keep it until they are on another plan"))
    return faults


def _row(at: Occasion, action: SubscriptionAction, plan: str, live: Live, from_us: int) -> SubscriptionChange:
    return SubscriptionChange(
        at.offset, at.element, at.log_time_us, at.subject, action, plan, live.start, live.end, live.timezone, from_us
    )


def applied(lives: Lives, change: SubscriptionChange) -> Lives:
    """A subject's subscriptions after a change that was accepted."""
    if change.action is SubscriptionAction.CREATE:
        made = Live(change.start, change.end, change.timezone, ((change.effective_from_us, change.plan),))
        return tuple(sorted((*lives, made), key=lambda live: live.coverage()[0]))
    after = []
    for live in lives:
        if (live.start, live.timezone) != (change.start, change.timezone):
            after.append(live)
        elif change.action is SubscriptionAction.CHANGE:
            before = tuple(one for one in live.plans if one[0] < change.effective_from_us)
            after.append(replace(live, plans=(*before, (change.effective_from_us, change.plan))))
        elif change.end != change.start:
            after.append(replace(live, end=change.end))
    return tuple(after)
