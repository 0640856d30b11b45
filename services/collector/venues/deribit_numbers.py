"""Deribit's JSON numbers as canonical text, read from their digits and never through a float."""

from collections.abc import Callable

import msgspec

from services.shared.decimals import InvalidDecimalError, canonical_decimal

__all__ = ["NULL", "fraction", "number", "optional_number", "quantity"]

NULL = msgspec.Raw(b"null")
"""What stands for a number that is absent: Deribit writes null as often as it leaves one out."""

_CACHE_LIMIT = 20_000


class _Read(dict[str, str]):
    """From the venue's spelling to ours; forgets all when it is full.

    A ticker repeats most of its twenty-five numbers in the next one, and a look-up costs a fifth of
    reading a number.
    """

    def __init__(self, read: Callable[[str], str]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, text: str) -> str:
        number = self._read(text)
        if len(self) >= _CACHE_LIMIT:
            self.clear()
        self[text] = number
        return number


def _optional(text: str) -> str:
    return "" if text == "null" else canonical_decimal(text)


def _hundredth(text: str) -> str:
    percent = _optional(text)
    return canonical_decimal(f"{percent}e-2") if percent else ""


_OPTIONAL = _Read(_optional)
_HUNDREDTHS = _Read(_hundredth)


def number(raw: msgspec.Raw) -> str:
    """Give a number. Raises InvalidDecimalError on anything else, null and text included."""
    text = _OPTIONAL[str(raw, "ascii")]
    if not text:
        raise InvalidDecimalError("expected a number, got null")
    return text


def optional_number(raw: msgspec.Raw) -> str:
    """Give a number, or empty text where there is none (absent or null)."""
    return _OPTIONAL[str(raw, "ascii")]


def quantity(raw: msgspec.Raw) -> str:
    """Give a number of 0 or more. Raises InvalidDecimalError on anything else."""
    text = number(raw)
    if text[0] == "-":
        raise InvalidDecimalError(f"expected an amount of 0 or more, got {text}")
    return text


def fraction(raw: msgspec.Raw) -> str:
    """Give a number told in percent as a fraction; empty text where there is none."""
    return _HUNDREDTHS[str(raw, "ascii")]
