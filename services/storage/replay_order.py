"""The order of a replay: that in which live subscribers got the events.

A stream of the broker has an order, and whoever subscribed got each of its events in that order.
Several streams have none between them: they are merged by receive time. An event that was received
before one that stands in front of it in its stream comes right after that one, so that the place of
an event in time is the latest receive time of its stream up to it.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, count, repeat
from operator import itemgetter, sub
from typing import Any, Final

from services.storage.engine import Engine, Row
from services.storage.replay_book import SNAPSHOT, STATUS, UPDATE, ReplayedBook
from services.storage.replay_merge import Merged
from services.storage.replay_opening import BUFFERED, BookBegin, is_behind
from services.storage.replay_pieces import Pieces, Segment, Window
from services.storage.replay_selection import LEDGER, Selection, item_sql, received
from services.storage.replay_settings import ReplaySettings
from services.storage.tables import Table
from services.storage.validators import TimeRange

__all__ = [
    "LEDGER_STREAM",
    "STREAMS",
    "LiveOrder",
    "LiveRow",
    "StreamQuery",
    "find_segments",
    "in_range",
    "open_streams",
]

LEDGER_STREAM: Final = 0
"""Number of the stream that carries the gap ledger."""

STREAMS: Final[Mapping[str, int]] = {
    "MARKET_INTEGRITY": LEDGER_STREAM,
    "MARKET_TRADE": 1,
    "MARKET_ORDER_BOOK": 2,
    "MARKET_BEST_BID_OFFER": 3,
    "MARKET_REFERENCE": 4,
}
"""The broker's streams: at one instant, the lower number comes first."""

LiveRow = tuple[int, int, int, int, bytes]
"""Place in time, number of the stream, number in it, receive time, item of the response."""

_FORMS: Final = {
    "order_book_snapshot": SNAPSHOT,
    "order_book_update": UPDATE,
    "order_book_status": STATUS,
}
_BOOKS: Final = STREAMS["MARKET_ORDER_BOOK"]
_TIME: Final = 3


def in_range(table: Table) -> str:
    """Give the condition for a table's events that were received within {start} to {end}."""
    time = received(table)
    return (
        f"{time} >= fromUnixTimestamp64Nano({{start:Int64}}, 'UTC')"
        f" AND {time} < fromUnixTimestamp64Nano({{end:Int64}}, 'UTC')"
    )


class StreamQuery:
    """Asks one table for its rows in the order of its stream."""

    def __init__(
        self, table: Table, form: int, condition: str, parameters: Mapping[str, Any]
    ) -> None:
        self._parameters = dict(parameters)
        time = f"toUnixTimestamp64Nano({received(table)})"
        columns = ["stream_created", "stream_sequence", str(form), time]
        if table.name in _FORMS:
            reason = "CAST(reason AS Int16)" if table.name == "order_book_snapshot" else "0"
            columns += ["exchange", "symbol", "epoch", "sequence", "venue_sequence", reason]
        self._statement = (
            f"SELECT {', '.join(columns)}, {item_sql(table)} AS event FROM {table.name} FINAL"
            f" WHERE {condition} AND stream_created = {{created:UInt64}}"
            " AND stream_sequence BETWEEN {low:UInt64} AND {high:UInt64}"
            " ORDER BY stream_sequence LIMIT {limit:UInt32}"
        )

    def sql(self, window: Window) -> tuple[str, dict[str, Any]]:
        """See `Query`."""
        # A place is of one event.
        low = window.low if window.after is None else window.after[1] + 1
        return self._statement, {
            **self._parameters,
            **window.segment.parameters,
            "low": low,
            "high": window.high,
            "limit": window.limit,
        }

    def number(self, row: Row) -> int:
        """See `Query`."""
        return int(row[1])


async def find_segments(
    engine: Engine, table: Table, condition: str, parameters: Mapping[str, Any]
) -> list[Segment]:
    """Give the places of a table's events, a segment for each making of its stream."""
    rows = await engine.query(
        "SELECT stream_created, min(stream_sequence), max(stream_sequence), count() "
        f"FROM {table.name} WHERE {condition} GROUP BY stream_created ORDER BY stream_created",
        parameters,
    )
    return [Segment(first, last, many, {"created": made}) for made, first, last, many in rows]


