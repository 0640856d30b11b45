"""What a replay begins with: what a live subscriber who came at that instant would have got.

Books as they stood, of kinds that have a state the latest, and the entries of the ledger about what
was missing at that instant and went on.
"""

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from marketprism.market.v1 import common_pb2

from services.storage.engine import Engine
from services.storage.gaps import touching
from services.storage.replay_book import SNAPSHOT, STATUS, UPDATE, ReplayedBook
from services.storage.replay_selection import LEDGER, Selection, item_sql, received
from services.storage.tables import TABLES, Table
from services.storage.validators import NANOS, TimeRange

__all__ = [
    "BUFFERED",
    "BookBegin",
    "is_behind",
    "lasting_gaps",
    "latest_states",
    "load_books",
]

Key = tuple[str, str]
Place = tuple[int, int]

BUFFERED: Final = 600 * NANOS
"""Updates that were received so long before an epoch's first snapshot may continue it: the
collector holds them until the venue's snapshot comes."""

_SNAPSHOTS: Final = TABLES["order_book_snapshot"]
_UPDATES: Final = TABLES["order_book_update"]
_STATUSES: Final = TABLES["order_book_status"]
_BOOKS: Final = int(common_pb2.EVENT_KIND_ORDER_BOOK)
# Every one of these counts, and none is a state.
_MOMENTS: Final = frozenset(
    {_BOOKS, int(common_pb2.EVENT_KIND_TRADE), int(common_pb2.EVENT_KIND_LIQUIDATION)}
)
_SIDE_BY_SIDE: Final[Mapping[str, str]] = {
    "candle": ", interval",
    "long_short_ratio": ", kind, period",
}
# How far back the last snapshot of a book is looked for, farther each time; then everywhere. The
# collector repeats a book that moves each half minute, and one that does not never.
_BACK: Final = (120 * NANOS, 3600 * NANOS, 86_400 * NANOS)
_STATES_BACK: Final = 86_400 * NANOS
_AT_ONCE: Final = 16
_BEFORE: Final = "{time} < fromUnixTimestamp64Nano({{start:Int64}}, 'UTC')"
_SINCE: Final = "{time} >= fromUnixTimestamp64Nano({{since:Int64}}, 'UTC')"


@dataclass(slots=True)
class BookBegin:
    """Books as they stood at the begin of a range."""

    books: dict[Key, ReplayedBook] = field(default_factory=dict)
    """Those that anything was heard of, to be opened."""

    first: dict[Key, Place] = field(default_factory=dict)
    """Where in the stream an epoch began soon after the begin: what is behind it belongs to the
    range, whenever it was received."""

    beyond: dict[Key, Place] = field(default_factory=dict)
    """Where one began soon after the end: what is behind it does not."""


def is_behind(places: Mapping[Key, Place], key: Key, row: Sequence[Any]) -> bool:
    """Tell whether a row is behind the place of its book in the stream."""
    place = places.get(key)
    return place is not None and (row[0], row[1]) > place


async def load_books(engine: Engine, selection: Selection, asked: TimeRange) -> BookBegin:
    """Give the books as they stood at the begin of a range, to be opened."""
    if _BOOKS not in selection.kinds:
        return BookBegin()
    start = asked.start
    first = await _epoch_starts(engine, selection, start)
    beyond = await _epoch_starts(engine, selection, asked.end)
    places = await _last_snapshots(engine, selection, start)
    statuses = await _last_statuses(engine, selection, start)
    books = {key: ReplayedBook(*key, start) for key in sorted({*places, *statuses})}
    for key in statuses.keys() - places.keys():
        books[key].load(statuses[key])
    # Books whose snapshots lie near each other are read together.
    order = sorted(places, key=lambda key: (places[key][2], key))
    for begin in range(0, len(order), _AT_ONCE):
        some = order[begin : begin + _AT_ONCE]
        async for row in _rows(engine, some, places, start):
            key = (row[4], row[5])
            if is_behind(first, key, row):
                continue
            status = statuses.get(key)
            if status is not None and status[:2] < row[:2]:
                books[key].load(statuses.pop(key))
            books[key].load(row)
        for key in some:
            if key in statuses:
                books[key].load(statuses[key])
    return BookBegin(books, first, beyond)


