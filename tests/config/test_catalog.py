"""The catalog: what a text means, that all its faults are found at once, and what may change."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from importlib.resources import files
from typing import Any

import pytest

from config.catalog import (
    SAMPLES,
    CatalogError,
    catalog_json_schema,
    check_change,
    load_catalog,
    load_history,
    sample_text,
)
from domain.catalog import Aggregation, Catalog, CatalogVersion, History, PeriodKind
from domain.ports import TallyError
from domain.pricing import Flat, Graduated, Matrix, Package, PerUnit, Tier, Volume
from domain.values import DAY_US, HOUR_US

E12, E24 = 10**12, 10**24

HEAD = """\
version: 1
currency: USD
event_types:
  api.request:
    schema:
      type: object
      properties:
        bytes: {type: integer, minimum: 0}
        delta: {type: integer}
        cost: {type: number, exclusiveMinimum: 0}
        size: {type: integer, enum: [1, 2]}
        region: {type: string}
        zone: {type: string, enum: [a, b]}
        ok: {type: boolean}
        tags: {type: array}
        request: {type: object, properties: {id: {type: string}}}
meters:
  requests: {event_type: api.request, aggregation: count, group_by: [region, zone], window: 1h}
  bytes: {event_type: api.request, aggregation: sum, value: bytes, group_by: [region], window: 1h}
  deltas: {event_type: api.request, aggregation: sum, value: delta, window: 1h}
  costs: {event_type: api.request, aggregation: sum, value: cost, window: 1h}
  sizes: {event_type: api.request, aggregation: sum, value: size, window: 1h}
  regions: {event_type: api.request, aggregation: unique, value: region, window: 1d}
  peak: {event_type: api.request, aggregation: max, value: delta, window: 1mo}
  low: {event_type: api.request, aggregation: min, value: delta, window: 1mo}
