"""Rows of one table in an order, read a piece at a time, the next one ahead.

A stream of the past may last for hours, so it holds no query open: each piece is a query of its
own, over a window of a number that grows with the order, which is made wider or narrower so that a
piece is of about the same size. What is read is the same for every size of the pieces.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final, Protocol

from services.storage.engine import Engine, Row
from services.storage.replay_settings import ReplaySettings
from services.storage.tables import Table

__all__ = ["Pieces", "Query", "Segment", "Window"]

_FIRST_ROWS: Final = 2048
_FIRST_BOOKS: Final = 32  # a book may have megabytes
_FEWEST_ROWS: Final = 32
_GROWTH: Final = 8
_EVENT: Final = itemgetter(-1)


@dataclass(frozen=True, slots=True)
class Segment:
    """A range of the windowed number, of which all rows come before those of the next segment."""

    first: int
    """Its least number."""

    last: int
    """Its greatest number, inclusive."""

    rows: int
    """How many rows it has, as far as that is known."""

    parameters: dict[str, Any] = field(default_factory=dict)
    """Parameters of the query that hold for this segment."""


@dataclass(frozen=True, slots=True)
class Window:
    """What one piece is asked for."""

    segment: Segment
    """The segment it is of."""

    low: int
    """Least number."""

    high: int
    """Greatest number, inclusive."""

    after: Row | None
    """The row that the piece follows, when it has the number `low`; None when nothing of it was
    read yet."""

    limit: int
    """Most rows."""


class Query(Protocol):
    """How a table's rows are asked for."""

    def sql(self, window: Window) -> tuple[str, dict[str, Any]]:
        """Give the statement for the first rows in a window, in the order, and its parameters.

        The rows' last column is `event`.
        """

    def number(self, row: Row) -> int:
        """Give a row's windowed number."""


class Pieces:
    """The rows of one table. Close it: it may be reading ahead."""

    def __init__(
        self,
        engine: Engine,
        table: Table,
        query: Query,
        segments: Iterable[Segment],
        settings: ReplaySettings,
        *,
        after: Row | None = None,
    ) -> None:
        """Read `segments` in their order; `after` is the row of the first that is gone on after."""
        self._engine = engine
        self._table = table
        self._query = query
        self._segments = deque(segments)
        self._settings = settings
        first = _FIRST_BOOKS if table.name == "order_book_snapshot" else _FIRST_ROWS
        self._wanted = min(first, settings.piece_rows)
        self._low = 0
        self._span = 0
        self._after: Row | None = None
        self._reading: asyncio.Task[list[Row]] | None = None
        self._begin_segment()
        self._after = after

    @property
    def least(self) -> None:
        """See `Feed`: it holds no rows."""
        return None

    @property
    def done(self) -> bool:
        """Whether everything was given by `more`."""
        return not self._segments and self._reading is None

    async def more(self) -> Sequence[Row]:
        """Give the next rows; some unless it is `done` then. Raises as `Engine.query` does."""
        if self._reading is None:
            self._read_ahead()
        while self._reading is not None:
            rows = await self._reading
            self._reading = None
            self._read_ahead()
            if rows:
                return rows
        return ()

    async def close(self) -> None:
        """End reading ahead."""
        self._segments.clear()
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await reading

    def _read_ahead(self) -> None:
        if self._segments:
            self._reading = asyncio.get_running_loop().create_task(self._read())

    def _begin_segment(self) -> None:
        self._after = None
        if self._segments:
            segment = self._segments[0]
            self._low = segment.first
            length = segment.last - segment.first + 1
            self._span = max(1, length * self._wanted // max(1, segment.rows))

    async def _read(self) -> list[Row]:
        segment, low = self._segments[0], self._low
        high = min(segment.last, low + self._span - 1)
        window = Window(segment, low, high, self._after, self._wanted)
        sql, parameters = self._query.sql(window)
        rows = await self._engine.query(sql, parameters, events_of=self._table)
        self._go_on(window, rows)
        return rows

    def _go_on(self, window: Window, rows: Sequence[Row]) -> None:
        if rows:
            size = sum(map(len, map(_EVENT, rows))) // len(rows) + 1
            fits = max(_FEWEST_ROWS, self._settings.piece_bytes // size)
            self._wanted = min(self._settings.piece_rows, fits)
        if len(rows) >= window.limit:
            # More of the window is left; a row's neighbours lie as near as those that were read.
            self._after = rows[-1]
            self._low = self._query.number(rows[-1])
            self._span = max(1, self._low - window.low + 1)
            return
        self._after = None
        self._low = window.high + 1
        factor = min(_GROWTH, max(1 / _GROWTH, self._wanted / max(1, len(rows))))
        self._span = max(1, int(self._span * factor))
        if self._low > window.segment.last:
            self._segments.popleft()
            self._begin_segment()
