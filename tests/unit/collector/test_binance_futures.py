"""Frames of Binance's futures are read exactly, and their books follow the futures' own rules."""

import json
from typing import Any

import pytest

from services.collector.synchroniser import BookSynchroniser, SnapshotPolicy
from services.collector.venues.base import (
    Acknowledgement,
    BookSnapshot,
    Goodbye,
    Ignored,
    InstrumentsChanged,
    MalformedFrameError,
    SkippedTrade,
    TopOfBook,
    TradePrint,
    VenueFault,
)
from services.collector.venues.binance_futures_streams import FuturesDepthUpdate
from tests.unit.collector.binance_support import COINM, USDM
from tests.unit.collector.support import Subscriber

DEPTH = {
    "e": "depthUpdate", "E": 1789469121904, "T": 1789469121836, "s": "BTCUSDT", "ps": "BTCUSDT",
    "U": 157, "u": 160, "pu": 149, "b": [], "a": [["77021.60", "650.0043"]], "st": 1,
}  # fmt: skip
TRADE = {
    "e": "trade", "E": 1, "T": 1574381164086, "s": "BTCUSDT", "t": 10934580, "p": "7627.60",
    "q": "0.044", "X": "MARKET", "m": False,
}  # fmt: skip
AGGREGATE = {
    "e": "aggTrade", "E": 1, "a": 5091038, "s": "BTCUSD_210625", "p": "62838.0", "q": "5",
    "f": 7621250, "l": 7621252, "T": 1616201787407, "m": True,
}  # fmt: skip
TICKER = {
    "e": "bookTicker", "u": 7, "s": "BTCUSDT", "ps": "BTCUSDT", "b": "1.50", "B": "2.0",
    "a": "1.60", "A": "0.000", "T": 1, "E": 2, "st": 1,
}  # fmt: skip


def _frames(payload: dict[str, Any], stream: str) -> list[str]:
    """The combined frame, spaced differently, and the raw one."""
    combined = {"stream": stream, "data": payload}
    return [json.dumps(combined, separators=(",", ":")), json.dumps(combined), json.dumps(payload)]


def test_a_depth_update_keeps_its_three_ids_and_bears_new_fields() -> None:
    for frame in _frames(DEPTH, "btcusdt@depth@100ms"):
        diff = USDM.decode(frame)
        assert isinstance(diff, FuturesDepthUpdate)
        assert (diff.native_symbol, diff.first, diff.last, diff.previous) == (
            "BTCUSDT", 157, 160, 149,
        )  # fmt: skip
        assert (diff.bids, diff.asks) == ([], [("77021.60", "650.0043")])
        assert diff.exchange_time == 1789469121904 * 10**6
        assert diff.checksum == 0


def test_trades_and_best_offers_are_canonical() -> None:
    for frame in _frames(TRADE, "btcusdt@trade"):
        assert USDM.decode(frame) == TradePrint(
            "BTCUSDT", 10934580, 1574381164086 * 10**6, "7627.6", "0.044", False
        )
    for frame in _frames(AGGREGATE, "btcusd_210625@aggTrade"):
        assert COINM.decode(frame) == TradePrint(
            "BTCUSD_210625", 7621252, 1616201787407 * 10**6, "62838", "5", True, 3,
            venue_id="5091038",
        )  # fmt: skip
    for frame in _frames(TICKER, "btcusdt@bookTicker"):
        assert USDM.decode(frame) == TopOfBook("BTCUSDT", 7, 2 * 10**6, ("1.5", "2"), ("", ""))


def test_an_aggregate_of_2019_without_an_id_is_known_by_its_last_trade() -> None:
    payload = {key: value for key, value in AGGREGATE.items() if key != "a"}
    trade = COINM.decode(json.dumps(payload))
    assert isinstance(trade, TradePrint)
    assert (trade.trade_id, trade.venue_id) == (7621252, "")


@pytest.mark.parametrize("execution", ["INSURANCE_FUND", "ADL", "NA"])
def test_the_venue_settling_its_own_affairs_uses_up_a_number(execution: str) -> None:
    for frame in _frames({**TRADE, "X": execution}, "btcusdt@trade"):
        assert USDM.decode(frame) == SkippedTrade("BTCUSDT", 10934580)


@pytest.mark.parametrize("stream", ["btcusdt@depth5", "btcusdt@depth20@100ms", "x@depth10"])
def test_partial_depth_in_the_shape_of_a_change_is_not_taken_for_one(stream: str) -> None:
    frame = json.dumps({"stream": stream, "data": DEPTH}, separators=(",", ":"))
    assert USDM.decode(frame) == Ignored(stream)


def test_answers_and_unasked_kinds() -> None:
    assert USDM.decode('{"id":7,"result":null}') == Acknowledgement(7)
    refused = '{"error":{"code":2,"msg":"Invalid request"},"id":8}'
    assert USDM.decode(refused) == VenueFault(8, "2", "Invalid request")
    assert USDM.decode('{"stream":"!markPrice@arr","data":[]}') == Ignored("!markPrice@arr")
    assert USDM.decode('{"e":"ORDER_TRADE_UPDATE","o":{}}') == Ignored("ORDER_TRADE_UPDATE")
    assert USDM.decode('{"e":"serverShutdown","E":1}') == Goodbye("serverShutdown")


@pytest.mark.parametrize(
    "text",
    ['{"error":{"code":-1003,"msg":"Too many"},"id":3}', '{"code":-1003,"msg":"Too many","id":3}'],
)
def test_a_request_refused_for_being_too_much_says_so(text: str) -> None:
    assert USDM.decode(text) == VenueFault(3, "-1003", "Too many", rate_limited=True)


