"""Price models against an independent implementation in decimals, and their promises."""

from __future__ import annotations

import pickle
from decimal import ROUND_CEILING, Context, Decimal, localcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.pricing import (
    WHOLE,
    Flat,
    Graduated,
    Matrix,
    Package,
    PerUnit,
    PriceModel,
    Rated,
    Tier,
    Volume,
    never_falls,
    part_of,
    rate,
)
from domain.values import AMOUNT_SCALE, QUANTITY_SCALE

UNIT = QUANTITY_SCALE
EXACT = Context(prec=120)

# Small numbers meet tier edges, large ones would show a float or an overflow.
quantities = st.one_of(st.integers(-3, 40), st.integers(-3, 40).map(lambda n: n * UNIT), st.integers(-(10**27), 10**27))
prices = st.one_of(st.integers(-2, 5), st.integers(-(10**24), 10**24), st.integers(0, 10**24))
amounts = st.one_of(st.integers(-2, 5), st.integers(-(10**36), 10**36), st.integers(0, 10**36))
sizes = st.one_of(st.integers(1, 9), st.integers(1, 9).map(lambda n: n * UNIT), st.integers(1, 10**27))


@st.composite
def tier_lists(draw: st.DrawFn) -> tuple[Tier, ...]:
    edges: list[int | None] = [*sorted(draw(st.lists(sizes, max_size=4, unique=True))), None]
    return tuple(Tier(edge, draw(prices), draw(amounts)) for edge in edges)


whole_models: st.SearchStrategy[PriceModel] = st.one_of(
    st.builds(Flat, amounts),
    st.builds(PerUnit, prices),
    st.builds(Package, sizes, amounts),
    st.builds(Graduated, tier_lists()),
    st.builds(Volume, tier_lists()),
)
names = st.sampled_from(["", "=", "eu", "us", "=eu", "é"])
matrices = st.builds(Matrix, st.just("region"), st.dictionaries(names, prices, max_size=4), prices)


def quantity(scaled: int) -> Decimal:
    return Decimal(scaled).scaleb(-12)


def money(scaled: int) -> Decimal:
    return Decimal(scaled).scaleb(-24)


def expected(model: PriceModel, q: Decimal) -> list[tuple[Decimal, Decimal]]:
    """(quantity, amount) rows by the definitions, in decimals of units and currency."""
    match model:
        case Flat(amount):
            return [(q, money(amount))]
        case PerUnit(unit_amount):
            return [(q, q * quantity(unit_amount))]
        case Package(size, amount) if q > 0:
            started = (q / quantity(size)).to_integral_value(ROUND_CEILING)
            return [(started, started * money(amount))]
        case Graduated(tiers) if q > 0:
            floors = [Decimal(0), *(quantity(t.up_to) for t in tiers if t.up_to is not None)]
            tops = [*floors[1:], Decimal("Infinity")]
            return [
                (min(q, top) - floor, (min(q, top) - floor) * quantity(t.unit_amount) + money(t.flat_amount))
                for t, floor, top in zip(tiers, floors, tops, strict=True)
                if q > floor
            ]
        case Volume(tiers) if q > 0:
            tier = next(t for t in tiers if t.up_to is None or q <= quantity(t.up_to))
            return [(q, q * quantity(tier.unit_amount) + money(tier.flat_amount))]
        case _:
            return []


def amount_of(model: PriceModel, q: int) -> int:
    return rate(model, {WHOLE: q}).amount


@settings(max_examples=300)
@given(whole_models, quantities)
def test_agrees_with_decimals(model: PriceModel, q: int) -> None:
    rated = rate(model, {WHOLE: q})
    with localcontext(EXACT):
        rows = expected(model, quantity(q))
        assert [(quantity(n), money(a)) for n, a in rated.tiers] == rows
        assert money(rated.amount) == sum((a for _, a in rows), Decimal(0))
    assert type(rated.amount) is int
    assert all(type(n) is int and type(a) is int for n, a in rated.tiers)


@settings(max_examples=100)
@given(matrices, st.lists(st.tuples(names | st.just("asia"), quantities), max_size=8))
def test_matrix_prices_each_value_by_its_rate(model: Matrix, usage: list[tuple[str, int]]) -> None:
    parts: dict[str, int] = {}
    for value, q in usage:
        part = part_of(model, value)
        parts[part] = parts.get(part, 0) + q
    rated = rate(model, parts)
    assert rated.amount == sum(q * model.rates.get(value, model.default) for value, q in usage)
    listed = [(sum(q for v, q in usage if v == name), each) for name, each in model.rates.items()]
    listed.append((sum(q for v, q in usage if v not in model.rates), model.default))
    assert rated.tiers == tuple((q, q * each) for q, each in listed if q)


