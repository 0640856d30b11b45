"""Frames of Deribit are read exactly, requests are made as it wants them, nothing else raises."""

import contextlib
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from marketprism.market.v1 import common_pb2, instrument_pb2

from services.collector.venues.base import (
    Acknowledgement,
    BookSnapshot,
    Ignored,
    InstrumentsChanged,
    InstrumentSpec,
    MalformedFrameError,
    Observation,
    Ping,
    Poll,
    RestRequest,
    Selection,
    Several,
    TopOfBook,
    TradePrint,
    VenueFault,
)
from services.collector.venues.deribit import Deribit, DeribitBookUpdate

DERIBIT = Deribit()
MS = 10**6
EVERYTHING = Selection(DERIBIT.kinds, (60, 300, 86_400, 7))


def push(channel: str, data: str) -> str:
    """A notification as Deribit spells it; `data` is JSON."""
    return (
        f'{{"jsonrpc":"2.0","method":"subscription","params":{{"channel":"{channel}",'
        f'"data":{data}}}}}'
    )


def book(bids: str = "[]", asks: str = "[]", **fields: Any) -> str:
    """The data of a book channel; levels are JSON."""
    told = {"timestamp": 5, "instrument_name": "BTC-PERPETUAL", "change_id": 10, **fields}
    return f'{json.dumps(told)[:-1]}, "bids":{bids}, "asks":{asks}}}'


def change(bids: str = "[]", asks: str = "[]", **fields: Any) -> str:
    """A change of a book, as a frame."""
    fields = {"type": "change", "prev_change_id": 9, **fields}
    return push("book.BTC-PERPETUAL.100ms", book(bids, asks, **fields))


def trade(**fields: Any) -> str:
    """The data of a trades channel with one trade; numbers as JSON."""
    told = {
        "trade_seq": 7, "trade_id": "ETH-12", "timestamp": 5, "price": 0.1, "amount": 2,
        "instrument_name": "BTC-PERPETUAL", "direction": "buy", **fields,
    }  # fmt: skip
    return f"[{json.dumps(told)}]"


# Books


def test_a_book_is_a_snapshot_then_changes() -> None:
    first = book('[["new",1.0,2.50]]', '[["new",2,1]]', type="snapshot")
    assert DERIBIT.decode(push("book.BTC-PERPETUAL.100ms", first)) == BookSnapshot(
        10, [("1.0", "2.50")], [("2", "1")], 0, 5 * MS, 0, "BTC-PERPETUAL"
    )
    update = DERIBIT.decode(change('[["delete",1.0,0.0]]', '[["change",2,3]]'))
    assert update == DeribitBookUpdate(
        "BTC-PERPETUAL", 9, 10, [("1.0", "0.0")], [("2", "3")], 5 * MS
    )
    assert isinstance(update, DeribitBookUpdate)
    assert (update.first, update.checksum) == (10, 0)


@pytest.mark.parametrize("fields", [{}, {"type": "snapshot"}, {"type": None}])
def test_what_continues_nothing_is_a_snapshot(fields: dict[str, Any]) -> None:
    message = DERIBIT.decode(push("book.BTC-PERPETUAL.raw", book('[["new",1,2]]', **fields)))
    assert isinstance(message, BookSnapshot)


def test_a_change_that_continues_nothing_is_damaged_and_replaces_no_book() -> None:
    with pytest.raises(MalformedFrameError, match="prev_change_id") as caught:
        DERIBIT.decode(change('[["new",1,2]]').replace("prev_change_id", "prev_chamge_id"))
    assert (caught.value.native_symbol, caught.value.concerns_book) == ("BTC-PERPETUAL", True)


@pytest.mark.parametrize(
    "channel",
    ["book.ETH-PERPETUAL.100ms", "book.BTC-PERPETUA.100ms", "book.BTC-PERPETUAL", "boak.X.raw",
     "book.BTC-PERPETUALS.100ms", "quotes.BTC-PERPETUAL", "boot.BTC-PERPETUAL.100ms"],
)  # fmt: skip
def test_a_book_on_another_channel_is_damaged(channel: str) -> None:
    with pytest.raises(MalformedFrameError) as caught:
        DERIBIT.decode(push(channel, book(type="change", prev_change_id=9)))
    assert caught.value.concerns_book
    assert caught.value.native_symbol in ("BTC-PERPETUAL", channel.split(".")[1])


def test_a_snapshot_may_name_what_was_before_it() -> None:
    data = book('[["new",1,2]]', type="snapshot", prev_change_id=20)
    assert isinstance(DERIBIT.decode(push("book.BTC-PERPETUAL.raw", data)), BookSnapshot)


def test_the_first_change_of_a_book_that_was_never_told_continues_nothing_known() -> None:
    message = DERIBIT.decode(change('[["new",0.019,93]]', prev_change_id=0))
    assert isinstance(message, DeribitBookUpdate)
    assert message.previous == 0
    assert not DERIBIT.bridges(message, 14617771528)


