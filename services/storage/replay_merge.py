"""Merges rows that come piece by piece from several sources into one order.

Rows are tuples that sort in the order wanted. What is given next depends on the rows alone, and not
on how large the pieces are or which comes first.
"""

import asyncio
import functools
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Any, Protocol

__all__ = ["Feed", "Merged"]

Rows = Sequence[tuple[Any, ...]]


class Feed(Protocol):
    """Gives rows in order, some at a time."""

    @property
    def done(self) -> bool:
        """Whether everything was given by `more`."""

    @property
    def least(self) -> int | None:
        """Least value of a field among rows that were read and not given yet; None without any."""

    async def more(self) -> Rows:
        """Give the next rows: some unless it is `done` then."""

    async def close(self) -> None:
        """Let go of everything."""


class _Held:
    """A feed and those of its rows that have not been given yet."""

    __slots__ = ("_field", "_least", "feed", "position", "rows")

    def __init__(self, feed: Feed, field: int | None) -> None:
        self.feed = feed
        self.rows: Rows = ()
        self.position = 0
        self._field = field
        # Of the rows from the last one on, counted backwards.
        self._least: Sequence[int] = ()

    async def load(self) -> None:
        while self.position >= len(self.rows) and not self.feed.done:
            self.rows, self.position = await self.feed.more(), 0
        if self._field is not None:
            values = map(itemgetter(self._field), reversed(self.rows))
            self._least = list(accumulate(values, min))

    @property
    def least(self) -> int | None:
        own = None if self.is_empty else self._least[len(self.rows) - self.position - 1]
        return _least(own, self.feed.least)

    @property
    def is_empty(self) -> bool:
        return self.position >= len(self.rows)


class Merged:
    """Several feeds as one. `least` is that of the rows' number `field`, when it is told."""

    def __init__(self, feeds: Sequence[Feed], field: int | None = None) -> None:
        self._held = [_Held(feed, field) for feed in feeds]

    @property
    def done(self) -> bool:
        """See `Feed`."""
        return all(each.is_empty and each.feed.done for each in self._held)

    @property
    def least(self) -> int | None:
        """See `Feed`."""
        return functools.reduce(_least, (each.least for each in self._held), None)

    async def more(self) -> Rows:
        """See `Feed`."""
        short = [each for each in self._held if each.is_empty and not each.feed.done]
        if len(short) > 1:
            await asyncio.gather(*(each.load() for each in short))
        elif short:
            await short[0].load()
        # Whoever has more may go on right after the last of its rows that is here.
        limits = [each.rows[-1] for each in self._held if not each.is_empty and not each.feed.done]
        limit = min(limits, default=None)
        batch: list[tuple[Any, ...]] = []
        for each in self._held:
            begin, rows = each.position, each.rows
            if limit is None:
                each.position = len(rows)
            else:
                each.position = bisect_right(rows, limit, begin)
            batch += rows[begin : each.position]
        batch.sort()
        return batch

    async def close(self) -> None:
        """See `Feed`."""
        await asyncio.gather(*(each.feed.close() for each in self._held))


def _least(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
