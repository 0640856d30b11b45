"""What the tables hold of one book, read column by column: bases, updates, statuses, what follows.

Rows that were inserted twice come twice here (no FINAL): everything is read by sequence, so that a
repetition changes nothing.
"""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from marketprism.market.v1 import order_book_pb2

from services.storage.engine import Engine, Row
from services.storage.validators import MAX_TIME, NANOS

__all__ = [
    "BASE_WINDOW",
    "PIECE",
    "STALE",
    "SYNCED",
    "BookStore",
    "Held",
    "Marks",
    "Place",
    "SnapshotRow",
    "Status",
    "Update",
    "base_among",
]

PIECE: Final = 5000
"""Sequences that are read at a time."""

BASE_WINDOW: Final = 900 * NANOS
"""How far back a base is looked for first. A collector repeats each book within minutes."""

SYNCED: Final = int(order_book_pb2.ORDER_BOOK_STATE_SYNCED)
"""State of a book that is in step."""

STALE: Final = int(order_book_pb2.ORDER_BOOK_STATE_STALE)
"""State of a book that nothing is heard of."""

_CANDIDATES: Final = 16
_WINDOWS_BACK: Final = (BASE_WINDOW, 6 * 3600 * NANOS, MAX_TIME)
_WINDOWS_AHEAD: Final = (3600 * NANOS, 86_400 * NANOS, MAX_TIME)
_FOLLOW_AHEAD: Final = 86_400 * NANOS
# Diffs that were received before the venue's snapshot came continue it all the same; and a clock
# may be set back.
_BEFORE_EPOCH: Final = 600 * NANOS
_BEFORE_PERIODIC: Final = 60 * NANOS


class Place(NamedTuple):
    """The place of a snapshot in a book's history."""

    time: int
    """Its receive_time, nanoseconds since 1970."""
    epoch: int
    sequence: int


class Held(NamedTuple):
    """What the store holds next of an epoch."""

    sequence: int
    """The first update that it is or makes unnecessary to have: a snapshot's sequence + 1."""
    time: int
    """Its receive_time, nanoseconds since 1970."""


class SnapshotRow(NamedTuple):
    """A stored snapshot; levels are texts separated by spaces."""

    exchange_time: int
    venue_sequence: int
    bid_horizon: str
    ask_horizon: str
    bid_prices: str
    bid_quantities: str
    ask_prices: str
    ask_quantities: str


class Update(NamedTuple):
    """A stored update; levels are texts separated by spaces."""

    sequence: int
    time: int
    exchange_time: int
    venue_sequence: int
    bid_prices: str
    bid_quantities: str
    ask_prices: str
    ask_quantities: str


@dataclass(frozen=True, slots=True)
class Status:
    """A stored change of state."""

    time: int
    """When it changed, nanoseconds since 1970."""
    epoch: int
    sequence: int
    state: int
    reason: int
    detail: str


class Marks(NamedTuple):
    """What is told of a base's time beside its updates."""

    statuses: list[Status]
    """Changes of state that may concern it, as they were published."""
    other_epochs: list[tuple[int, int]]
    """Later epochs that updates are held of, and when the first of each was received."""


def _moment(name: str) -> str:
    return f"fromUnixTimestamp64Nano({{{name}:Int64}}, 'UTC')"


def _texts(column: str) -> str:
    return f"arrayStringConcat(CAST(`{column}` AS Array(String)), ' ')"