async def _epoch_starts(engine: Engine, selection: Selection, time: int) -> dict[Key, Place]:
    """Give where the first epoch of each book began soon after an instant."""
    condition, parameters = selection.condition(_SNAPSHOTS)
    rows = await engine.query(
        "SELECT exchange, symbol, min((stream_created, stream_sequence)) AS first"
        f" FROM order_book_snapshot WHERE {condition} AND {_SINCE.format(time='time')}"
        f" AND {_BEFORE.format(time='time')} AND reason = 'SNAPSHOT_REASON_EPOCH_START'"
        " GROUP BY exchange, symbol",
        {**parameters, "since": time, "start": time + BUFFERED},
    )
    return {(str(exchange), str(symbol)): tuple(place) for exchange, symbol, place in rows}


async def _last_snapshots(
    engine: Engine, selection: Selection, start: int
) -> dict[Key, tuple[int, int, int]]:
    """Give of each book the place and the time of its last snapshot before `start`."""
    condition, parameters = selection.condition(_SNAPSHOTS)
    before = _BEFORE.format(time="time")
    known = await engine.query(
        f"SELECT DISTINCT exchange, symbol FROM order_book_snapshot WHERE {condition} AND {before}",
        {**parameters, "start": start},
    )
    wanted = {(str(exchange), str(symbol)) for exchange, symbol in known}
    found: dict[Key, tuple[int, int, int]] = {}
    for back in (*_BACK, start):
        if not wanted:
            break
        since = _SINCE.format(time="time")
        rows = await engine.query(
            "SELECT exchange, symbol, max((stream_created, stream_sequence,"
            " toUnixTimestamp64Nano(time))) AS last FROM order_book_snapshot"
            f" WHERE {condition} AND {before} AND {since} GROUP BY exchange, symbol",
            {**parameters, "start": start, "since": max(0, start - back)},
        )
        for exchange, symbol, place in rows:
            if (exchange, symbol) in wanted:
                found[exchange, symbol] = tuple(place)
                wanted.discard((exchange, symbol))
    return found


async def _last_statuses(
    engine: Engine, selection: Selection, start: int
) -> dict[Key, tuple[Any, ...]]:
    """Give the last status of each book before `start`, as a row."""
    condition, parameters = selection.condition(_STATUSES)
    rows = await engine.query(
        f"{_select(_STATUSES, STATUS)} WHERE {condition} AND {_BEFORE.format(time='time')}"
        " ORDER BY stream_created DESC, stream_sequence DESC LIMIT 1 BY exchange, symbol",
        {**parameters, "start": start},
        events_of=_STATUSES,
    )
    return {(str(row[4]), str(row[5])): row for row in rows}


