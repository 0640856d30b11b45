"""The gap ledger as it was written, and what it says of each day of an instrument."""
# ruff: noqa: N802 - methods are named as in the contract

import time
from collections.abc import Callable, Iterable
from typing import Final

from marketprism.collector.v1 import integrity_event_pb2 as ledger
from marketprism.history.v1 import history_service_pb2 as pb

from services.shared.errors import NotFound
from services.shared.parts import Context
from services.shared.wire import field
from services.storage.engine import Engine
from services.storage.gaps import gaps_touching, touching
from services.storage.integrity_days import DAY, Counts, DayLedger, Held, day_entry
from services.storage.known import KnownInstruments
from services.storage.paging import Keyset, bad_token, read_token, write_token
from services.storage.tables import TABLES, Table
from services.storage.validators import (
    TimeRange,
    check_enum,
    check_event_kinds,
    check_exchange,
    check_instrument,
    check_symbol,
    page_size,
    time_range,
)
from services.storage.wire import repeated

__all__ = ["Integrity"]

_LEDGER: Final = TABLES["integrity"]
_MOST_BYTES: Final = 12 * 1024**2
_MOST_ENTRIES: Final = 1_000_000
_KEY_LENGTH: Final = 2
# What tells an event from every other at the venue, where it numbers them.
_VENUE_IDS: Final = {
    "trade": "venue_sequence, trade_id, trade_count",
    "order_book_update": "epoch, sequence",
}


