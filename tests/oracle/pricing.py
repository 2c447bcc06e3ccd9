"""What a quantity costs, by the text-book definition of each price model; amounts are exact."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import Any

from tests.oracle.catalogs import exact

Entries = list[tuple[Decimal, Decimal]]
"""Per tier that the quantity entered: quantity, amount."""


def price(model: dict[str, Any], quantity: Decimal, buckets: Callable[[str | None], Decimal]) -> Entries:
    """The entries whose amounts add up to the price.

    Args:
        model: the price as written in the catalog.
        quantity: the period's total.
        buckets: for a matrix, the total of one listed value of its dimension; of None, of all others.
    """
    match model["model"]:
        case "flat":
            return [(quantity, exact(model["amount"]))]
        case "per_unit":
            return [(quantity, quantity * exact(model["unit_amount"]))]
        case "package":
            packages = Decimal(ceil(Fraction(quantity) / Fraction(exact(model["size"]))))
            return [(packages, packages * exact(model["amount"]))] if quantity > 0 else []
        case "graduated":
            return _graduated(model["tiers"], quantity)
        case "volume":
            return _volume(model["tiers"], quantity)
        case "matrix":
            return _matrix(model, buckets)
    raise AssertionError(f"no such price model: {model['model']}")


def _tier(tier: dict[str, Any], quantity: Decimal) -> tuple[Decimal, Decimal]:
    unit, flat = exact(tier.get("unit_amount") or 0), exact(tier.get("flat_amount") or 0)
    return quantity, quantity * unit + flat


def _graduated(tiers: list[dict[str, Any]], quantity: Decimal) -> Entries:
    """Each unit is charged by the tier that it falls in."""
    entries = []
    floor = Decimal(0)
    for tier in tiers:
        if quantity <= floor:
            break
        ceiling = quantity if tier.get("up_to") is None else min(quantity, exact(tier["up_to"]))
        entries.append(_tier(tier, ceiling - floor))
        floor = ceiling
        if tier.get("up_to") is not None and quantity <= exact(tier["up_to"]):
            break
    return entries


def _volume(tiers: list[dict[str, Any]], quantity: Decimal) -> Entries:
    """All units are charged by the tier that the total falls in."""
    if quantity <= 0:
        return []
    for tier in tiers:
        if tier.get("up_to") is None or quantity <= exact(tier["up_to"]):
            return [_tier(tier, quantity)]
    raise AssertionError("the last tier has no upper bound")


def _matrix(model: dict[str, Any], buckets: Callable[[str | None], Decimal]) -> Entries:
    """A rate per value of the dimension; values not listed cost the default."""
    rates = [(buckets(value), exact(rate)) for value, rate in model["rates"].items()]
    rates.append((buckets(None), exact(model.get("default") or 0)))
    return [(quantity, quantity * rate) for quantity, rate in rates if quantity != 0]
