"""What a quantity costs, in whole numbers: quantities and prices in 10^-12, amounts in 10^-24."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

UNIT = 10**12


def scaled(value: Any, unit: int = UNIT) -> int:
    """A number of a catalog or a table, exactly, in units of `1 / unit`."""
    numerator, denominator = Decimal(str(value) if isinstance(value, float) else value).as_integer_ratio()
    whole, rest = divmod(numerator * unit, denominator)
    assert not rest, f"{value} is finer than 1/{unit}"
    return whole


def cost(price: Mapping[str, Any], quantity: int, parts: Mapping[str, int]) -> int:
    """The amount of a price, as written in the catalog, for a quantity.

    Args:
        price: The price.
        quantity: What it applies to.
        parts: Of a matrix, the quantity of each value of its dimension.
    """
    match price["model"]:
        case "flat":
            return scaled(price["amount"]) * UNIT
        case "per_unit":
            return quantity * scaled(price["unit_amount"])
        case "package":
            packages = -(-quantity // scaled(price["size"])) if quantity > 0 else 0
            return packages * scaled(price["amount"]) * UNIT
        case "graduated":
            return _graduated(price["tiers"], quantity)
        case "volume":
            return _volume(price["tiers"], quantity)
        case "matrix":
            rates = {_text(value): scaled(rate) for value, rate in price["rates"].items()}
            other = scaled(price.get("default") or 0)
            return sum(part * rates.get(value, other) for value, part in parts.items())
    raise AssertionError(f"no such price model: {price['model']}")


def _graduated(tiers: list[dict[str, Any]], quantity: int) -> int:
    amount = below = 0
    for tier in tiers:
        if quantity > below:
            top = quantity if tier.get("up_to") is None else min(quantity, scaled(tier["up_to"]))
            amount += _tier(tier, top - below)
            below = top if tier.get("up_to") is None else scaled(tier["up_to"])
    return amount


def _volume(tiers: list[dict[str, Any]], quantity: int) -> int:
    if quantity <= 0:
        return 0
    return _tier(next(t for t in tiers if t.get("up_to") is None or quantity <= scaled(t["up_to"])), quantity)


def _tier(tier: dict[str, Any], quantity: int) -> int:
    return quantity * scaled(tier.get("unit_amount") or 0) + scaled(tier.get("flat_amount") or 0) * UNIT


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
