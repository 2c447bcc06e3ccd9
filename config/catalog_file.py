"""The keys of a catalog file: their types, defaults and descriptions, and the JSON Schema made of them.

Structure only: what a key may hold on its own. What refers to something else in the catalog is
checked by `config.catalog_build`.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from config.catalog_fields import Amount, Currency, Day, Duration, Fraction, Name, Path, Positive, Text, Texts, Zone
from domain.schema import KEYWORDS, TYPES
from domain.values import DAY_US


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class EventTypeSpec(_Spec):
    """A kind of usage event: the CloudEvents `type`, and what its `data` must look like."""

    description: str = Field("", description="What an event of this type reports.")
    data_schema: Annotated[dict[str, Any], WithJsonSchema({"type": "object"})] = Field(
        alias="schema", description="The schema of the event's data. An event that does not fit it is rejected."
    )


class MeterSpec(_Spec):
    """One aggregation of one event type over tumbling windows. All but `grace` and `description` is fixed once used."""

    description: str = Field("", description="What the meter measures.")
    event_type: Name = Field(description="The event type that it reads.")
    aggregation: Literal["count", "sum", "min", "max", "avg", "latest", "unique"] = Field(
        description="count of events; sum, min, max, avg or latest of a number; unique: how many distinct values."
    )
    value: Path | None = Field(
        None, description="The property to aggregate, dotted for a nested one; not for count. Absent or null: no input."
    )
    group_by: list[Path] = Field(
        default=[], description="Properties that split the usage (string, integer or boolean). An absent value is ''."
    )
    where: dict[Path, Texts] = Field(
        default={}, description="Only events whose property has one of these values count."
    )
    window: Literal["1m", "5m", "10m", "15m", "30m", "1h", "2h", "3h", "4h", "6h", "12h", "1d", "1mo"] = Field(
        description="The window's length, cut in the subject's local time."
    )
    grace: Duration = Field(
        0,
        description="How long after a window's end events count as on time; later ones are booked late. Default 0s.",
        json_schema_extra={"default": "0s"},
    )


class TierSpec(_Spec):
    """The quantities above the tier before, up to and including `up_to`."""

    up_to: Positive | None = Field(None, description="The last quantity of the tier; left out in the last tier only.")
    unit_amount: Amount = Field(Decimal(0), description="Per unit.", json_schema_extra={"default": "0"})
    flat_amount: Amount = Field(
        Decimal(0), description="Charged once the tier is entered.", json_schema_extra={"default": "0"}
    )


class _PriceSpec(_Spec):
    key: Name = Field(description="The price's name, unique in its plan.")
    meter: Name = Field(description="The meter whose usage of the billing period is charged.")
    where: dict[Path, Texts] = Field(
        default={}, description="Only usage whose group-by label has one of these values is charged."
    )
    description: str = Field("", description="What is charged.")


class FlatPrice(_PriceSpec):
    """A fixed amount for a period with usage."""

    model: Literal["flat"] = Field(description="A fixed amount for a period with usage.")
    amount: Amount = Field(description="The amount.")


class PerUnitPrice(_PriceSpec):
    """The same amount for every unit."""

    model: Literal["per_unit"] = Field(description="The same amount for every unit.")
    unit_amount: Amount = Field(description="Per unit.")


class PackagePrice(_PriceSpec):
    """An amount for every package started."""

    model: Literal["package"] = Field(description="An amount for every package started.")
    size: Positive = Field(description="Units in a package.")
    amount: Amount = Field(description="Per package started.")


class GraduatedPrice(_PriceSpec):
    """Each tier's units cost that tier's amount."""

    model: Literal["graduated"] = Field(description="Each tier's units cost that tier's amount.")
    tiers: list[TierSpec] = Field(min_length=1, description="Ascending; the last one has no up_to.")


class VolumePrice(_PriceSpec):
    """All units cost the amount of the tier that the whole quantity falls in."""

    model: Literal["volume"] = Field(description="All units cost the amount of the tier that the total falls in.")
    tiers: list[TierSpec] = Field(min_length=1, description="Ascending; the last one has no up_to.")


class MatrixPrice(_PriceSpec):
    """An amount per unit by the value of a group-by label."""

    model: Literal["matrix"] = Field(description="An amount per unit by the value of a group-by label.")
    dimension: Path = Field(description="The label; one of the meter's group_by.")
    rates: dict[str, Amount] = Field(min_length=1, description="Per unit, by the label's value.")
    default: Amount = Field(description="Per unit of every value that rates does not list.")


PriceSpec = Annotated[
    FlatPrice | PerUnitPrice | PackagePrice | GraduatedPrice | VolumePrice | MatrixPrice,
    Field(discriminator="model"),
]


class _EntitlementSpec(_Spec):
    feature: Name = Field(description="The feature that products ask for, unique in its plan.")
    description: str = Field("", description="What the feature is.")


class MeteredEntitlement(_EntitlementSpec):
    """A limit on a meter's total (over all its labels) per period."""

    kind: Literal["metered"] = Field(description="A limit on a meter's total per period.")
    meter: Name = Field(description="A meter that only grows: count, sum of values from 0 up, max or unique.")
    limit: Positive = Field(description="The allowance per period.")
    period: Literal["hour", "day", "month", "billing"] = Field(
        "month", description="Calendar hour, day or month in the subject's zone, or the billing period."
    )
    thresholds: list[Fraction] = Field(
        default=[Decimal(1)],
        description="Fractions of the limit at which a signal goes out; 1.0 is quota.exceeded.",
        json_schema_extra={"default": [1.0]},
    )
    on_exceed: Literal["block", "allow"] = Field("block", description="What products should do beyond the limit.")


