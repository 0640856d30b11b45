"""StreamEvents: everything stored of a range in the order of its time, as fast as it is read."""

import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any, Final

from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.market.v1 import market_event_pb2

from services.shared.parts import Context
from services.shared.wire import field
from services.storage.engine import Engine, Row
from services.storage.known import KnownInstruments
from services.storage.paging import bad_token, read_token, write_token
from services.storage.replay import OpenStreams
from services.storage.replay_merge import Merged
from services.storage.replay_messages import Packer, status_item
from services.storage.replay_pieces import Pieces, Segment, Window
from services.storage.replay_selection import LEDGER, Selection, item_sql, read_selection
from services.storage.replay_settings import ReplaySettings
from services.storage.tables import Table
from services.storage.validators import MAX_TIME, TimeRange, time_range

__all__ = ["EventStreams"]

_OPEN: Final = int(market_event_pb2.STREAM_STATE_OPEN)
_ENDED: Final = int(market_event_pb2.STREAM_STATE_ENDED)
_TOKEN: Final = 3
_RESUME: Final = "resume_token"
_INTEGERS: Final = {"Int8": (-(2**7), 2**7), "Int64": (-(2**63), 2**63), "UInt64": (0, 2**64)}


class TimeOrder:
    """Asks one table for its rows in the order of time, which `number` places among the tables."""

    def __init__(
        self, table: Table, number: int, condition: str, parameters: dict[str, Any]
    ) -> None:
        self._parameters = parameters
        rest = [name for name in table.identity if name != "time"]
        types = {column.name: column.definition for column in table.columns}
        columns = ["time", "exchange", "symbol", *rest]
        self._keys = [_key(name, types.get(name, "DateTime64")) for name in columns]
        expressions = [expression for expression, _ in self._keys]
        values = [f"{{after_{place}:{kind}}}" for place, (_, kind) in enumerate(self._keys)]
        self._after = f" AND ({', '.join(expressions)}) > ({', '.join(values)})"
        self._select = (
            f"SELECT {expressions[0]}, {number}, {', '.join(expressions[1:])},"
            f" {item_sql(table)} AS event FROM {table.name} FINAL WHERE {condition}"
            " AND time >= fromUnixTimestamp64Nano({low:Int64}, 'UTC')"
            " AND time <= fromUnixTimestamp64Nano({high:Int64}, 'UTC')"
        )
        self._order = f" ORDER BY {', '.join(columns)} LIMIT {{limit:UInt32}}"

    def sql(self, window: Window) -> tuple[str, dict[str, Any]]:
        """See `Query`."""
        parameters = {
            **self._parameters, "low": window.low, "high": window.high, "limit": window.limit,
        }  # fmt: skip
        if window.after is None:
            return self._select + self._order, parameters
        values = _values(window.after)
        parameters |= {f"after_{place}": value for place, value in enumerate(values)}
        return self._select + self._after + self._order, parameters

    def number(self, row: Row) -> int:
        """See `Query`."""
        return int(row[0])

    def check(self, place: Sequence[int | str]) -> None:
        """Raise `InvalidArgument` for a place that is none of this table."""
        values = [place[0], *place[2:]]
        if len(values) != len(self._keys):
            raise bad_token(field=_RESUME)
        for value, (_, kind) in zip(values, self._keys, strict=True):
            if kind == "String":
                fits = isinstance(value, str)
            else:
                least, beyond = _INTEGERS[kind]
                fits = isinstance(value, int) and least <= value < beyond
            if not fits:
                raise bad_token(field=_RESUME)


def _values(row: Row) -> list[Any]:
    return [row[0], *row[2:-1]]


def _key(name: str, definition: str) -> tuple[str, str]:
    """Give the SQL expression by which a column is compared, and its type."""
    kind = definition.split("(")[0].split(" ")[0]
    if kind == "DateTime64":
        return f"toUnixTimestamp64Nano({name})", "Int64"
    if kind == "Enum8":
        return f"CAST({name} AS Int8)", "Int8"
    if kind in ("LowCardinality", "String"):
        return f"CAST({name} AS String)", "String"
    return name, kind


