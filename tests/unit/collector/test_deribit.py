"""Frames of Deribit are read exactly: books, trades, observations, answers."""

import json
from decimal import Decimal
from typing import Any

import pytest
from marketprism.market.v1 import common_pb2

from services.collector.venues.base import (
    Acknowledgement,
    BookSnapshot,
    Ignored,
    InstrumentsChanged,
    MalformedFrameError,
    Observation,
    Ping,
    Several,
    TopOfBook,
    TradePrint,
    VenueFault,
)
from services.collector.venues.deribit import Deribit, DeribitBookUpdate
from tests.unit.collector.deribit_frames import book, change, push, trade

DERIBIT = Deribit()
MS = 10**6


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


# Answers


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