"""


def faults(text: str) -> list[tuple[str, str]]:
    """Path and remedy of every fault, as they are listed."""
    with pytest.raises(CatalogError) as caught:
        load_catalog(text)
    return [(fault.path, fault.remedy) for fault in caught.value.faults]


def with_meter(meter: str) -> str:
    return f"{HEAD}  m: {{event_type: api.request, {meter}}}\n"


def with_plan(parts: str) -> str:
    return f"{HEAD}plans:\n  pro: {{{parts}}}\n"


def with_price(price: str) -> str:
    return with_plan(f"prices: [{{key: p, {price}}}]")


def with_subscriptions(*subscriptions: str) -> str:
    listed = "".join(f"  - {{{subscription}}}\n" for subscription in subscriptions)
    return f"{HEAD}plans: {{pro: {{}}, max: {{}}}}\nsubscriptions:\n{listed}"


# What a text means


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_valid(name: str) -> None:
    catalog = load_catalog(sample_text(name))
    assert catalog.default_plan in catalog.plans


def test_an_unknown_sample_names_the_known_ones() -> None:
    with pytest.raises(TallyError, match="api, llm, web"):
        sample_text("../settings")


def test_defaults() -> None:
    catalog = load_catalog(HEAD)
    assert (catalog.timezone, catalog.accept_within_us) == ("UTC", 35 * DAY_US)
    assert (catalog.plans, catalog.subscriptions, catalog.default_plan) == ({}, {}, None)
    assert catalog.meters["requests"].grace_us == 0


def test_a_meter_is_read() -> None:
    meter = load_catalog(
        with_meter(
            "aggregation: latest, value: cost, where: {ok: [true], size: 1, region: [no, '']}, window: 5m, grace: 1h"
        )
    ).meters["m"]
    assert (meter.event_type, meter.aggregation, meter.value) == ("api.request", Aggregation.LATEST, ("cost",))
    assert meter.where == {"ok": {"true"}, "size": {"1"}, "region": {"no", ""}}
    assert (meter.window, meter.grace_us) == ("5m", HOUR_US)


def test_nested_properties_have_dotted_paths() -> None:
    meter = load_catalog(
        with_meter("aggregation: unique, value: request.id, window: 1d, group_by: [request.id]")
    ).meters["m"]
    assert (meter.value, meter.group_by) == (("request", "id"), ("request.id",))


@pytest.mark.parametrize(
    ("price", "model"),
    [
        ("model: flat, amount: 10", Flat(10 * E24)),
        ('model: per_unit, unit_amount: "0.000000000001"', PerUnit(1)),
        ('model: package, size: 1000, amount: "0.40"', Package(1000 * E12, 40 * E24 // 100)),
        (
            'model: graduated, tiers: [{up_to: "0.5", unit_amount: 2}, {flat_amount: "1.5"}]',
            Graduated((Tier(E12 // 2, 2 * E12, 0), Tier(None, 0, 3 * E24 // 2))),
        ),
        ("model: volume, tiers: [{unit_amount: 2}]", Volume((Tier(None, 2 * E12, 0),))),
        (
            'model: matrix, dimension: region, rates: {no: "1", 200: "2"}, default: 3',
            Matrix("region", {"no": E12, "200": 2 * E12}, 3 * E12),
        ),
    ],
)
def test_amounts_are_scaled_exactly(price: str, model: object) -> None:
    (found,) = load_catalog(with_price(f"meter: bytes, where: {{region: [eu]}}, {price}")).plans["pro"].prices
    assert found.model == model
    assert found.where == {"region": {"eu"}}


def test_entitlements_are_read() -> None:
    plan = load_catalog(
        with_plan(
            "entitlements: [{feature: a, kind: metered, meter: bytes, limit: 100, period: billing, "
            "thresholds: [1.0, 0.8], on_exceed: allow}, {feature: b, kind: boolean, enabled: false}, "
            "{feature: c, kind: static, config: {n: 1.50, l: [x, null]}}]"
        )
    ).plans["pro"]
    metered, boolean, static = plan.entitlements
    assert (metered.meter, metered.limit, metered.period) == ("bytes", 100 * E12, PeriodKind.BILLING)
    assert (metered.thresholds, metered.on_exceed) == ((Decimal("0.8"), Decimal("1.0")), "allow")
    assert (boolean.kind, boolean.enabled) == ("boolean", False)
    assert (static.kind, static.config) == ("static", '{"n":1.50,"l":["x",null]}')


def test_alerts_are_read() -> None:
    plan = load_catalog(
        with_plan(
            'prices: [{key: p, meter: bytes, model: per_unit, unit_amount: 1}], alerts: [{key: a, amount: "0.5"}]'
        )
    ).plans["pro"]
    assert [(alert.key, alert.amount) for alert in plan.alerts] == [("a", E24 // 2)]


def test_subscriptions_are_ordered_and_take_the_catalogs_zone() -> None:
    catalog = load_catalog(
        with_subscriptions(
            "subject: s, plan: max, start: 2026-03-01, timezone: Asia/Tokyo",
            "subject: s, plan: pro, start: 2026-01-01, end: 2026-03-01",
        )
    )
    first, second = catalog.subscriptions["s"]
    assert (first.plan, first.start, first.end, first.timezone) == ("pro", date(2026, 1, 1), date(2026, 3, 1), "UTC")
    assert (second.plan, second.end, second.timezone) == ("max", None, "Asia/Tokyo")


# Faults


def test_every_fault_is_reported_at_once_in_the_order_of_the_text() -> None:
    text = """\
version: 2
timezone: Europe/Berln
curency: USD
event_types:
  api.request:
    schema: {type: object, properties: {bytes: {type: integer}, bytes: {type: int}}}
meters:
  m: {event_type: api.reqest, aggregation: count, window: 1h}
plans:
  pro:
    prices:
      - {key: p, meter: m, model: graduated, tiers: [{up_to: 5, unit_amount: 0.5}, {}]}
    entitlements:
      - {feature: f, kind: metred}
subscriptions:
  - {subject: s, plan: por, start: 2026-02-30}