_WHOSE: Final = "exchange = {exchange:String} AND symbol = {symbol:String}"
_RANGE: Final = f"time >= {_moment('start')} AND time <= {_moment('end')}"
_LEVELS: Final = ", ".join(
    _texts(f"{side}.{part}") for side in ("bids", "asks") for part in ("price", "quantity")
)
_BASES: Final = (
    "SELECT toUnixTimestamp64Nano(time), epoch, sequence FROM order_book_snapshot "
    f"WHERE {_WHOSE} AND {_RANGE} ORDER BY time DESC, epoch DESC, sequence DESC"
)
_SNAPSHOT: Final = (
    "SELECT toUnixTimestamp64Nano(exchange_time), venue_sequence, "
    "ifNull(toString(bid_horizon), ''), ifNull(toString(ask_horizon), ''), "
    f"{_LEVELS} FROM order_book_snapshot WHERE {_WHOSE} AND time = {_moment('time')} "
    "AND epoch = {epoch:UInt64} AND sequence = {sequence:UInt64} LIMIT 1"
)
_UPDATES: Final = (
    "SELECT sequence, toUnixTimestamp64Nano(time), toUnixTimestamp64Nano(exchange_time), "
    f"venue_sequence, {_LEVELS} FROM order_book_update WHERE {_WHOSE} AND {_RANGE} "
    "AND epoch = {epoch:UInt64} AND sequence > {sequence:UInt64} AND sequence <= {last:UInt64}"
)
_STATUSES: Final = (
    "SELECT stream_created, stream_sequence, toUnixTimestamp64Nano(time), epoch, sequence, "
    f"CAST(state AS Int8), CAST(reason AS Int8), detail FROM order_book_status "
    f"WHERE {_WHOSE} AND {_RANGE}"
)
# The state -1 stands for an epoch that updates are held of. One statement is faster than two.
_MARKS: Final = (
    f"{_STATUSES} UNION ALL SELECT 0, 0, toUnixTimestamp64Nano(min(time)), epoch, 0, -1, 0, '' "
    f"FROM order_book_update WHERE {_WHOSE} AND time > {_moment('begun')} "
    f"AND time <= {_moment('until')} AND epoch > {{epoch:UInt64}} GROUP BY epoch"
)
_FOLLOWING: Final = (
    "SELECT min((next, at)) FROM ("
    "SELECT sequence AS next, toUnixTimestamp64Nano(time) AS at FROM order_book_update "
    f"WHERE {_WHOSE} AND {_RANGE} AND epoch = {{epoch:UInt64}} AND sequence > {{sequence:UInt64}} "
    "ORDER BY sequence LIMIT 1 UNION ALL "
    "SELECT sequence + 1, toUnixTimestamp64Nano(time) FROM order_book_snapshot "
    f"WHERE {_WHOSE} AND {_RANGE} AND epoch = {{epoch:UInt64}} AND sequence > {{sequence:UInt64}} "
    "ORDER BY sequence LIMIT 1) HAVING count() > 0"
)
_NEXT_SNAPSHOT: Final = (
    "SELECT toUnixTimestamp64Nano(time), epoch, sequence FROM order_book_snapshot "
    f"WHERE {_WHOSE} AND {_RANGE} AND (epoch, sequence) > ({{epoch:UInt64}}, {{sequence:UInt64}}) "
    "ORDER BY time LIMIT 1"
)