class Integrity:
    """Answers ListIntegrityEvents and ListIntegrityDays."""

    def __init__(
        self,
        engine: Engine,
        known: KnownInstruments,
        *,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        """Read from `engine`; `now` gives nanoseconds since 1970."""
        self._engine = engine
        self._known = known
        self._now = now
        self._keyset = Keyset(_LEDGER)

    async def ListIntegrityEvents(
        self, request: pb.ListIntegrityEventsRequest, _context: Context
    ) -> bytes:
        """Answer the ledger's entries that touch a range, by the time they were noticed."""
        if request.exchange:
            check_exchange(request.exchange)
        if request.symbol:
            check_symbol(request.symbol)
        for index, kind in enumerate(request.kinds):
            check_enum(ledger.IntegrityKind.DESCRIPTOR, kind, f"kinds[{index}]")
        check_event_kinds(request.event_kinds, "event_kinds")
        asked = time_range(request, self._now())
        size = page_size(request.page_size)
        held = read_token(request)
        place, end = None, asked.end
        if held is not None:
            # An end that is unset was "now" at the first page, and stays that until the last.
            place, last = held[:-1], held[-1] if held else ""
            if not isinstance(last, int):
                raise bad_token()
            end = end if request.HasField("end_time") else last
        conditions, parameters = touching(
            request.exchange, request.symbol, request.event_kinds, asked.start, end
        )
        if request.kinds:
            conditions.append("CAST(kind AS Int16) IN {kinds:Array(Int16)}")
            parameters["kinds"] = sorted(set(request.kinds))
        if place is not None:
            behind, of_place = self._keyset.behind(place, descending=request.descending)
            conditions.append(behind)
            parameters.update(of_place)
        direction = " DESC" if request.descending else ""
        rows = await self._engine.query(
            f"SELECT {_LEDGER.event_sql()} AS event, {self._keyset.select} FROM integrity FINAL "
            f"WHERE {' AND '.join(conditions)} ORDER BY time{direction}, event_id{direction} "
            "LIMIT {page_limit:UInt32}",
            {**parameters, "page_limit": size + 1},
            events_of=_LEDGER,
        )
        if not rows and place is None:
            await self._check_known(request.exchange, request.symbol)
        events: list[bytes] = []
        token, total = "", 0
        for event, *_ in rows:
            total += len(event)
            if len(events) == size or (events and total > _MOST_BYTES):
                token = write_token(request, [*rows[len(events) - 1][1:], end])
                break
            events.append(event)
        return repeated(1, events) + (field(2, token.encode()) if token else b"")

    async def ListIntegrityDays(
        self, request: pb.ListIntegrityDaysRequest, _context: Context
    ) -> pb.ListIntegrityDaysResponse:
        """Answer how whole each day is, of each kind that is held."""
        exchange, symbol = check_instrument(request)
        check_event_kinds(request.kinds)
        now = self._now()
        asked = time_range(request, now)
        size = page_size(request.page_size, default=100, most=1000)
        place = read_token(request)
        if place is not None and (
            len(place) != _KEY_LENGTH or not all(isinstance(each, int) for each in place)
        ):
            raise bad_token()
        await self._known.check(exchange, symbol)
        held = await self._held(exchange, symbol, set(request.kinds))
        asked_days = _days(held.values(), TimeRange(asked.start, min(asked.end, now)))
        keys = [
            (day, kind)
            for day in asked_days
            for kind, each in sorted(held.items())
            if each.first < (day + 1) * DAY
        ]
        if request.descending:
            keys.sort(key=lambda key: (-key[0], key[1]))
        if place is not None:
            after = (int(place[0]), int(place[1]))
            keys = [key for key in keys if _is_behind(key, after, descending=request.descending)]
        answer = pb.ListIntegrityDaysResponse()
        page = keys[:size]
        if not page:
            return answer
        days = {day for day, _ in page}
        span = TimeRange(min(days) * DAY, (max(days) + 1) * DAY)
        counts = await self._counts(exchange, symbol, {kind for _, kind in page}, span)
        read = await self._read(exchange, symbol, span)
        last_row = max(each.last for each in held.values())
        for day, kind in page:
            answer.days.append(
                day_entry(
                    exchange, symbol, kind, day * DAY, counts.get((day, kind), Counts()),
                    read, held[kind], now, last_row,
                )
            )  # fmt: skip
        if len(keys) > size:
            answer.next_page_token = write_token(request, page[-1])
        return answer

    async def _check_known(self, exchange: str, symbol: str) -> None:
        """Raise NotFound for names of which neither an event nor an entry is stored."""
        if not exchange:
            return
        try:
            if symbol:
                await self._known.check(exchange, symbol)
            else:
                await self._known.check_exchange(exchange)
        except NotFound:
            condition = " AND symbol = {symbol:String}" if symbol else ""
            if not await self._engine.query(
                f"SELECT 1 FROM integrity WHERE exchange = {{exchange:String}}{condition} LIMIT 1",
                {"exchange": exchange, "symbol": symbol},
            ):
                raise

    async def _held(self, exchange: str, symbol: str, kinds: set[int]) -> dict[int, Held]:
        """Give from when to when each kind is held."""
        tables = _tables(kinds)
        each = " UNION ALL ".join(
            f"SELECT toInt16({table.kind}) AS kind, toUnixTimestamp64Nano(min(time)) AS first, "
            f"toUnixTimestamp64Nano(max(time)) AS last, count() AS rows FROM {table.name} "
            "WHERE exchange = {exchange:String} AND symbol = {symbol:String}"
            for table in tables
        )
        rows = await self._engine.query(
            f"SELECT kind, min(first), max(last) FROM ({each}) WHERE rows > 0 GROUP BY kind",
            {"exchange": exchange, "symbol": symbol},
        )
        return {int(kind): Held(int(first), int(last)) for kind, first, last in rows}

    async def _counts(
        self, exchange: str, symbol: str, kinds: set[int], span: TimeRange
    ) -> dict[tuple[int, int], Counts]:
        found: dict[tuple[int, int], Counts] = {}
        for table in _tables(kinds):
            ids = _VENUE_IDS.get(table.name)
            distinct = f"uniqExact({ids})" if ids else "count()"
            fetched = "countIf(backfilled)" if table.name == "trade" else "0"
            rows = await self._engine.query(
                f"SELECT toRelativeDayNum(time), count(), count() - {distinct}, {fetched} "
                f"FROM {table.name} FINAL "
                "WHERE exchange = {exchange:String} AND symbol = {symbol:String} "
                "AND time >= fromUnixTimestamp64Nano({start:Int64}, 'UTC') "
                "AND time < fromUnixTimestamp64Nano({end:Int64}, 'UTC') GROUP BY 1",
                {"exchange": exchange, "symbol": symbol, "start": span.start, "end": span.end},
            )
            for day, count, duplicates, backfilled in rows:
                key = (int(day), table.kind)
                before = found.get(key, Counts())
                found[key] = Counts(
                    before.rows + int(count),
                    before.duplicates + int(duplicates),
                    before.backfilled + int(backfilled),
                )
        return found

    async def _read(self, exchange: str, symbol: str, span: TimeRange) -> DayLedger:
        """Read the ledger of a span; what mends its gaps may have been written any time later."""
        entries = await gaps_touching(
            self._engine, exchange, symbol, (), span.start, span.end, _MOST_ENTRIES
        )
        later = await self._engine.query(
            f"SELECT {_LEDGER.event_sql()} AS event FROM integrity FINAL "
            "WHERE exchange = {exchange:String} AND symbol = {symbol:String} "
            "AND kind = 'INTEGRITY_KIND_BACKFILLED' "
            "AND time >= fromUnixTimestamp64Nano({end:Int64}, 'UTC') "
            "ORDER BY time, event_id LIMIT {most:UInt32}",
            {"exchange": exchange, "symbol": symbol, "end": span.end, "most": _MOST_ENTRIES},
            events_of=_LEDGER,
        )
        known = {each.event_id for each in entries}
        for (encoded,) in later:
            event = ledger.IntegrityEvent.FromString(encoded)
            if event.event_id not in known:
                entries.append(event)
        started = [
            each.receive_time.ToNanoseconds()
            for each in entries
            if each.kind == ledger.INTEGRITY_KIND_COLLECTOR_STARTED
        ]
        return DayLedger(entries, await self._last_rows(exchange, symbol, started))

    async def _last_rows(
        self, exchange: str, symbol: str, times: Iterable[int]
    ) -> list[tuple[int, int]]:
        """Give for each of the times when anything of the instrument was stored last before it."""
        found: list[tuple[int, int]] = []
        each = " UNION ALL ".join(
            f"SELECT max(time) AS last FROM {table.name} WHERE exchange = {{exchange:String}} "
            "AND symbol = {symbol:String} AND time < fromUnixTimestamp64Nano({until:Int64}, 'UTC')"
            for table in _tables(set())
        )
        for moment in times:
            ((last,),) = await self._engine.query(
                f"SELECT toUnixTimestamp64Nano(max(last)) FROM ({each})",
                {"exchange": exchange, "symbol": symbol, "until": moment},
            )
            found.append((moment, int(last)))
        return found


def _tables(kinds: set[int]) -> list[Table]:
    return [table for table in TABLES.values() if table.kind and (not kinds or table.kind in kinds)]


def _days(held: Iterable[Held], asked: TimeRange) -> range:
    """Give the numbers of the days since 1970 that are judged: from the first that is held."""
    first = min((each.first for each in held), default=asked.end)
    begin, end = max(asked.start, first), asked.end
    return range(begin // DAY, (end - 1) // DAY + 1) if begin < end else range(0)


def _is_behind(key: tuple[int, int], after: tuple[int, int], *, descending: bool) -> bool:
    if descending:
        return (-key[0], key[1]) > (-after[0], after[1])
    return key > after
