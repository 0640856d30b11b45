"""The levels of a book of the past: exact, in order, and cheap to bring forward.

Quantities stay the text that the venue's number became. Prices are compared, and figures computed,
as whole numbers of 1e-18, the smallest step that the tables keep.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import Final

from services.shared.wire import varint

__all__ = ["DIGITS", "BookSide", "decimal_text", "units"]

DIGITS: Final = 18
"""Digits after the point that `units` counts by."""

_RESORT_SHARE: Final = 8
_CACHE_LIMIT: Final = 100_000


def units(text: str) -> int:
    """Give a canonical decimal as a whole number of 1e-18."""
    whole, _, part = text.partition(".")
    return int(whole + part.ljust(DIGITS, "0"))


def decimal_text(value: int, digits: int = DIGITS) -> str:
    """Give the canonical decimal of a whole number of 10**-digits."""
    sign = "-" if value < 0 else ""
    whole, part = divmod(abs(value), 10**digits)
    if not part:
        return f"{sign}{whole}"
    return f"{sign}{whole}.{part:0{digits}d}".rstrip("0")


class _Units(dict[str, int]):
    """Prices come again and again: a look-up beats reading them. Forgets all when it is full."""

    def __missing__(self, text: str) -> int:
        if len(self) >= _CACHE_LIMIT:
            self.clear()
        value = self[text] = units(text)
        return value


_PRICES: Final = _Units()


class BookSide:
    """One side of a book; `number` is its field in OrderBookSnapshot."""

    __slots__ = ("_descending", "_keys", "_levels", "_names", "_number", "_pending")

    def __init__(self, number: int, *, descending: bool) -> None:
        self._number = number
        self._descending = descending
        self._levels: dict[str, str] = {}
        # Prices in rising order as of when they were last asked for; what changed is pending.
        self._keys: list[int] = []
        self._names: dict[int, str] = {}
        self._pending: set[str] = set()

    def apply(self, prices: Iterable[str], quantities: Iterable[str]) -> None:
        """Set the quantity at each price, delete where it is 0."""
        levels, pending = self._levels, self._pending
        for price, quantity in zip(prices, quantities, strict=True):
            if quantity == "0":
                if levels.pop(price, None) is not None:
                    pending.add(price)
            else:
                if price not in levels:
                    pending.add(price)
                levels[price] = quantity

    def best(self, depth: int = 0) -> list[tuple[str, str]]:
        """Give the best `depth` prices and quantities, best first; all when 0."""
        keys = self._best_keys(depth)
        levels = self._levels
        return [(name, levels[name]) for name in map(self._names.__getitem__, keys)]

    def from_best(self) -> Iterator[tuple[int, int]]:
        """Give prices and quantities in units, best first, as far as they are taken."""
        keys = self._sorted()
        levels, names = self._levels, self._names
        for key in reversed(keys) if self._descending else keys:
            yield key, units(levels[names[key]])

    def worst_within(self, horizon: str) -> str:
        """Give the worst price held that is not beyond a horizon; the horizon if there is none."""
        keys = self._sorted()
        if self._descending:
            index = bisect_left(keys, units(horizon))
            return self._names[keys[index]] if index < len(keys) else horizon
        index = bisect_right(keys, units(horizon))
        return self._names[keys[index - 1]] if index else horizon

    def encode(self, depth: int = 0) -> bytes:
        """Encode the best `depth` levels, best first, as the repeated field; all when 0."""
        tag = varint(self._number << 3 | 2).decode("latin-1")
        # Both texts have at most 40 characters, so that every length is one byte.
        return "".join(
            [
                f"{tag}{chr(len(price) + len(quantity) + 4)}"
                f"\n{chr(len(price))}{price}\x12{chr(len(quantity))}{quantity}"
                for price, quantity in self.best(depth)
            ]
        ).encode("latin-1")

    def _best_keys(self, depth: int) -> list[int]:
        keys = self._sorted()
        if self._descending:
            return keys[: -depth - 1 : -1] if depth else keys[::-1]
        return keys[:depth] if depth else keys

    def _sorted(self) -> list[int]:
        pending = self._pending
        if len(pending) * _RESORT_SHARE > len(self._levels):
            self._names = {_PRICES[price]: price for price in self._levels}
            self._keys = sorted(self._names)
        elif pending:
            self._merge()
        pending.clear()
        return self._keys

    def _merge(self) -> None:
        keys, names, levels = self._keys, self._names, self._levels
        for price in self._pending:
            key = _PRICES[price]
            if price in levels:
                if key not in names:
                    keys.insert(bisect_left(keys, key), key)
                    names[key] = price
            elif names.pop(key, None) is not None:
                del keys[bisect_left(keys, key)]
