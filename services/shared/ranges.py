"""Sets of whole numbers that come in long runs: which ids of a venue are missing."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

__all__ = ["Ranges"]


class Ranges:
    """Numbers as runs (first, last), both included, apart from each other and in order.

    Truth tells whether there is any, iteration gives the runs, `count` the numbers.
    """

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in runs:
            self.add(first, last)

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._firsts, self._lasts, strict=True)))

    def __repr__(self) -> str:
        return f"Ranges({list(self)!r})"

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    def add(self, first: int, last: int) -> None:
        """Take the numbers first..last in; none when `last` is below `first`."""
        if last < first:
            return
        begin = bisect_left(self._lasts, first - 1)
        end = bisect_right(self._firsts, last + 1)
        if begin < end:
            first = min(first, self._firsts[begin])
            last = max(last, self._lasts[end - 1])
        self._firsts[begin:end] = [first]
        self._lasts[begin:end] = [last]

    def discard(self, first: int, last: int) -> None:
        """Let the numbers first..last go, those that are there."""
        if last < first:
            return
        begin = bisect_left(self._lasts, first)
        end = bisect_right(self._firsts, last)
        if begin >= end:
            return
        kept: list[tuple[int, int]] = []
        if self._firsts[begin] < first:
            kept.append((self._firsts[begin], first - 1))
        if self._lasts[end - 1] > last:
            kept.append((last + 1, self._lasts[end - 1]))
        self._firsts[begin:end] = [each for each, _ in kept]
        self._lasts[begin:end] = [each for _, each in kept]

    def holds(self, first: int, last: int) -> bool:
        """Tell whether all of the numbers first..last are there."""
        place = bisect_left(self._lasts, first)
        return (
            place < len(self._firsts)
            and self._firsts[place] <= first
            and last <= self._lasts[place]
        )

    def within(self, first: int, last: int) -> list[tuple[int, int]]:
        """Give the runs of the numbers that are there among first..last."""
        if last < first:
            return []
        begin = bisect_left(self._lasts, first)
        end = bisect_right(self._firsts, last)
        return [
            (max(first, self._firsts[place]), min(last, self._lasts[place]))
            for place in range(begin, end)
        ]