@settings(max_examples=300)
@given(whole_models, st.lists(quantities, max_size=8))
def test_never_falls_iff_no_pair_of_quantities_falls(model: PriceModel, sampled: list[int]) -> None:
    tiers = model.tiers if isinstance(model, Graduated | Volume) else ()
    steps = [t.up_to for t in tiers if t.up_to is not None] + ([model.size] if isinstance(model, Package) else [])
    # Beside each edge on both sides, where a fall of a piecewise straight line must show.
    near = [edge + by for edge in (0, *steps) for by in (-1, 0, 1, 2)]
    costs = [amount_of(model, q) for q in sorted({*sampled, *near})]
    assert never_falls(model) == (costs == sorted(costs))


@settings(max_examples=100)
@given(matrices)
def test_matrix_never_falls_iff_no_part_falls(model: Matrix) -> None:
    parts = [WHOLE, *(part_of(model, name) for name in model.rates)]
    assert never_falls(model) == all(rate(model, {part: 1}).amount >= 0 for part in parts)


@settings(max_examples=100)
@given(tier_lists(), sizes, st.integers(1, 10**27))
def test_graduated_adds_up_over_a_cut(tiers: tuple[Tier, ...], first: int, more: int) -> None:
    """The units beyond a cut cost the same as under the tiers that are left from there on."""
    whole = amount_of(Graduated(tiers), first + more)
    rest = [t for t in tiers if t.up_to is None or t.up_to > first]
    floor = max((t.up_to for t in tiers if t.up_to is not None and t.up_to <= first), default=0)
    left = tuple(
        Tier(
            None if t.up_to is None else t.up_to - first,
            t.unit_amount,
            0 if i == 0 and first > floor else t.flat_amount,
        )
        for i, t in enumerate(rest)
    )
    assert whole == amount_of(Graduated(tiers), first) + amount_of(Graduated(left), more)


def test_tiers_of_the_catalog_example() -> None:
    tiers = (Tier(1_000_000 * UNIT, 0, 0), Tier(None, 20_000, AMOUNT_SCALE))
    assert rate(Graduated(tiers), {WHOLE: 1_000_000 * UNIT}) == Rated(0, ((1_000_000 * UNIT, 0),))
    over = rate(Graduated(tiers), {WHOLE: 1_500_000 * UNIT})
    assert over.amount == 1_010_000_000_000_000_000_000_000  # 1.00 + 500,000 x 0.00000002
    assert over.tiers == ((1_000_000 * UNIT, 0), (500_000 * UNIT, over.amount))
    assert rate(Volume(tiers), {WHOLE: 1_500_000 * UNIT}).tiers == ((1_500_000 * UNIT, 103 * AMOUNT_SCALE // 100),)


def test_zero_and_less() -> None:
    tiers = (Tier(None, 5, 7),)
    for q in (0, -UNIT):
        for model in (Graduated(tiers), Volume(tiers), Package(UNIT, 7)):
            assert rate(model, {WHOLE: q}) == Rated(0, ())
        assert rate(Flat(7), {WHOLE: q}) == Rated(7, ((q, 7),))
        assert rate(PerUnit(5), {WHOLE: q}) == Rated(q * 5, ((q, q * 5),))


def test_volume_that_falls_at_an_edge() -> None:
    assert not never_falls(Volume((Tier(10 * UNIT, 5, 0), Tier(None, 4, 0))))
    assert never_falls(Volume((Tier(10 * UNIT, 5, 0), Tier(None, 4, 10 * UNIT))))
    assert never_falls(Graduated((Tier(10 * UNIT, 5, 0), Tier(None, 4, 0))))


def test_a_rate_named_empty_is_not_the_default() -> None:
    model = Matrix("region", {"": 2, "eu": 3}, 5)
    assert [part_of(model, v) for v in ("", "eu", "=eu", "us")] == ["=", "=eu", "", ""]
    assert rate(model, {"": 10, "=eu": 1, "=": 4}) == Rated(61, ((4, 8), (1, 3), (10, 50)))
    assert part_of(Flat(1), "eu") == WHOLE


def test_what_does_not_fit_is_refused() -> None:
    for tiers in (
        (),
        (Tier(5, 1, 0),),
        (Tier(5, 1, 0), Tier(5, 1, 0), Tier(None, 1, 0)),
        (Tier(0, 1, 0), Tier(None, 1, 0)),
    ):
        with pytest.raises(ValueError, match="up_to"):
            Graduated(tiers)
        with pytest.raises(ValueError, match="up_to"):
            Volume(tiers)
    with pytest.raises(ValueError, match="size"):
        Package(0, 1)
    with pytest.raises(ValueError, match="not of the matrix"):
        rate(Matrix("region", {"eu": 1}, 2), {"eu": 1})


def test_models_are_values() -> None:
    model = Matrix("region", {"eu": 1}, 2)
    assert pickle.loads(pickle.dumps(model)) == model == Matrix("region", {"eu": 1}, 2)
    assert hash(model) == hash(Matrix("region", {"eu": 1}, 2))
