"""OKX's lists of instruments, its history and its polls are asked for and read exactly."""

import gzip
import json
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from marketprism.market.v1 import common_pb2, events_pb2, instrument_pb2

from services.collector.venues.base import (
    InstrumentSpec,
    MalformedFrameError,
    Poll,
    RestRequest,
    Selection,
    TradePrint,
)
from services.collector.venues.okx import Okx
from tests.unit.collector.okx_support import MS, OKX, plain, spec
from tests.unit.collector.support import captures

SPOT = instrument_pb2.INSTRUMENT_KIND_SPOT
PERPETUAL = instrument_pb2.INSTRUMENT_KIND_PERPETUAL
FUTURE = instrument_pb2.INSTRUMENT_KIND_FUTURE
OPTION = instrument_pb2.INSTRUMENT_KIND_OPTION
BASE = instrument_pb2.QUANTITY_UNIT_BASE
QUOTE = instrument_pb2.QUANTITY_UNIT_QUOTE
_ALL = Selection(OKX.kinds)


def answer(*data: Any, **head: Any) -> bytes:
    return json.dumps({"code": "0", "msg": "", "data": list(data), **head}).encode()


def listed(**fields: str) -> InstrumentSpec:
    (one,) = OKX.decode_instruments(answer({"state": "live", **fields}))
    return one


# Instruments


def test_each_type_is_asked_for_and_options_by_family() -> None:
    queries = [request.query for request in OKX.instrument_requests()]
    assert queries == [
        {"instType": "SPOT"}, {"instType": "SWAP"}, {"instType": "FUTURES"},
        {"instType": "OPTION", "instFamily": "BTC-USD"},
        {"instType": "OPTION", "instFamily": "ETH-USD"},
    ]  # fmt: skip
    assert {request.path for request in OKX.instrument_requests()} == {"/api/v5/public/instruments"}
    own = Okx(option_families=["SOL-USD_UM"]).instrument_requests()
    assert [request.query.get("instFamily") for request in own] == [None] * 3 + ["SOL-USD_UM"]


def test_spot_counts_in_base_currency() -> None:
    one = listed(instId="BTC-USDT", instType="SPOT", baseCcy="BTC", quoteCcy="USDT",
                 tickSz="0.10", lotSz="0.00000001", minSz="0.00001", ctVal="")  # fmt: skip
    assert one == InstrumentSpec(
        "okx", "BTC-USDT", "BTC-USDT", "BTC", "USDT", "0.1", "0.00000001", "0.00001"
    )


def test_a_linear_swap_counts_contracts_of_base_currency() -> None:
    one = listed(instId="BTC-USDT-SWAP", instType="SWAP", uly="BTC-USDT", instFamily="BTC-USDT",
                 settleCcy="USDT", ctVal="0.01", ctMult="1", ctValCcy="BTC", ctType="linear",
                 tickSz="0.1", lotSz="0.01", minSz="0.01", expTime="1999999999999")  # fmt: skip
    assert one == InstrumentSpec(
        "okx", "BTC-USDT-PERP", "BTC-USDT-SWAP", "BTC", "USDT", "0.1", "0.0001", "0.0001",
        kind=PERPETUAL, settlement="USDT", contract_size="0.01", quantity_unit=BASE,
        underlying="BTC-USDT", family="BTC-USDT",
    )  # fmt: skip


def test_an_inverse_future_counts_contracts_of_quote_currency() -> None:
    one = listed(instId="BTC-USD-261225", instType="FUTURES", uly="BTC-USD", instFamily="BTC-USD",
                 settleCcy="BTC", ctVal="100", ctMult="1", ctValCcy="USD", ctType="inverse",
                 tickSz="0.1", lotSz="1", minSz="1", expTime="1798185600000")  # fmt: skip
    assert one == InstrumentSpec(
        "okx", "BTC-USD-20261225", "BTC-USD-261225", "BTC", "USD", "0.1", "100", "100",
        kind=FUTURE, settlement="BTC", contract_size="100", quantity_unit=QUOTE,
        expiry_time=1_798_185_600_000 * MS, underlying="BTC-USD", family="BTC-USD",
    )  # fmt: skip


