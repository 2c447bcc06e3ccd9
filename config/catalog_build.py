"""From a catalog's YAML values to `domain.catalog.Catalog`, with every fault found on the way.

Each part is read on its own, so one fault does not hide the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from config import catalog_file as file
from config.catalog_fields import meant
from config.catalog_plans import PlanReader
from config.catalog_reader import LABEL_TYPES, Reader
from domain.catalog import Aggregation, Catalog, EventType, Meter, Subscription
from domain.schema import Fault, Property, SchemaError, compile_schema
from domain.subscriptions import SUBSCRIPTION, subscription_type
from domain.values import DAY_US, MINUTE_US

RESERVED = "tallyflow."
"""Event types that begin so are tallyflow's own."""
ACCEPT_WITHIN_MAX_US = 400 * DAY_US


def build(raw: Any) -> tuple[Catalog | None, list[Fault]]:
    """The catalog of YAML values (see `config.yaml_text`), or the faults that it has."""
    builder = _Builder()
    catalog = builder.catalog(raw)
    return (None if builder.faults else catalog), builder.faults


class _Builder(Reader):
    def catalog(self, raw: Any) -> Catalog | None:
        if not isinstance(raw, dict):
            self.fault("", "the catalog is not a mapping", "begin with the keys version, currency, event_types")
            return None
        outline = self._outline({key: value for key, value in raw.items() if value is not None})
        sections = {"event_types": outline.event_types, "meters": outline.meters, "plans": outline.plans}
        self.names = {name: set(parts) for name, parts in sections.items()}
        if raw.get("event_types") == {}:
            self.fault("event_types", "is empty", "declare at least one event type")
        self.event_types = self._section("event_types", outline.event_types, self._event_type)
        self.meters = self._section("meters", outline.meters, self._meter)
        plans = self._section("plans", outline.plans, PlanReader(self).plan)
        if outline.default_plan is not None:
            self.known("plans", outline.default_plan, "default_plan", "plan")
        subscriptions = self._subscriptions(outline)
        return Catalog(
            timezone=outline.timezone,
            currency=outline.currency,
            accept_within_us=outline.accept_within,
            event_types={**self.event_types, SUBSCRIPTION: subscription_type(plans)},
            meters=self.meters,
            plans=plans,
            subscriptions=subscriptions,
            default_plan=outline.default_plan,
        )

    def _outline(self, raw: dict[str, Any]) -> file.CatalogOutline:
        """The top level; a key with a fault is replaced, so that the rest can be read."""
        outline: file.CatalogOutline | None = self.read(file.CatalogOutline, raw, "")
        if outline is None:
            stand_in = {"currency": "XXX", "event_types": {}}
            bad = {fault.path.partition(".")[0].partition("[")[0] for fault in self.faults}
            good = {key: value for key, value in raw.items() if key in file.CatalogOutline.model_fields.keys() - bad}
            outline = file.CatalogOutline.model_validate(stand_in | good)
        if not MINUTE_US <= outline.accept_within <= ACCEPT_WITHIN_MAX_US:
            self.fault("accept_within", "is out of bounds", "write a duration from 1m to 400d")
        return outline

    def _section(self, section: str, parts: Mapping[str, Any], build: Callable[[str, str, Any], Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, raw in parts.items():
            path = f"{section}.{name}"
            self.check_name(name, path)
            part = build(name, path, raw)
            if part is not None:
                found[name] = part
        return found

    def _event_type(self, name: str, path: str, raw: Any) -> EventType | None:
        if name.startswith(RESERVED):
            self.fault(path, f"names that begin with {RESERVED} are tallyflow's own", "rename the event type")
        spec: file.EventTypeSpec | None = self.read(file.EventTypeSpec, raw, path)
        if spec is None:
            return None
        try:
            return EventType(name, compile_schema(spec.data_schema), spec.description)
        except SchemaError as error:
            for fault in error.faults:
                self.faults.append(fault.under(f"{path}.schema." if fault.path else f"{path}.schema"))
            return None

    def _meter(self, name: str, path: str, raw: Any) -> Meter | None:
        spec: file.MeterSpec | None = self.read(file.MeterSpec, raw, path)
        if spec is None or not self.known("event_types", spec.event_type, f"{path}.event_type", "event type"):
            return None
        self._check_value(spec, path)
        self.unique(((f"{path}.group_by[{i}]", label) for i, label in enumerate(spec.group_by)), "label")
        for index, label in enumerate(spec.group_by):
            self._label(spec.event_type, label, f"{path}.group_by[{index}]", "group_by")
        for label, values in spec.where.items():
            found = self._label(spec.event_type, label, f"{path}.where.{label}", "where")
            self.check_selected(found, values, f"{path}.where.{label}")
        return Meter(
            name=name,
            event_type=spec.event_type,
            aggregation=Aggregation(spec.aggregation),
            value=tuple(spec.value.split(".")) if spec.value else None,
            group_by=tuple(spec.group_by),
            where=dict(spec.where),
            window=spec.window,
            grace_us=spec.grace,
        )

    def _check_value(self, spec: file.MeterSpec, path: str) -> None:
        if spec.aggregation == "count":
            if spec.value is not None:
                self.fault(f"{path}.value", "count has no value", "leave it out, or choose another aggregation")
            return
        if spec.value is None:
            self.fault(f"{path}.value", f"is missing: {spec.aggregation} needs one", "name the property to aggregate")
            return
        found = self._property(spec.event_type, spec.value, f"{path}.value")
        fits = LABEL_TYPES if spec.aggregation == "unique" else ("integer", "number")
        if found is not None and found.type not in fits:
            remedy = f"use a property of type {' or '.join(fits)}"
            self.fault(f"{path}.value", f"{spec.aggregation} of {spec.value}, which is of type {found.type}", remedy)

    def _property(self, event_type: str, dotted: str, path: str) -> Property | None:
        """What is declared of a property; notes a fault if nothing is."""
        if event_type not in self.event_types:
            return None  # it has faults of its own
        schema = self.event_types[event_type].schema
        found = schema.describe(tuple(dotted.split(".")))
        if found is None:
            known = [name for name in schema.types() if "[]" not in name and "*" not in name]
            remedy = meant(dotted, known) if known else f"declare it in event_types.{event_type}.schema"
            self.fault(path, f"property {dotted!r} is not declared by {event_type}", remedy)
        return found

    def _label(self, event_type: str, dotted: str, path: str, noun: str) -> Property | None:
        found = self._property(event_type, dotted, path)
        if found is not None and found.type not in LABEL_TYPES:
            remedy = f"use a property of type {', '.join(LABEL_TYPES)}"
            self.fault(path, f"{noun} takes no property of type {found.type}", remedy)
        return found

    def _subscriptions(self, outline: file.CatalogOutline) -> dict[str, tuple[Subscription, ...]]:
        by_subject: dict[str, list[tuple[Subscription, str]]] = {}
        for index, raw in enumerate(outline.subscriptions):
            path = f"subscriptions[{index}]"
            spec: file.SubscriptionSpec | None = self.read(file.SubscriptionSpec, raw, path)
            if spec is None:
                continue
            self.known("plans", spec.plan, f"{path}.plan", "plan")
            if spec.end is not None and spec.end <= spec.start:
                self.fault(f"{path}.end", f"{spec.end} is not after the start {spec.start}", "write a later day")
            zone = spec.timezone or outline.timezone
            entry = Subscription(spec.subject, spec.plan, spec.start, spec.end, zone)
            by_subject.setdefault(spec.subject, []).append((entry, path))
        for entries in by_subject.values():
            entries.sort(key=lambda entry: entry[0].start)
            self._check_overlaps(entries)
        return {subject: tuple(entry for entry, _ in entries) for subject, entries in by_subject.items()}

    def _check_overlaps(self, entries: list[tuple[Subscription, str]]) -> None:
        for (one, first), (other, second) in pairwise(entries):
            if one.end is None or other.start < one.end:
                until = "has no end" if one.end is None else f"ends on {one.end}"
                message = f"{other.subject!r} is still on the plan of {first}, which {until}"
                self.fault(f"{second}.start", message, f"end that one on {other.start} or before")
