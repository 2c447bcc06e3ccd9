"""What a flow puts out, kept as the tables would keep it, in the oracle's form."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import Decimal
from json import loads
from typing import Any

from domain.catalog import Aggregation
from domain.quota import Signal, SignalType, Watched
from domain.rating import RatedUpdates
from domain.values import AMOUNT_DECIMALS, QUANTITY_DECIMALS, Batch, Position
from tests.oracle import Tables

NOWHERE = ("", 0, 0, 0)


def quantity(scaled: int) -> Decimal:
    return Decimal(f"{scaled}E-{QUANTITY_DECIMALS}")


def amount(scaled: int) -> Decimal:
    return Decimal(f"{scaled}E-{AMOUNT_DECIMALS}")


@dataclass
class Books:
    """Keeps of each key the row with the most inputs; asserts that no two differ that should not."""

    topic: str = "file"
    tables: Tables = field(default_factory=Tables)
    signals: list[Signal] = field(default_factory=list)
    """Everything that went out, repeats too."""

    def add(self, item: Batch | RatedUpdates | Watched) -> None:
        match item:
            case Batch():
                self._batch(item)
            case RatedUpdates():
                self._rated(item)
            case Watched():
                self._watched(item)

    def _batch(self, batch: Batch) -> None:
        raw, events, rejects = batch.raw, batch.events, batch.rejects
        for i in range(len(events)):
            self.tables.events[self._at(raw.partition, events.offsets[i], events.indexes[i])] = {
                "log_time": events.log_times_us[i],
                "source": events.sources[i],
                "id": events.ids[i],
                "type": events.types[i],
                "subject": events.subjects[i],
                "time": events.times_us[i],
                "attributes": (events.attributes[i] if events.attributes else None) or {},
                "payload": events.payloads[i],
            }
        for i in range(len(rejects)):
            first = rejects.firsts[i]
            self.tables.rejects[self._at(raw.partition, rejects.offsets[i], rejects.indexes[i])] = {
                "log_time": rejects.log_times_us[i],
                "reason": rejects.reasons[i],
                "source": rejects.sources[i],
                "id": rejects.ids[i],
                "subject": rejects.subjects[i],
                "first_position": NOWHERE if first is None else self._at(*first),
                "payload": rejects.payloads[i],
            }
        for change in batch.changes:
            self.tables.subscriptions[self._at(raw.partition, change.offset, change.element)] = {
                "log_time": change.log_time_us,
                "subject": change.subject,
                "action": change.action,
                "plan": change.plan,
                "start": change.start,
                "end": change.end,
                "timezone": change.timezone,
                "effective_from": change.effective_from_us,
            }
        self.tables.progress[self.topic, raw.partition] = {
            "next_offset": raw.next_offset,
            "messages": raw.messages,
            "events": raw.events,
            "log_time": raw.log_time_us or 0,
        }

    def _rated(self, item: RatedUpdates) -> None:
        for usage in item.updates.usage:
            rows = zip(usage.keys, usage.values, usage.inputs, usage.catalog_versions, strict=True)
            for (subject, start, end, booked_on_day, dimensions_key), value, inputs, version in rows:
                latest = value if usage.aggregation is Aggregation.LATEST else None
                row = {
                    "dimensions": dict(zip(usage.labels, loads(dimensions_key) if usage.labels else [], strict=True)),
                    "aggregation": usage.aggregation,
                    "value": quantity(latest[4] if latest else value),
                    "count": inputs,
                    "latest_time": latest[0] if latest else 0,
                    "latest_position": self._at(*latest[1:4]) if latest else NOWHERE,
                    **_versions(inputs, version),
                }
                booked_on = date(1970, 1, 1) + timedelta(days=booked_on_day)
                _keep(self.tables.usage, (usage.meter, subject, start, end, dimensions_key, booked_on), row)
        self.tables.usage_members.update(tuple(member) for member in item.updates.members)
        for update in item.rated:
            for (subject, *span), units, rated, inputs in zip(
                update.keys, update.quantities, update.rated, update.inputs, strict=True
            ):
                row = {
                    "meter": update.price.meter,
                    "quantity": quantity(units),
                    "amount": amount(rated.amount),
                    "currency": update.currency,
                    "tiers": [(quantity(share), amount(cost)) for share, cost in rated.tiers],
                    **_versions(inputs, update.pricing_version),
                }
                _keep(self.tables.rated_usage, (subject, update.plan, update.price.key, *span), row)

    def _watched(self, watched: Watched) -> None:
        for states in watched.quotas:
            rows = zip(states.keys, states.used, states.states, states.inputs, strict=True)
            for (subject, start, end), used, state, inputs in rows:
                row = {
                    "period_end": end,
                    "meter": states.entitlement.meter,
                    "used": quantity(used),
                    "allowance": quantity(states.entitlement.limit),
                    "state": state,
                    **_versions(inputs, states.catalog_version),
                }
                _keep(self.tables.quotas, (subject, states.plan, states.entitlement.feature, start), row)
        for signal in watched.signals:
            self.signals.append(signal)
            read = amount if signal.type is SignalType.SPEND_REACHED else quantity
            key = (signal.type, signal.subject, signal.feature, signal.period_start_us, read(signal.threshold))
            row = {"period_end": signal.period_end_us, "allowance": read(signal.allowance), "id": signal.id}
            assert self.tables.signals.setdefault(key, row) == row

    def _at(self, partition: int, offset: int, element: int) -> tuple[str, int, int, int]:
        return (self.topic, *Position(partition, offset, element))


def _versions(inputs: int, catalog_version: int) -> dict[str, int]:
    return {"inputs": inputs, "era": 0, "version": inputs, "catalog_version": catalog_version}


def _keep(table: dict[Any, Any], key: tuple[Any, ...], row: dict[str, Any]) -> None:
    """As ReplacingMergeTree(version) does; two rows of one version are one row."""
    old = table.get(key)
    assert old is None or old["version"] != row["version"] or old == row, (key, old, row)
    if old is None or old["version"] < row["version"]:
        table[key] = row
