"""What a generated market tells beside books and trades is plausible, exact and repeatable."""

import contextlib
import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.fixed import SCALE
from services.simulator.fixed import to_units as u
from services.simulator.generated import GeneratedMarket
from services.simulator.instrument import InstrumentKind
from services.simulator.market import Event, NotOfferedError, Trade, UnknownSymbolError
from services.simulator.okx import Okx
from services.simulator.okx_channels import OkxRefusalError, read_argument, read_request
from services.simulator.okx_listing import listed
from services.simulator.reference import (
    FundingRate,
    IndexPrice,
    InstrumentChange,
    InstrumentEvent,
    Liquidation,
    LongShortKind,
    MarkPrice,
    OpenInterest,
    OptionGreeks,
    VolatilityIndex,
)
from services.simulator.venues import generated_market

_START = 1_780_000_000_000_000
_SECOND = 1_000_000
_CALL, _PUT = "BTC-USD-301227-65000-C", "BTC-USD-301227-60000-P"
_SYMBOLS = ("BTC-USDT", "BTC-USDT-SWAP", "BTC-USD-SWAP", "BTC-USD-301227", _CALL, _PUT)


def _market(symbols: tuple[str, ...] = _SYMBOLS, **options: Any) -> GeneratedMarket:
    given_ = {"start_time_us": _START, "levels": 100, "trade_rate": 20, **options}
    market = generated_market(Okx(), symbols=symbols, **given_)
    market.reference = True
    return market


def _of(events: list[Event], kind: type, symbol: str) -> list[Any]:
    return [event for event in events if type(event) is kind and event.symbol == symbol]


def test_each_kind_of_instrument_tells_once_a_second_what_belongs_to_it() -> None:
    events = _market().advance(_START + 10 * _SECOND)
    for symbol in _SYMBOLS:
        kind = listed(symbol).spec.kind
        for told, wanted in (
            (MarkPrice, kind is not InstrumentKind.SPOT),
            (OpenInterest, kind is not InstrumentKind.SPOT),
            (FundingRate, kind is InstrumentKind.PERPETUAL),
            (OptionGreeks, kind is InstrumentKind.OPTION),
        ):
            assert len(_of(events, told, symbol)) == (10 if wanted else 0), (symbol, told)
    for name in ("BTC-USDT", "BTC-USD"):
        assert len(_of(events, IndexPrice, name)) == 10
        assert len(_of(events, VolatilityIndex, name)) == 10


def test_nothing_of_it_is_made_when_nobody_wants_it_and_books_are_the_same() -> None:
    with_it, without = _market(), _market()
    without.reference = False
    told = with_it.advance(_START + 5 * _SECOND)
    quiet = without.advance(_START + 5 * _SECOND)
    extra = (MarkPrice, OpenInterest, FundingRate, OptionGreeks, IndexPrice, VolatilityIndex)
    assert not [event for event in quiet if isinstance(event, extra)]
    assert [event for event in told if not isinstance(event, extra)] == quiet


def test_the_same_seed_tells_the_same_and_another_tells_other_things() -> None:
    one = _market().advance(_START + 3 * _SECOND)
    assert one == _market().advance(_START + 3 * _SECOND)
    assert one != _market(seed=2).advance(_START + 3 * _SECOND)


def test_marks_and_indices_stay_near_the_books_they_belong_to() -> None:
    market = _market()
    for second in range(1, 30):
        market.advance(_START + second * _SECOND)
        for symbol in ("BTC-USDT-SWAP", "BTC-USD-SWAP", "BTC-USD-301227"):
            book = market.book(symbol, 1)
            middle = (book.bids[0][0] + book.asks[0][0]) // 2
            told = market.mark_price(symbol)
            assert abs(told.mark - middle) < middle // 500
            assert abs(told.index_price - middle) < middle // 200
        index = market.index_price("BTC-USDT")
        assert index.low <= index.price <= index.high


def test_funding_is_small_and_paid_every_eight_hours() -> None:
    told = _market().funding_rate("BTC-USDT-SWAP")
    assert abs(told.rate) < SCALE // 1000
    assert told.time_us < told.funding_us <= told.time_us + told.interval_us
    assert told.next_funding_us - told.funding_us == told.interval_us == 8 * 3600 * _SECOND


def test_open_interest_moves_with_the_trades_and_counts_contracts_coins_and_dollars() -> None:
    market = _market()
    before = market.open_interest("BTC-USD-SWAP")
    market.advance(_START + 20 * _SECOND)
    after = market.open_interest("BTC-USD-SWAP")
    assert 0 < after.contracts != before.contracts
    assert after.quote == after.contracts * 100, "a contract is 100 dollars"
    linear = market.open_interest("BTC-USDT-SWAP")
    assert linear.base == linear.contracts // 100, "a contract is 0.01 bitcoin"
    option = market.open_interest(_CALL)
    assert option.base == option.contracts // 100


def test_some_trades_are_liquidations_and_each_is_told_as_such() -> None:
    events = _market().advance(_START + 30 * _SECOND)
    for symbol in ("BTC-USDT-SWAP", "BTC-USD-SWAP"):
        forced = {trade.trade_id: trade for trade in _of(events, Trade, symbol)
                  if trade.liquidation}  # fmt: skip
        told = _of(events, Liquidation, symbol)
        assert forced
        assert {each.trade_id for each in told} == set(forced)
        for each in told:
            trade = forced[each.trade_id]
            assert (each.price, each.quantity) == (trade.price, trade.quantity)
            assert each.sell == trade.buyer_is_maker, "the taker is who was liquidated"
            assert (each.bankruptcy < each.price) == each.sell
    assert not [trade for trade in _of(events, Trade, "BTC-USDT") if trade.liquidation]


