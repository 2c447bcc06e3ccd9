"""One pass over all files, and every row that follows from it.

`compute` gives `Tables`: for each table of the design a dict from the primary key's values, in the
key's order, to the other columns (a plain set where there are none). Values are plain Python: `str`,
`int`, `bytes`, `Decimal`, `date` (booked_on); every instant is `int` microseconds since 1970 UTC; a
position is `(log_topic, log_partition, log_offset, log_index)`.
"""

from __future__ import annotations

import decimal
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Protocol

from tests.oracle import calendars, pricing
from tests.oracle.calendars import EPOCH_DATE, Span
from tests.oracle.catalogs import Catalog, History, Meter, exact, load, text_form, where_of
from tests.oracle.events import NOWHERE, Claims, Event, Position, Rejected, attributes_of, lines, payloads, read
from tests.oracle.subscriptions import TYPE, Register

Row = dict[str, Any]
Key = tuple[Any, ...]
DAY_US = 86_400_000_000


@dataclass
class Tables:
    """Every row of every table; the comment gives the key."""

    events: dict[Key, Row] = field(default_factory=dict)  # log_topic, log_partition, log_offset, log_index
    rejects: dict[Key, Row] = field(default_factory=dict)  # the same
    subscriptions: dict[Key, Row] = field(default_factory=dict)  # the same
    progress: dict[Key, Row] = field(default_factory=dict)  # log_topic, log_partition
    usage: dict[Key, Row] = field(default_factory=dict)
    # meter, subject, window_start, window_end, dimensions_key, booked_on
    usage_members: set[Key] = field(default_factory=set)
    # meter, subject, window_start, window_end, dimensions_key, member
    rated_usage: dict[Key, Row] = field(default_factory=dict)  # subject, plan, price, period_start, period_end
    quotas: dict[Key, Row] = field(default_factory=dict)  # subject, plan, feature, period_start
    signals: dict[Key, Row] = field(default_factory=dict)  # type, subject, feature, period_start, threshold


@dataclass
class Input:
    """One event as an input of one meter."""

    event: Event
    position: Position
    meter: Meter
    value: Any
    """Decimal; for unique the member's text; for count None."""
    labels: dict[str, str]


@dataclass
class Total:
    """A set of inputs of one meter, from which its aggregate can be read."""

    count: int = 0
    sum: Decimal = Decimal(0)
    least: Decimal | None = None
    greatest: Decimal | None = None
    latest: tuple[int, Position, Decimal] | None = None
    members: set[str] = field(default_factory=set)
    catalog_version: int = 0
    """The greatest among its events."""

    def add(self, one: Input) -> None:
        self.count += 1
        self.catalog_version = max(self.catalog_version, one.event.catalog.version)
        if isinstance(one.value, str):
            self.members.add(one.value)
        elif one.value is not None:
            value: Decimal = one.value
            self.sum += value
            self.least = value if self.least is None else min(self.least, value)
            self.greatest = value if self.greatest is None else max(self.greatest, value)
            candidate = (one.event.time, one.position, value)
            self.latest = candidate if self.latest is None else max(self.latest, candidate)

    def aggregate(self, aggregation: str) -> Decimal:
        """What `usage.value` holds: for avg the sum."""
        match aggregation:
            case "count":
                return Decimal(self.count)
            case "sum" | "avg":
                return self.sum
            case "min":
                return self.least or Decimal(0)
            case "max":
                return self.greatest or Decimal(0)
            case "latest":
                return self.latest[2] if self.latest else Decimal(0)
            case "unique":
                return Decimal(len(self.members))
        raise AssertionError(f"no such aggregation: {aggregation}")

    def quantity(self, aggregation: str) -> Decimal:
        """What is priced: for avg the mean, rounded half-even to 12 decimals."""
        if aggregation == "avg" and self.count:
            return Decimal(round(Fraction(self.sum) * 10**12 / self.count)).scaleb(-12)
        return self.aggregate(aggregation)


def compute(
    catalogs: list[tuple[int, str]], files: list[tuple[int, bytes]], log_time_reached: int | None = None
) -> Tables:
    """Every row of a complete file run.

    Args:
        catalogs: versions 1, 2 ... as (log time from which it holds, YAML).
        files: (partition, whole uncompressed content).
        log_time_reached: Of a log with monotone log times, the latest one; it says which periods are over.
    """
    history = History([load(number, *catalog) for number, catalog in enumerate(catalogs, start=1)])
    with decimal.localcontext() as context:
        context.prec = 200
        context.traps[decimal.Inexact] = True
        run = _Run(history)
        tables = run.read_files(files)
        tables.signals.update(run.resets(log_time_reached))
        return tables


