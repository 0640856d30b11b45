"""Frames of Binance's futures are read exactly, and their books follow the futures' own rules."""

import contextlib
import gzip
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.collector.synchroniser import BookSynchroniser, SnapshotPolicy
from services.collector.venues.base import (
    Acknowledgement,
    BookSnapshot,
    Ignored,
    MalformedFrameError,
    RestRequest,
    TopOfBook,
    TradePrint,
    VenueFault,
)
from services.collector.venues.binance_futures import BinanceFutures, FuturesDepthUpdate
from tests.unit.collector.support import Subscriber, captures

USDM = BinanceFutures("binance_usdm", "/fapi/v1")
COINM = BinanceFutures("binance_coinm", "/dapi/v1")
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
            "BTCUSD_210625", 5091038, 1616201787407 * 10**6, "62838", "5", True
        )
    for frame in _frames(TICKER, "btcusdt@bookTicker"):
        assert USDM.decode(frame) == TopOfBook("BTCUSDT", 7, 2 * 10**6, ("1.5", "2"), ("", ""))


def test_an_aggregate_of_2019_without_an_id_is_known_by_its_last_trade() -> None:
    payload = {key: value for key, value in AGGREGATE.items() if key != "a"}
    trade = COINM.decode(json.dumps(payload))
    assert isinstance(trade, TradePrint)
    assert trade.trade_id == 7621252


@pytest.mark.parametrize("execution", ["INSURANCE_FUND", "ADL", "NA"])
def test_the_venue_settling_its_own_affairs_is_no_trade(execution: str) -> None:
    for frame in _frames({**TRADE, "X": execution}, "btcusdt@trade"):
        assert USDM.decode(frame) == Ignored(f"trade {execution}")


@pytest.mark.parametrize("stream", ["btcusdt@depth5", "btcusdt@depth20@100ms", "x@depth10"])
def test_partial_depth_in_the_shape_of_a_change_is_not_taken_for_one(stream: str) -> None:
    frame = json.dumps({"stream": stream, "data": DEPTH}, separators=(",", ":"))
    assert USDM.decode(frame) == Ignored(stream)


def test_answers_and_unasked_kinds() -> None:
    assert USDM.decode('{"id":7,"result":null}') == Acknowledgement(7)
    refused = '{"error":{"code":2,"msg":"Invalid request"},"id":8}'
    assert USDM.decode(refused) == VenueFault(8, "2", "Invalid request")
    assert USDM.decode('{"stream":"!markPrice@arr","data":[]}') == Ignored("!markPrice@arr")
    assert USDM.decode('{"e":"forceOrder","o":{}}') == Ignored("forceOrder")


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


# Frames that venues sent


def _recorded(name: str) -> list[tuple[BinanceFutures, str]]:
    path = captures("frames", name)
    raw = path.read_bytes()
    lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode().splitlines()
    texts = [json.loads(line) for line in lines]
    return [
        (COINM if '_PERP"' in row["data"] or "USD_" in row["data"] else USDM, row["data"])
        for row in texts
    ]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("binance_futures.jsonl.gz", {"FuturesDepthUpdate": 2, "TradePrint": 3, "TopOfBook": 1}),
        ("binance_delivery.jsonl.gz", {"FuturesDepthUpdate": 2, "TradePrint": 1, "TopOfBook": 1}),
    ],
)
def test_recorded_frames_are_read_field_by_field(name: str, counts: dict[str, int]) -> None:
    seen: Counter[str] = Counter()
    for adapter, text in _recorded(name):
        data = json.loads(text).get("data", {})
        try:
            message = adapter.decode(text)
        except MalformedFrameError:
            # What the recorder made itself of REST answers is no frame of the venue.
            assert '"generated":true' in text
            continue
        seen[type(message).__name__] += 1
        if isinstance(message, FuturesDepthUpdate):
            assert [message.native_symbol, message.first, message.last, message.previous] == [
                data[key] for key in ("s", "U", "u", "pu")
            ]
            assert [list(level) for level in (*message.bids, *message.asks)] == data["b"] + data[
                "a"
            ]
        elif isinstance(message, TradePrint):
            assert message.native_symbol == data["s"]
            assert float(message.price) == float(data["p"])
            assert message.buyer_is_maker == data["m"]
            assert message.exchange_time == data["T"] * 10**6
        elif isinstance(message, TopOfBook):
            assert (message.native_symbol, message.venue_sequence) == (data["s"], data["u"])
            assert [float(each) for each in (*message.bid, *message.ask)] == [
                float(data[key]) for key in ("b", "B", "a", "A")
            ]
    assert {key: seen[key] for key in counts} == counts


def test_frames_of_2026_with_their_new_fields_are_read() -> None:
    frames = [text for _, text in _recorded("present_day_2026.jsonl") if '"pu"' in text]
    assert len(frames) == 4
    for text in frames:
        assert isinstance(USDM.decode(text), FuturesDepthUpdate)


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


# Anything at all

_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)
_objects = st.dictionaries(
    st.sampled_from([*DEPTH, *AGGREGATE, *TICKER, "X", "id", "result", "error", "code", "data"]),
    _json | st.sampled_from(["depthUpdate", "trade", "aggTrade", "bookTicker", "1.0"]),
)
_streams = st.sampled_from(["a@depth@0ms", "a@trade", "a@aggTrade", "a@bookTicker", "a@depth5", ""])


def _decode_all(data: bytes | str) -> None:
    request = RestRequest("/fapi/v1/depth", 20, {"symbol": "BTCUSDT", "limit": "1000"})
    body = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    with contextlib.suppress(MalformedFrameError):
        USDM.decode(data)
    with contextlib.suppress(MalformedFrameError):
        USDM.decode_snapshot(body, request)
    with contextlib.suppress(MalformedFrameError):
        USDM.decode_trades(body, "BTCUSDT")
    with contextlib.suppress(MalformedFrameError):
        USDM.decode_instruments(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    _decode_all(data)
    _decode_all(b'{"stream":"btcusdt@depth@100ms","data":' + data)


@given(_streams, _json | _objects)
def test_any_json_is_a_message_or_malformed(stream: str, value: Any) -> None:
    _decode_all(json.dumps(value))
    _decode_all(json.dumps({"stream": stream, "data": value}, separators=(",", ":")))