@pytest.mark.parametrize("channel", ["book.BTC-PERPETUAL.raw", "book.BTC-PERPETUAL.agg2"])
def test_all_intervals_are_chained(channel: str) -> None:
    frame = push(channel, book(type="change", prev_change_id=9))
    assert isinstance(DERIBIT.decode(frame), DeribitBookUpdate)


def test_whole_books_of_fixed_depth_are_snapshots_unless_their_prices_are_rounded() -> None:
    data = book("[[1.5,2.0]]", "[[2,1],[3,1]]")
    assert DERIBIT.decode(push("book.BTC-PERPETUAL.none.10.100ms", data)) == BookSnapshot(
        10, [("1.5", "2.0")], [("2", "1"), ("3", "1")], 10, 5 * MS, 0, "BTC-PERPETUAL"
    )
    rounded = "book.BTC-PERPETUAL.5.10.100ms"
    assert DERIBIT.decode(push(rounded, data)) == Ignored(rounded)


NUMBERS = ["1.0002e6", "0.1", "1e-7", "10.0", "-0.5", "0", "0.0", "12345678901234567890.123456789",
           "0.000000000000000000000000000001", "123456789012345678901234567890"]  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_of_levels_stay_as_they_are_spelt(number: str) -> None:
    message = DERIBIT.decode(change(f'[["new",{number},{number}],["change",1,{number}]]'))
    assert isinstance(message, DeribitBookUpdate)
    assert message.bids == [(number, number), ("1", number)]


@pytest.mark.parametrize("number", NUMBERS)
def test_other_numbers_are_read_from_their_digits(number: str) -> None:
    quote = (
        f'{{"instrument_name":"X","timestamp":5,"best_bid_price":{number},"best_bid_amount":7,'
        f'"best_ask_price":null,"best_ask_amount":0}}'
    )
    message = DERIBIT.decode(push("quote.X", quote))
    assert isinstance(message, TopOfBook)
    price = message.bid[0]
    assert Decimal(price) == Decimal(number)
    assert "e" not in price.lower()
    assert message.ask == ("", "")


def test_the_ways_of_writing_levels_are_read_alike() -> None:
    wide = DERIBIT.decode(change('[ ["new", 1.0,\n 2.5 ], [ "delete" ,3,0.0] ]', "[ ]"))
    assert isinstance(wide, DeribitBookUpdate)
    assert wide.bids == [("1.0", "2.5"), ("3", "0")]
    assert wide.asks == []
    bare = DERIBIT.decode(change("[[1.0,2.5],[3,0]]", "[[4, 5]]"))
    assert isinstance(bare, DeribitBookUpdate)
    assert bare.bids == [("1.0", "2.5"), ("3", "0")]
    assert bare.asks == [("4", "5")]


def test_what_is_deleted_is_gone_whatever_amount_is_told() -> None:
    message = DERIBIT.decode(change('[["delete",1,5.0],["new",2,0]]'))
    assert isinstance(message, DeribitBookUpdate)
    assert message.bids == [("1", "0"), ("2", "0")]


@pytest.mark.parametrize(
    "levels",
    [
        "{}", "null", "1", '"x"', "[1]", "[[]]", '[["new",1]]', '[["new",1,2,3]]',
        '[["new",1],["new",2,3,4]]', '[["new",1,2],5]', '[["new",1,2],[]]', '[["grow",1,2]]',
        '[["new","1","2"]]', '[["new",null,2]]', '[["new",[1],2]]', '[[["new",1,2]]]',
        '[["new",1,true]]', "[[1]]", "[[1,2,3]]", '[["1",2]]', '[["new",1,2],[3,4]]',
        '[["new",1,{"a":2}]]', '["new",1,2]', '[["new",1,2,]]', '[["new",01,2]]',
        '[["\\u006eew",1]]',
    ],
)  # fmt: skip
def test_a_book_that_is_none_names_its_instrument(levels: str) -> None:
    with pytest.raises(MalformedFrameError) as caught:
        DERIBIT.decode(change(levels))
    assert (caught.value.native_symbol, caught.value.concerns_book) == ("BTC-PERPETUAL", True)


@pytest.mark.parametrize(
    "fields",
    [{"change_id": -1}, {"change_id": 2**63}, {"change_id": 1.5}, {"prev_change_id": "9"},
     {"timestamp": None}, {"timestamp": -1}, {"timestamp": 10**15}, {"type": "partial"},
     {"instrument_name": 5}],
)  # fmt: skip
def test_a_book_with_other_fields_names_its_instrument(fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedFrameError) as caught:
        DERIBIT.decode(change(**fields))
    assert (caught.value.native_symbol, caught.value.concerns_book) == ("BTC-PERPETUAL", True)