def test_a_change_of_the_list_of_contracts_is_told_by_the_stream() -> None:
    info = {
        "e": "contractInfo", "E": 1, "s": "IOTAUSDT", "ps": "IOTAUSDT", "ct": "PERPETUAL",
        "dt": 4133404800000, "ot": 1569398400000, "cs": "TRADING", "bks": [{"bs": 1}], "st": 1,
    }  # fmt: skip
    for frame in _frames(info, "!contractInfo"):
        assert USDM.decode(frame) == InstrumentsChanged("IOTAUSDT TRADING")
        assert COINM.decode(frame) == Ignored("of another market")


@pytest.mark.parametrize(
    "change",
    [{"U": 161}, {"u": 2**63}, {"pu": -2}, {"pu": None}, {"b": [["1"]]}, {"a": [[1, 2]]}],
)
def test_a_depth_update_that_is_none_names_its_instrument(change: dict[str, Any]) -> None:
    for frame in _frames({**DEPTH, **change}, "btcusdt@depth@100ms"):
        with pytest.raises(MalformedFrameError) as caught:
            USDM.decode(frame)
        assert caught.value.concerns_book
    with pytest.raises(MalformedFrameError) as caught:
        USDM.decode(_frames({**TRADE, "p": "x"}, "btcusdt@trade")[0])
    assert (caught.value.native_symbol, caught.value.concerns_book) == ("BTCUSDT", False)


# The venue's rules


def _diff(first: int, last: int, previous: int) -> FuturesDepthUpdate:
    return FuturesDepthUpdate("BTCUSDT", first, last, previous, [("10", "1")], [])


def _book(*diffs: FuturesDepthUpdate, at: int) -> BookSynchroniser:
    book = BookSynchroniser("binance_usdm", "BTC-USDT-PERP", USDM, Subscriber(), SnapshotPolicy())
    book.begin(1)
    for diff in diffs:
        book.on_diff(diff, 2)
    book.on_snapshot(BookSnapshot(at, [("9", "1")], [("11", "1")]), 3)
    return book


@pytest.mark.parametrize(
    ("diffs", "at", "applied"),
    [
        ([_diff(95, 99, 90), _diff(98, 105, 99)], 100, 1),  # u < L is dropped, U <= L <= u bridges
        ([_diff(95, 100, 90)], 100, 1),  # u == L is kept
        ([_diff(103, 105, 100)], 100, 1),  # pu == L bridges, though U > L
    ],
)
def test_the_first_change_kept_bridges_to_the_snapshot(
    diffs: list[FuturesDepthUpdate], at: int, applied: int
) -> None:
    book = _book(*diffs, at=at)
    assert (book.in_step, book.applied, book.gaps) == (True, applied, 0)
    assert book.venue_sequence == diffs[-1].last


def test_a_snapshot_that_no_change_continues_is_refused() -> None:
    assert not _book(_diff(103, 105, 101), at=100).in_step


def test_after_the_first_only_pu_counts() -> None:
    book = _book(_diff(98, 105, 97), at=100)
    book.on_diff(_diff(150, 160, 105), 4)
    assert (book.in_step, book.venue_sequence, book.gaps) == (True, 160, 0)
    book.on_diff(_diff(150, 160, 105), 5)
    assert (book.in_step, book.duplicates) == (True, 1)
    book.on_diff(_diff(161, 170, 159), 6)
    assert (book.in_step, book.gaps) == (False, 1)


# Names and REST


@pytest.mark.parametrize(
    ("native", "symbol"),
    [
        ("BTCUSDT", "BTC-USDT-PERP"),
        ("BTCUSDT_261225", "BTC-USDT-20261225"),
        ("BTCUSD_PERP", "BTC-USD-PERP"),
        ("BTCUSD_261225", "BTC-USD-20261225"),
        ("ETHUSDC", "ETH-USDC-PERP"),
    ],
)
def test_names_tell_the_term(native: str, symbol: str) -> None:
    assert USDM.infer_instrument(native).symbol == symbol


def test_the_list_of_instruments_is_read_of_both_hosts() -> None:
    symbols = [
        {"symbol": "BTCUSDT_261225", "baseAsset": "BTC", "quoteAsset": "USDT", "status": "TRADING",
         "filters": [{"filterType": "PRICE_FILTER", "tickSize": "0.10"},
                     {"filterType": "MIN_NOTIONAL", "notional": "5"}]},
        {"symbol": "BTCUSD_PERP", "baseAsset": "BTC", "quoteAsset": "USD",
         "contractStatus": "PENDING_TRADING"},
    ]  # fmt: skip
    first, second = USDM.decode_instruments(json.dumps({"symbols": symbols}).encode())
    assert (first.symbol, first.tick_size, first.min_notional, first.trading) == (
        "BTC-USDT-20261225", "0.1", "5", True,
    )  # fmt: skip
    assert (second.symbol, second.trading) == ("BTC-USD-PERP", False)


def test_a_snapshot_tells_its_time_and_is_asked_for_in_a_size_that_exists() -> None:
    request = COINM.snapshot_request("BTCUSD_PERP", 700)
    assert (request.path, request.query["limit"], request.weight) == ("/dapi/v1/depth", "1000", 20)
    body = b'{"lastUpdateId":5,"E":3,"T":2,"symbol":"x","bids":[["1","2"]],"asks":[]}'
    assert COINM.decode_snapshot(body, request) == BookSnapshot(
        5, [("1", "2")], [], 1000, 3 * 10**6
    )
