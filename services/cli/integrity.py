"""`marketprism integrity`: how whole each day of each instrument is, and why where it is not."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.collector.v1 import integrity_event_pb2 as ledger
from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.history.v1 import history_service_pb2_grpc as pb_grpc
from marketprism.history.v1 import store_pb2
from marketprism.market.v1 import common_pb2
from rich.table import Table
from rich.text import Text

from services.cli.book_keeper import enum_name
from services.cli.client import connect
from services.cli.console import wide_console
from services.shared.errors import FieldViolation, InvalidArgument

__all__ = ["InstrumentDay", "days_of", "print_integrity", "read_days"]

_CALL_SECONDS = 30.0
_PAGE = 1000
_AT_ONCE = 4
_MOST_DAYS = 1000
_COLUMNS = (
    "exchange",
    "symbol",
    "day",
    "kind",
    "whole",
    "covered",
    "events",
    "gaps",
    "missing",
    "backfilled",
    "duplicates",
    "rebuilds",
    "causes",
)
_WORDS = frozenset(("exchange", "symbol", "day", "kind", "whole", "causes"))
_LOSSES = (
    ledger.INTEGRITY_KIND_GAP,
    ledger.INTEGRITY_KIND_DISCONNECTED,
    ledger.INTEGRITY_KIND_SILENT,
    ledger.INTEGRITY_KIND_MALFORMED_FRAME,
    ledger.INTEGRITY_KIND_DROPPED,
    ledger.INTEGRITY_KIND_SUBSCRIPTION_REFUSED,
    ledger.INTEGRITY_KIND_RESYNC_BEGUN,
    ledger.INTEGRITY_KIND_COLLECTOR_STARTED,
)


@dataclass(frozen=True, slots=True)
class InstrumentDay:
    """One line: a UTC day of one kind of data, and what went wrong in it."""

    day: store_pb2.IntegrityDay
    """What the store says of it."""

    causes: Counter[str]
    """Entries of the ledger by cause, in words."""


def days_of(text: str, today: date) -> tuple[date, date]:
    """Give the first and the last day meant by `2026-11-24`, `A..B`, `today` or an empty text.

    Raises InvalidArgument, which names what was expected.
    """
    begin, _, end = (text or "today").partition("..")
    first, last = _day_of(begin, today), _day_of(end or begin, today)
    if last < first:
        raise _bad_day(text, "the second is before the first")
    if (last - first).days >= _MOST_DAYS:
        raise _bad_day(text, f"more than {_MOST_DAYS} days")
    return first, last


async def read_days(
    address: str, exchange: str, symbol: str, first: date, last: date
) -> list[InstrumentDay]:
    """Ask a gateway about the days of an instrument, or of all that match; raises AioRpcError."""
    slots = asyncio.Semaphore(_AT_ONCE)
    async with connect(address) as channel:
        stub: pb_grpc.HistoryServiceAsyncStub = pb_grpc.HistoryServiceStub(channel)

        async def read(name: tuple[str, str]) -> list[InstrumentDay]:
            async with slots:
                return await _read(stub, *name, first, last)

        names = [(exchange, symbol)] if symbol else await _instruments(stub, exchange)
        found = await asyncio.gather(*map(read, names))
    return [day for days in found for day in days]


async def print_integrity(
    address: str, exchange: str, symbol: str, first: date, last: date, *, as_json: bool
) -> bool:
    """Print a line each day and kind; tells whether there are any, all whole."""
    found = await read_days(address, exchange, symbol, first, last)
    if as_json:
        for each in found:
            told = MessageToDict(
                each.day, preserving_proto_field_name=True,
                always_print_fields_with_no_presence=True,
            )  # fmt: skip
            print(json.dumps({**told, "causes": dict(each.causes)}))
    elif found:
        wide_console().print(_table(found))
    else:
        of = " ".join(filter(None, (exchange, symbol)))
        print(f"nothing{f' of {of}' if of else ''} is stored from {first} to {last}")
    return bool(found) and all(each.day.whole for each in found)


async def _instruments(
    stub: "pb_grpc.HistoryServiceAsyncStub", exchange: str
) -> list[tuple[str, str]]:
    names: set[tuple[str, str]] = set()
    token = ""
    while True:
        answer = await stub.ListCoverage(
            pb.ListCoverageRequest(exchange=exchange, page_size=_PAGE, page_token=token),
            timeout=_CALL_SECONDS,
        )
        names |= {(each.exchange, each.symbol) for each in answer.coverage}
        token = answer.next_page_token
        if not token:
            return sorted(names)


async def _read(
    stub: "pb_grpc.HistoryServiceAsyncStub", exchange: str, symbol: str, first: date, last: date
) -> list[InstrumentDay]:
    begin, end = _midnight(first), _midnight(last + timedelta(days=1))
    days: list[store_pb2.IntegrityDay] = []
    token = ""
    while True:
        answer = await stub.ListIntegrityDays(
            pb.ListIntegrityDaysRequest(
                exchange=exchange, symbol=symbol, start_time=begin, end_time=end,
                page_size=_PAGE, page_token=token,
            ),
            timeout=_CALL_SECONDS,
        )  # fmt: skip
        days += answer.days
        token = answer.next_page_token
        if not token:
            break
    if not any(each.gaps or each.resyncs or each.covered_share != "1" for each in days):
        return [InstrumentDay(each, Counter()) for each in days]
    entries = await _entries(stub, exchange, symbol, begin, end)
    return [InstrumentDay(each, _causes(each, entries)) for each in days]


async def _entries(
    stub: "pb_grpc.HistoryServiceAsyncStub",
    exchange: str,
    symbol: str,
    begin: Timestamp,
    end: Timestamp,
) -> list[ledger.IntegrityEvent]:
    found: list[ledger.IntegrityEvent] = []
    token = ""
    while True:
        answer = await stub.ListIntegrityEvents(
            pb.ListIntegrityEventsRequest(
                exchange=exchange, symbol=symbol, kinds=_LOSSES, start_time=begin, end_time=end,
                page_size=_PAGE, page_token=token,
            ),
            timeout=_CALL_SECONDS,
        )  # fmt: skip
        found += answer.events
        token = answer.next_page_token
        if not token:
            return found


def _causes(day: store_pb2.IntegrityDay, entries: Sequence[ledger.IntegrityEvent]) -> Counter[str]:
    """Count the entries that touch a day of one kind, by cause."""
    begin = day.day.seconds
    found: Counter[str] = Counter()
    for each in entries:
        since = (each.begin_time if each.HasField("begin_time") else each.receive_time).seconds
        until = (each.end_time if each.HasField("end_time") else each.receive_time).seconds
        told_before = each.kind == ledger.INTEGRITY_KIND_GAP and each.previous_event_id
        touches = since < begin + 86_400 and until >= begin
        if touches and each.event_kind in (0, day.kind) and not told_before:
            found[_cause(each)] += 1
    return found


def _cause(event: ledger.IntegrityEvent) -> str:
    if event.cause:
        return _word(ledger.IntegrityCause, event.cause, "INTEGRITY_CAUSE_")
    return _word(ledger.IntegrityKind, event.kind, "INTEGRITY_KIND_")


def _table(found: Sequence[InstrumentDay]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in _WORDS else "right", no_wrap=True)
    for each in found:
        day = each.day
        table.add_row(
            day.exchange,
            day.symbol,
            f"{datetime.fromtimestamp(day.day.seconds, UTC):%Y-%m-%d}",
            _word(common_pb2.EventKind, day.kind, "EVENT_KIND_"),
            Text("yes", "green") if day.whole else Text("no", "red"),
            f"{float(day.covered_share) * 100:.4g}%",
            str(day.rows),
            str(day.gaps),
            str(day.missing_ids),
            str(day.backfilled),
            str(day.duplicates),
            str(day.resyncs),
            ", ".join(f"{cause} {count}" for cause, count in each.causes.most_common()),
        )
    return table


def _word(kind: object, value: int, prefix: str) -> str:
    return enum_name(kind, value, prefix).lower().replace("_", " ")


def _midnight(day: date) -> Timestamp:
    moment = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return Timestamp(seconds=int(moment.timestamp()))


def _day_of(text: str, today: date) -> date:
    if text == "today":
        return today
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise _bad_day(text, "no such day") from None


def _bad_day(text: str, why: str) -> InvalidArgument:
    expected = "expected a UTC day such as 2026-11-24, two of them as A..B, or today"
    return InvalidArgument(
        f"--day: {expected}, got {text!r}: {why}",
        violations=[FieldViolation("day", expected, "MALFORMED")],
        metadata={"field": "day"},
    )