def test_a_frame_that_was_cut_names_what_it_can() -> None:
    with pytest.raises(MalformedFrameError) as caught:
        DERIBIT.decode(change('[["new",1,2]]')[:-9])
    assert caught.value.native_symbol == "BTC-PERPETUAL"
    with pytest.raises(MalformedFrameError) as caught:
        DERIBIT.decode(
            push("ticker.BTC-PERPETUAL.100ms", '{"instrument_name":"BTC-PERPETUAL",')[:-3]
        )
    assert (caught.value.native_symbol, caught.value.concerns_book) == ("BTC-PERPETUAL", False)


def test_the_order_of_keys_does_not_matter() -> None:
    frame = json.loads(change('[["new",1,2]]'))
    frame["params"] = dict(reversed(frame["params"].items()))
    frame["params"]["data"] = dict(reversed(frame["params"]["data"].items()))
    turned = dict(reversed(frame.items()))
    expected = DERIBIT.decode(change('[["new",1,2]]'))
    for text in (json.dumps(turned), json.dumps(turned, separators=(",", ":"), indent=1)):
        assert DERIBIT.decode(text) == DERIBIT.decode(text.encode()) == expected


def test_only_identity_tells_what_continues_a_book() -> None:
    diff = DeribitBookUpdate("X", 9, 10, [], [], 0)
    assert DERIBIT.bridges(diff, 9)
    assert not any(DERIBIT.bridges(diff, other) for other in (0, 8, 10, 11))
    assert DERIBIT.covered(diff, 10)
    assert not any(DERIBIT.covered(diff, other) for other in (9, 11, 99))
    assert DERIBIT.repeats(diff, 10)
    assert not any(DERIBIT.repeats(diff, other) for other in (9, 11, 99))
    assert not DERIBIT.ordered_ids
    assert DERIBIT.book_checksum() is None


# Trades


def test_a_trade_has_a_number_and_an_id() -> None:
    assert DERIBIT.decode(push("trades.BTC-PERPETUAL.100ms", trade())) == TradePrint(
        "BTC-PERPETUAL", 7, 5 * MS, "0.1", "2", False, venue_id="ETH-12"
    )


def test_trades_of_a_kind_name_their_instruments_each() -> None:
    both = json.loads(trade())[0], json.loads(trade(instrument_name="ETH-PERPETUAL"))[0]
    message = DERIBIT.decode(push("trades.future.any.100ms", json.dumps(both)))
    assert isinstance(message, Several)
    natives = [each.native_symbol for each in message.messages if isinstance(each, TradePrint)]
    assert natives == ["BTC-PERPETUAL", "ETH-PERPETUAL"]


@pytest.mark.parametrize(
    ("whose", "direction", "sides"),
    [
        ("T", "buy", ["BUY"]),
        ("T", "sell", ["SELL"]),
        ("M", "buy", ["SELL"]),
        ("M", "sell", ["BUY"]),
        ("MT", "buy", ["BUY", "SELL"]),
        ("none", "buy", []),
    ],
)
def test_a_liquidation_has_the_side_of_the_order_that_was_forced(
    whose: str, direction: str, sides: list[str]
) -> None:
    data = trade(liquidation=whose, direction=direction)
    message = DERIBIT.decode(push("trades.BTC-PERPETUAL.100ms", data))
    told = message.messages if isinstance(message, Several) else (message,)
    assert isinstance(told[0], TradePrint)
    assert told[0].liquidation == bool(sides)
    forced = [each for each in told if isinstance(each, Observation)]
    found: list[Any] = [each.message for each in forced]
    assert [common_pb2.Side.Name(each.side) for each in found] == [f"SIDE_{s}" for s in sides]
    assert len({each.event_id for each in forced}) == len(sides), "each counts"


@pytest.mark.parametrize(
    "fields",
    [{"trade_seq": "7"}, {"trade_id": None}, {"price": "0.1"}, {"price": None}, {"amount": -2},
     {"amount": float("nan")}, {"direction": "?"}, {"timestamp": "5"}, {"liquidation": "X"}],
)  # fmt: skip
def test_a_trade_that_is_none_does_not_concern_the_book(fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedFrameError) as caught:
        DERIBIT.decode(push("trades.BTC-PERPETUAL.100ms", trade(**fields)))
    assert (caught.value.native_symbol, caught.value.concerns_book) == ("BTC-PERPETUAL", False)
    with pytest.raises(MalformedFrameError):
        DERIBIT.decode(push("trades.BTC-PERPETUAL.100ms", "[]"))


# Observations that no recording has


def _observation(channel: str, data: str) -> Observation:
    message = DERIBIT.decode(push(channel, data))
    assert isinstance(message, Observation)
    return message


def test_an_index_is_no_instrument() -> None:
    data = '{"timestamp":1550588002899,"price":3937.890,"index_name":"btc_usd"}'
    told = _observation("deribit_price_index.btc_usd", data)
    message: Any = told.message
    assert (told.kind, told.native_symbol, told.symbol) == (
        common_pb2.EVENT_KIND_INDEX_PRICE, "", "BTC-USD",
    )  # fmt: skip
    assert message.index_price == "3937.89"
    assert message.exchange_time.ToMilliseconds() == 1550588002899