async def _rows(
    engine: Engine, keys: Sequence[Key], places: Mapping[Key, tuple[int, int, int]], start: int
) -> AsyncIterator[tuple[Any, ...]]:
    """Give each book's last snapshot and then the updates after it, book by book."""
    snapshots: dict[Key, tuple[Any, ...]] = {}
    condition, parameters = _named(keys)
    parameters["places"] = [list(places[key][:2]) for key in keys]
    since = min(places[key][2] for key in keys)
    first = min(places[key][:2] for key in keys)
    parameters |= {"start": start, "since": since}
    for row in await engine.query(
        f"{_select(_SNAPSHOTS, SNAPSHOT)} WHERE {condition} AND {_SINCE.format(time='time')}"
        f" AND {_BEFORE.format(time='time')}"
        " AND [stream_created, stream_sequence] IN {places:Array(Array(UInt64))}",
        parameters,
        events_of=_SNAPSHOTS,
    ):
        if row[:2] == places[row[4], row[5]][:2]:
            snapshots[row[4], row[5]] = row
    begun: Key | None = None
    stream = engine.stream(
        f"{_select(_UPDATES, UPDATE)} WHERE {condition} AND {_SINCE.format(time='time')}"
        f" AND {_BEFORE.format(time='time')} AND stream_created >= {{created:UInt64}}"
        " AND (stream_created > {created:UInt64} OR stream_sequence > {sequence:UInt64})"
        " ORDER BY exchange, symbol, stream_created, stream_sequence",
        {
            **parameters,
            # What was received before the snapshot may continue it.
            "since": max(0, since - BUFFERED),
            "created": first[0],
            "sequence": first[1],
        },
        events_of=_UPDATES,
    )
    async with contextlib.aclosing(stream) as blocks:  # type: ignore[type-var]
        async for block in blocks:
            for row in block:
                key = (row[4], row[5])
                if key != begun:
                    begun = key
                    if key in snapshots:
                        yield snapshots.pop(key)
                if row[:2] > places[key][:2]:
                    yield row
    for row in snapshots.values():
        yield row


async def latest_states(engine: Engine, selection: Selection, start: int) -> list[bytes]:
    """Give the latest of every kind that has a state, as `events` items.

    They are looked for one day back.
    """
    found: list[bytes] = []
    for table in selection.tables:
        if table.kind in _MOMENTS:
            continue
        condition, parameters = selection.condition(table)
        time = received(table)
        beside = _SIDE_BY_SIDE.get(table.name, "")
        rows = await engine.query(
            f"SELECT exchange, symbol, {item_sql(table)} AS event FROM {table.name} FINAL"
            f" WHERE {condition} AND {_BEFORE.format(time=time)} AND {_SINCE.format(time=time)}"
            " ORDER BY stream_created DESC, stream_sequence DESC"
            f" LIMIT 1 BY exchange, symbol{beside}",
            {**parameters, "start": start, "since": max(0, start - _STATES_BACK)},
            events_of=table,
        )
        found += [row[-1] for row in sorted(rows)]
    return found


async def lasting_gaps(engine: Engine, selection: Selection, start: int) -> list[bytes]:
    """Give the ledger's entries of before `start` that tell of what was missing at it.

    They come as `gap` items.
    """
    condition, parameters = selection.condition(LEDGER)
    conditions, more = touching("", "", (), start, start + 1)
    rows = await engine.query(
        f"SELECT time, event_id, {item_sql(LEDGER)} AS event FROM integrity FINAL"
        f" WHERE {' AND '.join((condition, *conditions))} AND {_BEFORE.format(time='time')}"
        " AND end_time != time ORDER BY time, event_id",
        {**parameters, **more, "start": start},
        events_of=LEDGER,
    )
    return [row[-1] for row in rows]


def _select(table: Table, form: int) -> str:
    reason = "CAST(reason AS Int16)" if form == SNAPSHOT else "0"
    return (
        f"SELECT stream_created, stream_sequence, {form}, toUnixTimestamp64Nano(time), exchange,"
        f" symbol, epoch, sequence, venue_sequence, {reason}, {item_sql(table)} AS event"
        f" FROM {table.name} FINAL"
    )


def _named(keys: Iterable[Key]) -> tuple[str, dict[str, Any]]:
    parameters: dict[str, Any] = {}
    by_exchange: dict[str, list[str]] = {}
    for exchange, symbol in keys:
        by_exchange.setdefault(exchange, []).append(symbol)
    either = []
    for number, (exchange, symbols) in enumerate(sorted(by_exchange.items())):
        parameters |= {f"exchange_{number}": exchange, f"symbols_{number}": symbols}
        either.append(
            f"(exchange = {{exchange_{number}:String}}"
            f" AND symbol IN {{symbols_{number}:Array(String)}})"
        )
    return f"({' OR '.join(either)})", parameters
