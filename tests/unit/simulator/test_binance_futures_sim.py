"""Frames of the simulated futures venues are the venue's: same fields, same order, same numbers."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from services.simulator.binance_futures_contracts import Contract, contract_of
from services.simulator.binance_futures_frames import COIN_M, USD_M, FuturesFrames
from services.simulator.binance_futures_listing import coin_m_listed, usd_m_listed
from services.simulator.binance_futures_market import OtherTrade
from services.simulator.fixed import to_units as u
from services.simulator.market import (
    AggregateTrade,
    BestPrices,
    BookState,
    Candle,
    DepthUpdate,
    Ticker,
    Trade,
)
from services.simulator.reference import (
    FundingRate,
    IndexPrice,
    InstrumentChange,
    InstrumentEvent,
    Liquidation,
    MarkPrice,
)

_CAPTURES = os.environ.get("MARKETPRISM_CAPTURES")
_NOW = 1_789_469_000_000_000
_MS = 1000
# Added by the venue since the captures were made.
_NEW_FIELDS = {"st", "ps", "ap", "nq", "P", "i", "a", "X", "T", "r"}

_USD = FuturesFrames(USD_M)
_COIN = FuturesFrames(COIN_M)


def _usd(symbol: str = "BTCUSDT") -> Contract:
    return contract_of(usd_m_listed(symbol).spec, _NOW)


def _coin(symbol: str = "BTCUSD_PERP") -> Contract:
    return contract_of(coin_m_listed(symbol).spec, _NOW)


def _check(made: bytes, real: str) -> None:
    """Compare all but the event time, which follows from ids here and from a clock there."""
    told, wanted = json.loads(made), json.loads(real)
    assert list(told) == list(wanted), "the venue's fields in the venue's order"
    assert told.pop("E") >= told.get("T", 0)
    del wanted["E"]
    assert told == wanted


# The texts below are frames that the venue sent in September 2026.


def test_a_usd_m_diff_is_the_venues() -> None:
    event = DepthUpdate(
        "BTCUSDT",
        100,
        1789469121836 * _MS,
        429012275424,
        429012275789,
        [],
        [(u("77021.60"), u("650.0043"))],
        429012275360,
    )
    real = (
        '{"e":"depthUpdate","E":1789469121904,"T":1789469121836,"s":"BTCUSDT","ps":"BTCUSDT",'
        '"U":429012275424,"u":429012275789,"pu":429012275360,"b":[],'
        '"a":[["77021.6","650.0043"]],"st":1}'
    )
    _check(_USD.depth(_usd(), event, 429012275424), real)


def test_a_usd_m_best_price_is_the_venues() -> None:
    event = BestPrices(
        "BTCUSDT", 429012276615, u("76947.3"), u("0.0374"), u("76968.3"), u("2237.2173")
    )
    real = (
        '{"e":"bookTicker","u":429012276615,"s":"BTCUSDT","ps":"BTCUSDT","b":"76947.3",'
        '"B":"0.0374","a":"76968.3","A":"2237.2173","T":1789469121938,"E":1789469121959,"st":1}'
    )
    _check(_USD.best(_usd(), event, 1789469121938 * _MS), real)


# Whole numbers and shapes -------------------------------------------------------------------


def test_coin_m_counts_contracts_and_names_the_pair() -> None:
    event = DepthUpdate(
        "BTCUSD_PERP", 100, _NOW, 127559587191, 127559588177,
        [(u("35365.9"), u("1400")), (u("35365.8"), 0)], [], 127559587113,
    )  # fmt: skip
    told = json.loads(_COIN.depth(_coin(), event, event.first_id))
    assert told["b"] == [["35365.9", "1400"], ["35365.8", "0"]]
    assert (told["s"], told["ps"], told["st"]) == ("BTCUSD_PERP", "BTCUSD", 2)


def test_a_number_finer_than_the_step_is_told_in_full() -> None:
    event = BestPrices("BTCUSDT", 1, u("1.23456789"), u("0.00000001"), u("2"), u("3"))
    told = json.loads(_USD.best(_usd(), event, _NOW))
    assert (told["b"], told["B"]) == ("1.23456789", "0.00000001")
    assert (told["a"], told["A"]) == ("2.0", "3.000")


def test_trades_tell_how_they_were_executed() -> None:
    trade = Trade("BTCUSDT", _NOW, 7, u("77490"), u("0.5"), True)
    other = OtherTrade("BTCUSDT", _NOW, 8, u("77490"), u("0.5"), True, "ADL")
    assert json.loads(_USD.trade(_usd(), trade))["X"] == "MARKET"
    told = json.loads(_USD.trade(_usd(), other, other.execution))
    assert (told["t"], told["X"], told["p"], told["q"]) == (8, "ADL", "77490.0", "0.500")


def test_only_usd_m_tells_the_quantity_without_retail_price_improvement() -> None:
    event = AggregateTrade("X", _NOW, 5, 7, 9, u("77490"), u("3"), False)
    usd, coin = (
        json.loads(_USD.aggregate(_usd(), event)),
        json.loads(_COIN.aggregate(_coin(), event)),
    )
    assert usd["nq"] == usd["q"] == "3.000"
    assert "nq" not in coin
    assert coin["q"] == "3"
    assert (usd["a"], usd["f"], usd["l"]) == (5, 7, 9)


def test_a_mark_without_funding_has_an_empty_rate_and_no_time() -> None:
    mark = MarkPrice("BTCUSDT_261225", _NOW, u("78303.46"), u("77494.6"), u("77494.7"))
    told = json.loads(_USD.mark(mark, None))
    assert (told["r"], told["T"]) == ("", 0)
    assert told["p"] == told["ap"] == "78303.46000000"


def test_a_mark_of_a_perpetual_tells_its_funding() -> None:
    funding = FundingRate("BTCUSDT", _NOW, u("-0.000075"), 0, 0, 0, 0, 1_789_488_000_000_000, 0, 0)
    told = json.loads(_USD.mark(MarkPrice("BTCUSDT", _NOW, u("2"), u("3"), u("4")), funding))
    assert (told["r"], told["T"]) == ("-0.00007500", 1_789_488_000_000)
    assert (told["p"], told["i"], told["P"]) == ("2.00000000", "3.00000000", "4.00000000")


def test_a_liquidation_tells_limit_and_average_price() -> None:
    event = Liquidation("BTCUSD_PERP", _NOW, 9, True, u("9352.7"), u("9314.5"), u("3"))
    order = json.loads(_COIN.liquidation(_coin(), event))["o"]
    assert (order["S"], order["p"], order["ap"], order["q"]) == ("SELL", "9314.5", "9352.7", "3")
    assert (order["ps"], order["st"]) == ("BTCUSD", 2)


def test_candles_of_inverse_contracts_count_base_asset() -> None:
    # 1,000 contracts of 100 dollars at 50,000 are two bitcoin.
    value = u("50000") * 1000
    event = Candle(
        "BTCUSD_PERP", _NOW, _NOW, _NOW + 59_999_999, 1, 2, u("50000"), u("50000"), u("50000"),
        u("50000"), u("1000"), value, 2, u("500"), value // 2, True,
    )  # fmt: skip
    told = json.loads(_COIN.candle(_coin(), event, "5m"))["k"]
    assert (told["v"], told["q"], told["V"], told["Q"]) == (
        "1000", "2.00000000", "500", "1.00000000",
    )  # fmt: skip
    assert (told["i"], told["x"]) == ("5m", True)


def test_candles_without_trades_do_not_divide_by_nothing() -> None:
    event = Candle("BTCUSD_PERP", _NOW, _NOW, _NOW, -1, -1, 1, 1, 1, 1, 0, 0, 0, 0, 0, False)
    assert json.loads(_COIN.candle(_coin(), event, "1m"))["k"]["q"] == "0.00000000"


def test_usd_m_and_coin_m_name_their_indices_differently() -> None:
    index = IndexPrice("BTCUSD", _NOW, u("77494.5"), 0, 0, 0)
    assert json.loads(_COIN.index(index)) == {
        "e": "indexPriceUpdate", "E": _NOW // 1000, "i": "BTCUSD", "p": "77494.50000000",
    }  # fmt: skip
    assert json.loads(_USD.index(index))["e"] == "IndexUpdate"


def test_names_of_any_alphabet_are_written_as_they_are() -> None:
    contract = _usd("币安人生USDT")
    event = DepthUpdate("币安人生USDT", 100, _NOW, 2, 3, [], [], 1)
    told = json.loads(_USD.depth(contract, event, 2).decode())
    assert told["s"] == told["ps"] == "币安人生USDT"


def test_a_book_over_rest_names_itself_only_at_coin_m() -> None:
    book = BookState("BTCUSD_PERP", 5, ((u("1.5"), u("2")),), ())
    usd, coin = (
        json.loads(_USD.book(_usd(), book, _NOW)),
        json.loads(_COIN.book(_coin(), book, _NOW)),
    )
    assert list(usd) == ["lastUpdateId", "E", "T", "bids", "asks"]
    assert list(coin) == ["lastUpdateId", "E", "T", "symbol", "pair", "bids", "asks"]
    assert coin["bids"] == [["1.5", "2"]]


# Against captured frames --------------------------------------------------------------------


def _made() -> dict[tuple[str, int], dict[str, Any]]:
    """One frame of each kind, by event type and venue."""
    ticker = Ticker("X", _NOW, _NOW, 10, 12, 9, 11, 10, 1, 11, 1, 12, 1, 5, 55, 1, 2, 2)
    candle = Candle("X", _NOW, _NOW, _NOW, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, False)
    funding = FundingRate("X", _NOW, 1, 1, 1, 1, 1, _NOW, _NOW, 1)
    texts = []
    for frames, contract in ((_USD, _usd()), (_COIN, _coin())):
        texts += [
            frames.depth(contract, DepthUpdate("X", 100, _NOW, 2, 3, [], [], 1), 2),
            frames.best(contract, BestPrices("X", 1, 1, 1, 1, 1), _NOW),
            frames.trade(contract, Trade("X", _NOW, 1, 1, 1, True)),
            frames.aggregate(contract, AggregateTrade("X", _NOW, 1, 1, 1, 1, 1, True)),
            frames.candle(contract, candle, "1m"),
            frames.ticker(contract, ticker),
            frames.mark(MarkPrice("X", _NOW, 1, 1, 1), funding),
            frames.liquidation(contract, Liquidation("X", _NOW, 1, True, 1, 1, 1)),
            frames.book(contract, BookState("X", 1, (), ()), _NOW),
            frames.contract_info(
                contract, InstrumentChange("X", _NOW, InstrumentEvent.LISTED, contract.spec)
            ),
        ]
    venues = [USD_M] * 10 + [COIN_M] * 10
    told = [json.loads(text) for text in texts]
    return {(each.get("e", "book"), venue): each for each, venue in zip(told, venues, strict=True)}


def _captured(name: str) -> list[tuple[int, dict[str, Any]]]:
    assert _CAPTURES is not None
    path = Path(_CAPTURES) / name
    found = []
    text = path.read_bytes()
    for line in (gzip.decompress(text) if path.suffix == ".gz" else text).splitlines():
        record = json.loads(line)
        if record["kind"] not in ("ws", "http") or "generated" in record["data"]:
            continue
        data = json.loads(record["data"])
        if isinstance(data, dict) and "data" in data:
            data = data["data"]
        for each in data if isinstance(data, list) else [data]:
            # A spot frame of the same kind lacks what futures have, and has `M` or `x`.
            if "M" in each or ("x" in each and "w" in each):
                continue
            symbol = each.get("s") or each.get("symbol") or each.get("o", {}).get("s") or ""
            found.append((COIN_M if "USD_" in symbol else USD_M, each))
    return found


@pytest.mark.skipif(_CAPTURES is None, reason="set MARKETPRISM_CAPTURES to the folder of captures")
@pytest.mark.parametrize(
    "name",
    [
        "frames/binance_futures.jsonl.gz",
        "frames/binance_delivery.jsonl.gz",
        "frames/binance_2021_2022.jsonl.gz",
        "frames/present_day_2026.jsonl",
        "streams/BINANCE_FUTURES.jsonl.gz",
    ],
)
def test_every_field_of_a_captured_frame_is_in_ours_in_the_same_form(name: str) -> None:
    made, compared = _made(), set()
    for venue, real in _captured(name):
        kind = real.get("e") or ("book" if "bids" in real and "T" in real else None)
        ours = made.get((kind or "", venue))
        if ours is None or (kind == "bookTicker" and "e" not in real):
            continue
        if kind == "depthUpdate" and "pu" not in real:
            continue
        compared.add(kind)
        for inner in ("o", "k", ""):
            here, there = (ours.get(inner), real.get(inner)) if inner else (ours, real)
            if not isinstance(here, dict) or not isinstance(there, dict):
                continue
            missing = there.keys() - here.keys()
            added = here.keys() - there.keys()
            assert not missing, f"{kind}: the venue tells {missing}, ours does not: {there}"
            assert added <= _NEW_FIELDS, f"{kind}: ours tells {added}, the venue does not: {there}"
            for field in there.keys() & here.keys():
                assert type(here[field]) is type(there[field]), (kind, field, there[field])
    assert compared, "nothing in the capture was compared"
