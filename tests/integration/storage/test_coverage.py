"""ListCoverage tells what is held, each event counted once, and notices every change."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.history.v1 import store_pb2
from marketprism.market.v1 import common_pb2, events_pb2, order_book_pb2

from services.shared.errors import InvalidArgument, NotFound
from services.storage.coverage import CoverageLists
from services.storage.engine import Engine
from services.storage.known import KnownInstruments
from services.storage.settings import EngineSettings
from tests.integration.storage.store_tools import fill, no_context, open_store

SECOND = 1_000_000_000
DAY = 86_400 * SECOND
BEGIN = 1_795_478_400 * SECOND


def trade(number: int, time: int, **fields: Any) -> events_pb2.Trade:
    key = {"exchange": "binance", "symbol": "BTC-USDT", **fields}
    made = events_pb2.Trade(trade_id=str(number), price="1", quantity="1", **key)
    made.receive_time.FromNanoseconds(time)
    return made


def update(sequence: int, time: int) -> order_book_pb2.OrderBookUpdate:
    made = order_book_pb2.OrderBookUpdate(
        exchange="binance", symbol="BTC-USDT", epoch=1, sequence=sequence
    )
    made.receive_time.FromNanoseconds(time)
    return made


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with open_store(tmp_path) as opened:
        yield opened


@pytest.fixture
def lists(engine: Engine) -> CoverageLists:
    return make_lists(engine)


def make_lists(engine: Engine) -> CoverageLists:
    """Give lists for which an hour passes between two questions."""
    hours = iter(range(0, 1_000_000, 3600))
    return CoverageLists(engine, KnownInstruments(engine), clock=lambda: float(next(hours)))


async def ask(lists: CoverageLists, **fields: Any) -> pb.ListCoverageResponse:
    encoded = await lists.ListCoverage(pb.ListCoverageRequest(**fields), no_context())
    return pb.ListCoverageResponse.FromString(encoded)


def rows(answer: pb.ListCoverageResponse) -> list[tuple[str, str, str, int]]:
    return [
        (each.exchange, each.symbol, common_pb2.EventKind.Name(each.kind), each.rows)
        for each in answer.coverage
    ]


TRADES = [trade(number, BEGIN + number * DAY // 4) for number in range(1, 13)]


async def test_an_empty_store_holds_nothing(lists: CoverageLists) -> None:
    assert rows(await ask(lists)) == []


async def test_each_event_is_counted_once_and_new_ones_are_noticed(
    engine: Engine, lists: CoverageLists
) -> None:
    await fill(engine, {"trade": TRADES[:8]})
    await fill(engine, {"trade": TRADES[4:12]}, first_sequence=100)
    answer = await ask(lists)
    assert rows(answer) == [("binance", "BTC-USDT", "EVENT_KIND_TRADE", 12)]
    entry = answer.coverage[0]
    assert entry.first_time.ToNanoseconds() == BEGIN + DAY // 4
    assert entry.last_time.ToNanoseconds() == BEGIN + 3 * DAY
    assert entry.tier == store_pb2.STORAGE_TIER_HOT
    await fill(engine, {"trade": [trade(13, BEGIN - DAY + 7)]}, first_sequence=200)
    answer = await ask(lists)
    assert answer.coverage[0].rows == 13
    assert answer.coverage[0].first_time.ToNanoseconds() == BEGIN - DAY + 7
    await engine.command("ALTER TABLE trade DROP PARTITION ID '20261124'")
    await engine.command("OPTIMIZE TABLE trade FINAL")
    ((left,),) = await engine.query("SELECT count() FROM trade FINAL")
    assert left < 13, "the test needs a partition that is gone"
    assert (await ask(lists)).coverage[0].rows == left


async def test_books_are_one_kind_in_three_tables(engine: Engine, lists: CoverageLists) -> None:
    snapshot = order_book_pb2.OrderBookSnapshot(exchange="binance", symbol="BTC-USDT", epoch=1)
    snapshot.receive_time.FromNanoseconds(BEGIN)
    await fill(
        engine,
        {
            "order_book_snapshot": [snapshot],
            "order_book_update": [update(n, BEGIN + n) for n in range(1, 6)],
        },
    )
    answer = await ask(lists)
    assert rows(answer) == [("binance", "BTC-USDT", "EVENT_KIND_ORDER_BOOK", 6)]
    assert answer.coverage[0].first_time.ToNanoseconds() == BEGIN


async def test_the_bytes_of_all_instruments_are_those_on_disk(
    engine: Engine, lists: CoverageLists
) -> None:
    others = [trade(n, BEGIN + n, symbol="ETH-USDT") for n in range(1, 25)]
    await fill(engine, {"trade": [*TRADES, *others]})
    answer = await ask(lists)
    ((size,),) = await engine.query(
        "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND table = 'trade' "
        "AND database = currentDatabase()"
    )
    assert sum(each.bytes for each in answer.coverage) == pytest.approx(size, abs=2)
    assert all(each.bytes > 0 for each in answer.coverage)


async def test_entries_come_in_order_page_by_page_and_by_filter(
    engine: Engine, lists: CoverageLists
) -> None:
    keys = [(e, s) for e in ("okx", "binance") for s in ("ETH-USDT", "BTC-USDT", "SOL-USDT")]
    trades = [trade(1, BEGIN, exchange=exchange, symbol=symbol) for exchange, symbol in keys]
    tickers = []
    for exchange, symbol in keys:
        ticker = events_pb2.Ticker(exchange=exchange, symbol=symbol, last_price="1")
        ticker.receive_time.FromNanoseconds(BEGIN)
        tickers.append(ticker)
    await fill(engine, {"trade": trades, "ticker": tickers})
    expected = [
        (exchange, symbol, kind, 1)
        for exchange, symbol in sorted(keys)
        for kind in ("EVENT_KIND_TRADE", "EVENT_KIND_TICKER")
    ]
    found: list[tuple[str, str, str, int]] = []
    token = ""
    while True:
        answer = await ask(lists, page_size=5, page_token=token)
        found += rows(answer)
        token = answer.next_page_token
        if not token:
            break
    assert found == expected
    assert rows(await ask(lists, exchange="okx")) == [e for e in expected if e[0] == "okx"]
    assert rows(await ask(lists, symbol="SOL-USDT")) == [e for e in expected if e[1] == "SOL-USDT"]
    kind = common_pb2.EVENT_KIND_TICKER
    assert rows(await ask(lists, kind=kind)) == [e for e in expected if e[2].endswith("TICKER")]
    assert rows(await ask(lists, tier=store_pb2.STORAGE_TIER_HOT)) == expected
    assert rows(await ask(lists, tier=store_pb2.STORAGE_TIER_COLD)) == []
    with pytest.raises(NotFound) as raised:
        await ask(lists, exchange="kraken")
    assert raised.value.reason == "EXCHANGE_NOT_FOUND"
    with pytest.raises(NotFound) as raised:
        await ask(lists, exchange="okx", symbol="XRP-USDT")
    assert raised.value.reason == "INSTRUMENT_NOT_FOUND"
    token = (await ask(lists, page_size=5)).next_page_token
    with pytest.raises(InvalidArgument) as refused:
        await ask(lists, exchange="okx", page_token=token)
    assert refused.value.reason == "PAGE_TOKEN_INVALID"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"exchange": "a b"}, "exchange"),
        ({"symbol": "A/B"}, "symbol"),
        ({"kind": 99}, "kind"),
        ({"tier": 9}, "tier"),
        ({"page_size": 1001}, "page_size"),
        ({"page_size": -1}, "page_size"),
        ({"page_token": "x"}, "page_token"),
    ],
)
async def test_a_bad_request_is_refused_with_the_field_named(
    tmp_path: Path, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await ask(make_lists(Engine(EngineSettings(), tmp_path)), **fields)
    assert [each.field for each in raised.value.violations] == [field]
