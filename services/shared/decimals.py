"""Exact decimal text: every price and quantity of the mesh is one of these strings."""

import re
from decimal import Decimal

__all__ = ["InvalidDecimalError", "canonical_decimal"]

_LONGEST = 128
_PLAIN = re.compile(r"(-?)0*([0-9]{1,30})(?:\.([0-9]{0,30}))?\Z", re.ASCII)
_SCIENTIFIC = re.compile(r"-?[0-9]{1,30}(?:\.[0-9]{0,30})?[eE][+-]?[0-9]{1,2}\Z", re.ASCII)


class InvalidDecimalError(ValueError):
    """The text is not a decimal number of at most 30 digits on either side of the point."""


def canonical_decimal(text: str) -> str:
    """Return the one spelling of a number: no exponent, no leading or trailing zeros, no `-0`.

    Accepts what venues send (`"0.01000000"`, `"1.0002e6"`, `"5"`), at most 30 digits before and
    30 after the point and 128 characters in all, and never goes through a float.

    Raises InvalidDecimalError on anything else, signs other than a leading minus included.
    """
    # What venues nearly always send; the patterns below decide about everything else.
    head, point, tail = text.partition(".")
    if head.isdigit() and text.isascii() and len(text) < 31 and (head[0] != "0" or head == "0"):
        if not point:
            return head
        if tail.isdigit():
            tail = tail.rstrip("0")
            return f"{head}.{tail}" if tail else head
    if len(text) > _LONGEST:
        # Leading zeros without end would keep the patterns busy for as long.
        raise InvalidDecimalError(f"expected a decimal number, got {len(text)} characters")
    match = _PLAIN.match(text)
    if match is None:
        if _SCIENTIFIC.match(text) is None:
            raise InvalidDecimalError(f"expected a decimal number, got {text[:40]!r}")
        expanded = format(Decimal(text), "f")
        if len(expanded) > 62 or (match := _PLAIN.match(expanded)) is None:
            raise InvalidDecimalError(f"more than 30 digits on a side of the point: {text[:40]!r}")
    sign, whole, fraction = match.groups()
    fraction = (fraction or "").rstrip("0")
    if fraction:
        return f"{sign}{whole}.{fraction}"
    return "0" if whole == "0" else f"{sign}{whole}"
