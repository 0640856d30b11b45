"""A generated market is plausible, deterministic, and tells exactly what happened to its book."""

import itertools

import pytest
from pydantic import ValidationError

from services.simulator.generated import GeneratedMarket, GeneratedSettings
from services.simulator.listing import DEFAULT_SYMBOLS, listed, more_symbols, split_symbol
from services.simulator.market import (
    AggregateTrade,
    BestPrices,
    BookState,
    Candle,
    DepthUpdate,
    Event,
    Ticker,
    Trade,
    UnknownSymbolError,
)

_START = 1_780_000_000_000_000
_SECOND = 1_000_000


def _market(**options: object) -> GeneratedMarket:
    settings = {"start_time_us": _START, "trade_rate": 20, "levels": 200, **options}
    return GeneratedMarket(GeneratedSettings.model_validate(settings))


def _apply(book: BookState, update: DepthUpdate) -> BookState:
    bids, asks = dict(book.bids), dict(book.asks)
    for side, levels in ((bids, update.bids), (asks, update.asks)):
        for price, quantity in levels:
            if quantity:
                side[price] = quantity
            else:
                side.pop(price, None)
    return BookState(
        book.symbol,
        update.last_id,
        tuple(sorted(bids.items(), reverse=True)),
        tuple(sorted(asks.items())),
    )


def _of(events: list[Event], kind: type, symbol: str = "BTCUSDT") -> list:
    return [event for event in events if type(event) is kind and event.symbol == symbol]


@pytest.mark.parametrize("interval", [100, 1000])
@pytest.mark.parametrize("symbol", ["BTCUSDT", "XRPUSDT", "SIM0001USDT"])
def test_the_diffs_of_each_stream_lead_from_book_to_book_at_every_id(
    symbol: str, interval: int
) -> None:
    market = _market(symbols=(symbol,))
    book = None
    for event in market.advance(_START + 20 * _SECOND):
        if type(event) is not DepthUpdate or event.interval_ms != interval:
            continue
        if book is None:
            book = market.book_at(symbol, event.first_id - 1)
        assert event.first_id == book.update_id + 1, "ids must be contiguous"
        book = _apply(book, event)
        assert book == market.book_at(symbol, event.last_id)
    assert book is not None


def test_a_snapshot_within_a_frame_is_overwritten_by_that_frame() -> None:
    market = _market(symbols=("ETHUSDT",))
    for event in market.advance(_START + 3 * _SECOND):
        if type(event) is DepthUpdate and event.interval_ms == 100:
            for inside in range(event.first_id - 1, event.last_id + 1):
                book = _apply(market.book_at("ETHUSDT", inside), event)
                assert book == market.book_at("ETHUSDT", event.last_id)


def test_the_book_is_never_crossed_and_keeps_to_ticks_and_lots() -> None:
    market = _market(levels=1200)
    for second in range(1, 11):
        market.advance(_START + second * _SECOND)
        for symbol, spec in market.symbols.items():
            book = market.book(symbol)
            assert book.bids[0][0] < book.asks[0][0]
            assert min(len(book.bids), len(book.asks)) > 1000, "deeper than a REST answer"
            for price, quantity in book.bids + book.asks:
                assert price > 0
                assert price % spec.tick == 0
                assert quantity > 0
                assert quantity % spec.lot == 0


def test_the_price_moves_and_stays_in_reach() -> None:
    market = _market(symbols=("BTCUSDT",), depth_rate=100)
    events = market.advance(_START + 60 * _SECOND)
    bids = [event.bid for event in _of(events, BestPrices)]
    assert len(set(bids)) > 10
    assert abs(bids[-1] - listed("BTCUSDT").price) < 1000 * market.symbols["BTCUSDT"].tick


def test_best_prices_are_those_of_the_book_at_their_id() -> None:
    market = _market(symbols=("SOLUSDT",))
    told = _of(market.advance(_START + 5 * _SECOND), BestPrices, "SOLUSDT")
    assert told
    for event in told:
        book = market.book_at("SOLUSDT", event.update_id, 1)
        assert book.bids == ((event.bid, event.bid_quantity),)
        assert book.asks == ((event.ask, event.ask_quantity),)


def test_trade_ids_are_contiguous_and_aggregates_cover_them() -> None:
    events = _market(symbols=("BTCUSDT",)).advance(_START + 20 * _SECOND)
    trades, aggregates = _of(events, Trade), _of(events, AggregateTrade)
    first = trades[0].trade_id
    assert [trade.trade_id for trade in trades] == list(range(first, first + len(trades)))
    numbers = [aggregate.aggregate_id for aggregate in aggregates]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert any(a.last_trade_id > a.first_trade_id for a in aggregates)
    by_id = {trade.trade_id: trade for trade in trades}
    for aggregate in aggregates:
        parts = [by_id[i] for i in range(aggregate.first_trade_id, aggregate.last_trade_id + 1)]
        assert sum(part.quantity for part in parts) == aggregate.quantity
        assert {(part.price, part.buyer_is_maker) for part in parts} == {
            (aggregate.price, aggregate.buyer_is_maker)
        }


def test_what_is_traded_leaves_the_book() -> None:
    # Without makers, trades alone change the book.
    market = _market(symbols=("BTCUSDT",), changes_per_side=0, depth_rate=0.01, warmup_seconds=0)
    before = market.book("BTCUSDT")
    trades = _of(market.advance(_START + 5 * _SECOND), Trade)
    assert trades
    after = market.book("BTCUSDT")
    assert after.update_id - before.update_id == len(trades), "a match is an update id"
    for side, taken in (("bids", True), ("asks", False)):
        gone = sum(q for _, q in getattr(before, side)) - sum(q for _, q in getattr(after, side))
        assert gone == sum(t.quantity for t in trades if t.buyer_is_maker is taken)


