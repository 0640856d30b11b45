"""OKX's checksum of a book."""

import zlib
from bisect import bisect_left, insort
from collections.abc import Sequence
from decimal import Decimal
from itertools import chain, zip_longest

from services.shared.decimals import canonical_decimal

__all__ = ["OkxChecksum"]

_LEVELS = 25


class _Side:
    """One side's levels in the venue's own spelling, kept in order."""

    def __init__(self, *, descending: bool) -> None:
        self._descending = descending
        self._order: list[Decimal] = []
        self._texts: dict[Decimal, str] = {}

    def clear(self) -> None:
        self._order.clear()
        self._texts.clear()

    def apply(self, levels: Sequence[tuple[str, str]]) -> None:
        for price, size in levels:
            key = Decimal(price)
            if self._descending:
                key = key.copy_negate()
            known = key in self._texts
            if canonical_decimal(size) == "0":
                if known:
                    del self._texts[key]
                    del self._order[bisect_left(self._order, key)]
                continue
            if not known:
                insort(self._order, key)
            self._texts[key] = f"{price}:{size}"

    def best(self) -> list[str]:
        return [self._texts[key] for key in self._order[:_LEVELS]]


class OkxChecksum:
    """CRC32 of the best 25 levels a side, as OKX's "WebSocket API - Checksum" describes it.

    The text is `bid price:size:ask price:size:...` by rank; where a side has no more levels, the
    other goes on alone. The sum is a signed 32-bit number. See `BookChecksum`.
    """

    def __init__(self) -> None:
        self._bids = _Side(descending=True)
        self._asks = _Side(descending=False)

    def replace(self, bids: Sequence[tuple[str, str]], asks: Sequence[tuple[str, str]]) -> None:
        """Take a snapshot in place of everything."""
        self._bids.clear()
        self._asks.clear()
        self.apply(bids, asks)

    def apply(self, bids: Sequence[tuple[str, str]], asks: Sequence[tuple[str, str]]) -> None:
        """Take changed levels; size 0 deletes."""
        self._bids.apply(bids)
        self._asks.apply(asks)

    def value(self) -> int:
        """Compute the checksum of the book as it stands."""
        ranks = zip_longest(self._bids.best(), self._asks.best())
        text = ":".join(level for level in chain.from_iterable(ranks) if level is not None)
        crc = zlib.crc32(text.encode())
        return crc - 2**32 if crc >= 2**31 else crc