class BooleanEntitlement(_EntitlementSpec):
    """A feature that is on or off."""

    kind: Literal["boolean"] = Field(description="A feature that is on or off.")
    enabled: bool = Field(description="Whether the plan has the feature.")


class StaticEntitlement(_EntitlementSpec):
    """A feature with settings for products to read."""

    kind: Literal["static"] = Field(description="A feature with settings for products to read.")
    config: Any = Field(description="Any value; products get it as JSON.")


EntitlementSpec = Annotated[MeteredEntitlement | BooleanEntitlement | StaticEntitlement, Field(discriminator="kind")]


class AlertSpec(_Spec):
    """A signal when the spend of a billing period, over all the plan's prices, reaches an amount."""

    key: Name = Field(description="The alert's name, unique in its plan.")
    amount: Positive = Field(description="The spend at which the signal goes out.")
    description: str = Field("", description="What the alert is for.")


class PlanOutline(_Spec):
    """A plan whose parts are not looked at yet."""

    description: str = Field("", description="Whom the plan is for.")
    prices: list[Any] = []
    entitlements: list[Any] = []
    alerts: list[Any] = []


class PlanSpec(PlanOutline):
    """What subjects on the plan pay, what they may use, and when to warn."""

    prices: list[PriceSpec] = Field(default=[], description="What is charged per billing period.")
    entitlements: list[EntitlementSpec] = Field(default=[], description="What the plan's subjects may use.")
    alerts: list[AlertSpec] = Field(default=[], description="Signals on the spend of a billing period.")


class SubscriptionSpec(_Spec):
    """A subject on a plan. Subscriptions of one subject may not overlap."""

    subject: Text = Field(description="The subject of the events: who is billed.")
    plan: Name = Field(description="The plan.")
    start: Day = Field(description="The first local day; billing periods start on its day of the month.")
    end: Day | None = Field(None, description="The first local day that is no longer covered; absent: open end.")
    timezone: Zone | None = Field(None, description="The subject's zone; default: the catalog's.")


class CatalogOutline(_Spec):
    """A catalog whose parts are not looked at yet."""

    version: Literal[1] = Field(1, description="The version of this file format.")
    timezone: Zone = Field("UTC", description="The zone of subjects whose subscription names none.")
    currency: Currency = Field(description="The currency of every amount, ISO 4217. Amounts are in its major unit.")
    accept_within: Duration = Field(
        35 * DAY_US,
        description="The age beyond which an event is rejected as too late. Never changes. Default 35d.",
        json_schema_extra={"default": "35d"},
    )
    event_types: dict[str, Any]
    meters: dict[str, Any] = {}
    plans: dict[str, Any] = {}
    subscriptions: list[Any] = []
    default_plan: Name | None = Field(None, description="The plan of subjects without a subscription; absent: none.")


class CatalogFile(CatalogOutline):
    """What is metered, what it costs, and who is on which plan."""

    event_types: dict[Name, EventTypeSpec] = Field(
        min_length=1, description="By CloudEvents type. Events of other types are rejected."
    )
    meters: dict[Name, MeterSpec] = Field(default={}, description="By name: what is measured.")
    plans: dict[Name, PlanSpec] = Field(default={}, description="By name: what it costs.")
    subscriptions: list[SubscriptionSpec] = Field(default=[], description="Who is on which plan when.")


def catalog_json_schema() -> dict[str, Any]:
    """The JSON Schema of a catalog file, for editors; published as `config/catalog.schema.json`."""
    schema = CatalogFile.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
    schema["$defs"]["DataSchema"] = _data_schema()
    field = schema["$defs"]["EventTypeSpec"]["properties"]["schema"]
    field["$ref"] = "#/$defs/DataSchema"
    del field["type"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "tallyflow catalog"} | {
        key: value for key, value in schema.items() if key != "title"
    }


def _data_schema() -> dict[str, Any]:
    nested = {"$ref": "#/$defs/DataSchema"}
    number, length, text = {"type": "number"}, {"type": "integer", "minimum": 0}, {"type": "string"}
    forms: dict[str, dict[str, Any]] = {
        "type": {"enum": list(TYPES)},
        "nullable": {"type": "boolean"},
        "enum": {"type": "array", "minItems": 1},
        "minimum": number,
        "maximum": number,
        "exclusiveMinimum": number,
        "exclusiveMaximum": number,
        "pattern": text,
        "minLength": length,
        "maxLength": length,
        "format": {"const": "date-time"},
        "properties": {"type": "object", "additionalProperties": nested},
        "required": {"type": "array", "items": text},
        "additionalProperties": {"anyOf": [{"type": "boolean"}, nested]},
        "items": nested,
        "title": text,
        "description": text,
        "examples": {},
    }
    return {
        "type": "object",
        "description": "The subset of JSON Schema that event data is declared in.",
        "additionalProperties": False,
        "properties": {key: forms[key] | {"description": KEYWORDS[key][1]} for key in KEYWORDS},
    }