def test_a_volatility_index_is_in_percent() -> None:
    data = '{"volatility":129.360,"timestamp":1619777946007,"index_name":"eth_usd"}'
    told = _observation("deribit_volatility_index.eth_usd", data)
    message: Any = told.message
    assert (told.kind, told.symbol) == (common_pb2.EVENT_KIND_VOLATILITY_INDEX, "ETH-USD-DVOL")
    assert message.volatility == "129.36"


def test_an_implied_volatility_becomes_a_fraction_exactly() -> None:
    data = (
        '{"instrument_name":"BTC-26DEC25-60000-C","timestamp":5,"greeks":{"delta":1e-5},'
        '"mark_iv":57.1200,"bid_iv":0.0,"ask_iv":1234567890123456789012345.123456789}'
    )
    told = DERIBIT.decode(push("ticker.BTC-26DEC25-60000-C.100ms", data))
    assert isinstance(told, Several)
    greeks: Any = told.messages[-1]
    message = greeks.message
    assert (message.mark_iv, message.bid_iv, message.delta) == ("0.5712", "0", "0.00001")
    assert message.ask_iv == "12345678901234567890123.45123456789"


def test_the_ticker_of_spot_tells_of_no_derivative() -> None:
    data = (
        '{"instrument_name":"BTC_USDC","timestamp":5,"mark_price":1,"index_price":1,'
        '"stats":{"volume":1.5,"volume_usd":3,"volume_notional":2.5}}'
    )
    told = _observation("ticker.BTC_USDC.100ms", data)
    message: Any = told.message
    assert (message.base_volume, message.quote_volume) == ("1.5", "2.5")


def test_a_candle_of_a_day_is_a_day_long() -> None:
    data = '{"volume":1,"tick":86400000,"open":1,"low":1,"high":1,"cost":1.0,"close":1}'
    told = _observation("chart.trades.BTC-PERPETUAL.1D", data)
    message: Any = told.message
    assert (told.native_symbol, told.key, message.interval.seconds) == (
        "BTC-PERPETUAL", "86400s", 86_400,
    )  # fmt: skip
    for channel in ("chart.trades.BTC-PERPETUAL.7", "chart.trades.1", "chart"):
        with pytest.raises(MalformedFrameError):
            DERIBIT.decode(push(channel, data))


# Answers and requests


def test_heartbeats_are_answered_with_an_id_of_their_own() -> None:
    request = '{"params":{"type":"test_request"},"method":"heartbeat","jsonrpc":"2.0"}'
    ping = DERIBIT.decode(request)
    assert isinstance(ping, Ping)
    reply = json.loads(ping.reply)
    assert (reply["method"], reply["jsonrpc"]) == ("public/test", "2.0")
    assert reply["id"] > 10**15, "no request of the collector comes so far"
    answer = {"jsonrpc": "2.0", "id": reply["id"], "result": {"version": "1.2.26"}}
    assert DERIBIT.decode(json.dumps(answer)) == Ignored("public/test")
    beat = '{"params":{"type":"heartbeat"},"method":"heartbeat","jsonrpc":"2.0"}'
    assert DERIBIT.decode(beat) == Ignored("heartbeat")


def test_an_answer_names_the_channels_taken() -> None:
    answer = {"jsonrpc": "2.0", "id": 3, "result": ["book.X.100ms", "quote.X"], "usIn": 1}
    taken = Acknowledgement(3, ("book.X.100ms", "quote.X"), complete=True)
    assert DERIBIT.decode(json.dumps(answer)) == taken
    assert DERIBIT.decode('{"id":4,"result":[]}') == Acknowledgement(4, ())
    assert DERIBIT.decode('{"id":1,"result":"ok"}') == Acknowledgement(1)
    assert DERIBIT.decode('{"id":"101","result":["quote.X"]}') == Acknowledgement(
        None, ("quote.X",)
    )
    assert DERIBIT.decode('{"result":[{"mid_price":1}]}') == Ignored("answer")
    assert DERIBIT.decode('{"id":"0","result":{"version":"1"}}') == Ignored("answer")


def test_errors_tell_whether_to_come_again() -> None:
    refused = {"jsonrpc": "2.0", "id": 8, "error": {"code": 10028, "message": "too_many_requests"}}
    assert DERIBIT.decode(json.dumps(refused)) == VenueFault(
        8, "10028", "too_many_requests", rate_limited=True
    )
    wrong = {"code": -32602, "message": "Invalid params", "data": {"param": "channels"}}
    assert DERIBIT.decode(json.dumps({"id": None, "error": wrong})) == VenueFault(
        None, "-32602", 'Invalid params: {"param":"channels"}'
    )


def test_changes_of_the_list_of_instruments_are_told() -> None:
    data = '{"timestamp":1,"state":"created","instrument_name":"BTC-26DEC25"}'
    assert DERIBIT.decode(push("instrument.state.future.any", data)) == InstrumentsChanged(
        "BTC-26DEC25 is created"
    )