def test_an_option_counts_value_times_multiplier_and_is_priced_in_what_it_settles_in() -> None:
    one = listed(instId="BTC-USD-261225-66000-C", instType="OPTION", uly="BTC-USD",
                 instFamily="BTC-USD", settleCcy="BTC", ctVal="1", ctMult="0.01", ctValCcy="BTC",
                 ctType="", optType="C", stk="66000", tickSz="0.0005", lotSz="1", minSz="1",
                 expTime="1798185600000")  # fmt: skip
    assert one == InstrumentSpec(
        "okx", "BTC-USD-20261225-66000-C", "BTC-USD-261225-66000-C", "BTC", "BTC", "0.0005",
        "0.01", "0.01", kind=OPTION, settlement="BTC", contract_size="0.01", quantity_unit=BASE,
        expiry_time=1_798_185_600_000 * MS, strike="66000",
        option_right=instrument_pb2.OPTION_RIGHT_CALL, underlying="BTC-USD", family="BTC-USD",
    )  # fmt: skip
    usd = listed(instId="SOL-USD_UM-261225-95.5-P", instType="OPTION", uly="SOL-USD",
                 instFamily="SOL-USD_UM", settleCcy="USDC", ctVal="1", ctMult="1", ctValCcy="SOL",
                 optType="P", stk="95.50")  # fmt: skip
    assert (usd.symbol, usd.base, usd.quote, usd.strike, usd.family) == (
        "SOL-USD_UM-20261225-95d5-P", "SOL", "USD", "95.5", "SOL-USD_UM",
    )  # fmt: skip


def test_varieties_of_one_index_have_symbols_of_their_own() -> None:
    um: dict[str, str] = {"uly": "BTC-USD", "settleCcy": "USD", "ctValCcy": "BTC",
                          "ctType": "linear", "ctVal": "0.0001", "ctMult": "1"}  # fmt: skip
    five_years = listed(instId="BTC-USD_UM_XPERP-310404", instType="FUTURES", ruleType="xperp",
                        instFamily="BTC-USD_UM_XPERP", expTime="1933056000000", **um)  # fmt: skip
    assert (five_years.symbol, five_years.kind, five_years.quantity_unit) == (
        "BTC-USD_UM_XPERP-20310404", FUTURE, BASE,
    )  # fmt: skip
    assert (five_years.base, five_years.quote, five_years.family, five_years.underlying) == (
        "BTC", "USD", "BTC-USD_UM_XPERP", "BTC-USD",
    )  # fmt: skip
    assert five_years.expiry_time == 1_933_056_000_000 * MS
    swap = listed(instId="BTC-USD_UM-SWAP", instType="SWAP", instFamily="BTC-USD_UM", **um)
    assert (swap.symbol, swap.quantity_unit) == ("BTC-USD_UM-PERP", BASE)
    premarket = listed(instId="NEW-USDT-270101", instType="FUTURES", ruleType="pre_market",
                       uly="NEW-USDT", ctVal="1", ctValCcy="NEW", settleCcy="USDT")  # fmt: skip
    assert (premarket.symbol, premarket.kind) == ("NEW-USDT-20270101", FUTURE)


def test_only_live_instruments_trade() -> None:
    for state, trading in [("live", True), ("suspend", False), ("preopen", False), ("", False)]:
        assert listed(instId="A-B", instType="SPOT", state=state).trading is trading


@pytest.mark.parametrize("value", ["", "0", "x", "-1"])
def test_contracts_of_no_known_size_are_left_out(value: str) -> None:
    announced = {"instId": "NEW-USDT-SWAP", "instType": "SWAP", "state": "preopen", "ctVal": value}
    spot = {"instId": "A-B", "instType": "SPOT"}
    assert [one.symbol for one in OKX.decode_instruments(answer(announced, spot))] == ["A-B"]


def test_a_malformed_step_is_left_empty() -> None:
    one = listed(instId="A-B-SWAP", instType="SWAP", ctVal="10", tickSz="x", lotSz="", minSz="-1")
    assert (one.tick_size, one.lot_size, one.min_quantity) == ("", "", "")


def _products(text: str, size: str) -> str:
    return plain(str(Decimal(text) * Decimal(size))) if text else ""


