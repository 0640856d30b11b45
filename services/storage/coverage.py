"""What the store holds: events and bytes of each kind of each instrument, from when to when.

Counting reads whole tables. But a day that nothing was inserted into or merged in since has the
figures that it had, so each day (a partition) is counted once, and again only when its parts have
changed. Events are counted as lists give them, each once.
"""
# ruff: noqa: N802 - methods are named as in the contract

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.history.v1 import store_pb2

from services.shared.parts import Context
from services.storage.engine import Engine
from services.storage.known import KnownInstruments
from services.storage.paging import bad_token, read_token, write_token
from services.storage.tables import TABLES, Table
from services.storage.validators import (
    NANOS,
    check_enum,
    check_event_kind,
    check_exchange,
    check_symbol,
    page_size,
)

__all__ = ["CoverageLists"]

_TABLES: Final = tuple(table for table in TABLES.values() if table.kind)
# A day of the present changes with every insert.
_SECONDS_BETWEEN_COUNTS: Final = 10.0
_ROWS_OF_ONE_COUNT: Final = 20_000_000
_KEY_LENGTH: Final = 4

_Instrument = tuple[str, str]


@dataclass(slots=True)
class _Held:
    """What is held of one instrument."""

    first: int
    last: int
    rows: int
    bytes: float

    def add(self, other: "_Held") -> None:
        self.first = min(self.first, other.first)
        self.last = max(self.last, other.last)
        self.rows += other.rows
        self.bytes += other.bytes


@dataclass(slots=True)
class _Day:
    """One partition of a table, as it was counted."""

    parts: int
    """Digest of the names of its parts."""

    held: dict[_Instrument, _Held] = field(default_factory=dict)


