"""Unary answers: complete, paged, in order, and wrong requests name what is wrong with them."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from marketprism.market.v1 import common_pb2, events_pb2, instrument_pb2, order_book_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb

from services.marketdata.live_kinds import KINDS
from services.marketdata.market import Market
from services.marketdata.settings import MarketDataSettings
from services.marketdata.unary_books import BookCalls
from services.marketdata.unary_catalog import CatalogCalls
from services.marketdata.unary_events import EventCalls
from services.shared.errors import InvalidArgument, MarketPrismError, NotFound, Unavailable
from tests.unit.marketdata.test_market import Stored, begin
from tests.unit.marketdata.truth import Collected

C = common_pb2
S = order_book_pb2
BTC = {"exchange": "binance", "symbol": "BTC-USDT"}
INDEX = {"exchange": "deribit", "symbol": "BTC-USD"}


@pytest.fixture
def market() -> Market:
    made = Market(MarketDataSettings())
    made.catalog.ready = True
    return made


def event(kind: int, key: dict[str, str], **values: Any) -> bytes:
    encoded: bytes = KINDS[kind].message(**key, **values).SerializeToString()
    return encoded


def tell(market: Market, kind: int, key: dict[str, str], **values: Any) -> bytes:
    payload = event(kind, key, **values)
    subject = f"market.{KINDS[kind].name}.{key['exchange']}.{key['symbol']}"
    market.on_reference([Stored(subject, payload)])
    return payload


async def ask(call: Callable[[Any, Any], Awaitable[bytes]], request: Any) -> Any:
    """Call a handler as gRPC would, and decode what it answers."""
    name = type(request).__name__.removesuffix("Request")
    return getattr(pb, f"{name}Response").FromString(await call(request, None))


async def refusal(call: Callable[[Any, Any], Awaitable[bytes]], request: Any) -> MarketPrismError:
    with pytest.raises(MarketPrismError) as caught:
        await call(request, None)
    return caught.value


async def pages(
    call: Callable[[Any, Any], Awaitable[bytes]], request: Any, field: str
) -> list[Any]:
    found: list[Any] = []
    while True:
        answer = await ask(call, request)
        found += getattr(answer, field)
        assert len(getattr(answer, field)) <= request.page_size
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


# ---- events


async def test_the_latest_ticker_is_the_venue_s_own(market: Market) -> None:
    calls = EventCalls(market)
    tell(market, C.EVENT_KIND_TICKER, BTC, last_price="1")
    tell(market, C.EVENT_KIND_TICKER, BTC, last_price="2")
    answer = await ask(calls.GetTicker, pb.GetTickerRequest(**BTC))
    assert answer.ticker == events_pb2.Ticker(**BTC, last_price="2")


async def test_what_has_not_come_yet_is_not_ready_and_what_is_unknown_is_not_found(
    market: Market,
) -> None:
    calls = EventCalls(market)
    tell(market, C.EVENT_KIND_MARK_PRICE, BTC)
    tell(market, C.EVENT_KIND_INDEX_PRICE, INDEX)
    late = await refusal(calls.GetTicker, pb.GetTickerRequest(**BTC))
    assert (type(late), late.reason) == (Unavailable, "TICKER_NOT_READY")
    late = await refusal(calls.GetBestBidOffer, pb.GetBestBidOfferRequest(**BTC))
    assert (type(late), late.reason) == (Unavailable, "BEST_BID_OFFER_NOT_READY")
    typo = pb.GetTickerRequest(exchange="binance", symbol="BTCUSDT")
    unknown = await refusal(calls.GetTicker, typo)
    assert (type(unknown), unknown.reason) == (NotFound, "INSTRUMENT_NOT_FOUND")
    assert "BTC-USDT" in str(unknown)
    elsewhere = await refusal(calls.GetTicker, pb.GetTickerRequest(exchange="binanc", symbol="X"))
    assert elsewhere.reason == "EXCHANGE_NOT_FOUND"
    assert "binance" in str(elsewhere)
    index = await refusal(calls.GetTicker, pb.GetTickerRequest(**INDEX))
    assert "is an index" in str(index)


async def test_tickers_are_listed_in_order_by_page_and_by_venue(market: Market) -> None:
    keys = [{"exchange": e, "symbol": s} for e in ("okx", "binance") for s in ("C", "A", "B")]
    for key in keys:
        tell(market, C.EVENT_KIND_TICKER, key)
    calls = EventCalls(market)
    found = await pages(calls.ListTickers, pb.ListTickersRequest(page_size=2), "tickers")
    assert [(t.exchange, t.symbol) for t in found] == sorted(
        (k["exchange"], k["symbol"]) for k in keys
    )
    found = await pages(
        calls.ListTickers, pb.ListTickersRequest(page_size=2, exchange="okx"), "tickers"
    )
    assert [t.symbol for t in found] == ["A", "B", "C"]
    unknown = await refusal(calls.ListTickers, pb.ListTickersRequest(exchange="kraken"))
    assert unknown.reason == "EXCHANGE_NOT_FOUND"


async def test_the_latest_events_come_by_kind_and_side_by_side(market: Market) -> None:
    calls = EventCalls(market)
    payloads = [
        tell(market, C.EVENT_KIND_TICKER, BTC),
        tell(market, C.EVENT_KIND_CANDLE, BTC, interval={"seconds": 60}),
        tell(market, C.EVENT_KIND_CANDLE, BTC, interval={"seconds": 3600}),
        tell(market, C.EVENT_KIND_FUNDING_RATE, BTC, funding_rate="0.0001"),
    ]
    market.on_trade([Stored("market.trade.binance.BTC-USDT", event(C.EVENT_KIND_TRADE, BTC))])
    answer = await ask(calls.GetLatestEvents, pb.GetLatestEventsRequest(**BTC))
    kinds = [each.WhichOneof("event") for each in answer.events]
    assert kinds == ["trade", "ticker", "candle", "candle", "funding_rate"]
    assert [e.candle.SerializeToString() for e in answer.events[2:4]] == payloads[1:3]
    asked = pb.GetLatestEventsRequest(**BTC, kinds=[C.EVENT_KIND_FUNDING_RATE])
    answer = await ask(calls.GetLatestEvents, asked)
    assert [each.WhichOneof("event") for each in answer.events] == ["funding_rate"]


async def test_a_book_is_among_the_latest_events_only_when_asked_for(market: Market) -> None:
    calls = EventCalls(market)
    book = Collected()
    begin(market, book)
    tell(market, C.EVENT_KIND_TICKER, BTC)
    answer = await ask(calls.GetLatestEvents, pb.GetLatestEventsRequest(**BTC))
    assert [each.WhichOneof("event") for each in answer.events] == ["ticker"]
    asked = pb.GetLatestEventsRequest(**BTC, kinds=[C.EVENT_KIND_ORDER_BOOK])
    (event,) = (await ask(calls.GetLatestEvents, asked)).events
    assert event.order_book_snapshot.epoch == book.epoch
    assert event.order_book_snapshot.reason == S.SNAPSHOT_REASON_REQUESTED


async def test_an_index_has_latest_events(market: Market) -> None:
    calls = EventCalls(market)
    tell(market, C.EVENT_KIND_INDEX_PRICE, INDEX, index_price="50000")
    tell(market, C.EVENT_KIND_VOLATILITY_INDEX, {**INDEX, "symbol": "BTC-USD-DVOL"})
    answer = await ask(calls.GetLatestEvents, pb.GetLatestEventsRequest(**INDEX))
    assert [each.index_price.index_price for each in answer.events] == ["50000"]
    unknown = await refusal(
        calls.GetLatestEvents, pb.GetLatestEventsRequest(exchange="deribit", symbol="BTC-USDDVOL")
    )
    assert "BTC-USD-DVOL" in str(unknown)


@pytest.mark.parametrize("kind", [C.EVENT_KIND_UNSPECIFIED, 99])
async def test_a_kind_that_has_no_latest_event_is_refused(market: Market, kind: Any) -> None:
    tell(market, C.EVENT_KIND_TICKER, BTC)
    request = pb.GetLatestEventsRequest(**BTC, kinds=[C.EVENT_KIND_TICKER, kind])
    error = await refusal(EventCalls(market).GetLatestEvents, request)
    assert isinstance(error, InvalidArgument)
    assert [each.field for each in error.violations] == ["kinds[1]"]


# ---- venues and symbols


async def test_exchanges_tell_what_is_known_of_each(market: Market) -> None:
    begin(market, Collected())
    begin(market, Collected(symbol="ETH-USDT"))
    tell(market, C.EVENT_KIND_INDEX_PRICE, INDEX)
    market.on_order_book([Stored("market.order_book_status.okx.X", status("okx", "X"))])
    calls = CatalogCalls(market)
    found = await pages(calls.ListExchanges, pb.ListExchangesRequest(page_size=1), "exchanges")
    assert [(e.exchange, e.instruments, e.books, e.synced, list(e.kinds)) for e in found] == [
        ("binance", 2, 2, 2, [C.EVENT_KIND_ORDER_BOOK]),
        ("deribit", 0, 0, 0, [C.EVENT_KIND_INDEX_PRICE]),
        ("okx", 1, 1, 0, [C.EVENT_KIND_ORDER_BOOK]),
    ]


async def test_symbols_are_those_that_have_a_book(market: Market) -> None:
    for symbol in ("B", "A", "C"):
        begin(market, Collected(symbol=symbol))
    tell(market, C.EVENT_KIND_TICKER, {"exchange": "binance", "symbol": "NO-BOOK"})
    calls = CatalogCalls(market)
    request = pb.ListSymbolsRequest(exchange="binance", page_size=2)
    assert await pages(calls.ListSymbols, request, "symbols") == ["A", "B", "C"]
    unknown = await refusal(calls.ListSymbols, pb.ListSymbolsRequest(exchange="binance "))
    assert unknown.reason == "EXCHANGE_NOT_FOUND"


async def test_instruments_are_filtered_by_every_field(market: Market) -> None:
    for symbol, kind in (("BTC-USDT", 1), ("BTC-USDC", 1), ("BTC-USDT-PERP", 2), ("ETH-USDT", 1)):
        instrument = instrument_pb2.Instrument(
            exchange="binance",
            symbol=symbol,
            kind=kind,
            base=symbol.split("-")[0],
            quote=symbol.split("-")[1],
        )
        subject = f"market.instrument.binance.{symbol}"
        market.on_instrument([Stored(subject, instrument.SerializeToString())])
    calls = CatalogCalls(market)

    async def symbols(**wanted: Any) -> list[str]:
        request = pb.ListInstrumentsRequest(page_size=2, **wanted)
        return [each.symbol for each in await pages(calls.ListInstruments, request, "instruments")]

    assert len(await symbols()) == 4
    assert await symbols(base="BTC", quote="USDT") == ["BTC-USDT", "BTC-USDT-PERP"]
    assert await symbols(base="BTC", kind=1) == ["BTC-USDC", "BTC-USDT"]
    assert await symbols(exchange="binance", base="DOGE") == []
    unknown = await refusal(calls.ListInstruments, pb.ListInstrumentsRequest(exchange="okx"))
    assert unknown.reason == "EXCHANGE_NOT_FOUND"


# ---- stats and health


def status(exchange: str, symbol: str) -> bytes:
    return S.OrderBookStatus(
        exchange=exchange,
        symbol=symbol,
        epoch=1,
        state=S.ORDER_BOOK_STATE_RESYNCING,
        reason=S.ORDER_BOOK_REASON_VENUE_GAP,
        detail="expected 5, got 7",
    ).SerializeToString()


async def test_stats_count_what_came(market: Market) -> None:
    book = Collected()
    begin(market, book)
    market.on_order_book([Stored(book.subject("order_book_update"), book.update())] * 2)
    market.tally.open_streams = lambda: 3
    answer = await ask(BookCalls(market).GetOrderBookStats, pb.GetOrderBookStatsRequest())
    assert (answer.updates, answer.snapshots, answer.streams) == (1, 1, 3)
    counts = {each.state: each.count for each in answer.books}
    assert set(counts) == set(S.OrderBookState.values()) - {0}
    assert counts[S.ORDER_BOOK_STATE_SYNCED] == 1
    assert answer.start_time.ToNanoseconds() == market.start_time


async def test_health_is_the_worst_that_is_true_of_a_venue(market: Market) -> None:
    calls = BookCalls(market)

    async def health() -> tuple[int, dict[str, tuple[int, int, int]]]:
        answer = await ask(calls.GetOrderBookHealth, pb.GetOrderBookHealthRequest())
        each = {e.exchange: (e.health, e.synced, e.books) for e in answer.exchanges}
        details = {e.exchange: e.detail for e in answer.exchanges}
        assert all(bool(details[name]) == (each[name][0] != 1) for name in each)
        return answer.health, each

    healthy, degraded, unhealthy = 1, 2, 3
    assert await health() == (unhealthy, {})
    begin(market, Collected())
    assert await health() == (healthy, {"binance": (healthy, 1, 1)})
    begin(market, Collected(symbol="ETH-USDT"))
    market.on_order_book([Stored("market.order_book_status.okx.X", status("okx", "X"))])
    assert await health() == (degraded, {"binance": (healthy, 2, 2), "okx": (unhealthy, 0, 1)})
    market.on_books_lost("the broker is away")
    assert (await health())[0] == unhealthy


async def test_nothing_is_said_of_all_books_before_everything_was_read(market: Market) -> None:
    market.catalog.ready = False
    for call, request in (
        (BookCalls(market).GetOrderBookHealth, pb.GetOrderBookHealthRequest()),
        (CatalogCalls(market).ListExchanges, pb.ListExchangesRequest()),
        (CatalogCalls(market).ListSymbols, pb.ListSymbolsRequest(exchange="binance")),
        (EventCalls(market).ListTickers, pb.ListTickersRequest()),
        (EventCalls(market).GetLatestEvents, pb.GetLatestEventsRequest(**BTC)),
    ):
        assert (await refusal(call, request)).reason == "STARTING"
