"""Reads one page of a table: events of one instrument in the order of the sort key.

A range without bounds spans every partition, of which the database would open all to find the first
thousand rows, and read a whole symbol to give the last (FINAL cannot stop early backwards). So a
page is read by windows of time that grow until it is full; mostly the first is enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from services.storage.engine import Engine
from services.storage.paging import Keyset, Place
from services.storage.tables import Table
from services.storage.validators import NANOS, TimeRange

__all__ = ["HOUR", "Page", "PageQuery", "read_page"]

HOUR: Final = 3600 * NANOS
"""Nanoseconds of an hour."""

_MAX_BYTES: Final = 12 * 1024**2
_EVENT_OVERHEAD: Final = 6
_FASTEST_GROWTH: Final = 16.0
_SLOWEST_GROWTH: Final = 2.0


@dataclass(frozen=True, slots=True)
class PageQuery:
    """What a page is of."""

    table: Table
    """The table."""

    exchange: str
    """Venue id."""

    symbol: str
    """Canonical symbol."""

    range: TimeRange
    """Of `time`."""

    descending: bool
    """Newest first."""

    size: int
    """Most events."""

    after: Place | None = None
    """Last place of the page before; None for the first."""

    condition: str = ""
    """Further SQL condition. May use the parameters window_start and window_end, nanoseconds: the
    rows looked at are of that time."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of `condition`."""

    first_window: int = 0
    """Length of the first window, nanoseconds; 0 for an hour, which suits dense kinds."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of events."""

    events: list[bytes]
    """The encoded events."""

    places: list[Place]
    """The place of each."""

    more: bool
    """Whether there is another page."""


async def read_page(engine: Engine, keyset: Keyset, query: PageQuery) -> Page:
    """Read a page, cut where its events have 12 MiB, so that a message of 16 MiB holds it.

    Raises `InvalidArgument` for a place that is none of the table, and as `Engine.query` does.
    """
    windows = _Windows(engine, query, keyset.columns.index("time"))
    events: list[bytes] = []
    places: list[Place] = []
    size = 0
    statement, parameters = _statement(keyset, query)
    while (window := await windows.next(query.size + 1 - len(events))) is not None:
        rows = await engine.query(
            statement,
            {
                **parameters,
                "window_start": window.start,
                "window_end": window.end,
                "page_limit": query.size + 1 - len(events),
            },
            events_of=query.table,
        )
        windows.found(len(rows))
        for event, *place in rows:
            size += len(event) + _EVENT_OVERHEAD
            if len(events) == query.size or (events and size > _MAX_BYTES):
                return Page(events, places, more=True)
            events.append(event)
            places.append(place)
    return Page(events, places, more=False)


def _statement(keyset: Keyset, query: PageQuery) -> tuple[str, dict[str, Any]]:
    conditions = [
        "exchange = {exchange:String}",
        "symbol = {symbol:String}",
        "time >= fromUnixTimestamp64Nano({window_start:Int64}, 'UTC')",
        "time < fromUnixTimestamp64Nano({window_end:Int64}, 'UTC')",
    ]
    parameters = {"exchange": query.exchange, "symbol": query.symbol, **query.parameters}
    if query.after is not None:
        behind, of_place = keyset.behind(query.after, descending=query.descending)
        conditions.append(behind)
        parameters.update(of_place)
    if query.condition:
        conditions.append(query.condition)
    statement = (
        f"SELECT {query.table.event_sql()} AS event, {keyset.select} FROM {query.table.name} FINAL "
        f"WHERE {' AND '.join(conditions)} "
        f"ORDER BY {keyset.order_by(descending=query.descending)} LIMIT {{page_limit:UInt32}}"
    )
    return statement, parameters


class _Windows:
    """The windows of one page, from the end that it begins at."""

    def __init__(self, engine: Engine, query: PageQuery, time_index: int) -> None:
        self._engine = engine
        self._table = query.table.name
        self._descending = query.descending
        self._start, self._end = query.range.start, query.range.end
        if query.after is not None:
            at = query.after[time_index] if len(query.after) > time_index else 0
            assert isinstance(at, int), "Keyset.behind refuses other places"
            if query.descending:
                self._end = min(self._end, at + 1)
            else:
                self._start = max(self._start, at)
        self._width = query.first_window or HOUR
        self._clipped = False
        self._must_clip = self._start == 0 and not query.descending
        self._wanted = 0

    async def next(self, wanted: int) -> TimeRange | None:
        """Give the next window, None when the range is done or nothing is wanted."""
        if wanted <= 0 or self._start >= self._end:
            return None
        if self._must_clip and not self._clipped:
            await self._clip()
            if self._start >= self._end:
                return None
        self._wanted = wanted
        if self._descending:
            window = TimeRange(max(self._start, self._end - self._width), self._end)
            self._end = window.start
        else:
            window = TimeRange(self._start, min(self._end, self._start + self._width))
            self._start = window.end
        return window

    def found(self, count: int) -> None:
        """Take note of how many events the last window had."""
        self._must_clip = count == 0
        growth = 1.5 * self._wanted / count if count else _FASTEST_GROWTH
        self._width = round(self._width * min(max(growth, _SLOWEST_GROWTH), _FASTEST_GROWTH))

    async def _clip(self) -> None:
        """Leave out the time before and after everything held; the partitions' bounds tell it."""
        self._clipped = True
        ((count, oldest, newest),) = await self._engine.query(
            "SELECT count(), toUnixTimestamp64Nano(min(time)), toUnixTimestamp64Nano(max(time)) "
            f"FROM {self._table}"
        )
        if not count:
            self._start = self._end
            return
        self._start = max(self._start, oldest)
        self._end = min(self._end, newest + 1)
