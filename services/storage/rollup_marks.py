"""Which rows each rollup has dealt with, kept in the database beside what was made of them."""

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from services.storage.places import Places, Ranges

__all__ = ["COLUMNS", "SELECT", "Marks", "places_of"]

COLUMNS: Final = (
    "rollup",
    "stream_created",
    "first_sequences",
    "last_sequences",
    "version",
)
"""Columns of the table of marks."""

SELECT: Final = (
    f"SELECT {', '.join(COLUMNS)} FROM applied_rollup FINAL "
    "WHERE rollup IN {rollups:Array(String)}"
)
"""The marks of some rollups."""


def places_of(rows: Iterable[tuple[Any, ...]], rollup: str) -> dict[int, Ranges]:
    """Give the places that rows of `SELECT` say are done by a rollup."""
    return {
        int(created): tuple(zip(map(int, firsts), map(int, lasts), strict=True))
        for name, created, firsts, lasts, _ in rows
        if name == rollup
    }


class Marks:
    """The marks of one rollup while it runs.

    A newer mark replaces an older one by its version, which grows also when the clock jumps back.
    Each claims only what was done, so whichever of two writers is last is right.
    """

    def __init__(self, rollup: str, *, now: Callable[[], int] = time.time_ns) -> None:
        self.rollup = rollup
        """Name of the rollup."""
        self._now = now
        self._places: dict[int, Ranges] = {}
        self._version = 0

    @property
    def places(self) -> Places:
        """What is done."""
        return self._places

    def load(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Take what `SELECT` gave."""
        kept = list(rows)
        self._places = places_of(kept, self.rollup)
        self._version = max([int(row[-1]) for row in kept if row[0] == self.rollup], default=0)

    def row(self, stream: int, ranges: Ranges) -> tuple[Any, ...]:
        """Give the row that says what is done of a stream."""
        return (
            self.rollup,
            stream,
            [first for first, _ in ranges],
            [last for _, last in ranges],
            max(self._version + 1, self._now()),
        )

    def wrote(self, row: tuple[Any, ...]) -> None:
        """Take a row that is stored now."""
        _, stream, firsts, lasts, version = row
        self._places[stream] = tuple(zip(firsts, lasts, strict=True))
        self._version = version