class Message(Protocol):
    """A record of a log, as a broker gives it."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def log_time_us(self) -> int: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


def compute_log(catalogs: list[tuple[int, str]], topic: str, messages: Sequence[Message]) -> Tables:
    """Every row of a log without transactions, whose headers are well-formed.

    Args:
        catalogs: as for `compute`.
        topic: the name of the log.
        messages: all of them. In which order partitions were read decides only where an id was first that is in
            several of them.
    """
    history = History([load(number, *catalog) for number, catalog in enumerate(catalogs, start=1)])
    with decimal.localcontext() as context:
        context.prec = 200
        context.traps[decimal.Inexact] = True
        run = _Run(history)
        tables = run.read_log(topic, messages)
        tables.signals.update(run.resets(max((message.log_time_us for message in messages), default=0)))
        return tables


class _Run:
    def __init__(self, history: History) -> None:
        self.history = history
        self.tables = Tables()
        self.claims = Claims()
        self.register = Register()
        self.usage: dict[Key, Total] = {}
        self.rated: dict[Key, Total] = {}
        self.buckets: dict[tuple[Key, str | None], Total] = {}
        self.amounts: dict[Key, dict[str, Decimal]] = {}
        self.quotas: dict[Key, Total] = {}
        self.starts: dict[tuple[str, str], set[int]] = {}
        """By subject and feature, where the periods begin that have events."""

    def read_files(self, files: list[tuple[int, bytes]]) -> Tables:
        for partition, content in sorted(files):
            messages = lines(content)
            events = 0
            for offset, line in enumerate(messages):
                for index, payload in enumerate(payloads(line)):
                    self._take(payload, ("file", partition, offset, index))
                    events += 1
            if messages:
                row = {"next_offset": len(messages), "messages": len(messages), "events": events, "log_time": 0}
                self.tables.progress["file", partition] = row
        return self.tables

    def read_log(self, topic: str, messages: Sequence[Message]) -> Tables:
        for message in sorted(messages, key=lambda message: (message.partition, message.offset)):
            row = self.tables.progress.setdefault(
                (topic, message.partition), {"next_offset": 0, "messages": 0, "events": 0, "log_time": 0}
            )
            value = message.value or b""
            attributes = attributes_of(message.headers)
            for index, payload in enumerate([value] if attributes else payloads(value)):
                position = (topic, message.partition, message.offset, index)
                self._take(payload, position, message.log_time_us, attributes)
                row["events"] += 1
            row["next_offset"] = message.offset + 1
            row["messages"] += 1
            row["log_time"] = max(row["log_time"], message.log_time_us)
        return self.tables

    def _take(
        self,
        payload: bytes,
        position: Position,
        stamped: int | None = None,
        attributes: dict[str, str] | None = None,
    ) -> None:
        outcome = read(payload, self.history, stamped, attributes)
        if isinstance(outcome, Event):
            outcome = self.claims.claim(outcome, position) or outcome
        if isinstance(outcome, Event):
            outcome = self._subscribe(outcome, position)
        if isinstance(outcome, Rejected):
            self.tables.rejects[position] = {
                "log_time": outcome.log_time,
                "reason": outcome.reason,
                "source": outcome.source,
                "id": outcome.id,
                "subject": outcome.subject,
                "first_position": outcome.first_position,
                "payload": b"" if outcome.reason == "duplicate" else payload,
            }
            return
        self.tables.events[position] = {
            "log_time": outcome.log_time,
            "source": outcome.source,
            "id": outcome.id,
            "type": outcome.type,
            "subject": outcome.subject,
            "time": outcome.time,
            "attributes": attributes or {},
            "payload": payload,
        }
        for meter in outcome.catalog.meters:
            one = as_input(meter, outcome, position)
            if one is not None:
                self._use(one)
                self._rate(one)
                self._watch(one)

    def _subscribe(self, event: Event, position: Position) -> Event | Rejected:
        """Apply a subscription event; of another one, say what it falls under."""
        if event.type != TYPE:
            return replace(event, terms=self.register.terms(position[1], event))
        row = self.register.take(position[1], event)
        if row is None:
            return event.rejected("subscription_invalid", position)
        self.tables.subscriptions[position] = {"log_time": event.log_time, **row}
        return event

    def _use(self, one: Input) -> None:
        """Add an input to its meter's window."""
        meter, event = one.meter, one.event
        start, end = calendars.window(zone_of(event), meter.window, event.time)
        late = event.log_time >= end + meter.grace_us
        booked_on = EPOCH_DATE + timedelta(days=event.log_time // DAY_US) if late else EPOCH_DATE
        labels = [one.labels[label] for label in meter.group_by]
        dimensions_key = json.dumps(labels, ensure_ascii=False, separators=(",", ":")) if labels else ""
        window = (meter.name, event.subject, start, end, dimensions_key)
        total = self.usage.setdefault((*window, booked_on), Total())
        total.add(one)
        if isinstance(one.value, str):
            self.tables.usage_members.add((*window, one.value))
        latest = total.latest if meter.aggregation == "latest" else None
        self.tables.usage[(*window, booked_on)] = {
            "dimensions": one.labels,
            "aggregation": meter.aggregation,
            "value": total.aggregate(meter.aggregation),
            "count": total.count,
            "latest_time": latest[0] if latest else 0,
            "latest_position": latest[1] if latest else NOWHERE,
            "inputs": total.count,
            "era": 0,
            "version": total.count,
            "catalog_version": total.catalog_version,
        }

    def _rate(self, one: Input) -> None:
        """Add an input to every price of its billing period, then see whether an alert's amount is reached."""
        plan, period = billing(one.event)
        catalog = self.history.pricing(plan, period[0]) if plan else None
        if plan is None or catalog is None:
            return
        for price in catalog.plans[plan].get("prices") or []:
            if price["meter"] == one.meter.name and selects(where_of(price), one.labels):
                self._price(one, price, plan, period, catalog)
        spent = sum(self.amounts.get((one.event.subject, plan, *period), {}).values(), Decimal(0))
        for alert in catalog.plans[plan].get("alerts") or []:
            threshold = exact(alert["amount"])
            if spent >= threshold:
                key = ("spend.threshold_reached", one.event.subject, alert["key"], period[0], threshold)
                self._signal(key, period, threshold)

    def _price(self, one: Input, price: dict[str, Any], plan: str, period: Span, catalog: Catalog) -> None:
        aggregation = one.meter.aggregation
        key = (one.event.subject, plan, price["key"], *period)
        total = self.rated.setdefault(key, Total())
        total.add(one)
        if price["model"] == "matrix":
            label = one.labels[price["dimension"]]
            listed = {text_form(value) for value in price["rates"]}
            self.buckets.setdefault((key, label if label in listed else None), Total()).add(one)

        def bucket(value: object) -> Decimal:
            found = self.buckets.get((key, None if value is None else text_form(value)))
            return found.quantity(aggregation) if found else Decimal(0)

        quantity = total.quantity(aggregation)
        tiers = pricing.price(price, quantity, bucket)
        amount = sum((amount for _, amount in tiers), Decimal(0))
        self.amounts.setdefault((one.event.subject, plan, *period), {})[price["key"]] = amount
        self.tables.rated_usage[key] = {
            "meter": one.meter.name,
            "quantity": quantity,
            "amount": amount,
            "currency": catalog.currency,
            "tiers": tiers,
            "inputs": total.count,
            "era": 0,
            "version": total.count,
            "catalog_version": catalog.version,
        }

    def _watch(self, one: Input) -> None:
        """Add an input to every entitlement of its meter, each of the version in force as its period began."""
        plan, billing_period = billing(one.event)
        for catalog in self.history.catalogs if plan else []:
            for entitlement in catalog.plans.get(plan or "", {}).get("entitlements") or []:
                if entitlement["kind"] != "metered" or entitlement["meter"] != one.meter.name:
                    continue
                name = entitlement["period"]
                in_calendar = name != "billing"
                period = calendars.window(zone_of(one.event), name, one.event.time) if in_calendar else billing_period
                if self.history.pricing(plan or "", period[0]) is catalog:
                    self._entitle(one, entitlement, plan or "", period, catalog)

    def _entitle(self, one: Input, entitlement: dict[str, Any], plan: str, period: Span, catalog: Catalog) -> None:
        subject, feature, limit = one.event.subject, entitlement["feature"], exact(entitlement["limit"])
        total = self.quotas.setdefault((subject, plan, feature, period[0]), Total())
        total.add(one)
        self.starts.setdefault((subject, feature), set()).add(period[0])
        used = total.quantity(one.meter.aggregation)
        fractions = [exact(fraction) for fraction in entitlement.get("thresholds") or []]
        reached = [fraction for fraction in fractions if used >= limit * fraction]
        row = {
            "period_end": period[1],
            "meter": one.meter.name,
            "used": used,
            "allowance": limit,
            "state": "exceeded" if used >= limit else "warning" if any(f < 1 for f in reached) else "ok",
            "inputs": total.count,
            "era": 0,
            "version": total.count,
            "catalog_version": catalog.version,
        }
        before = self.tables.quotas.setdefault((subject, plan, feature, period[0]), row)
        assert before["period_end"] == period[1], "two periods of one key: the catalog is ambiguous"
        self.tables.quotas[subject, plan, feature, period[0]] = row
        for fraction in reached:
            kind = "quota.exceeded" if fraction == 1 else "quota.threshold_reached"
            self._signal((kind, subject, feature, period[0], limit * fraction), period, limit)

    def _signal(self, key: Key, period: Span, allowance: Decimal) -> None:
        """Record a crossing. What grows from 0 has crossed each positive threshold that it has reached."""
        assert key[4] > 0
        self.tables.signals[key] = {"period_end": period[1], "allowance": allowance}

    def resets(self, log_time_reached: int | None) -> dict[Key, Row]:
        """A reset for each period of which a threshold was crossed, and that is over."""
        found: dict[Key, Row] = {}
        for (kind, subject, feature, start, _), row in self.tables.signals.items():
            if kind in ("quota.threshold_reached", "quota.exceeded"):
                after = [later for later in self.starts[subject, feature] if later >= row["period_end"]]
                if after if log_time_reached is None else row["period_end"] <= log_time_reached:
                    found["quota.reset", subject, feature, start, row["allowance"]] = dict(row)
        return found


def as_input(meter: Meter, event: Event, position: Position) -> Input | None:
    """The event as the meter sees it; None if it does not count."""
    if meter.event_type != event.type or not selects(meter.where, {p: text_of(event.data, p) for p in meter.where}):
        return None
    value: Any = None
    if meter.aggregation != "count":
        value = property_of(event.data, meter.value)
        if value is None:
            return None
        value = text_of(event.data, meter.value) if meter.aggregation == "unique" else Decimal(value)
    return Input(event, position, meter, value, {label: text_of(event.data, label) for label in meter.group_by})


def selects(where: dict[str, set[str]], labels: dict[str, str]) -> bool:
    return all(labels[label] in values for label, values in where.items())


def property_of(data: Any, path: str) -> Any:
    """The value at a dotted path; None if it is absent or null anywhere on the way."""
    for name in path.split("."):
        data = None if data is None else data.get(name)
    return data


def text_of(data: Any, path: str) -> str:
    value = property_of(data, path)
    return "" if value is None else text_form(value)


def accepted(tables: Tables, history: History, register: Register | None = None) -> Iterator[tuple[Position, Event]]:
    """The accepted events, in order of position, with what they fall under; `register` follows them."""
    register = register or Register()
    for position, row in sorted(tables.events.items()):
        event = read(row["payload"], history)
        assert isinstance(event, Event)
        if event.type == TYPE:
            register.take(position[1], event)
        else:
            event = replace(event, terms=register.terms(position[1], event))
        yield position, event


def zone_of(event: Event) -> str:
    if event.terms is not None:
        return event.terms.zone
    subscription = event.catalog.subscription(event.subject, event.time)
    return subscription.zone if subscription else event.catalog.zone


def billing(event: Event) -> tuple[str | None, Span]:
    """The plan and the billing period that an event falls in; no plan: it is not billed."""
    if event.terms is not None:
        terms = event.terms
        return terms.plan, calendars.billing_period(terms.zone, terms.start, None, event.time)
    subscription = event.catalog.subscription(event.subject, event.time)
    if subscription is None:
        return event.catalog.default_plan, calendars.window(event.catalog.zone, "month", event.time)
    bounds = (subscription.start, subscription.end)
    return subscription.plan, calendars.billing_period(subscription.zone, *bounds, event.time)
