"""What a simulated Binance futures venue lists, trades, and tells at several paces."""

import itertools
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.binance_candles import INTERVALS, fold, minutes_of, span_of
from services.simulator.binance_futures import BinanceCoinM, BinanceUsdM
from services.simulator.binance_futures_contracts import (
    base_amount,
    contract_of,
    decimal,
    decimals_of,
    delivery_us,
    next_delivery,
)
from services.simulator.binance_futures_depth import DEPTH_STREAMS, DepthPace, next_first_id
from services.simulator.binance_futures_listing import (
    coin_m_listed,
    default_coin_m,
    default_usd_m,
    more_coin_m,
    more_usd_m,
    usd_m_listed,
)
from services.simulator.binance_futures_market import EXECUTIONS, FuturesMarket, OtherTrade
from services.simulator.fixed import SCALE
from services.simulator.fixed import to_units as u
from services.simulator.generated import GeneratedSettings
from services.simulator.instrument import InstrumentKind
from services.simulator.market import AggregateTrade, Candle, DepthUpdate, Event, Trade

_START = 1_795_500_000_000_000
_MINUTE = 60_000_000
_DAY = 24 * 60 * _MINUTE


def _us(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp() * 1e6)  # type: ignore[misc]


# Contracts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "delivered"),
    [
        ((2026, 11, 24), date(2026, 12, 25)),
        ((2026, 12, 25, 7, 59), date(2026, 12, 25)),
        ((2026, 12, 25, 8, 0), date(2027, 3, 26)),
        ((2026, 12, 31), date(2027, 3, 26)),
        ((2027, 6, 1), date(2027, 6, 25)),
    ],
)
def test_quarterly_contracts_are_delivered_on_the_last_friday(
    now: tuple[int, ...], delivered: date
) -> None:
    assert next_delivery(_us(*now)) == delivered


def test_a_contract_tells_its_quarter_and_its_delivery() -> None:
    now = _us(2026, 11, 24)
    current = contract_of(usd_m_listed("BTCUSDT_261225").spec, now)
    following = contract_of(coin_m_listed("BTCUSD_270326").spec, now)
    forever = contract_of(coin_m_listed("BTCUSD_PERP").spec, now)
    assert (current.kind, current.pair) == ("CURRENT_QUARTER", "BTCUSDT")
    assert current.delivery_ms * 1000 == delivery_us(date(2026, 12, 25)) == _us(2026, 12, 25, 8)
    assert (following.kind, following.pair) == ("NEXT_QUARTER", "BTCUSD")
    assert (forever.kind, forever.delivery_ms, forever.perpetual) == (
        "PERPETUAL",
        4133404800000,
        True,
    )


def test_coin_m_contracts_are_worth_a_hundred_dollars_of_bitcoin_and_ten_of_others() -> None:
    assert coin_m_listed("BTCUSD_PERP").spec.contract_size == 100 * SCALE
    ether = coin_m_listed("ETHUSD_PERP").spec
    assert (ether.contract_size, ether.contract_currency) == (10 * SCALE, "USD")
    assert (ether.settlement, ether.inverse, ether.lot) == ("ETH", True, SCALE)


@given(st.integers(0, 10**16), st.integers(0, 8))
def test_a_printed_number_is_exact_and_has_at_least_the_decimals_asked_for(
    units: int, decimals: int
) -> None:
    text = decimal(units, decimals)
    assert u(text) == units
    assert len(text.partition(".")[2]) >= decimals or units % 10 ** (8 - decimals)
    assert decimal(-units, decimals) in ("-" + text, text)


def test_decimals_follow_the_step() -> None:
    assert [decimals_of(u(step)) for step in ("0.1", "0.05", "1", "10", "0.00001")] == [
        1, 2, 0, 0, 5,
    ]  # fmt: skip


def test_inverse_contracts_are_worth_their_size_over_the_price() -> None:
    assert base_amount(u("1000"), u("50000"), 100) == u("2")
    assert base_amount(u("1000"), 0, 100) == 0


# Listing ------------------------------------------------------------------------------------


def test_defaults_are_perpetuals_and_the_next_quarter() -> None:
    now = _us(2026, 11, 24)
    assert default_usd_m(now) == ("BTCUSDT", "ETHUSDT", "SOLUSDT", "BTCUSDT_261225")
    assert default_coin_m(now) == ("BTCUSD_PERP", "ETHUSD_PERP", "BTCUSD_261225")