class BookStore:
    """The rows of one book; all methods raise as `Engine.query` does."""

    def __init__(self, engine: Engine, exchange: str, symbol: str) -> None:
        self.engine = engine
        """The database."""
        self.exchange = exchange
        self.symbol = symbol

    async def base(self, at: int) -> Place | None:
        """Give the snapshot that the book of an instant is rebuilt from; None when none is held."""
        for window in _WINDOWS_BACK:
            found = await self.bases(max(0, at - window), at, limit=_CANDIDATES)
            if found:
                return _newest(found)
        return None

    async def bases(self, start: int, end: int, *, limit: int = 0) -> list[Place]:
        """Give the places of the snapshots of a time, the last first; all when `limit` is 0."""
        rows = await self._rows(f"{_BASES}{f' LIMIT {limit}' if limit else ''}", start, end)
        return [Place(*row) for row in rows]

    async def snapshot(self, place: Place) -> SnapshotRow:
        """Give the snapshot at a place that `base` gave."""
        rows = await self._query(_SNAPSHOT, **place._asdict())
        return SnapshotRow(*rows[0])

    async def updates(self, base: Place, after: int, until: int) -> list[Update]:
        """Give the updates of the base's epoch behind sequence `after`, by sequence.

        They were received until `until`, and are at most `PIECE`.
        """
        before = _BEFORE_PERIODIC if base.sequence else _BEFORE_EPOCH
        rows = await self._rows(
            _UPDATES, base.time - before, until, epoch=base.epoch, sequence=after,
            last=after + PIECE,
        )  # fmt: skip
        rows.sort()
        return [Update(*row) for row in rows]

    async def marks(self, base: Place, end: int, ahead: int) -> "Marks":
        """Give what else is told of the time from a base to `end`, of statuses `ahead` longer."""
        rows = await self._rows(
            _MARKS, base.time - _BEFORE_EPOCH, end + ahead, epoch=base.epoch, begun=base.time,
            until=min(end, MAX_TIME),
        )  # fmt: skip
        told = [_status(row) for row in sorted(rows) if row[5] >= 0]
        return Marks(
            [
                status
                for status in told
                if status.epoch == base.epoch
                or (status.time > base.time and (status.epoch == 0 or status.epoch > base.epoch))
            ],
            sorted((int(row[3]), int(row[2])) for row in rows if row[5] < 0),
        )

    async def statuses_before(self, at: int) -> list[Status]:
        """Give the changes of state in the time before an instant, as they were published."""
        return [_status(row) for row in sorted(await self._rows(_STATUSES, at - BASE_WINDOW, at))]

    async def following(self, epoch: int, sequence: int, near: int) -> Held | None:
        """Give what is held next of an epoch behind a sequence that was received at `near`."""
        rows = await self._rows(
            _FOLLOWING, near - _BEFORE_EPOCH, near + _FOLLOW_AHEAD, epoch=epoch, sequence=sequence
        )
        return Held(*rows[0][0]) if rows else None

    async def next_snapshot(self, after: int, epoch: int, sequence: int) -> Place | None:
        """Give the first snapshot received after an instant that is ahead of a place."""
        begin = after + 1
        for window in _WINDOWS_AHEAD:
            end = min(after + window, MAX_TIME - 1)
            rows = await self._rows(_NEXT_SNAPSHOT, begin, end, epoch=epoch, sequence=sequence)
            if rows:
                return Place(*rows[0])
            begin = end + 1
        return None

    async def is_counted_in_quote(self) -> bool:
        """Tell whether quantities are of the quote currency, as inverse contracts are counted."""
        rows = await self._query(
            "SELECT CAST(quantity_unit AS String) FROM instrument FINAL WHERE " + _WHOSE
        )
        return bool(rows) and str(rows[0][0]) == "QUANTITY_UNIT_QUOTE"

    async def _rows(self, sql: str, start: int, end: int, **parameters: Any) -> list[Row]:
        return await self._query(sql, start=max(0, start), end=min(end, MAX_TIME), **parameters)

    async def _query(self, sql: str, **parameters: Any) -> list[Row]:
        # A few thousand rows: more threads only cost their start.
        return await self.engine.query(
            sql,
            {"exchange": self.exchange, "symbol": self.symbol, **parameters},
            {"max_threads": 1},
        )


def base_among(places: list[Place], at: int) -> Place | None:
    """Give what `BookStore.base` gives for an instant, of the places around it, the last first.

    None when they do not tell: then ask.
    """
    begin = at - BASE_WINDOW
    near = [place for place in places if begin <= place.time <= at]
    return _newest(near[:_CANDIDATES]) if near else None


def _status(row: Row) -> Status:
    return Status(*row[2:])


def _newest(places: list[Place]) -> Place:
    # Two collectors may publish a book for a moment when one takes it over: the later epoch counts.
    return max(places, key=lambda place: (place.epoch, place.sequence))