@pytest.mark.parametrize("channel", ["platform_state", "estimated_expiration_price.btc_usd",
                                     "markprice.options.btc_usd", "perpetual.X.raw"])  # fmt: skip
def test_channels_that_nobody_asked_for_are_ignored(channel: str) -> None:
    assert DERIBIT.decode(push(channel, "[1]")) == Ignored(channel)


@pytest.mark.parametrize("text", ["[]", "1", "{}", '{"method":"subscription"}', '{"id":5}', "",
                                  '{"method":"subscription","params":{}}'])  # fmt: skip
def test_a_frame_of_no_kind_is_malformed(text: str) -> None:
    with pytest.raises(MalformedFrameError, match=r"deribit: .* in frame"):
        DERIBIT.decode(text)


def _spec(native: str) -> InstrumentSpec:
    return DERIBIT.infer_instrument(native)


def _topics(native: str, selection: Selection = EVERYTHING) -> list[str]:
    return [each.topic for each in DERIBIT.subscriptions(_spec(native), selection)]


def test_an_instrument_is_subscribed_to_by_what_is_selected() -> None:
    assert _topics("BTC-PERPETUAL") == [
        "book.BTC-PERPETUAL.100ms", "trades.BTC-PERPETUAL.100ms", "quote.BTC-PERPETUAL",
        "ticker.BTC-PERPETUAL.100ms", "chart.trades.BTC-PERPETUAL.1",
        "chart.trades.BTC-PERPETUAL.5", "chart.trades.BTC-PERPETUAL.1D",
    ]  # fmt: skip
    only = Selection(frozenset({common_pb2.EVENT_KIND_OPTION_GREEKS}))
    assert _topics("BTC-26DEC25-60000-C", only) == ["ticker.BTC-26DEC25-60000-C.100ms"]
    assert _topics("BTC-PERPETUAL", only) == [], "a perpetual has no greeks"
    forced = Selection(frozenset({common_pb2.EVENT_KIND_LIQUIDATION}))
    assert _topics("BTC-PERPETUAL", forced) == ["trades.BTC-PERPETUAL.100ms"]
    assert _topics("BTC_USDC", forced) == [], "nobody is liquidated in spot"


def test_every_kind_has_a_stream_that_may_be_silent_for_so_long() -> None:
    natives = ["BTC-PERPETUAL", "BTC-26DEC25", "BTC-26DEC25-60000-C", "BTC_USDC"]
    specs = [_spec(native) for native in natives]
    brought: set[int] = set()
    for spec in specs:
        for each in DERIBIT.subscriptions(spec, EVERYTHING):
            assert each.native_symbol == spec.native_symbol
            assert (each.quiet_seconds == 0) == each.topic.startswith("trades.")
            brought.update(each.kinds)
    for each in DERIBIT.shared_subscriptions(specs, EVERYTHING):
        brought.update(each.kinds)
    assert brought == DERIBIT.kinds
    assert common_pb2.EVENT_KIND_LONG_SHORT_RATIO not in DERIBIT.kinds


def test_indexes_are_shared_by_their_instruments() -> None:
    specs = [_spec(native) for native in ("BTC-PERPETUAL", "BTC-26DEC25", "SOL_USDC-PERPETUAL")]
    topics = [each.topic for each in DERIBIT.shared_subscriptions(specs, EVERYTHING)]
    assert topics == [
        "instrument.state.future.any",
        "instrument.state.option.any",
        "instrument.state.spot.any",
        "deribit_price_index.btc_usd",
        "deribit_price_index.sol_usdc",
        "deribit_volatility_index.btc_usd",
    ]
    only = Selection(frozenset({common_pb2.EVENT_KIND_TRADE}))
    others = DERIBIT.shared_subscriptions(specs, only)
    assert [each.topic for each in others] == topics[:3], "no news of combinations"


@pytest.mark.parametrize("method", ["subscribe", "unsubscribe"])
def test_requests_carry_as_many_channels_as_the_venue_takes(method: str) -> None:
    topics = [f"quote.X{n}" for n in range(501)]
    made = getattr(DERIBIT, method)(topics, 7)
    assert [(each.request_id, len(each.topics)) for each in made] == [(7, 500), (8, 1)]
    request = json.loads(made[1].frame)
    assert request == {"jsonrpc": "2.0", "id": 8, "method": f"public/{method}",
                       "params": {"channels": ["quote.X500"]}}  # fmt: skip
    assert getattr(DERIBIT, method)([], 1) == []


def test_a_connection_begins_with_heartbeats() -> None:
    (request,) = DERIBIT.opening_requests(1)
    assert request.topics == ()
    assert json.loads(request.frame) == {
        "jsonrpc": "2.0", "id": 1, "method": "public/set_heartbeat", "params": {"interval": 30},
    }  # fmt: skip