@pytest.mark.parametrize("name", ["OKX", "OKEX_202107"])
def test_recorded_lists_are_read_field_by_field_and_every_symbol_is_unique(name: str) -> None:
    text = gzip.decompress(captures("streams", f"{name}.jsonl.gz").read_bytes()).decode()
    symbols: dict[str, str] = {}
    kinds: Counter[int] = Counter()
    for line in text.splitlines():
        record = json.loads(line)
        if record["kind"] != "http":
            continue
        items = json.loads(record["data"])["data"]
        specs = OKX.decode_instruments(record["data"].encode())
        assert len(specs) == len(items)
        for item, one in zip(items, specs, strict=True):
            assert one.native_symbol == item["instId"]
            assert symbols.setdefault(one.symbol, one.native_symbol) == one.native_symbol
            kinds[one.kind] += 1
            assert one.contract_size == (_products(item["ctVal"], item["ctMult"]) or "1")
            assert one.tick_size == plain(item["tickSz"])
            assert one.lot_size == _products(item["lotSz"], one.contract_size)
            assert one.min_quantity == _products(item["minSz"], one.contract_size)
            assert one.trading == (item["state"] == "live")
            assert one.settlement == item["settleCcy"]
            assert one.underlying == item["uly"]
            assert one.strike == plain(item["stk"])
            assert (one.quantity_unit == QUOTE) == (item["ctType"] == "inverse")
            assert one.base == (item["baseCcy"] or item["uly"].split("-")[0])
            assert one.kind == {"SPOT": SPOT, "SWAP": PERPETUAL, "FUTURES": FUTURE,
                                "OPTION": OPTION}[item["instType"]]  # fmt: skip
            if one.kind in (FUTURE, OPTION):
                assert one.expiry_time == int(item["expTime"]) * MS
                # What the name alone tells agrees.
                assert OKX.infer_instrument(one.native_symbol).expiry_time == one.expiry_time
            guess = OKX.infer_instrument(one.native_symbol)
            assert (guess.symbol, guess.kind, guess.quantity_unit, guess.strike) == (
                one.symbol, one.kind, one.quantity_unit, one.strike,
            )  # fmt: skip
    assert set(kinds) == {SPOT, PERPETUAL, FUTURE, OPTION}


@pytest.mark.parametrize(
    ("native", "symbol"),
    [
        ("BTC-USDT", "BTC-USDT"),
        ("UNI-USDT-SWAP", "UNI-USDT-PERP"),
        ("BTC-USD_UM-SWAP", "BTC-USD_UM-PERP"),
        ("BTC-USD-220527", "BTC-USD-20220527"),
        ("BTC-USD-210924-66000-C", "BTC-USD-20210924-66000-C"),
        ("XRP-USD_UM-260918-1.25-P", "XRP-USD_UM-20260918-1d25-P"),
        ("BTC-USD_UM_XPERP-310404", "BTC-USD_UM_XPERP-20310404"),
        ("BTC", "BTC"),
        ("A-B-209999", "A-B-20209999"),
    ],
)
def test_names_tell_the_term(native: str, symbol: str) -> None:
    one = OKX.infer_instrument(native)
    assert (one.symbol, one.native_symbol) == (symbol, native)


# History


def test_history_is_the_latest_trades_and_reaches_back_past_the_hole() -> None:
    for count, limit in [(1, 201), (100, 300), (5000, 500)]:
        request = OKX.trades_request("BTC-USDT", 1000, count)
        assert request.path == "/api/v5/market/trades"
        assert request.query == {"instId": "BTC-USDT", "limit": str(limit)}


def test_past_trades_come_oldest_first() -> None:
    trades = [{"instId": "A-B", "tradeId": str(n), "px": "1.50", "sz": "2", "side": side, "ts": "5",
               "source": "0"} for n, side in ((8, "sell"), (7, "buy"))]  # fmt: skip
    assert OKX.decode_trades(answer(*trades), "A-B") == [
        TradePrint("A-B", 7, 5 * MS, "1.5", "2", False),
        TradePrint("A-B", 8, 5 * MS, "1.5", "2", True),
    ]
    assert OKX.decode_trades(answer(), "A-B") == []


def test_a_book_that_was_asked_for() -> None:
    request = OKX.snapshot_request("A-B", 5000)
    assert request.query == {"instId": "A-B", "sz": "400"}
    book = {"asks": [["2", "1", "0", "3"]], "bids": [], "ts": "5", "seqId": 9}
    snapshot = OKX.decode_snapshot(answer(book), request)
    assert (snapshot.last, snapshot.asks, snapshot.limit) == (9, [("2", "1")], 400)
    with pytest.raises(MalformedFrameError, match="expected a book, got none"):
        OKX.decode_snapshot(answer(), request)


# Polls


def polled(*names: str) -> list[Poll]:
    return OKX.polls([spec(name) for name in names], _ALL)


def test_ratios_are_polled_of_every_swap_and_future_three_ways() -> None:
    polls = polled("BTC-USDT", "BTC-USDT-SWAP", "BTC-USD-261225", "BTC-USD-261225-66000-C")
    ratios = [p for p in polls if p.kind == common_pb2.EVENT_KIND_LONG_SHORT_RATIO]
    assert Counter(poll.native_symbol for poll in ratios) == {
        "BTC-USDT-SWAP": 3, "BTC-USD-261225": 3
    }  # fmt: skip
    assert {poll.request.path.rpartition("/")[2] for poll in ratios} == {
        "long-short-account-ratio-contract-top-trader",
        "long-short-position-ratio-contract-top-trader",
        "long-short-account-ratio-contract",
    }
    assert {poll.every_seconds for poll in ratios} == {300}
    assert ratios[0].request.query == {"instId": "BTC-USDT-SWAP", "period": "5m", "limit": "2"}