@pytest.mark.parametrize("protocol", [BinanceUsdM(), BinanceCoinM()])
def test_every_default_and_made_up_symbol_can_be_listed(
    protocol: BinanceUsdM | BinanceCoinM,
) -> None:
    names = protocol.more_symbols(60, protocol.default_symbols)
    assert len(names) == len(set(names)) == 60
    for name in names:
        listing = protocol.listed(name)
        assert listing.spec.symbol == name
        assert listing.spec.kind is not InstrumentKind.SPOT
        assert listing.price % listing.spec.tick == 0
        assert listing.quantity >= listing.spec.lot


def test_more_symbols_can_also_be_fewer() -> None:
    assert more_usd_m(1, ("A", "B")) == ("A",)
    assert more_coin_m(2, ("ADAUSD_PERP",)) == ("ADAUSD_PERP", "BTCUSD_PERP")


def test_a_name_may_be_of_any_alphabet() -> None:
    spec = usd_m_listed("币安人生USDT").spec
    assert (spec.base, spec.quote) == ("币安人生", "USDT")


@pytest.mark.parametrize(
    "name", ["btcusdt", "BTC", "BTCEUR", "BTCUSD_PERP", "BTC-USDT", "", "USDT"]
)
def test_usd_m_refuses_names_it_would_not_have(name: str) -> None:
    with pytest.raises(ValueError, match="expected a USD-M contract such as BTCUSDT"):
        usd_m_listed(name)


@pytest.mark.parametrize("name", ["BTCUSD", "BTCUSDT", "btcusd_perp", "USD_PERP", "BTCUSD_269999"])
def test_coin_m_refuses_names_it_would_not_have(name: str) -> None:
    with pytest.raises(ValueError, match="expected a COIN-M contract such as BTCUSD_PERP"):
        coin_m_listed(name)


# Trades -------------------------------------------------------------------------------------


def _market(**options: object) -> FuturesMarket:
    values = {
        "symbols": ("BTCUSDT", "BTCUSDT_261225"),
        "start_time_us": _START,
        "trade_rate": 60,
        "levels": 200,
        "warmup_seconds": 0,
        **options,
    }
    return FuturesMarket(GeneratedSettings.model_validate(values), listing=usd_m_listed)


def _of(events: list[Event], symbol: str) -> list[Event]:
    return [event for event in events if event.symbol == symbol]


def test_trades_that_are_not_of_the_market_use_up_an_id() -> None:
    events = _of(_market().advance(_START + 30_000_000), "BTCUSDT")
    numbers, kinds = [], set()
    for event in events:
        if isinstance(event, Trade):
            numbers.append(event.trade_id)
        elif isinstance(event, OtherTrade):
            numbers.append(event.trade_id)
            kinds.add(event.execution)
    assert kinds == set(EXECUTIONS), "all three kinds within half a minute"
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_they_belong_to_no_aggregate_candle_or_list_of_trades() -> None:
    market = _market()
    events = _of(market.advance(_START + 20_000_000), "BTCUSDT")
    trades = {event.trade_id: event for event in events if isinstance(event, Trade)}
    assert [trade.trade_id for trade in market.recent_trades("BTCUSDT", 10_000)] == list(trades)
    for event in events:
        if isinstance(event, AggregateTrade):
            ids = range(event.first_trade_id, event.last_trade_id + 1)
            mine = [trades[number] for number in ids if number in trades]
            assert sum(trade.quantity for trade in mine) == event.quantity
    assert market.ticker("BTCUSDT").trades == len(trades)
    newest = market.candles("BTCUSDT", 1)[-1]
    assert newest.last_trade_id == max(trades)


def test_aggregates_have_a_sequence_of_their_own() -> None:
    events = _of(_market().advance(_START + 5_000_000), "BTCUSDT")
    ids = [event.aggregate_id for event in events if isinstance(event, AggregateTrade)]
    assert ids == list(range(ids[0], ids[0] + len(ids)))


def test_the_market_stays_deterministic() -> None:
    one, other = _market(), _market()
    whole = one.advance(_START + 4_000_000)
    parts = [other.advance(_START + step * 500_000) for step in range(1, 9)]
    assert whole == list(itertools.chain.from_iterable(parts))


# Depth --------------------------------------------------------------------------------------

_Levels = dict[int, int]