def test_the_rules_are_those_of_the_credits() -> None:
    rules = DERIBIT.connection_rules
    assert (rules.topics, rules.life_seconds, rules.keepalive_frame) == (500, 0, "")
    assert rules.request_seconds >= 3000 / 10_000
    assert rules.connects <= 32
    pool = DERIBIT.rest_pool
    assert pool.limit / pool.window_seconds <= 10_000 / 500
    assert DERIBIT.route_url("ws://127.0.0.1:1/ws/api/v2", "") == "ws://127.0.0.1:1/ws/api/v2"


# REST


_LISTED = [
    {"instrument_name": "BTC-PERPETUAL", "kind": "future", "instrument_type": "reversed",
     "base_currency": "BTC", "quote_currency": "USD", "counter_currency": "USD",
     "settlement_currency": "BTC", "settlement_period": "perpetual", "tick_size": 0.5,
     "tick_size_steps": [], "min_trade_amount": 10.0, "contract_size": 10.0, "is_active": True,
     "state": "open", "expiration_timestamp": 32503708800000, "price_index": "btc_usd"},
    {"instrument_name": "SOL_USDC-26DEC25", "kind": "future", "instrument_type": "linear",
     "base_currency": "SOL", "quote_currency": "USDC", "settlement_currency": "USDC",
     "settlement_period": "month", "tick_size": 0.01, "min_trade_amount": 0.1,
     "contract_size": 0.1, "is_active": True, "state": "locked",
     "expiration_timestamp": 1766736000000, "price_index": "sol_usdc"},
    {"instrument_name": "BTC-27MAR26-60000-C", "kind": "option", "instrument_type": "reversed",
     "base_currency": "BTC", "quote_currency": "BTC", "settlement_currency": "BTC",
     "settlement_period": "month", "tick_size": 1e-4, "min_trade_amount": 0.1,
     "tick_size_steps": [{"above_price": 0.005, "tick_size": 0.0005}], "contract_size": 1.0,
     "is_active": True, "expiration_timestamp": 1774598400000, "strike": 60000.0,
     "option_type": "call", "price_index": "btc_usd"},
    {"instrument_name": "XRP_USDC-26DEC25-1d02-P", "kind": "option", "instrument_type": "linear",
     "base_currency": "XRP", "quote_currency": "USDC", "settlement_currency": "USDC",
     "tick_size": 0.0002, "min_trade_amount": 1000, "contract_size": 1000, "is_active": False,
     "expiration_timestamp": 1766736000000, "strike": 1.02, "option_type": "put",
     "price_index": "xrp_usdc"},
    {"instrument_name": "BTC_USDC", "kind": "spot", "instrument_type": "linear",
     "base_currency": "BTC", "quote_currency": "USDC", "tick_size": 1, "min_trade_amount": 1e-4,
     "contract_size": 1e-4, "is_active": True, "price_index": "btc_usdc",
     "expiration_timestamp": 32503708800000},
    {"instrument_name": "BTC-FS-26DEC25_PERP", "kind": "future_combo", "base_currency": "BTC",
     "quote_currency": "USD", "tick_size": 0.5, "min_trade_amount": 10, "is_active": True},
    {"instrument_name": "BTC-CS-26DEC25-90000_95000", "kind": "option_combo",
     "base_currency": "BTC", "quote_currency": "BTC", "is_active": True},
]  # fmt: skip


def _listed() -> dict[str, InstrumentSpec]:
    specs = DERIBIT.decode_instruments(json.dumps({"result": _LISTED}).encode())
    return {spec.native_symbol: spec for spec in specs}


def test_the_list_of_instruments_is_read_without_combinations() -> None:
    specs = _listed()
    assert list(specs) == [each["instrument_name"] for each in _LISTED[:5]]
    perpetual = specs["BTC-PERPETUAL"]
    assert perpetual == InstrumentSpec(
        "deribit", "BTC-USD-PERP", "BTC-PERPETUAL", "BTC", "USD", "0.5", "10", "10", "", True,
        instrument_pb2.INSTRUMENT_KIND_PERPETUAL, "BTC", "1", instrument_pb2.QUANTITY_UNIT_QUOTE,
        0, "", instrument_pb2.OPTION_RIGHT_UNSPECIFIED, "btc_usd", "BTC",
    )  # fmt: skip
    option = specs["BTC-27MAR26-60000-C"]
    assert (option.tick_size, option.min_quantity, option.strike) == ("0.0001", "0.1", "60000")
    assert option.quantity_unit == instrument_pb2.QUANTITY_UNIT_BASE, "the type speaks of prices"
    linear = specs["SOL_USDC-26DEC25"]
    assert (linear.quantity_unit, linear.trading) == (instrument_pb2.QUANTITY_UNIT_BASE, False)
    spot = specs["BTC_USDC"]
    assert (spot.kind, spot.settlement, spot.underlying, spot.expiry_time, spot.lot_size) == (
        instrument_pb2.INSTRUMENT_KIND_SPOT, "", "", 0, "0.0001",
    )  # fmt: skip