default_plan: pro
"""
    with pytest.raises(CatalogError) as caught:
        load_catalog(text)
    assert str(caught.value).splitlines() == [
        "the catalog has 10 faults:",
        "  line 1: version: is 2; use one of 1",
        "  line 1: currency: is missing; add it",
        "  line 2: timezone: 'Europe/Berln' is no time zone; did you mean Europe/Berlin?",
        "  line 3: curency: is not a known key; did you mean currency?",
        (
            "  line 6: event_types.api.request.schema.properties.bytes: is repeated; it stands on line 6 already; "
            "keep one of them"
        ),
        "  line 6: event_types.api.request.schema.properties.bytes.type: unknown type 'int'; did you mean integer?",
        "  line 8: meters.m.event_type: unknown event type 'api.reqest'; did you mean api.request?",
        (
            "  line 12: plans.pro.prices[0].tiers[0].unit_amount: is the YAML number 0.5, which other readers take "
            'for a float; write it as a string: "0.5"'
        ),
        "  line 14: plans.pro.entitlements[0].kind: unknown kind 'metred'; did you mean metered?",
        "  line 16: subscriptions[0].start: '2026-02-30' is no date; write a day from 1970 to 2200: 2026-01-15",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a mapping"),
        ("- 1", "not a mapping"),
        ("a: [", r"line 1, column 5: not valid YAML"),
        ("a: 1\n\tb: 2", r"line 2, column 1: not valid YAML"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: &x {b: *x}", "expands without end"),
        ("a: " + "[" * 5000, "nested too deep"),
        ("\x00", "not valid YAML"),
        ("currency: !!python/name:os.system", "has the tag"),
        ("currency: !!set {a}", "has the tag"),
        ("<<: {a: 1}", "plain text"),
        ("? [a]\n: 1", "plain text"),
    ],
)
def test_what_is_no_catalog_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        load_catalog(text)


@pytest.mark.parametrize(
    ("meter", "expected"),
    [
        ("aggregation: sum, window: 1h", [("meters.m.value", "name the property to aggregate")]),
        (
            "aggregation: count, value: bytes, window: 1h",
            [("meters.m.value", "leave it out, or choose another aggregation")],
        ),
        (
            "aggregation: avg, value: region, window: 1h",
            [("meters.m.value", "use a property of type integer or number")],
        ),
        (
            "aggregation: unique, value: cost, window: 1h",
            [("meters.m.value", "use a property of type string or integer or boolean")],
        ),
        ("aggregation: sum, value: byte, window: 1h", [("meters.m.value", "did you mean bytes?")]),
        ("aggregation: sum, value: request..id, window: 1h",
         [("meters.m.value", "write its name, dotted for a nested one: request.bytes")]),
        ("aggregation: summe, value: bytes, window: 1h", [("meters.m.aggregation", "did you mean sum?")]),
        ("aggregation: count, window: 1h, group_by: [region, tags, cost, region]",
         [("meters.m.group_by[3]", "give each its own"),
          ("meters.m.group_by[1]", "use a property of type string, integer, boolean"),
          ("meters.m.group_by[2]", "use a property of type string, integer, boolean")]),
        ("aggregation: count, window: 1h, where: {regoin: x, zone: c, ok: yes, size: [x]}",
         [("meters.m.where.regoin", "did you mean region?"), ("meters.m.where.zone", "use one of a, b"),
          ("meters.m.where.ok", "use one of false, true"), ("meters.m.where.size", "use one of 1, 2")]),
        ("aggregation: count, window: 1h, where: {bytes: ['01'], delta: ['x']}",
         [("meters.m.where.bytes", "write integers as they are in the events"),
          ("meters.m.where.delta", "write integers as they are in the events")]),
        ("aggregation: count, window: 1h, where: {region: []}",
         [("meters.m.where.region", "list the values, or leave the key out")]),
        ("aggregation: count, window: 90m",
         [("meters.m.window", "use one of 1m, 5m, 10m, 15m, 30m, 1h, 2h, 3h, 4h, 6h, 12h, 1d, 1mo")]),
        ("aggregation: count, window: 1h, grace: 1 hour",
         [("meters.m.grace", "write a number and a unit: 30s, 10m, 1h, 35d")]),
        ("aggregation: count, window: 1h, groupby: [region]", [("meters.m.groupby", "did you mean group_by?")]),
    ],
)  # fmt: skip
def test_faults_of_meters(meter: str, expected: list[tuple[str, str]]) -> None:
    assert faults(with_meter(meter)) == expected


@pytest.mark.parametrize(
    ("price", "expected"),
    [
        ("meter: byts, model: flat, amount: 1", [("meter", "did you mean bytes?")]),
        ("meter: bytes, model: flatt, amount: 1", [("model", "did you mean flat?")]),
        ("meter: bytes, amount: 1", [("model", "use one of flat, per_unit, package, graduated, volume, matrix")]),
        ("meter: bytes, model: flat, amount: 1.5", [("amount", 'write it as a string: "1.5"')]),
        ('meter: bytes, model: flat, amount: "1e3"', [("amount", 'write digits, such as "0.25"')]),
        ('meter: bytes, model: flat, amount: "0.0000000000001"', [("amount", "round it to 12 decimals")]),
        ("meter: bytes, model: flat, amount: 1000000000000000", [("amount", "stay below 10^15")]),
        ("meter: bytes, model: flat, amount: true", [("amount", 'write digits, such as "0.25"')]),
        ("meter: bytes, model: flat, unit_amount: 1", [("amount", "add it"), ("unit_amount", "did you mean amount?")]),
        ("meter: bytes, model: package, size: 0, amount: 1", [("size", "write a number greater than 0")]),
        ("meter: bytes, model: volume, tiers: []", [("tiers", "write at least one")]),
        ("meter: bytes, model: volume, tiers: [{up_to: 2}, {up_to: 2}, {up_to: 3}]",
         [("tiers[1].up_to", "write tiers ascending"), ("tiers[2].up_to", "leave up_to out in the last tier")]),
        ("meter: bytes, model: graduated, tiers: [{}, {}]",
         [("tiers[0].up_to", "only the last tier may be without up_to")]),
        ("meter: bytes, model: graduated, tiers: [{unit_amout: 1}]",
         [("tiers[0].unit_amout", "did you mean unit_amount?")]),
        ("meter: bytes, where: {zone: a}, model: flat, amount: 1", [("where.zone", "use one of region")]),
        ("meter: requests, where: {zone: c}, model: flat, amount: 1", [("where.zone", "use one of a, b")]),
        ("meter: deltas, where: {zone: a}, model: flat, amount: 1",
         [("where.zone", "only labels can be told apart in a meter's usage")]),
        ("meter: bytes, model: matrix, dimension: zone, rates: {a: 1}, default: 1",
         [("dimension", "use one of region")]),
        ("meter: requests, model: matrix, dimension: zone, rates: {c: 1}, default: 1", [("rates", "use one of a, b")]),
        ("meter: peak, model: matrix, dimension: zone, rates: {a: 1}, default: 1",
         [("model", "use a count or sum meter: only their parts add up"),
          ("dimension", "only labels can be told apart in a meter's usage")]),
        ("meter: requests, model: matrix, dimension: zone, rates: {a: 1}", [("default", "add it")]),
    ],
)  # fmt: skip
def test_faults_of_prices(price: str, expected: list[tuple[str, str]]) -> None:
    assert faults(with_price(price)) == [(f"plans.pro.prices[0].{path}", remedy) for path, remedy in expected]


@pytest.mark.parametrize("meter", ["requests", "bytes", "costs", "sizes", "regions", "peak"])
def test_limits_and_alerts_stand_on_meters_that_grow(meter: str) -> None:
    load_catalog(with_plan(f"entitlements: [{{feature: f, kind: metered, meter: {meter}, limit: 1}}]"))
    load_catalog(
        with_plan(
            f"prices: [{{key: p, meter: {meter}, model: per_unit, unit_amount: 1}}], alerts: [{{key: a, amount: 1}}]"
        )
    )


@pytest.mark.parametrize(
    ("meter", "remedy"),
    [
        ("deltas", "declare minimum: 0 for delta in event_types.api.request.schema"),
        ("low", "use a meter that counts, sums values from 0 up, takes the max or counts unique values"),
    ],
)
def test_nothing_is_limited_or_watched_on_a_meter_that_may_fall(meter: str, remedy: str) -> None:
    text = with_plan(f"entitlements: [{{feature: f, kind: metered, meter: {meter}, limit: 1}}]")
    assert faults(text) == [("plans.pro.entitlements[0].meter", remedy)]
    price = f"{{key: p, meter: {meter}, model: per_unit, unit_amount: 1}}"
    text = with_plan(f"prices: [{price}], alerts: [{{key: a, amount: 1}}]")
    assert faults(text) == [("plans.pro.alerts", f"{remedy}, or leave the alerts out")]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ("prices: [{key: p, meter: bytes, model: flat, amount: 1}, {key: p, meter: byte, model: flat, amount: 1}]",
         [("prices[1].meter", "did you mean bytes?"), ("prices[1].key", "give each its own")]),
        ("entitlements: [{feature: f, kind: boolean, enabled: true}, {feature: f, kind: boolean, enabled: yes}]",
         [("entitlements[1].enabled", "write true or false"), ("entitlements[1].feature", "give each its own")]),
        ("entitlements: [{feature: f, kind: metered, meter: bytes, limit: 0}]",
         [("entitlements[0].limit", "write a number greater than 0")]),
        ("entitlements: [{feature: f, kind: metered, meter: bytes, limit: 1, thresholds: [0.8, '0.80', 0]}]",
         [("entitlements[0].thresholds[2]", "write a number such as 0.8; 1.0 is the limit")]),
        ("entitlements: [{feature: f, kind: metered, meter: bytes, limit: 1, thresholds: [0.8, '0.80']}]",
         [("entitlements[0].thresholds[1]", "write it once")]),
        ("entitlements: [{feature: f, kind: metered, meter: bytes, limit: '0.1', thresholds: [0.000000000001]}]",
         [("entitlements[0].thresholds[0]", "round the fraction")]),
        ("entitlements: [{feature: f, kind: static}]", [("entitlements[0].config", "add it")]),
        ("alerts: [{key: a, amount: 1}]", [("alerts", "leave the alerts out")]),
        (("prices: [{key: p, meter: bytes, model: volume, tiers: [{up_to: 5, unit_amount: 2}, {unit_amount: 1}]}], "
         "alerts: [{key: a, amount: 1}]"), [("alerts", "change its tiers, or leave the alerts out")]),
        ("pricez: []", [("pricez", "did you mean prices?")]),
        ("prices: {}", [("prices", "write a list")]),
    ],
)  # fmt: skip
def test_faults_of_plans(parts: str, expected: list[tuple[str, str]]) -> None:
    assert sorted(faults(with_plan(parts))) == sorted((f"plans.pro.{path}", remedy) for path, remedy in expected)


@pytest.mark.parametrize(
    ("subscriptions", "expected"),
    [
        (["subject: s, plan: pro, start: 2026-01-01", "subject: s, plan: pro, start: 2026-02-01"],
         [("subscriptions[1].start", "end that one on 2026-02-01 or before")]),
        (["subject: s, plan: pro, start: 2026-01-01, end: 2026-02-02", "subject: s, plan: pro, start: 2026-02-01"],
         [("subscriptions[1].start", "end that one on 2026-02-01 or before")]),
        (["subject: s, plan: por, start: 2026-01-01"], [("subscriptions[0].plan", "did you mean pro?")]),
        (["subject: s, plan: pro, start: 2026-01-01, end: 2026-01-01"],
         [("subscriptions[0].end", "write a later day")]),
        (["subject: s, plan: pro, start: 01/02/2026"],
         [("subscriptions[0].start", "write a day from 1970 to 2200: 2026-01-15")]),
        (["subject: '', plan: pro, start: 2026-01-01"], [("subscriptions[0].subject", "write at least one")]),
    ],
)  # fmt: skip
def test_faults_of_subscriptions(subscriptions: list[str], expected: list[tuple[str, str]]) -> None:
    assert faults(with_subscriptions(*subscriptions)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{HEAD}default_plan: pro\n", [("default_plan", "declare it under plans")]),
        (f"{HEAD}accept_within: 0s\n", [("accept_within", "write a duration from 1m to 400d")]),
        (HEAD.replace("USD", "dollar"), [("currency", "write the ISO 4217 code, such as USD")]),
        (HEAD.replace("  peak: {", "  'pe ak': {"),
         [("meters.pe ak", "use letters, digits and _.:/- (at most 128, a letter or digit first)")]),
        ("currency: USD\nevent_types: {}\n", [("event_types", "declare at least one event type")]),
        ("currency: USD\nevent_types: {tallyflow.x: {schema: {type: object}}}\n",
         [("event_types.tallyflow.x", "rename the event type")]),
        ("currency: USD\nevent_types: {x: {schema: {type: array}}}\n",
         [("event_types.x.schema.type", "say type: object, without nullable")]),
        ("currency: USD\nevent_types: {x: {schema: {type: object, minItems: 1}}}\n",
         [("event_types.x.schema.minItems", "leave it out")]),
        (HEAD.replace("  peak:", "  requests:"), [("meters.requests", "keep one of them")]),
    ],
)  # fmt: skip
def test_faults_of_the_whole(text: str, expected: list[tuple[str, str]]) -> None:
    assert faults(text) == expected


# The published schema


def test_the_published_json_schema_is_that_of_the_code() -> None:
    published = json.loads((files("config") / "catalog.schema.json").read_text("utf-8"))
    assert published == catalog_json_schema(), "write json.dumps(catalog_json_schema(), indent=2) to the file"


def test_every_key_of_the_json_schema_is_described() -> None:
    schema = catalog_json_schema()
    tables: dict[str, dict[str, Any]] = {"": schema, **schema["$defs"]}
    keys = [(name, key, value) for name, table in tables.items() for key, value in table["properties"].items()]
    assert [f"{name}.{key}" for name, key, value in keys if not value.get("description")] == []
    assert {"tiers", "accept_within", "exclusiveMinimum", "thresholds"} < {key for _, key, _ in keys}


# Changes


def version(catalog: Catalog, effective_from_us: int = 0) -> CatalogVersion:
    return CatalogVersion(1, effective_from_us, catalog, "", "")


MARCH_US = 1_772_323_200_000_000  # 2026-03-01T00:00:00Z
SUBSCRIBED = with_subscriptions(
    "subject: s, plan: pro, start: 2026-01-01, end: 2026-02-01",
    "subject: s, plan: max, start: 2026-02-01",
    "subject: t, plan: pro, start: 2026-02-01, end: 2026-04-01, timezone: Asia/Tokyo",
)


def changes(*replaced: tuple[str, str]) -> list[str]:
    text = SUBSCRIBED
    for one, other in replaced:
        assert one in text
        text = text.replace(one, other)
    return [
        f"{fault.path}: {fault.remedy}"
        for fault in check_change(History((version(load_catalog(SUBSCRIBED)),)), load_catalog(text), MARCH_US)
    ]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("version: 1", "version: 1", []),
        ("currency: USD", "currency: USD\naccept_within: 36d", ["accept_within: restore it: claims are kept by it"]),
        ("USD", "EUR", ["currency: restore USD: running periods are priced in it"]),
        ("value: delta, window: 1h", "value: bytes, window: 1d", ["meters.deltas: name it anew"]),
        ("value: delta, window: 1h", "value: delta, window: 1h, grace: 1h", []),
        ("  low:", "  lowest:", []),
        ("ok: {type: boolean}", "ok: {type: string}",
         ["event_types.api.request.schema: declare a property of another name"]),
        ("ok: {type: boolean}", "okay: {type: boolean}", []),
        ("{subject: s, plan: pro, start: 2026-01-01, end: 2026-02-01}", "{subject: u, plan: pro, start: 2026-01-01}",
         ["subscriptions (s from 2026-01-01): keep it, and set its end"]),
        ("start: 2026-02-01}", "start: 2026-02-01, end: 2026-03-01}", []),
        ("start: 2026-02-01}", "start: 2026-02-01, end: 2026-02-28}",
         ["subscriptions (s from 2026-02-01): only an end on 2026-03-01 or later may be set or changed"]),
        ("end: 2026-02-01", "end: 2026-01-31",
         ["subscriptions (s from 2026-01-01): only an end on 2026-03-01 or later may be set or changed"]),
        ("end: 2026-04-01, ", "", []),
        ("end: 2026-04-01", "end: 2026-03-01", []),
        ("plan: max", "plan: pro", ["subscriptions (s from 2026-02-01): end it, and add another"]),
        ("Asia/Tokyo", "UTC", ["subscriptions (t from 2026-02-01): end it, and add another"]),
    ],
)  # fmt: skip
def test_what_may_change(one: str, other: str, expected: list[str]) -> None:
    assert changes((one, other)) == expected


def test_a_change_holds_from_a_later_time() -> None:
    catalog = load_catalog(HEAD)
    assert check_change(History((version(catalog, 5),)), catalog, 6) == []
    assert [fault.path for fault in check_change(History((version(catalog, 5),)), catalog, 5)] == ["effective_from"]


def test_a_history_is_read_from_its_rows() -> None:
    history = load_history([(2, 10, HEAD + "timezone: Asia/Tokyo\n"), (1, 0, HEAD)])
    assert [v.version for v in history.versions] == [1, 2]
    assert history.at(9).catalog.timezone == "UTC"
    assert history.at(10).catalog.timezone == "Asia/Tokyo"
    assert history.versions[0].yaml == HEAD
    assert len(history.versions[0].sha256) == 64


@pytest.mark.parametrize("rows", [[], [(1, 0, HEAD), (3, 5, HEAD)], [(1, 5, HEAD), (2, 5, HEAD)], [(1, 0, "x")]])
def test_a_broken_history_is_refused(rows: list[tuple[int, int, str]]) -> None:
    with pytest.raises(CatalogError):
        load_history(rows)


def test_a_meter_may_not_come_back_with_another_meaning() -> None:
    meters = "meters:\n  m: {event_type: e, aggregation: count, window: 1h}\n"
    other = "meters:\n  m: {event_type: e, aggregation: count, window: 1d}\n"
    base = "version: 1\ncurrency: USD\nevent_types:\n  e: {schema: {type: object}}\n"
    first, gone, back = load_catalog(base + meters), load_catalog(base), load_catalog(base + other)
    history = History((version(first), CatalogVersion(2, 5, gone, "", "")))
    assert check_change(history, first, 9) == []
    assert [fault.path for fault in check_change(history, back, 9)] == ["meters.m"]