def _applied(book: _Levels, levels: list[tuple[int, int]]) -> None:
    for price, quantity in levels:
        if quantity:
            book[price] = quantity
        else:
            book.pop(price, None)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 120_000),
            st.integers(1, 9),
            st.dictionaries(st.integers(1, 6), st.integers(0, 3), max_size=4),
        ),
        min_size=1,
        max_size=60,
    ),
    st.sampled_from(sorted(DEPTH_STREAMS)),
)
def test_a_paced_stream_chains_and_equals_the_book_at_every_frame(
    frames: list[tuple[int, int, _Levels]], stream: str
) -> None:
    pace = DepthPace(DEPTH_STREAMS[stream])
    truth: dict[int, _Levels] = {1000: {}}
    boundaries = [1000]
    time_us, last, book = _START, 1000, dict[int, int]()
    held: _Levels = {}
    told = None
    for wait, ids, levels in frames:
        time_us += wait
        _applied(book, list(levels.items()))
        event = DepthUpdate(
            "X", 100, time_us, last + 1, last + ids, sorted(levels.items(), reverse=True), [], last
        )
        last += ids
        truth[last] = dict(book)
        boundaries.append(last)
        due = pace.take(event)
        if due is None:
            continue
        frame, first_id = due
        assert frame.previous_id == (1000 if told is None else told), "pu is the u before"
        assert frame.previous_id < first_id <= frame.last_id == last
        _applied(held, list(frame.bids))
        assert held == truth[last]
        # Whoever has a book at a boundary finds the frame that continues it.
        for boundary in boundaries:
            if frame.previous_id < boundary <= frame.last_id:
                assert first_id <= boundary
        told = last
    assert told is not None, "the first frame is told at once"


def test_what_was_gathered_is_dropped_after_frames_that_were_not_shown() -> None:
    pace = DepthPace(500_000)
    frame = DepthUpdate("X", 100, _START, 11, 20, [(5, 1)], [], 10)
    assert pace.take(frame) is not None
    assert (
        pace.take(frame._replace(time_us=_START + 1, first_id=21, last_id=30, previous_id=20))
        is None
    )
    later = frame._replace(time_us=_START + 600_000, first_id=91, last_id=99, previous_id=90)
    due = pace.take(later)
    assert due is not None
    assert due[0] == later


def test_books_between_a_frame_and_the_next_one_would_fit_nothing() -> None:
    firsts = {next_first_id(frame_id) - frame_id for frame_id in range(100)}
    assert firsts == {1, 2, 3}, "U is above pu + 1 more often than not"


# Candles ------------------------------------------------------------------------------------


def _minute(number: int, *, closed: bool = True) -> Candle:
    begin = _START // _DAY * _DAY + number * _MINUTE
    return Candle(
        "X", begin, begin, begin + _MINUTE - 1, number * 10, number * 10 + 9, 100 + number,
        101 + number, 103 + number, 98 + number, 7, 70, 10, 3, 30, closed,
    )  # fmt: skip


def test_a_longer_candle_is_made_of_its_minutes() -> None:
    minutes = [_minute(number) for number in range(7)]
    five, rest = fold(minutes, "5m")
    assert (five.open, five.close, five.high, five.low) == (100, 105, 107, 98)
    assert (five.volume, five.trades, five.taker_quote_volume) == (35, 50, 150)
    assert (five.first_trade_id, five.last_trade_id) == (0, 49)
    assert (five.closed, rest.closed) == (True, False)
    assert rest.open_us == five.close_us + 1


def test_minutes_without_trades_do_not_move_a_longer_candle() -> None:
    quiet = _minute(1)._replace(trades=0, high=10**9, low=1, open=1, first_trade_id=-1)
    (folded,) = fold([_minute(0), quiet, _minute(2)], "3m")
    assert (folded.high, folded.low, folded.first_trade_id) == (105, 98, 0)


@pytest.mark.parametrize("interval", INTERVALS)
def test_every_moment_lies_in_one_candle_of_each_interval(interval: str) -> None:
    begin, end = span_of(interval, _START)
    assert begin <= _START <= end
    assert span_of(interval, begin) == span_of(interval, end) == (begin, end)
    assert span_of(interval, end + 1)[0] == end + 1
    assert (end + 1 - begin) // _MINUTE <= minutes_of(interval)


def test_weeks_begin_on_monday_and_months_on_their_first_day() -> None:
    week = datetime.fromtimestamp(span_of("1w", _START)[0] / 1e6, UTC)
    month = datetime.fromtimestamp(span_of("1M", _START)[0] / 1e6, UTC)
    assert (week.weekday(), month.day) == (0, 1)