def test_a_name_alone_tells_the_same_as_the_list() -> None:
    for native, listed in _listed().items():
        inferred = DERIBIT.infer_instrument(native)
        for name in ("symbol", "base", "quote", "kind", "settlement", "quantity_unit", "strike",
                     "expiry_time", "option_right", "underlying", "contract_size"):  # fmt: skip
            assert getattr(inferred, name) == getattr(listed, name), (native, name)


def test_a_list_of_2021_has_fewer_fields() -> None:
    item = {"instrument_name": "ETH-24SEP21", "kind": "future", "base_currency": "ETH",
            "quote_currency": "USD", "tick_size": "x", "min_trade_amount": -1,
            "settlement_period": "month", "is_active": True,
            "expiration_timestamp": 1632470400000}  # fmt: skip
    (spec,) = DERIBIT.decode_instruments(json.dumps({"result": [item]}).encode())
    assert (spec.symbol, spec.settlement, spec.underlying) == ("ETH-USD-20210924", "ETH", "eth_usd")
    assert spec.quantity_unit == instrument_pb2.QUANTITY_UNIT_QUOTE
    assert (spec.tick_size, spec.lot_size) == ("", "")


def test_instruments_are_asked_for_by_kind() -> None:
    requests = DERIBIT.instrument_requests()
    assert {request.path for request in requests} == {"/api/v2/public/get_instruments"}
    assert [request.query["kind"] for request in requests] == ["future", "option", "spot"]
    assert sum(request.weight for request in requests) <= DERIBIT.rest_pool.limit


def test_a_book_is_asked_for_at_a_depth_that_the_venue_has() -> None:
    for wanted, asked in ((1, "1"), (7, "10"), (50, "50"), (400, "1000"), (99_999, "10000")):
        assert DERIBIT.snapshot_request("X", wanted).query["depth"] == asked
    request = DERIBIT.snapshot_request("X", 5)
    body = b'{"result":{"change_id":4,"timestamp":2,"bids":[[1.5,2.0]],"asks":[]},"usOut":1}'
    assert DERIBIT.decode_snapshot(body, request) == BookSnapshot(
        4, [("1.5", "2.0")], [], 5, 2 * MS, 0, "X"
    )
    with pytest.raises(MalformedFrameError, match="too_many") as caught:
        DERIBIT.decode_snapshot(b'{"error":{"code":10028,"message":"too_many"}}', request)
    assert caught.value.native_symbol == "X"


def test_past_trades_are_asked_for_by_number() -> None:
    request = DERIBIT.trades_request("X", 100, 5000)
    assert request.path == "/api/v2/public/get_last_trades_by_instrument"
    assert request.query == {"instrument_name": "X", "start_seq": "100", "end_seq": "1099",
                             "count": "1000", "sorting": "asc"}  # fmt: skip
    first, second = json.loads(trade())[0], json.loads(trade(trade_seq=6))[0]
    body = json.dumps({"result": {"trades": [first, second], "has_more": False}}).encode()
    assert [each.trade_id for each in DERIBIT.decode_trades(body, "X")] == [6, 7]


@pytest.mark.parametrize(
    ("status", "body", "seconds"),
    [
        (429, b"", 0.0),
        (400, b'{"error":{"code":10028,"message":"too_many_requests"}}', 0.0),
        (503, b'{"jsonrpc":"2.0","error":{"code":11051,"message":"system_maintenance"}}', 0.0),
        (200, b'{"error":{"code":10028}}', 0.0),
        (400, b'{"error":{"code":13020,"message":"not_found"}}', None),
        (502, b"<html>", None),
        (200, b'{"result":[]}', None),
    ],
)
def test_an_answer_says_when_we_ask_too_much(
    status: int, body: bytes, seconds: float | None
) -> None:
    assert DERIBIT.rest_refusal(status, body) == seconds


def test_there_is_nothing_to_poll() -> None:
    assert DERIBIT.polls([_spec("BTC-PERPETUAL")], EVERYTHING) == []
    poll = Poll(common_pb2.EVENT_KIND_TICKER, RestRequest("/x", 1), 60.0)
    with pytest.raises(MalformedFrameError):
        DERIBIT.decode_poll(b"{}", poll)


# Anything at all

_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
_numbers: st.SearchStrategy[Any] = st.sampled_from(
    [0, 1, -1, 0.5, 1e300, -0.0, 2**63, 10**40, "1", "", None, [], "NaN"]
)
_words = st.sampled_from(["new", "delete", "change", "snapshot", "buy", "sell", "M", "MT", "1",
                          "BTC-PERPETUAL", "BTC-26DEC25-1d02-C", "btc_usd", "test_request",
                          "\ud800", "x" * 200])  # fmt: skip
