"""What a quantity costs: the price models of a plan and the function that applies them.

`rate` is a pure function of a period's total, so late usage lands in the right tier and nothing
accumulates rounding. Everything is exact integer arithmetic: quantities, tier limits and package
sizes are in units of 10^-12, money per one unit (`unit_amount`, `rates`, `default`) in units of
10^-12 too, so that their product is an amount in units of 10^-24, as `amount` and `flat_amount` are.
Rounding to the currency's minor unit happens on an invoice line only.

A model that cannot be applied (no open last tier, limits that do not rise, a size of 0) raises
`ValueError` when it is built; rating itself fails only on parts that do not belong to the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, assert_never

from domain.values import QUANTITY_SCALE

WHOLE = ""
"""The part that holds the whole quantity; of a matrix, the quantity of values it does not list."""

NO_ROWS: tuple[tuple[int, int], ...] = ()


class Rated(NamedTuple):
    """What a period costs, and how it came about."""

    amount: int
    """In units of 10^-24."""
    tiers: tuple[tuple[int, int], ...]
    """(quantity, amount) of each tier, package line or matrix rate charged; the amounts sum to `amount`."""


NOTHING = Rated(0, NO_ROWS)


@dataclass(frozen=True, slots=True)
class Flat:
    """A fixed amount, whatever the quantity (also for 0)."""

    amount: int


@dataclass(frozen=True, slots=True)
class PerUnit:
    """The same amount for every unit; a negative quantity is a credit."""

    unit_amount: int


@dataclass(frozen=True, slots=True)
class Package:
    """An amount for every package started; nothing for a quantity of 0 or less."""

    size: int
    amount: int

    def __post_init__(self) -> None:
        if self.size <= 0:
            raise ValueError("the size of a package must be greater than 0")


@dataclass(frozen=True, slots=True)
class Tier:
    """The quantities above the tier before, up to and including `up_to` (None: without end)."""

    up_to: int | None
    unit_amount: int
    flat_amount: int
    """Charged once the tier is entered."""


@dataclass(frozen=True, slots=True)
class Graduated:
    """Each tier's units cost that tier's amount; nothing for a quantity of 0 or less."""

    tiers: tuple[Tier, ...]

    def __post_init__(self) -> None:
        _check_tiers(self.tiers)


@dataclass(frozen=True, slots=True)
class Volume:
    """All units cost the amount of the tier that the whole quantity falls in; nothing for 0 or less."""

    tiers: tuple[Tier, ...]

    def __post_init__(self) -> None:
        _check_tiers(self.tiers)


@dataclass(frozen=True, slots=True)
class Matrix:
    """An amount per unit by the value of one group-by label; `default` for values not listed.

    `rates` must not change after construction.
    """

    dimension: str
    rates: Mapping[str, int] = field(hash=False)
    default: int
    _rows: tuple[tuple[str, int], ...] = field(init=False, repr=False, compare=False)
    """(part, amount per unit) in the order of `rates`, the default last."""

    def __post_init__(self) -> None:
        rows = (*((_listed(name), rate) for name, rate in self.rates.items()), (WHOLE, self.default))
        object.__setattr__(self, "_rows", rows)


PriceModel = Flat | PerUnit | Package | Graduated | Volume | Matrix


def part_of(model: PriceModel, dimension_value: str) -> str:
    """Give the part that a quantity with this value of the model's dimension counts in.

    Listed values are prefixed, so that a rate named "" is not taken for the unlisted ones. Models
    without a dimension have one part, `WHOLE`.
    """
    if isinstance(model, Matrix) and dimension_value in model.rates:
        return _listed(dimension_value)
    return WHOLE


def rate(model: PriceModel, parts: Mapping[str, int]) -> Rated:
    """Price a period's total.

    Args:
        model: the price model.
        parts: quantity by part (`part_of`). Of a matrix, absent parts count 0; of any other model
            it must be `{WHOLE: quantity}`.

    Returns:
        The amount, and a row for every tier that the quantity entered, in order: graduated, the
        quantity inside the tier and its amount with `flat_amount`; volume, the whole quantity; flat
        and per_unit, one row always; package, the number of started packages (in units of 10^-12);
        matrix, the rates with a quantity other than 0, the default last. Graduated, volume and
        package give amount 0 and no rows for a quantity of 0 or less.

    Raises:
        KeyError: `WHOLE` is missing (not for a matrix).
        ValueError: a matrix was given a part that it does not have.
    """
    # Ordered by how often plans use them: the checks before the right one are what dispatch costs.
    if isinstance(model, PerUnit):
        quantity = parts[WHOLE]
        amount = quantity * model.unit_amount
        return Rated(amount, ((quantity, amount),))
    if isinstance(model, Graduated):
        return _graduated(model.tiers, parts[WHOLE])
    if isinstance(model, Package):
        return _package(model, parts[WHOLE])
    if isinstance(model, Flat):
        return Rated(model.amount, ((parts[WHOLE], model.amount),))
    if isinstance(model, Volume):
        return _volume(model.tiers, parts[WHOLE])
    if isinstance(model, Matrix):
        return _matrix(model, parts)
    assert_never(model)


def never_falls(model: PriceModel) -> bool:
    """Tell whether a greater quantity never costs less (exactly: for every pair of quantities).

    Spend thresholds can be watched only on amounts that never fall.
    """
    match model:
        case Flat():
            return True
        case PerUnit(unit_amount=amount) | Package(amount=amount):
            return amount >= 0
        case Matrix(rates=rates, default=default):
            return default >= 0 and all(amount >= 0 for amount in rates.values())
        case Graduated(tiers=tiers) | Volume(tiers=tiers):
            return _tiers_never_fall(model, tiers)


def _listed(dimension_value: str) -> str:
    return "=" + dimension_value


def _check_tiers(tiers: tuple[Tier, ...]) -> None:
    if not tiers or tiers[-1].up_to is not None:
        raise ValueError("the last tier must have no up_to")
    lower = 0
    for tier in tiers[:-1]:
        if tier.up_to is None or tier.up_to <= lower:
            raise ValueError("every up_to but the last must be given, be above 0 and rise from tier to tier")
        lower = tier.up_to


def _package(model: Package, quantity: int) -> Rated:
    if quantity <= 0:
        return NOTHING
    started = -(-quantity // model.size)
    amount = started * model.amount
    return Rated(amount, ((started * QUANTITY_SCALE, amount),))


def _graduated(tiers: tuple[Tier, ...], quantity: int) -> Rated:
    if quantity <= 0:
        return NOTHING
    rows: list[tuple[int, int]] = []
    total = lower = 0
    for tier in tiers:
        up_to = tier.up_to
        last = up_to is None or quantity <= up_to
        inside = (quantity if up_to is None or last else up_to) - lower
        amount = inside * tier.unit_amount + tier.flat_amount
        rows.append((inside, amount))
        total += amount
        if last:
            break
        lower += inside
    return Rated(total, tuple(rows))


def _volume(tiers: tuple[Tier, ...], quantity: int) -> Rated:
    if quantity <= 0:
        return NOTHING
    for tier in tiers:  # a loop: it costs half of next() over a generator
        if tier.up_to is None or quantity <= tier.up_to:
            break
    amount = quantity * tier.unit_amount + tier.flat_amount
    return Rated(amount, ((quantity, amount),))


def _matrix(model: Matrix, parts: Mapping[str, int]) -> Rated:
    rows: list[tuple[int, int]] = []
    total = known = 0
    for part, unit_amount in model._rows:
        quantity = parts.get(part)
        if quantity is None:
            continue
        known += 1
        if quantity:
            amount = quantity * unit_amount
            rows.append((quantity, amount))
            total += amount
    if known != len(parts):
        raise ValueError(f"parts that are not of the matrix over {model.dimension!r}: {sorted(parts)}")
    return Rated(total, tuple(rows))


def _tiers_never_fall(model: Graduated | Volume, tiers: tuple[Tier, ...]) -> bool:
    """Check each tier's inside and the step into it: between those, the amount is a straight line."""
    lower = 0
    for tier in tiers:
        if rate(model, {WHOLE: lower + 1}).amount < rate(model, {WHOLE: lower}).amount:
            return False
        if tier.unit_amount < 0 and tier.up_to != lower + 1:
            return False
        lower = tier.up_to or lower
    return True