def test_whose_ratio_it_is_follows_from_the_path() -> None:
    whose = {}
    for poll in polled("BTC-USDT-SWAP"):
        body = answer(["1700000300000", "1.60"], ["1700000000000", "1.5"])
        older, newer = OKX.decode_poll(body, poll)
        message: Any = newer.message
        assert (older.message.ratio, message.ratio) == ("1.5", "1.6")  # type: ignore[attr-defined]
        assert message.exchange_time.seconds == 1_700_000_300
        assert (message.period.seconds, newer.native_symbol) == (300, "BTC-USDT-SWAP")
        assert older.key == newer.key
        whose[poll.request.path.rpartition("/")[2]] = (message.kind, newer.key)
    assert whose == {
        "long-short-account-ratio-contract-top-trader": (
            events_pb2.LONG_SHORT_RATIO_KIND_TOP_ACCOUNTS, "top_accounts"),
        "long-short-position-ratio-contract-top-trader": (
            events_pb2.LONG_SHORT_RATIO_KIND_TOP_POSITIONS, "top_positions"),
        "long-short-account-ratio-contract": (
            events_pb2.LONG_SHORT_RATIO_KIND_ALL_ACCOUNTS, "all_accounts"),
    }  # fmt: skip


def test_open_interest_of_options_is_polled_by_family() -> None:
    polls = polled("BTC-USD-261225-66000-C", "BTC-USD-261225-66000-P", "ETH-USD-261225-4000-P")
    assert [poll.request.query for poll in polls] == [
        {"instType": "OPTION", "instFamily": "BTC-USD"},
        {"instType": "OPTION", "instFamily": "ETH-USD"},
    ]
    row = {"instId": "BTC-USD-261225-66000-C", "instType": "OPTION", "oi": "36", "oiCcy": "0.360",
           "oiUsd": "23760", "ts": "5"}  # fmt: skip
    (told,) = OKX.decode_poll(answer(row), polls[0])
    message: Any = told.message
    assert (message.open_interest, message.open_interest_base) == ("36", "0.36")
    assert (told.native_symbol, told.contracts) == (
        "BTC-USD-261225-66000-C", ("open_interest",),
    )  # fmt: skip


def test_nothing_is_polled_that_is_not_selected() -> None:
    names = ["BTC-USDT-SWAP", "BTC-USD-261225-66000-C"]
    trades = Selection(frozenset((common_pb2.EVENT_KIND_TRADE,)))
    assert OKX.polls([spec(name) for name in names], trades) == []


def test_another_venues_poll_is_refused() -> None:
    poll = Poll(common_pb2.EVENT_KIND_OPEN_INTEREST, RestRequest("/fapi/v1/openInterest", 1), 10)
    with pytest.raises(MalformedFrameError, match="is not one of this venue's polls"):
        OKX.decode_poll(answer(), poll)


# Refusals


@pytest.mark.parametrize(
    ("status", "body", "seconds"),
    [
        (429, b"", 0.0),
        (429, b'{"code":"50011","msg":"Too Many Requests"}', 0.0),
        (200, b'{"code":"50011","msg":"Too Many Requests","data":[]}', 0.0),
        (200, b'{"msg":"","code":50061}', 0.0),
        (503, b'{"code":"50013","msg":"Systems are busy. Please try again later."}', 0.0),
        (200, b'{"code":"0","msg":"","data":[]}', None),
        (400, b'{"code":"51001","msg":"Instrument ID does not exist"}', None),
        (502, b"<html>50011</html>", None),
        (200, b"", None),
    ],
)
def test_asking_too_much_is_told_by_status_or_code(
    status: int, body: bytes, seconds: float | None
) -> None:
    assert OKX.rest_refusal(status, body) == seconds


def test_a_refused_request_says_why() -> None:
    refused = answer(code="51001", msg="Instrument ID does not exist")
    with pytest.raises(MalformedFrameError, match="code 51001: Instrument ID does not exist"):
        OKX.decode_instruments(refused)
    with pytest.raises(MalformedFrameError, match="code 51001"):
        OKX.decode_snapshot(b'{"code":"51001","msg":"no"}', OKX.snapshot_request("A-B", 1))
    for body in (b"{}", b'{"code":"0"}', b"[]", b"", b"<html>"):
        with pytest.raises(MalformedFrameError):
            OKX.decode_instruments(body)


def test_the_pool_stays_below_what_the_narrowest_endpoint_takes() -> None:
    pool = OKX.rest_pool
    assert (pool.name, pool.window_seconds) == ("okx", 2.0)
    assert 0 < pool.limit < 20
