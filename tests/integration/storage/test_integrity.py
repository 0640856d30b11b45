"""The ledger is given as it was written, and each day is judged by it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from marketprism.collector.v1 import integrity_event_pb2 as ledger
from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.history.v1 import store_pb2
from marketprism.market.v1 import common_pb2, events_pb2, order_book_pb2

from services.shared.errors import InvalidArgument, NotFound
from services.storage.engine import Engine
from services.storage.gaps import gaps_touching
from services.storage.integrity import Integrity
from services.storage.known import KnownInstruments
from tests.integration.storage.store_tools import fill, no_context, open_store

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
BEGIN = 1_795_478_400 * SECOND
NOW = BEGIN + 3 * DAY
TRADE, BOOK = common_pb2.EVENT_KIND_TRADE, common_pb2.EVENT_KIND_ORDER_BOOK


class Writer:
    """Writes entries of one venue, each with an id of its own."""

    def __init__(self) -> None:
        self.entries: list[ledger.IntegrityEvent] = []

    def __call__(
        self,
        kind: str,
        at: int,
        *,
        begin: int | None = None,
        end: int | None = None,
        ids: tuple[int, int] | None = None,
        **more: Any,
    ) -> str:
        """Times are from BEGIN on."""
        told = {"exchange": "binance", "symbol": "BTC-USDT", "collector_id": "col", **more}
        if ids is not None:
            told |= {
                "first_missing_id": ids[0],
                "last_missing_id": ids[1],
                "count": ids[1] - ids[0] + 1,
                "event_kind": TRADE,
            }
        entry = ledger.IntegrityEvent(
            event_id=f"col-{len(self.entries):03}",
            kind=ledger.IntegrityKind.Value(f"INTEGRITY_KIND_{kind}"),
            **told,
        )
        entry.receive_time.FromNanoseconds(BEGIN + at)
        if begin is not None:
            entry.begin_time.FromNanoseconds(BEGIN + begin)
        if end is not None:
            entry.end_time.FromNanoseconds(BEGIN + end)
        self.entries.append(entry)
        return entry.event_id


def trade(number: int, at: int, *, backfilled: bool = False) -> events_pb2.Trade:
    made = events_pb2.Trade(
        exchange="binance", symbol="BTC-USDT", trade_id=str(number), price="1", quantity="1",
        backfilled=backfilled,
    )  # fmt: skip
    made.receive_time.FromNanoseconds(BEGIN + at)
    made.exchange_time.FromNanoseconds(BEGIN + at)
    return made


def update(sequence: int, at: int) -> order_book_pb2.OrderBookUpdate:
    made = order_book_pb2.OrderBookUpdate(
        exchange="binance", symbol="BTC-USDT", epoch=1, sequence=sequence
    )
    made.receive_time.FromNanoseconds(BEGIN + at)
    return made


def hourly(days: int) -> dict[str, list[Any]]:
    """Give a trade and an update every hour, from the first second of the first day on."""
    hours = range(24 * days)
    return {
        "trade": [trade(100 + n, n * HOUR) for n in hours],
        "order_book_update": [update(1 + n, n * HOUR) for n in hours],
    }


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with open_store(tmp_path) as opened:
        yield opened


@pytest.fixture
def write() -> Writer:
    return Writer()


async def days(
    engine: Engine, *, now: int = NOW, **fields: Any
) -> dict[tuple[int, int], store_pb2.IntegrityDay]:
    """Give what ListIntegrityDays answers, by (day from BEGIN, kind)."""
    part = Integrity(engine, KnownInstruments(engine), now=lambda: now)
    request = pb.ListIntegrityDaysRequest(exchange="binance", symbol="BTC-USDT", **fields)
    answer = await part.ListIntegrityDays(request, no_context())
    return {
        ((each.day.ToNanoseconds() - BEGIN) // DAY, int(each.kind)): each for each in answer.days
    }


async def listed(engine: Engine, **fields: Any) -> pb.ListIntegrityEventsResponse:
    part = Integrity(engine, KnownInstruments(engine), now=lambda: NOW)
    encoded = await part.ListIntegrityEvents(pb.ListIntegrityEventsRequest(**fields), no_context())
    return pb.ListIntegrityEventsResponse.FromString(encoded)


# Days


async def test_days_without_an_entry_are_whole(engine: Engine) -> None:
    await fill(engine, hourly(2))
    found = await days(engine, now=BEGIN + 2 * DAY - HOUR)
    assert sorted(found) == [(0, TRADE), (0, BOOK), (1, TRADE), (1, BOOK)]
    for (day, _), each in found.items():
        assert each.rows == 24
        assert (each.covered_share, each.whole, each.gaps) == ("1", True, 0)
        assert each.covered.ToNanoseconds() == (DAY if day == 0 else DAY - HOUR)


async def test_trades_that_are_missing_spoil_a_day_until_they_are_fetched(
    engine: Engine, write: Writer
) -> None:
    gap = write("GAP", 2 * HOUR, begin=HOUR, end=2 * HOUR, ids=(5, 14))
    write("GAP", DAY + HOUR, begin=DAY, end=DAY + HOUR, ids=(50, 59))
    write("BACKFILLED", 2 * HOUR + SECOND, ids=(11, 14), previous_event_id=gap)
    await fill(engine, {**hourly(2), "integrity": write.entries})
    found = await days(engine)
    first, second = found[0, TRADE], found[1, TRADE]
    assert (first.gaps, first.missing_ids, first.whole) == (1, 6, False)
    assert (second.gaps, second.missing_ids, second.whole) == (1, 10, False)
    assert found[0, BOOK].whole, "books are another matter"
    # What mends a day may be written days later.
    mended = Writer()
    mended.entries = [*write.entries]
    mended("BACKFILLED", 2 * DAY + HOUR, ids=(5, 10), previous_event_id=gap)
    fetched = [trade(5, HOUR + 1, backfilled=True)]
    await fill(engine, {"integrity": mended.entries[-1:], "trade": fetched}, first_sequence=900)
    found = await days(engine, end_time={"seconds": (BEGIN + DAY) // SECOND})
    assert (found[0, TRADE].missing_ids, found[0, TRADE].backfilled) == (0, 1)
    assert (found[0, TRADE].whole, found[0, TRADE].gaps) == (True, 1)


async def test_what_is_told_again_is_missing_once(engine: Engine, write: Writer) -> None:
    gap = write("GAP", HOUR, ids=(5, 14))
    write("GAP", HOUR + SECOND, ids=(5, 7), previous_event_id=gap)
    write("BACKFILLED", HOUR + 2 * SECOND, ids=(8, 14), previous_event_id=gap)
    await fill(engine, {**hourly(1), "integrity": write.entries})
    day = (await days(engine))[0, TRADE]
    assert (day.missing_ids, day.gaps) == (3, 1)


async def test_an_outage_is_time_not_covered(engine: Engine, write: Writer) -> None:
    down = write("DISCONNECTED", HOUR, begin=HOUR, symbol="", connection_id="c-1")
    write(
        "CONNECTED", 3 * HOUR, begin=HOUR, end=3 * HOUR, symbol="", connection_id="c-1",
        previous_event_id=down,
    )  # fmt: skip
    write("DISCONNECTED", 4 * HOUR, begin=4 * HOUR, symbol="", connection_id="c-2")
    write("CONNECTED", 9 * HOUR, begin=4 * HOUR, end=9 * HOUR, symbol="", connection_id="c-2")
    write(
        "RESYNC_BEGUN", 3 * HOUR, event_kind=BOOK, connection_id="c-1",
        cause=ledger.INTEGRITY_CAUSE_VENUE_CLOSED,
    )  # fmt: skip
    write(
        "RESYNC_FINISHED", 4 * HOUR, begin=2 * HOUR, end=4 * HOUR, event_kind=BOOK,
        connection_id="c-1",
    )  # fmt: skip
    await fill(engine, {**hourly(1), "integrity": write.entries})
    found = await days(engine, now=BEGIN + 23 * HOUR)
    assert found[0, TRADE].covered.ToNanoseconds() == 21 * HOUR, "c-2 does not carry it"
    assert found[0, TRADE].covered_share == "0.913043"
    assert found[0, TRADE].whole, "no number is missing"
    assert found[0, BOOK].covered.ToNanoseconds() == 20 * HOUR
    assert (found[0, BOOK].resyncs, found[0, BOOK].whole) == (1, False)
    assert found[0, TRADE].resyncs == 0


@pytest.mark.parametrize("in_order", [True, False])
async def test_the_time_between_two_processes_is_not_covered(
    engine: Engine, write: Writer, in_order: bool
) -> None:
    """A process that was killed says nothing: it ended after the last that it told."""
    write("COLLECTOR_STARTED", 0, symbol="")
    if in_order:
        write("COLLECTOR_STOPPED", 5 * HOUR + HOUR // 2, symbol="")
    write("COLLECTOR_STARTED", 9 * HOUR, symbol="")

    def was_up(event: Any) -> bool:
        return not 5 < (event.receive_time.ToNanoseconds() - BEGIN) // HOUR < 9

    events = {kind: list(filter(was_up, told)) for kind, told in hourly(1).items()}
    await fill(engine, {**events, "integrity": write.entries})
    found = await days(engine, now=BEGIN + DAY - HOUR)
    away = 3 * HOUR + HOUR // 2 if in_order else 4 * HOUR
    assert found[0, TRADE].covered.ToNanoseconds() == 23 * HOUR - away
    assert not found[0, BOOK].whole


async def test_what_nobody_collects_is_not_covered(engine: Engine) -> None:
    """Neither before the first event, nor after the last."""
    await fill(engine, {"trade": [trade(n, 6 * HOUR + n * HOUR) for n in range(1, 31)]})
    found = await days(engine)
    assert sorted(found) == [(0, TRADE), (1, TRADE), (2, TRADE)]
    assert [found[n, TRADE].covered.ToNanoseconds() for n in range(3)] == [
        17 * HOUR, 12 * HOUR, 0,
    ]  # fmt: skip
    assert [found[n, TRADE].whole for n in range(3)] == [False, False, False]
    assert found[2, TRADE].covered_share == "0"


async def test_a_trade_that_is_stored_twice_is_a_fault_of_ours(engine: Engine) -> None:
    again = trade(100, 5)
    await fill(engine, {**hourly(1), "trade": [*hourly(1)["trade"], again]})
    day = (await days(engine))[0, TRADE]
    assert (day.rows, day.duplicates, day.whole) == (25, 1, False)


async def test_days_come_in_pages_in_both_orders(engine: Engine) -> None:
    await fill(engine, hourly(3))
    part = Integrity(engine, KnownInstruments(engine), now=lambda: NOW)
    for descending in (False, True):
        request = pb.ListIntegrityDaysRequest(
            exchange="binance", symbol="BTC-USDT", page_size=2, descending=descending
        )
        seen = []
        while True:
            answer = await part.ListIntegrityDays(request, no_context())
            seen += [(each.day.ToNanoseconds(), each.kind) for each in answer.days]
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        assert len(seen) == len(set(seen)) == 6
        assert [day for day, _ in seen] == sorted((day for day, _ in seen), reverse=descending)
    only = await days(engine, kinds=[BOOK])
    assert {kind for _, kind in only} == {BOOK}


# Entries


async def test_entries_come_by_what_they_touch_and_are_about(engine: Engine, write: Writer) -> None:
    write("GAP", 10 * SECOND, begin=5 * SECOND, end=9 * SECOND, ids=(1, 2))
    write("DISCONNECTED", 20 * SECOND, begin=15 * SECOND, symbol="")
    write("GAP", 30 * SECOND, symbol="ETH-USDT", event_kind=BOOK)
    write("SILENT", 40 * SECOND, event_kind=BOOK)
    write("COLLECTOR_STARTED", 50 * SECOND, exchange="okx", symbol="")
    await fill(engine, {"integrity": write.entries})
    all_of_them = await listed(engine)
    assert list(all_of_them.events) == write.entries
    assert list((await listed(engine, descending=True)).events) == write.entries[::-1]

    async def ids(**fields: Any) -> list[int]:
        return [int(each.event_id[-3:]) for each in (await listed(engine, **fields)).events]

    def at(seconds: int) -> dict[str, int]:
        return {"seconds": BEGIN // SECOND + seconds}

    assert await ids(exchange="binance", symbol="BTC-USDT") == [0, 1, 3]
    assert await ids(exchange="okx") == [4]
    assert await ids(kinds=[ledger.INTEGRITY_KIND_GAP]) == [0, 2]
    assert await ids(event_kinds=[TRADE]) == [0, 1, 4], "and what is about every kind"
    assert await ids(start_time=at(9), end_time=at(15)) == [0]
    assert await ids(start_time=at(10), end_time=at(15)) == [], "it ended before"
    assert await ids(start_time=at(0), end_time=at(5)) == [], "the end is exclusive"
    assert await ids(start_time=at(60)) == [1], "it goes on until somebody says otherwise"
    found = await gaps_touching(engine, "binance", "BTC-USDT", [TRADE], BEGIN, NOW, 1)
    assert found == write.entries[:1]


async def test_what_has_ended_goes_on_no_longer(engine: Engine, write: Writer) -> None:
    down = write("DISCONNECTED", 10, symbol="")
    write("CONNECTED", 20, begin=10, end=20, symbol="", previous_event_id=down)
    write("RESYNC_BEGUN", 30, event_kind=BOOK)
    write("COLLECTOR_STARTED", 40, symbol="")
    write("RESYNC_BEGUN", 50, event_kind=BOOK)
    await fill(engine, {"integrity": write.entries})
    found = await gaps_touching(engine, "binance", "BTC-USDT", [BOOK], BEGIN + HOUR, NOW)
    assert [each.event_id for each in found] == ["col-004"]


async def test_entries_come_in_pages(engine: Engine, write: Writer) -> None:
    for number in range(7):
        write("GAP", number // 2 * SECOND, ids=(number, number + 1))
    await fill(engine, {"integrity": write.entries})
    for descending in (False, True):
        seen: list[ledger.IntegrityEvent] = []
        token = ""
        while True:
            answer = await listed(engine, page_size=3, page_token=token, descending=descending)
            seen += answer.events
            token = answer.next_page_token
            if not token:
                break
        assert seen == (write.entries[::-1] if descending else write.entries)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"exchange": "bin ance"}, "exchange"),
        ({"symbol": "BTC*"}, "symbol"),
        ({"kinds": [999]}, "kinds[0]"),
        ({"event_kinds": [0]}, "event_kinds[0]"),
        ({"page_size": 10_001}, "page_size"),
        ({"page_token": "no"}, "page_token"),
        ({"start_time": {"seconds": 9}, "end_time": {"seconds": 9}}, "start_time"),
    ],
)
async def test_bad_requests_are_refused_by_the_field(
    engine: Engine, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await listed(engine, **fields)
    assert refused.value.metadata["field"] == field


async def test_unknown_names_are_not_taken_for_a_ledger_without_entries(
    engine: Engine, write: Writer
) -> None:
    write("SUBSCRIPTION_REFUSED", 5, symbol="NEW-USDT")
    await fill(engine, {**hourly(1), "integrity": write.entries})
    for fields in ({"exchange": "kraken"}, {"exchange": "kraken", "symbol": "BTC-USD"}):
        with pytest.raises(NotFound):
            await listed(engine, **fields)
    assert (await listed(engine, exchange="binance", symbol="NEW-USDT")).events
    part = Integrity(engine, KnownInstruments(engine))
    request = pb.ListIntegrityDaysRequest(exchange="binance", symbol="ETH-USDT")
    with pytest.raises(NotFound):
        await part.ListIntegrityDays(request, no_context())
