"""Deribit's JSON numbers as canonical text, read from their digits and never through a float."""

import msgspec

from services.shared.decimals import InvalidDecimalError, canonical_decimal

__all__ = ["NULL", "fraction", "number", "optional_number", "quantity"]

NULL = msgspec.Raw(b"null")
"""What stands for a number that is absent: Deribit writes null as often as it leaves one out."""


def number(raw: msgspec.Raw) -> str:
    """Give a number. Raises InvalidDecimalError on anything else, null and text included."""
    return canonical_decimal(str(raw, "ascii"))


def optional_number(raw: msgspec.Raw) -> str:
    """Give a number, or empty text where there is none (absent or null)."""
    text = str(raw, "ascii")
    return "" if text == "null" else canonical_decimal(text)


def quantity(raw: msgspec.Raw) -> str:
    """Give a number of 0 or more. Raises InvalidDecimalError on anything else."""
    text = number(raw)
    if text[0] == "-":
        raise InvalidDecimalError(f"expected an amount of 0 or more, got {text}")
    return text


def fraction(raw: msgspec.Raw) -> str:
    """Give a number told in percent as a fraction; empty text where there is none."""
    text = optional_number(raw)
    return canonical_decimal(f"{text}e-2") if text else ""