def test_takers_never_empty_a_side() -> None:
    market = _market(symbols=("BTCUSDT",), levels=20, changes_per_side=0, trade_rate=500)
    market.advance(_START + 20 * _SECOND)
    book = market.book("BTCUSDT")
    assert book.bids
    assert book.asks
    assert book.bids[0][0] < book.asks[0][0]


def test_the_same_seed_gives_the_same_market_however_time_is_cut() -> None:
    whole = _market().advance(_START + 5 * _SECOND)
    market = _market()
    cut: list[Event] = []
    for step in range(1, 5001):
        cut += market.advance(_START + step * 1000)
    assert whole == cut
    assert _market(seed=2).advance(_START + 5 * _SECOND) != whole


def test_a_symbols_market_does_not_depend_on_the_others() -> None:
    def told(*symbols: str) -> list[Event]:
        events = _market(symbols=symbols).advance(_START + 5 * _SECOND)
        return [event for event in events if event.symbol == "BTCUSDT"]

    assert told("BTCUSDT") == told("ETHUSDT", "XRPUSDT", "BTCUSDT")


def test_candles_add_up_the_trades_of_their_minute() -> None:
    market = _market(symbols=("BTCUSDT",), warmup_seconds=0)
    events = market.advance(_START + 200 * _SECOND)
    closed = [candle for candle in _of(events, Candle) if candle.closed]
    assert len(closed) >= 3
    for earlier, later in itertools.pairwise(closed):
        assert later.open_us == earlier.open_us + 60 * _SECOND
    candle = closed[1]
    trades = [t for t in _of(events, Trade) if candle.open_us <= t.time_us <= candle.close_us]
    assert candle.trades == len(trades)
    assert (candle.first_trade_id, candle.last_trade_id) == (
        trades[0].trade_id,
        trades[-1].trade_id,
    )
    assert (candle.open, candle.close) == (trades[0].price, trades[-1].price)
    assert candle.high == max(t.price for t in trades)
    assert candle.low == min(t.price for t in trades)
    assert candle.volume == sum(t.quantity for t in trades)
    assert candle.taker_volume == sum(t.quantity for t in trades if not t.buyer_is_maker)


def test_the_ticker_adds_up_the_day() -> None:
    market = _market(symbols=("BTCUSDT",), warmup_seconds=0)
    events = market.advance(_START + 150 * _SECOND)
    ticker = _of(events, Ticker)[-1]
    trades = [t for t in _of(events, Trade) if t.time_us <= ticker.time_us]
    assert ticker.trades == len(trades)
    assert ticker.volume == sum(t.quantity for t in trades)
    assert ticker.last == trades[-1].price
    assert ticker.low <= min(t.price for t in trades)
    assert ticker.high >= max(t.price for t in trades)
    assert ticker.last_trade_id == trades[-1].trade_id


def test_rates_are_kept() -> None:
    market = _market(depth_rate=50, trade_rate=30, changes_per_side=20, symbols=("BTCUSDT",))
    events = market.advance(_START + 20 * _SECOND)
    frames = [event for event in _of(events, DepthUpdate) if event.interval_ms == 100]
    assert len(frames) == pytest.approx(50 * 20, rel=0.01)
    levels = sum(len(frame.bids) + len(frame.asks) for frame in frames) / len(frames)
    assert levels == pytest.approx(40, rel=0.15)
    takers = {(t.time_us) for t in _of(events, Trade)}
    assert len(takers) == pytest.approx(30 * 20, rel=0.15)


def test_there_is_a_past_before_the_first_client() -> None:
    market = _market(symbols=("BTCUSDT",))
    assert market.recent_trades("BTCUSDT", 10)
    stale = market.stale_book("BTCUSDT", market.pending_id("BTCUSDT") - 1)
    assert stale.update_id < market.pending_id("BTCUSDT") - 1


async def test_a_true_book_ahead_of_the_market_is_waited_for() -> None:
    market = _market(symbols=("BTCUSDT",))
    ahead = market.update_id("BTCUSDT") + 1
    market.advance(_START + _SECOND)
    assert (await market.true_book("BTCUSDT", ahead)).update_id == ahead


def test_unknown_symbols_are_named() -> None:
    with pytest.raises(UnknownSymbolError, match="NOPE"):
        _market().book("NOPE")


@pytest.mark.parametrize(
    "options",
    [
        {"symbols": ()},
        {"symbols": ("BTCUSDT", "BTCUSDT")},
        {"depth_rate": 0},
        {"trade_rate": -1},
        {"nonsense": 1},
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        GeneratedSettings.model_validate(options)


def test_a_name_that_the_venue_would_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="btcusdt"):
        _market(symbols=("btcusdt",))


def test_any_number_of_symbols_can_be_had() -> None:
    assert more_symbols(3) == DEFAULT_SYMBOLS[:3]
    names = more_symbols(300)
    assert len(set(names)) == 300
    assert names[: len(DEFAULT_SYMBOLS)] == DEFAULT_SYMBOLS
    for name in names:
        assert listed(name).price > 0


@pytest.mark.parametrize(
    ("symbol", "parts"),
    [
        ("BTCUSDT", ("BTC", "USDT")),
        ("ETHBTC", ("ETH", "BTC")),
        ("RUNEEUR", ("RUNE", "EUR")),
        ("COMPUSDC", ("COMP", "USDC")),
        ("OMGBUSD", ("OMG", "BUSD")),
    ],
)
def test_base_and_quote_are_told_from_the_name(symbol: str, parts: tuple[str, str]) -> None:
    assert split_symbol(symbol) == parts
