"""Dispatch: each subject's messages reach their instrument, and one bad one costs no other."""

from dataclasses import dataclass
from functools import partial

import pytest
from marketprism.collector.v1 import integrity_event_pb2
from marketprism.market.v1 import common_pb2, events_pb2, instrument_pb2, order_book_pb2

from services.marketdata.market import Market
from services.marketdata.settings import LogBounds, MarketDataSettings
from services.shared.errors import Unavailable
from tests.unit.marketdata.truth import Collected

S = order_book_pb2
KEY = ("binance", "BTC-USDT")
BEST_BID_OFFER = int(common_pb2.EVENT_KIND_BEST_BID_OFFER)


@dataclass
class Stored:
    subject: str
    payload: bytes
    stream_sequence: int = 1


@pytest.fixture
def market() -> Market:
    made = Market(MarketDataSettings(max_instruments=3))
    made.catalog.ready = True
    return made


def begin(market: Market, book: Collected) -> None:
    market.on_order_book(
        [
            Stored(book.subject("order_book_snapshot"), book.rebuild()),
            Stored(book.subject("order_book_status"), book.synced()),
        ]
    )


def test_books_are_kept_by_exchange_and_symbol(market: Market) -> None:
    books = [Collected(), Collected(exchange="okx"), Collected(symbol="X-0.5-C")]
    for book in books:
        begin(market, book)
    for book in books:
        market.on_order_book([Stored(book.subject("order_book_update"), book.update())])
    for book in books:
        live = market.book((book.exchange, book.symbol))
        assert (live.state, live.sequence) == (S.ORDER_BOOK_STATE_SYNCED, 1)
    assert market.tally.events == {"order_book": 9}


def test_nothing_is_served_before_everything_was_read(market: Market) -> None:
    begin(market, Collected())
    market.catalog.ready = False
    for ask in (market.book, market.trades_of, partial(market.latest, BEST_BID_OFFER)):
        with pytest.raises(Unavailable) as caught:
            ask(KEY)
        assert caught.value.reason == "STARTING"


def test_what_comes_of_too_many_instruments_is_ignored(market: Market) -> None:
    for number in range(5):
        begin(market, Collected(symbol=f"S{number}"))
    assert len(market.books) == len(market.catalog) == 3
    assert market.tally.ignored == 4


@pytest.mark.parametrize(
    "subject",
    ["", "market", "market.trade.binance", "other.trade.binance.BTC", "market.nonsense.a.b"],
)
def test_a_subject_that_is_none_of_ours_is_ignored(market: Market, subject: str) -> None:
    market.on_trade([Stored(subject, b"x")])
    market.on_order_book([Stored(subject, b"x")])
    assert market.tally.ignored == 2
    assert len(market.catalog) == 0


