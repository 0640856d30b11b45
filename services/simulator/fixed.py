"""Fixed-point numbers of the simulated market: one unit is 1e-8, Binance's eight decimals."""

from decimal import Decimal

__all__ = ["DECIMALS", "SCALE", "canonical", "eight_decimals", "from_units", "to_units"]

DECIMALS = 8
"""Decimals of a unit."""

SCALE = 10**DECIMALS
"""Units in one whole."""


def to_units(text: str | Decimal) -> int:
    """Units of a plain decimal.

    Raises:
        ValueError: if `text` is not a finite decimal, or finer than 1e-8.

    """
    try:
        number = Decimal(text)
        units = number.scaleb(DECIMALS)
        whole = int(units)
    except (ArithmeticError, ValueError) as error:
        raise ValueError(f"expected a plain decimal number, got {text!r}") from error
    if whole != units:
        raise ValueError(f"expected at most {DECIMALS} decimals, got {text!r}")
    return whole


def from_units(units: int) -> Decimal:
    """Return the exact decimal of `units`, without trailing zeros or exponent."""
    return Decimal(canonical(units))


def canonical(units: int) -> str:
    """`units` as a plain decimal without trailing zeros: `2683.8`, `0.0000656`, `5`."""
    whole, fraction = divmod(abs(units), SCALE)
    sign = "-" if units < 0 else ""
    if not fraction:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{fraction:08d}".rstrip("0")


def eight_decimals(units: int) -> str:
    """`units` as Binance spot prints numbers: always eight decimals."""
    if units < 0:
        return "-" + eight_decimals(-units)
    return f"{units // SCALE}.{units % SCALE:08d}"
