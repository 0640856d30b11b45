"""What OKX's frames and answers share: times, numbers, names of instruments, errors."""

import re
from typing import Annotated, TypeAlias

import msgspec

from services.shared.decimals import InvalidDecimalError, canonical_decimal

__all__ = [
    "DECODE_ERRORS",
    "Time",
    "WholeNumber",
    "finite",
    "is_derivative",
    "is_inverse",
    "nanoseconds",
    "number",
    "optional_nanoseconds",
]

WholeNumber: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,18}\Z")]
Time: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,14}\Z")]
DECODE_ERRORS = (msgspec.DecodeError, UnicodeError, RecursionError, InvalidDecimalError)
# Contracts of a fixed number of US dollars are the swaps and futures of the family BASE-USD; those
# of BASE-USD_UM and its like are linear.
_INVERSE = re.compile(r"[^-]+-USD-(?:SWAP|[0-9]{6})", re.ASCII)


def nanoseconds(time: str) -> int:
    """Turn a time as sent, milliseconds since 1970, into nanoseconds. Raises ValidationError."""
    if time.isdigit() and time.isascii() and len(time) < 15:
        return int(time) * 1_000_000
    raise msgspec.ValidationError(f"expected milliseconds since 1970, got {time[:40]!r}")


def optional_nanoseconds(time: str) -> int:
    """Turn a time that may be left out into nanoseconds; 0 when it is. Raises ValidationError."""
    return nanoseconds(time) if time else 0


def number(text: str) -> str:
    """Give the canonical spelling of a number that may be left out. Raises InvalidDecimalError."""
    return canonical_decimal(text) if text else ""


def finite(text: str) -> str:
    """Give a number that may be left out; at an option's expiry OKX was seen to send infinity."""
    return "" if text.removeprefix("-") == "∞" else number(text)


def is_derivative(native_symbol: str) -> bool:
    """Tell whether quantities of this instrument count contracts: spot is named BASE-QUOTE."""
    return native_symbol.count("-") > 1


def is_inverse(native_symbol: str) -> bool:
    """Tell whether contracts of this instrument are worth a fixed amount of quote currency."""
    return _INVERSE.fullmatch(native_symbol) is not None