def test_greeks_have_the_signs_that_they_must_have() -> None:
    market = _market()
    call, put = market.greeks(_CALL), market.greeks(_PUT)
    assert 0 < call.delta < SCALE
    assert -SCALE < put.delta < 0
    for each in (call, put):
        assert each.gamma >= 0
        assert each.vega > 0
        assert each.theta < 0
        assert 0 < each.bid_iv < each.mark_iv < each.ask_iv < 2 * SCALE
    assert call.rho > 0 > put.rho


def test_ratios_of_an_interval_never_change_and_add_up() -> None:
    market = _market()
    for kind in LongShortKind:
        told = market.long_short("BTC-USDT-SWAP", kind, 300 * _SECOND, 12)
        assert [b.time_us - a.time_us for a, b in pairwise(told)] == [300 * _SECOND] * 11
        assert told[-1].time_us <= market.time_us < told[-1].time_us + 300 * _SECOND
        for each in told:
            assert each.long + each.short == SCALE
            assert abs(each.ratio * each.short // SCALE - each.long) <= SCALE // 10_000
        market.advance(market.time_us + 5 * _SECOND)
        assert market.long_short("BTC-USDT-SWAP", kind, 300 * _SECOND, 12)[:-1] == told[:-1]
    top = market.long_short("BTC-USDT-SWAP", LongShortKind.TOP_ACCOUNTS, 300 * _SECOND, 5)
    every = market.long_short("BTC-USDT-SWAP", LongShortKind.ALL_ACCOUNTS, 300 * _SECOND, 5)
    assert [each.ratio for each in top] != [each.ratio for each in every]


def test_what_an_instrument_does_not_have_is_refused() -> None:
    market = _market()
    with pytest.raises(NotOfferedError, match="derivative"):
        market.mark_price("BTC-USDT")
    with pytest.raises(NotOfferedError, match="perpetual"):
        market.funding_rate("BTC-USD-301227")
    with pytest.raises(NotOfferedError, match="option"):
        market.greeks("BTC-USDT-SWAP")
    with pytest.raises(UnknownSymbolError):
        market.index_price("NOPE")


def test_an_instrument_that_is_listed_trades_and_one_that_expired_does_not() -> None:
    market = _market(("BTC-USDT",))
    market.list_instrument(listed("ETH-USDT-SWAP"))
    with pytest.raises(NotOfferedError, match="already"):
        market.list_instrument(listed("ETH-USDT-SWAP"))
    events = market.advance(_START + 3 * _SECOND)
    (change,) = _of(events, InstrumentChange, "ETH-USDT-SWAP")
    assert change.change is InstrumentEvent.LISTED
    assert _of(events, Trade, "ETH-USDT-SWAP")
    assert _of(events, IndexPrice, "ETH-USDT")
    last = market.update_id("ETH-USDT-SWAP")
    market.expire("ETH-USDT-SWAP")
    events = market.advance(_START + 6 * _SECOND)
    (change,) = _of(events, InstrumentChange, "ETH-USDT-SWAP")
    assert change.change is InstrumentEvent.EXPIRED
    assert not _of(events, Trade, "ETH-USDT-SWAP")
    assert "ETH-USDT" not in market.indices
    assert market.book_at("ETH-USDT-SWAP", last).update_id == last
    with pytest.raises(UnknownSymbolError):
        market.expire("ETH-USDT-SWAP")


@pytest.mark.parametrize("tick", [0, -1, u("10000")])
def test_a_tick_that_makes_no_sense_is_refused(tick: int) -> None:
    with pytest.raises(NotOfferedError, match="tick"):
        _market(("BTC-USDT",)).change_tick("BTC-USDT", tick)


def test_listing_a_symbol_leaves_the_books_of_the_others_as_they_are() -> None:
    alone, joined = _market(("BTC-USDT",)), _market(("BTC-USDT",))
    joined.list_instrument(listed("ETH-USDT"))
    one = alone.advance(_START + 3 * _SECOND)
    other = joined.advance(_START + 3 * _SECOND)
    assert [e for e in other if e.symbol == "BTC-USDT"] == [
        e for e in one if e.symbol == "BTC-USDT"
    ]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["op", "args", "id", "channel", "instId", "instType", "x"]), inner
        )
    ),
    max_leaves=12,
)


@given(_JSON)
def test_arbitrary_requests_are_understood_or_refused_in_the_venues_words(message: object) -> None:

    with contextlib.suppress(OkxRefusalError):
        for argument in read_request(json.dumps(message)).arguments:
            read_argument(argument, "public")


def test_ids_may_begin_again_any_number_of_times() -> None:
    market = _market(("BTC-USDT",))
    seen = [market.update_id("BTC-USDT")]
    for second in range(1, 300):
        market.reset_sequence("BTC-USDT", chained=True)
        market.advance(_START + second * _SECOND // 10)
        seen.append(market.update_id("BTC-USDT"))
    assert all(0 < later < earlier for earlier, later in pairwise(seen))
    assert market.book_at("BTC-USDT", seen[-2]).update_id == seen[-2]


def test_what_is_kept_of_expired_instruments_is_bounded() -> None:
    market = _market(("BTC-USDT",))
    for number in range(60):
        name = f"SIM{number:04d}-USDT"
        market.list_instrument(listed(name))
        market.expire(name)
    assert list(market.symbols) == ["BTC-USDT"]
    assert market.book_at("SIM0059-USDT", market._expired["SIM0059-USDT"].book.update_id)
    with pytest.raises(UnknownSymbolError):
        market.book_at("SIM0000-USDT", 1)