class EventStreams:
    """Answers StreamEvents. `now` gives nanoseconds since 1970."""

    def __init__(
        self,
        engine: Engine,
        known: KnownInstruments,
        settings: ReplaySettings,
        streams: OpenStreams,
        *,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._engine = engine
        self._known = known
        self._settings = settings
        self._streams = streams
        self._now = now

    async def StreamEvents(  # noqa: N802 - the name is the contract's
        self, request: pb.StreamEventsRequest, _context: Context
    ) -> AsyncIterator[bytes]:
        """Stream a range; what is wrong with the request ends it before it begins."""
        selection = read_selection(request, self._settings)
        asked = time_range(request, self._now())
        place = _place(request)
        if place is not None:
            asked = TimeRange(asked.start, place[0])
        with self._streams.one():
            await selection.check_known(self._engine, self._known)
            run = _Run(self._engine, self._settings, selection, asked, request)
            feeds = await run.open(place[1:] if place is not None else [])
            merged = Merged(feeds)
            try:
                async with contextlib.aclosing(
                    self._streams.told(run.messages(merged), run.ended)
                ) as messages:
                    async for message in messages:
                        yield message
            finally:
                await merged.close()


def _place(request: pb.StreamEventsRequest) -> list[Any] | None:
    """Give what a request's token holds: the end of the range, and the last row's place."""
    place: list[Any] | None = read_token(request, field=_RESUME)
    if place is None:
        return None
    if not place or type(place[0]) is not int or not 0 <= place[0] <= MAX_TIME:
        raise bad_token(field=_RESUME)
    return place


class _Run:
    """One stream of events."""

    def __init__(
        self,
        engine: Engine,
        settings: ReplaySettings,
        selection: Selection,
        asked: TimeRange,
        request: pb.StreamEventsRequest,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._selection = selection
        self._range = asked
        self._request = request
        self._token = b""

    async def open(self, place: list[Any]) -> list[Pieces]:
        """Give the tables' rows behind a place; raises `InvalidArgument` for one that is none."""
        tables = [LEDGER, *self._selection.tables]
        if place and (
            len(place) < 2
            or type(place[0]) is not int
            or not 0 <= place[0] <= MAX_TIME
            or place[1] not in range(len(tables))
        ):
            raise bad_token(field=_RESUME)
        feeds = []
        for number, table in enumerate(tables):
            condition, parameters = self._selection.condition(table)
            order = TimeOrder(table, number, condition, parameters)
            low, after = self._range.start, None
            if place:
                if number == place[1]:
                    order.check(place)
                    after = (*place, b"")
                low = max(low, int(place[0]) + (number < place[1]))
            segments = await self._segments(table, condition, parameters, low)
            if after is not None and (not segments or segments[0].first > int(place[0])):
                after = None
            feeds.append(Pieces(self._engine, table, order, segments, self._settings, after=after))
        if place:
            self._remember(place)
        return feeds

    async def _segments(
        self, table: Table, condition: str, parameters: dict[str, Any], low: int
    ) -> list[Segment]:
        rows = await self._engine.query(
            "SELECT toUnixTimestamp64Nano(min(time)), toUnixTimestamp64Nano(max(time)), count()"
            f" FROM {table.name} WHERE {condition}"
            " AND time >= fromUnixTimestamp64Nano({low:Int64}, 'UTC')"
            " AND time < fromUnixTimestamp64Nano({high:Int64}, 'UTC')",
            {**parameters, "low": low, "high": self._range.end},
        )
        return [Segment(first, last, many) for first, last, many in rows if many]

    async def messages(self, merged: Merged) -> AsyncGenerator[bytes, None]:
        """Give the whole stream."""
        yield self._message(status_item(_OPEN, self._range.start, "SUBSCRIBED"))
        while not merged.done:
            rows = await merged.more()
            packer = Packer(rows, self._settings.max_message_bytes)
            for items, place in packer.messages(0, len(packer)):
                self._remember(rows[place - 1][:-1])
                yield self._message(items)
        yield self.ended("RANGE_COMPLETE", "everything of the range was sent")

    def ended(self, reason: str, message: str) -> bytes:
        """Give the last message."""
        return self._message(status_item(_ENDED, self._range.end, reason, message))

    def _remember(self, place: Sequence[Any]) -> None:
        token = write_token(self._request, [self._range.end, *place])
        self._token = field(_TOKEN, token.encode())

    def _message(self, items: bytes) -> bytes:
        return items + self._token
