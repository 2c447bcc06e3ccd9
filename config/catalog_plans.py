"""The plans of a catalog: prices, entitlements and alerts, checked against its meters."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec

from config import catalog_file as file
from config.catalog_fields import meant
from config.catalog_reader import Reader
from domain.catalog import Aggregation, Alert, Entitlement, Meter, PeriodKind, Plan, Price
from domain.pricing import Flat, Graduated, Matrix, Package, PerUnit, PriceModel, Tier, Volume, never_falls
from domain.values import AMOUNT_DECIMALS, QUANTITY_DECIMALS, QUANTITY_SCALE

_to_json = msgspec.json.Encoder(decimal_format="number").encode


def _scaled(value: Decimal, decimals: int) -> int:
    return int(value.scaleb(decimals))


def _quantity(value: Decimal) -> int:
    """Also of money per unit: times a quantity it is an amount."""
    return _scaled(value, QUANTITY_DECIMALS)


def _amount(value: Decimal) -> int:
    return _scaled(value, AMOUNT_DECIMALS)


class PlanReader:
    """Reads plans once the meters are read; faults go to the reader."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.fault = reader.fault

    def plan(self, name: str, path: str, raw: Any) -> Plan | None:
        if isinstance(raw, dict):
            raw = {key: value for key, value in raw.items() if value is not None}
        outline: file.PlanOutline | None = self.reader.read(file.PlanOutline, raw, path)
        if outline is None:
            return None
        prices = self._parts(file.PriceSpec, outline.prices, f"{path}.prices", self._price)
        entitlements = self._parts(
            file.EntitlementSpec, outline.entitlements, f"{path}.entitlements", self._entitlement
        )
        alerts = self._parts(file.AlertSpec, outline.alerts, f"{path}.alerts", self._alert)
        self._unique(outline.prices, f"{path}.prices", "key", "price key")
        self._unique(outline.entitlements, f"{path}.entitlements", "feature", "feature")
        self._unique(outline.alerts, f"{path}.alerts", "key", "alert key")
        if outline.alerts and not outline.prices:
            self.fault(f"{path}.alerts", "the plan has no prices to watch", "leave the alerts out")
        elif outline.alerts:
            self._check_alerts(path, prices)
        return Plan(name, tuple(p for _, p in prices), tuple(e for _, e in entitlements), tuple(a for _, a in alerts))

    def _unique(self, items: list[Any], path: str, key: str, noun: str) -> None:
        names = [(f"{path}[{i}].{key}", item.get(key)) for i, item in enumerate(items) if isinstance(item, dict)]
        self.reader.unique(((where, name) for where, name in names if isinstance(name, str)), noun)

    def _parts(self, kind: Any, items: list[Any], path: str, build: Callable[[Any, str], Any]) -> list[tuple[str, Any]]:
        found = []
        for index, raw in enumerate(items):
            where = f"{path}[{index}]"
            spec = self.reader.read(kind, raw, where)
            part = build(spec, where) if spec is not None else None
            if part is not None:
                found.append((where, part))
        return found

    def _price(self, spec: Any, path: str) -> Price | None:
        before = len(self.reader.faults)
        meter = self._metered(spec.meter, path)
        if meter is not None:
            for label, values in spec.where.items():
                if self._grouped(meter, label, f"{path}.where.{label}"):
                    self.reader.check_selected(self.reader.described(meter, label), values, f"{path}.where.{label}")
        model = self._model(spec, path, meter)
        ok = len(self.reader.faults) == before and meter is not None and model is not None
        return Price(spec.key, spec.meter, model, dict(spec.where)) if ok and model is not None else None

    def _metered(self, name: str, path: str) -> Meter | None:
        self.reader.known("meters", name, f"{path}.meter", "meter")
        return self.reader.meters.get(name)

    def _grouped(self, meter: Meter, label: str, path: str) -> bool:
        if label in meter.group_by:
            return True
        remedy = meant(label, meter.group_by) if meter.group_by else "only labels can be told apart in a meter's usage"
        self.fault(path, f"{label!r} is not in the group_by of meter {meter.name}", remedy)
        return False

    def _model(self, spec: Any, path: str, meter: Meter | None) -> PriceModel | None:
        match spec:
            case file.FlatPrice():
                return Flat(_amount(spec.amount))
            case file.PerUnitPrice():
                return PerUnit(_quantity(spec.unit_amount))
            case file.PackagePrice():
                return Package(_quantity(spec.size), _amount(spec.amount))
            case file.GraduatedPrice() | file.VolumePrice():
                tiers = self._tiers(spec.tiers, f"{path}.tiers")
                if tiers is None:
                    return None
                return Graduated(tiers) if isinstance(spec, file.GraduatedPrice) else Volume(tiers)
            case _:
                return self._matrix(spec, path, meter)

    def _tiers(self, specs: list[file.TierSpec], path: str) -> tuple[Tier, ...] | None:
        before = len(self.reader.faults)
        lower: Decimal | None = None
        for index, spec in enumerate(specs):
            where, last = f"{path}[{index}].up_to", index == len(specs) - 1
            if spec.up_to is None:
                if not last:
                    self.fault(where, "is missing", "only the last tier may be without up_to")
                continue
            if last:
                self.fault(where, "leaves greater quantities without a price", "leave up_to out in the last tier")
            if lower is not None and spec.up_to <= lower:
                self.fault(
                    where, f"{spec.up_to} does not exceed {lower}, where the tier begins", "write tiers ascending"
                )
            lower = spec.up_to
        if len(self.reader.faults) > before:
            return None
        return tuple(
            Tier(None if s.up_to is None else _quantity(s.up_to), _quantity(s.unit_amount), _amount(s.flat_amount))
            for s in specs
        )

    def _matrix(self, spec: file.MatrixPrice, path: str, meter: Meter | None) -> Matrix:
        if meter is not None:
            if meter.aggregation not in (Aggregation.COUNT, Aggregation.SUM):
                message = f"a matrix over meter {meter.name}, which is a {meter.aggregation}"
                self.fault(f"{path}.model", message, "use a count or sum meter: only their parts add up")
            if self._grouped(meter, spec.dimension, f"{path}.dimension"):
                self.reader.check_selected(self.reader.described(meter, spec.dimension), spec.rates, f"{path}.rates")
        rates = {value: _quantity(rate) for value, rate in spec.rates.items()}
        return Matrix(spec.dimension, rates, _quantity(spec.default))

    def _entitlement(self, spec: Any, path: str) -> Entitlement | None:
        match spec:
            case file.BooleanEntitlement():
                return Entitlement(spec.feature, spec.kind, enabled=spec.enabled)
            case file.StaticEntitlement():
                return Entitlement(spec.feature, spec.kind, config=_to_json(spec.config).decode())
            case _:
                return self._limit(spec, path)

    def _limit(self, spec: file.MeteredEntitlement, path: str) -> Entitlement:
        meter = self._metered(spec.meter, path)
        if meter is not None and not self.reader.grows(meter):
            message = f"the total of meter {meter.name} may fall, and a limit must not be reached twice"
            self.fault(f"{path}.meter", message, self._growing_remedy(meter))
        for index, fraction in enumerate(spec.thresholds):
            where = f"{path}.thresholds[{index}]"
            if fraction in spec.thresholds[:index]:
                self.fault(where, f"{fraction} is repeated", "write it once")
            if (Fraction(spec.limit) * Fraction(fraction) * QUANTITY_SCALE).denominator != 1:
                self.fault(where, f"{fraction} of {spec.limit} has more than 12 decimals", "round the fraction")
        return Entitlement(
            feature=spec.feature,
            kind=spec.kind,
            meter=spec.meter,
            limit=_quantity(spec.limit),
            period=PeriodKind(spec.period),
            thresholds=tuple(sorted(spec.thresholds)),
            on_exceed=spec.on_exceed,
        )

    def _growing_remedy(self, meter: Meter) -> str:
        if meter.aggregation is Aggregation.SUM and meter.value:
            return f"declare minimum: 0 for {'.'.join(meter.value)} in event_types.{meter.event_type}.schema"
        return "use a meter that counts, sums values from 0 up, takes the max or counts unique values"

    def _alert(self, spec: file.AlertSpec, path: str) -> Alert:
        return Alert(spec.key, _amount(spec.amount))

    def _check_alerts(self, path: str, prices: list[tuple[str, Price]]) -> None:
        """An alert stands on the sum of all prices: none of them may fall as usage grows."""
        for where, price in prices:
            meter = self.reader.meters[price.meter]
            reason = ""
            if not never_falls(price.model):
                reason, remedy = "its amount may fall as usage grows", "change its tiers, or leave the alerts out"
            elif not isinstance(price.model, Flat) and not self.reader.grows(meter):
                reason = f"the total of meter {meter.name} may fall"
                remedy = f"{self._growing_remedy(meter)}, or leave the alerts out"
            if reason:
                self.fault(f"{path}.alerts", f"cannot be watched because of {where} ({price.key}): {reason}", remedy)
