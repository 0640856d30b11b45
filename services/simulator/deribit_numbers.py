"""How Deribit spells JSON numbers.

The venue writes most prices and amounts as floats in their shortest spelling: a decimal point
always (`10.0`), and an exponent wherever that is shorter (`2.2e3`, `1.0002e6`, `1.423e-4`), but
`1054.0`, `0.0065`. Counts, ids and times are integers, and so are the amounts of a few fields of
inverse instruments.
"""

import json
from collections.abc import Mapping, Sequence

from services.simulator.fixed import DECIMALS, SCALE, canonical

__all__ = ["Float", "Numbers", "dumps", "plain", "rounded", "short"]

_CACHED = 400_000


def short(units: int) -> str:
    """`units` of 1e-8 as the venue spells a float: the shorter of decimal and exponent form."""
    if not units:
        return "0.0"
    if units < 0:
        return "-" + short(-units)
    text = str(units)
    digits = text.rstrip("0")
    point = len(text) - DECIMALS
    count = len(digits)
    if 0 < point < count:
        return f"{digits[:point]}.{digits[point:]}"
    if not point:
        return f"0.{digits}"
    # The exponent form costs the exponent, the `e` and a point, which brings a 0 with one digit.
    exponent = str(point - 1)
    cost = len(exponent) + 1 + (2 if count == 1 else 1)
    if point < 0:
        if 2 - point <= cost:
            return f"0.{'0' * -point}{digits}"
    elif point - count + 2 <= cost:
        return f"{digits}{'0' * (point - count)}.0"
    return f"{digits[0]}.{digits[1:] or '0'}e{exponent}"


def plain(units: int) -> str:
    """`units` of 1e-8 without an exponent, an integer where it is whole: `2700`, `0.05`."""
    return canonical(units)


def rounded(value: float, decimals: int = DECIMALS) -> int:
    """Units of 1e-8 nearest to a computed value with at most `decimals` decimals."""
    return int(round(value, decimals) * SCALE + (0.5 if value >= 0 else -0.5))


class Numbers(dict[int, bytes]):
    """`short` by units, as bytes: formatting is the dearest part of a book frame."""

    def __missing__(self, units: int) -> bytes:
        if len(self) >= _CACHED:
            self.clear()
        text = short(units).encode()
        self[units] = text
        return text


class Float(int):
    """Units of 1e-8 which `dumps` writes as the venue writes a float."""

    __slots__ = ()


def dumps(value: object) -> str:
    """JSON as the venue writes it; `Float` for its floats, int for its integers.

    Raises:
        TypeError: for a float, whose spelling would be Python's and not the venue's.

    """
    if isinstance(value, Float):
        return short(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{json.dumps(key)}:{dumps(value[key])}" for key in value) + "}"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, Sequence):
        return "[" + ",".join(map(dumps, value)) + "]"
    if value is None or isinstance(value, int):
        return json.dumps(value)
    raise TypeError(f"expected JSON data without Python floats, got {type(value).__name__}")