class _Stream:
    """One stream's events, each at its place in time."""

    def __init__(self, number: int, merged: Merged) -> None:
        self._number = number
        self._merged = merged
        self._count = 0
        self._time = 0
        self.disorder = 0
        """How much earlier than its place in time an event was received at the most, so far."""

    @property
    def done(self) -> bool:
        """See `Feed`."""
        return self._merged.done

    @property
    def least(self) -> int | None:
        """See `Feed`: the least receive time."""
        return self._merged.least

    async def more(self) -> list[LiveRow]:
        """See `Feed`."""
        while not self._merged.done:
            rows = await self._merged.more()
            if found := self._placed(map(itemgetter(3), rows), map(itemgetter(-1), rows)):
                return found
        return []

    async def close(self) -> None:
        """See `Feed`."""
        await self._merged.close()

    def _placed(self, times: Iterable[int], items: Iterable[bytes]) -> list[LiveRow]:
        read = list(times)
        if not read:
            return []
        read[0], first = max(self._time, read[0]), read[0]
        places = list(accumulate(read, max))
        read[0] = first
        found = list(zip(places, repeat(self._number), count(self._count), read, items))
        self.disorder = max(self.disorder, max(map(sub, places, read)))
        self._time = places[-1]
        self._count += len(found)
        return found


class _Books(_Stream):
    """The stream of books, of which subscribers do not get everything."""

    def __init__(self, merged: Merged, begin: BookBegin, asked: TimeRange) -> None:
        super().__init__(_BOOKS, merged)
        self._books = begin.books
        self._first = begin.first
        self._beyond = begin.beyond
        self._start = asked.start

    async def more(self) -> list[LiveRow]:
        """See `Feed`."""
        while not self._merged.done:
            times: list[int] = []
            items: list[bytes] = []
            for row in await self._merged.more():
                told = self._take(row)
                items += told
                times += repeat(row[3], len(told))
            if found := self._placed(times, items):
                return found
        return []

    def _take(self, row: Any) -> list[bytes]:
        key = (row[4], row[5])
        if row[3] < self._start and not is_behind(self._first, key, row):
            return []
        if self._beyond and is_behind(self._beyond, key, row):
            return []
        book = self._books.get(key)
        if book is None:
            book = self._books[key] = ReplayedBook(*key, self._start)
        return book.take(row)


async def open_streams(
    engine: Engine,
    selection: Selection,
    asked: TimeRange,
    begin: BookBegin,
    settings: ReplaySettings,
) -> "LiveOrder":
    """Give every event that is asked for as `LiveRow`s in the order of a replay.

    Books go on from where they stand in `begin`; others begin with their first snapshot.
    """
    feeds: dict[int, list[Pieces]] = {}
    for form, table in enumerate((*selection.tables, LEDGER)):
        condition, parameters = selection.condition(table)
        condition = f"{in_range(table)} AND {condition}"
        parameters = {**parameters, "start": asked.start, "end": asked.end}
        if table.name == "order_book_update" and begin.first:
            parameters["start"] = max(0, asked.start - BUFFERED)
        segments = await find_segments(engine, table, condition, parameters)
        query = StreamQuery(table, _FORMS.get(table.name, form), condition, parameters)
        pieces = Pieces(engine, table, query, segments, settings)
        feeds.setdefault(STREAMS[table.stream], []).append(pieces)
    return LiveOrder(
        [
            _Books(Merged(pieces, _TIME), begin, asked)
            if number == _BOOKS
            else _Stream(number, Merged(pieces, _TIME))
            for number, pieces in sorted(feeds.items())
        ]
    )


class LiveOrder(Merged):
    """Every stream's events, in the order of a replay."""

    def __init__(self, streams: Sequence[_Stream]) -> None:
        super().__init__(streams, _TIME)
        self._streams = streams

    def bounds(self, rows: Sequence[LiveRow], end: int) -> list[int]:
        """Give for each number of the rows that `more` gave last up to when everything is sent.

        Of what was not read yet it is not known; it is taken to be no more out of order than twice
        what was read.
        """
        beyond = end
        if rows and not self.done:
            beyond = rows[-1][0] - 2 * max(stream.disorder for stream in self._streams)
        if (least := self.least) is not None:
            beyond = min(beyond, least)
        found = list(accumulate(map(itemgetter(_TIME), reversed(rows)), min, initial=beyond))
        found.reverse()
        return found
