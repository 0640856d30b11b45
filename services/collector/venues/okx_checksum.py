"""OKX's checksum of a book."""

import zlib
from bisect import bisect_left, insort
from collections.abc import Sequence
from decimal import Decimal
from itertools import chain, zip_longest
from math import inf
from typing import TypeAlias

from services.shared.decimals import canonical_decimal

__all__ = ["OkxChecksum"]

_LEVELS = 25
_MOST_PENDING = 1024  # changed prices a side that may wait to be put in their place
_CACHE_LIMIT = 20_000
# Doubles tell any two prices of at most 15 digits apart, and compare several times as fast.
_Key: TypeAlias = float | Decimal


class _Keys(dict[str, _Key]):
    """From a price as spelt to what puts it in order, best first; forgets all when it is full."""

    def __init__(self, *, descending: bool) -> None:
        super().__init__()
        self._descending = descending

    def __missing__(self, text: str) -> _Key:
        price = canonical_decimal(text)
        key: _Key = float(price) if len(price) <= 15 else Decimal(price)
        if self._descending:
            key = -key if isinstance(key, float) else key.copy_negate()
        if len(self) >= _CACHE_LIMIT:
            self.clear()
        self[text] = key
        return key


_BID_KEYS = _Keys(descending=True)
_ASK_KEYS = _Keys(descending=False)


class _Side:
    """One side's levels in the venue's own spelling, in order as soon as they are asked for."""

    __slots__ = ("_best", "_edge", "_keys", "_order", "_pending", "_texts")

    def __init__(self, keys: _Keys) -> None:
        self._keys = keys
        self._order: list[_Key] = []
        self._texts: dict[_Key, str] = {}
        self._pending: dict[str, str] = {}
        # The best levels and the key of the last of them, while nothing has changed there.
        self._best: list[str] | None = None
        self._edge: _Key = inf

    def replace(self, levels: Sequence[tuple[str, str]]) -> None:
        keys = self._keys
        self._pending.clear()
        self._texts = {
            keys[price]: f"{price}:{size}" for price, size in levels if not _is_zero(size)
        }
        self._order = sorted(self._texts)
        self._best = None

    def apply(self, levels: Sequence[tuple[str, str]]) -> None:
        # A checksum that nobody asks for (the venue sends 0 today) costs no more than this.
        self._pending.update(levels)
        if len(self._pending) > _MOST_PENDING:
            self._settle()

    def best(self) -> tuple[list[str], bool]:
        """Give the best levels, and whether they are what they were when last asked for."""
        if self._pending:
            self._settle()
        if self._best is not None:
            return self._best, True
        order = self._order[:_LEVELS]
        self._best = list(map(self._texts.__getitem__, order))
        self._edge = order[-1] if len(order) == _LEVELS else inf
        return self._best, False

    def _settle(self) -> None:
        keys, order, texts, edge = self._keys, self._order, self._texts, self._edge
        for price, size in self._pending.items():
            key = keys[price]
            if key <= edge:
                self._best = None
            if size == "0" or (size[0] in "0-." and _is_zero(size)):
                if texts.pop(key, None) is not None:
                    del order[bisect_left(order, key)]
            else:
                if key not in texts:
                    insort(order, key)
                texts[key] = f"{price}:{size}"
        self._pending.clear()


def _is_zero(size: str) -> bool:
    """Tell of a well-formed number whether it is 0, however it is spelt."""
    digits = size.strip("-0.")
    return not digits or digits[0] in "eE"


class OkxChecksum:
    """CRC32 of the best 25 levels a side, as OKX's "WebSocket API - Checksum" describes it.

    The text is `bid price:size:ask price:size:...` by rank; where a side has no more levels, the
    other goes on alone. The sum is a signed 32-bit number. See `BookChecksum`.
    """

    def __init__(self) -> None:
        self._bids = _Side(_BID_KEYS)
        self._asks = _Side(_ASK_KEYS)
        self._value = 0

    def replace(self, bids: Sequence[tuple[str, str]], asks: Sequence[tuple[str, str]]) -> None:
        """Take a snapshot in place of everything."""
        self._bids.replace(bids)
        self._asks.replace(asks)

    def apply(self, bids: Sequence[tuple[str, str]], asks: Sequence[tuple[str, str]]) -> None:
        """Take changed levels; size 0 deletes."""
        if bids:
            self._bids.apply(bids)
        if asks:
            self._asks.apply(asks)

    def value(self) -> int:
        """Compute the checksum of the book as it stands."""
        bids, same_bids = self._bids.best()
        asks, same_asks = self._asks.best()
        if same_bids and same_asks:
            return self._value
        if len(bids) == len(asks):
            levels = [""] * (2 * len(bids))
            levels[::2] = bids
            levels[1::2] = asks
        else:
            ranks = chain.from_iterable(zip_longest(bids, asks))
            levels = [level for level in ranks if level is not None]
        crc = zlib.crc32(":".join(levels).encode())
        self._value = crc - 2**32 if crc >= 2**31 else crc
        return self._value