class CoverageLists:
    """Answers ListCoverage."""

    def __init__(
        self,
        engine: Engine,
        known: KnownInstruments,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read from `engine`; `clock` gives seconds that never go back."""
        self._engine = engine
        self._known = known
        self._clock = clock
        self._days: dict[tuple[str, str], _Day] = {}
        self._counting = asyncio.Lock()
        self._due = float("-inf")

    async def ListCoverage(self, request: pb.ListCoverageRequest, _context: Context) -> bytes:
        """Answer what is held; figures are at most ten seconds old."""
        if request.exchange:
            check_exchange(request.exchange)
        if request.symbol:
            check_symbol(request.symbol)
        check_event_kind(request.kind, unset="all")
        check_enum(store_pb2.StorageTier.DESCRIPTOR, request.tier, "tier", unset="both")
        size = page_size(request.page_size, default=100, most=1000)
        after = _place(request)
        if request.exchange and request.symbol:
            await self._known.check(request.exchange, request.symbol)
        elif request.exchange:
            await self._known.check_exchange(request.exchange)
        answer = pb.ListCoverageResponse()
        if request.tier != store_pb2.STORAGE_TIER_COLD:
            await self._count()
            for entry in self._entries(request):
                key = (entry.exchange, entry.symbol, int(entry.kind), int(entry.tier))
                if after is not None and key <= after:
                    continue
                if len(answer.coverage) == size:
                    last = answer.coverage[-1]
                    answer.next_page_token = write_token(
                        request, [last.exchange, last.symbol, int(last.kind), int(last.tier)]
                    )
                    break
                answer.coverage.append(entry)
        return answer.SerializeToString()

    def _entries(self, request: pb.ListCoverageRequest) -> Iterator[store_pb2.Coverage]:
        kinds = {table.name: table.kind for table in _TABLES}
        totals: dict[tuple[str, str, int], _Held] = {}
        for (name, _), day in self._days.items():
            kind = kinds[name]
            if request.kind not in (0, kind):
                continue
            for (exchange, symbol), held in day.held.items():
                if request.exchange in ("", exchange) and request.symbol in ("", symbol):
                    total = totals.get((exchange, symbol, kind))
                    if total is None:
                        totals[exchange, symbol, kind] = _Held(
                            held.first, held.last, held.rows, held.bytes
                        )
                    else:
                        total.add(held)
        for (exchange, symbol, kind), held in sorted(totals.items(), key=lambda item: item[0]):
            entry = store_pb2.Coverage(
                exchange=exchange,
                symbol=symbol,
                kind=kind,  # type: ignore[arg-type]  # the enum's value is an int
                rows=held.rows,
                bytes=round(held.bytes),
                tier=store_pb2.STORAGE_TIER_HOT,
            )
            for time_field, moment in (
                (entry.first_time, held.first),
                (entry.last_time, held.last),
            ):
                time_field.seconds, time_field.nanos = divmod(moment, NANOS)
            yield entry

    async def _count(self) -> None:
        """Bring the figures up to date, unless that was done just now."""
        async with self._counting:
            if self._clock() < self._due:
                return
            parts = await self._parts()
            for gone in self._days.keys() - parts.keys():
                del self._days[gone]
            for table in _TABLES:
                changed = {
                    day: (digest, rows, size)
                    for (name, day), (digest, rows, size) in parts.items()
                    if name == table.name and self._is_other(name, day, digest)
                }
                for days in _batches({day: rows for day, (_, rows, _) in changed.items()}):
                    await self._count_days(table, {day: changed[day] for day in days})
            self._due = self._clock() + _SECONDS_BETWEEN_COUNTS

    def _is_other(self, table: str, day: str, digest: int) -> bool:
        kept = self._days.get((table, day))
        return kept is None or kept.parts != digest

    async def _parts(self) -> dict[tuple[str, str], tuple[int, int, int]]:
        """Give a digest of the parts of each table and partition, their rows, their bytes."""
        source, suffix = "system.parts", ""
        if self._engine.cluster:
            source, suffix = f"cluster('{self._engine.cluster}', system.parts)", "_local"
        rows = await self._engine.query(
            "SELECT table, partition_id, groupBitXor(cityHash64(hostName(), name)), sum(rows), "
            f"sum(bytes_on_disk) FROM {source} WHERE active AND database = currentDatabase() "
            "AND table IN {names:Array(String)} GROUP BY table, partition_id",
            {"names": [f"{table.name}{suffix}" for table in _TABLES]},
        )
        return {
            (str(table).removesuffix(suffix), str(day)): (int(digest), int(count), int(size))
            for table, day, digest, count, size in rows
        }

    async def _count_days(self, table: Table, days: dict[str, tuple[int, int, int]]) -> None:
        rows = await self._engine.query(
            "SELECT _partition_id, exchange, symbol, toUnixTimestamp64Nano(min(time)), "
            f"toUnixTimestamp64Nano(max(time)), count() FROM {table.name} FINAL "
            "WHERE _partition_id IN {days:Array(String)} GROUP BY _partition_id, exchange, symbol",
            {"days": list(days)},
        )
        counted = {day: _Day(digest) for day, (digest, _, _) in days.items()}
        for day, exchange, symbol, first, last, count in rows:
            counted[day].held[exchange, symbol] = _Held(int(first), int(last), int(count), 0.0)
        for day, made in counted.items():
            # Columns of a part are not told by instrument; its share of events is its share here.
            total = sum(held.rows for held in made.held.values())
            for held in made.held.values():
                held.bytes = days[day][2] * held.rows / total
            self._days[table.name, day] = made


def _batches(rows_of: dict[str, int]) -> Iterator[list[str]]:
    """Give the days in groups that one query can count within its limits."""
    group: list[str] = []
    total = 0
    for day in sorted(rows_of):
        if group and total + rows_of[day] > _ROWS_OF_ONE_COUNT:
            yield group
            group, total = [], 0
        group.append(day)
        total += rows_of[day]
    if group:
        yield group


def _place(request: pb.ListCoverageRequest) -> tuple[str, str, int, int] | None:
    place = read_token(request)
    if place is None:
        return None
    if len(place) != _KEY_LENGTH:
        raise bad_token()
    exchange, symbol, kind, tier = place
    if not (isinstance(exchange, str) and isinstance(symbol, str)):
        raise bad_token()
    if not (isinstance(kind, int) and isinstance(tier, int)):
        raise bad_token()
    return exchange, symbol, kind, tier