_levels = st.lists(
    st.lists(_words | _numbers, max_size=4) | st.tuples(st.just("new"), _numbers, _numbers),
    max_size=4,
)
_FIELDS = {
    "book": ["timestamp", "instrument_name", "change_id", "prev_change_id", "type", "bids", "asks"],
    "trades": ["trade_seq", "trade_id", "timestamp", "price", "amount", "instrument_name",
               "direction", "liquidation"],
    "ticker": ["instrument_name", "timestamp", "stats", "greeks", "last_price", "best_bid_price",
               "best_bid_amount", "mark_price", "open_interest", "current_funding", "mark_iv",
               "estimated_delivery_price", "underlying_index"],
    "quote": ["instrument_name", "timestamp", "best_bid_price", "best_bid_amount"],
    "deribit_price_index": ["timestamp", "price", "index_name"],
    "deribit_volatility_index": ["timestamp", "volatility", "index_name"],
    "chart": ["tick", "open", "high", "low", "close", "volume", "cost"],
    "instrument": ["timestamp", "state", "instrument_name"],
    "": ["method", "params", "id", "result", "error", "code", "message", "channel", "data"],
}  # fmt: skip
_VALID: dict[str, Any] = {
    "timestamp": 5, "tick": 5, "instrument_name": "BTC-26DEC25-60000-C", "change_id": 10,
    "prev_change_id": 9, "type": "change", "trade_seq": 7, "trade_id": "12", "direction": "buy",
    "index_name": "btc_usd", "stats": {"volume": 1}, "greeks": {"delta": 0.5},
    "underlying_index": "BTC-26DEC25", "bids": [["new", 1, 2]], "asks": [], "method": "heartbeat",
    "state": "open", "params": {"type": "test_request"}, "id": 1, "result": ["a"],
    "error": {"code": 1, "message": "x"},
}  # fmt: skip


@st.composite
def _shaped(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """The data of a channel as the venue has it, some of its values random."""
    word = draw(st.sampled_from(sorted(_FIELDS)))
    data = {name: _VALID.get(name, 1.5) for name in _FIELDS[word]}
    for name in draw(st.lists(st.sampled_from(_FIELDS[word]), max_size=3)):
        data[name] = draw(_numbers | _words | _levels | _json)
    return word, data


def _decode_all(data: bytes | str) -> None:
    body = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    poll = Poll(common_pb2.EVENT_KIND_TICKER, RestRequest("/x", 1), 60.0)
    for attempt in (
        lambda: DERIBIT.decode(data),
        lambda: DERIBIT.decode_snapshot(body, RestRequest("", 1, {"instrument_name": "X"})),
        lambda: DERIBIT.decode_snapshot(body, RestRequest("", 1, {"depth": "²"})),
        lambda: DERIBIT.decode_trades(body, "X"),
        lambda: DERIBIT.decode_instruments(body),
        lambda: DERIBIT.decode_poll(body, poll),
    ):
        with contextlib.suppress(MalformedFrameError):
            attempt()
    DERIBIT.rest_refusal(400, body)


@given(st.binary(max_size=200))
@example(b"[" * 100_000)
@example(b'{"error":' * 50_000)
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    _decode_all(data)
    _decode_all(b'{"jsonrpc":"2.0","method":"subscription","params":{"channel":"book.' + data)
    _decode_all(b'{"method":"subscription","params":{"channel":"quote.X","data":' + data + b"}}")


@given(_json, st.sampled_from(sorted(_FIELDS)))
def test_any_json_is_a_message_or_malformed(value: Any, word: str) -> None:
    _decode_all(json.dumps(value))
    _decode_all(json.dumps({"result": value, "id": 3}))
    _decode_all(push(f"{word}.BTC-PERPETUAL.100ms", json.dumps(value)))


@given(_shaped())
def test_anything_shaped_like_a_frame_is_a_message_or_malformed(
    shaped: tuple[str, dict[str, Any]],
) -> None:
    word, data = shaped
    text = json.dumps(data)
    _decode_all(text)
    _decode_all(push(f"{word}.BTC-PERPETUAL.100ms", text))
    _decode_all(push(f"{word}.BTC-PERPETUAL.100ms", f"[{text}]"))
    _decode_all(push("chart.trades.BTC-PERPETUAL.1", text))
    _decode_all(push("book.BTC-PERPETUAL.none.20.100ms", text))
    _decode_all(json.dumps({"result": data, "id": 1}))
    _decode_all(json.dumps({"result": [{**data, "kind": "option"}]}))
    _decode_all(json.dumps({"result": {"trades": [data]}}))


_actions = st.sampled_from(["new", "change", "delete"])
_decimals = st.decimals(
    min_value=0, max_value=10**12, places=4, allow_nan=False, allow_infinity=False
)  # fmt: skip


@given(st.lists(st.tuples(_actions, _decimals, _decimals), max_size=12), st.booleans())
def test_any_levels_are_read_by_value(
    levels: list[tuple[str, Decimal, Decimal]], wide: bool
) -> None:
    space = " " if wide else ""
    side = f",{space}".join(
        f'["{action}",{space}{price},{amount}]' for action, price, amount in levels
    )
    message = DERIBIT.decode(change(f"[{side}]"))
    assert isinstance(message, DeribitBookUpdate)
    assert [(Decimal(price), Decimal(amount)) for price, amount in message.bids] == [
        (price, 0 if action == "delete" else amount) for action, price, amount in levels
    ]