def test_an_exception_costs_one_event_only(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Collected()
    begin(market, book)
    live = market.book(KEY)
    update = book.update()
    monkeypatch.setattr(live, "_append", lambda _item: 1 / 0)
    market.on_order_book([Stored(book.subject("order_book_update"), update)])
    assert market.tally.malformed == 1


def test_a_start_ignores_what_is_before_each_books_last_snapshot(market: Market) -> None:
    book, other = Collected(), Collected(symbol="ETH-USDT")
    old = [
        Stored(other.subject("order_book_snapshot"), other.rebuild(), 1),
        Stored(book.subject("order_book_snapshot"), book.rebuild(), 2),
        Stored(book.subject("order_book_status"), book.synced(), 3),
        Stored(book.subject("order_book_update"), book.update(), 4),
    ]
    market.begin_books_at({KEY: 5, ("binance", "ETH-USDT"): 1})
    market.on_order_book(old)
    assert not market.books[KEY].has_levels
    assert market.books["binance", "ETH-USDT"].has_levels
    market.on_order_book([Stored(book.subject("order_book_snapshot"), book.snapshot(), 5)])
    market.on_order_book([Stored(book.subject("order_book_update"), book.update(), 6)])
    live = market.book(KEY)
    assert (live.state, live.sequence) == (S.ORDER_BOOK_STATE_SYNCED, 2)
    assert market.tally.gaps == market.tally.unplaced == 0


def test_the_ledger_names_a_books_collector_and_its_silence_is_that_books_alone(
    market: Market,
) -> None:
    books = [Collected(), Collected(symbol="ETH-USDT")]
    for book, name in zip(books, ("a", "b"), strict=True):
        begin(market, book)
        event = integrity_event_pb2.IntegrityEvent(
            exchange=book.exchange, symbol=book.symbol, collector_id=name
        )
        subject = book.subject("integrity")
        market.on_integrity([Stored(subject, event.SerializeToString())])
    market.on_collectors(lambda _exchange, name: "silent" if name == "a" else "")
    states = [market.book((b.exchange, b.symbol)).state for b in books]
    assert states == [S.ORDER_BOOK_STATE_STALE, S.ORDER_BOOK_STATE_SYNCED]


def test_a_collector_that_was_replaced_is_not_named_again_by_its_last_words(
    market: Market,
) -> None:
    old, new = Collected(), Collected()
    begin(market, old)

    def tell(name: str, epoch: int) -> None:
        event = integrity_event_pb2.IntegrityEvent(
            exchange="binance", symbol="BTC-USDT", collector_id=name, epoch=epoch
        )
        market.on_integrity([Stored(old.subject("integrity"), event.SerializeToString())])

    tell("old", old.epoch)
    new.epoch = old.epoch
    begin(market, new)
    tell("new", new.epoch)
    market.on_order_book([Stored(old.subject("order_book_update"), old.update())])
    tell("old", old.epoch)
    tell("old", 0)
    market.on_collectors(lambda _exchange, name: "silent" if name == "old" else "")
    assert market.book(KEY).state == S.ORDER_BOOK_STATE_SYNCED
    assert (market.tally.old_epoch, market.tally.old_epoch_book) == (1, "binance/BTC-USDT")
    tell("newer", new.epoch + 1)
    assert market.book(KEY).collector_id == "newer"


def test_a_book_that_comes_up_while_the_broker_is_away_is_stale_as_well(market: Market) -> None:
    market.on_books_lost("gone")
    book = Collected()
    begin(market, book)
    assert market.book(KEY).state == S.ORDER_BOOK_STATE_STALE
    market.on_books_back()
    assert market.book(KEY).state == S.ORDER_BOOK_STATE_SYNCED


def test_the_lag_of_some_events_is_observed() -> None:
    lags: list[float] = []
    market = Market(MarketDataSettings(), observe_lag=lags.append)
    book = Collected()
    begin(market, book)
    for _ in range(200):
        market.on_order_book([Stored(book.subject("order_book_update"), book.update())])
    trade = events_pb2.Trade(exchange="binance", symbol="BTC-USDT")
    trade.receive_time.GetCurrentTime()
    subject = "market.trade.binance.BTC-USDT"
    market.on_trade([Stored(subject, trade.SerializeToString())] * 100)
    assert 3 <= len(lags) <= 5
    assert all(0 <= lag < 5 for lag in lags)


def test_time_lets_go_of_events_and_of_levels_that_nobody_asks_for() -> None:
    bounds = LogBounds(max_age_seconds=10)
    market = Market(
        MarketDataSettings(order_book_log=bounds, trade_log=bounds, levels_idle_seconds=30)
    )
    market.catalog.ready = True
    book = Collected()
    begin(market, book)
    market.on_trade([Stored("market.trade.binance.BTC-USDT", b"\xff")])
    for _ in range(50):
        market.on_order_book([Stored(book.subject("order_book_update"), book.update())])
    market.tick(0.0)
    market.on_order_book([Stored(book.subject("order_book_snapshot"), book.snapshot())])
    market.tick(5.0)
    live = market.book(KEY)
    assert live.log.size > 0
    market.tick(10.0)
    assert live.log.size == market.trades[KEY].log.size == 0
    live.order_book(0, S.SNAPSHOT_REASON_REQUESTED)
    assert live.holds_levels
    for now in (30.0, 45.0):
        market.tick(now)
        assert live.holds_levels
    market.tick(60.0)
    assert not live.holds_levels


def test_offers_are_the_latest_of_their_own_subject(market: Market) -> None:
    subject = "market.best_bid_offer.binance.BTC-USDT"
    good = events_pb2.BestBidOffer(exchange="binance", symbol="BTC-USDT", bid_price="1")
    strange = events_pb2.BestBidOffer(exchange="binance", symbol="ETH-USDT", bid_price="2")
    market.on_best_bid_offer([Stored(subject, m.SerializeToString()) for m in (good, strange)])
    assert market.latest_payloads(BEST_BID_OFFER, KEY) == [good.SerializeToString()]
    assert market.tally.malformed == 1


def test_instruments_are_listed_in_order(market: Market) -> None:
    for symbol in ("C", "A", "B"):
        instrument = instrument_pb2.Instrument(exchange="binance", symbol=symbol)
        market.on_instrument(
            [Stored(f"market.instrument.binance.{symbol}", instrument.SerializeToString())]
        )
    assert [key[1] for key, _, _ in market.catalog.described()] == ["A", "B", "C"]
