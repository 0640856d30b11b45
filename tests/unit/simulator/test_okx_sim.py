"""Simulated OKX writes what the venue writes, byte for byte where a real frame is at hand."""

import dataclasses
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.collector.venues.okx import Okx as Adapter
from services.shared.capture import read_capture
from services.simulator.fixed import to_units as u
from services.simulator.instrument import InstrumentKind
from services.simulator.market import (
    AggregateTrade,
    BestPrices,
    Candle,
    Ticker,
)
from services.simulator.okx import Okx
from services.simulator.okx_channels import OkxRefusalError, read_argument, read_request
from services.simulator.okx_frames import OkxFrames, dumps, instrument
from services.simulator.okx_listing import default_symbols, listed, more_symbols
from services.simulator.reference import (
    FundingRate,
    IndexPrice,
    Liquidation,
    MarkPrice,
    OpenInterest,
)

_MS = 1000
_CAPTURES = os.environ.get("MARKETPRISM_CAPTURES")


def _framed(channel: str, told: dict[str, Any], **key: str) -> str:
    return dumps({"arg": {"channel": channel, **key}, "data": [told]}).decode()


def test_trades_are_written_as_the_venue_writes_them() -> None:
    event = AggregateTrade(
        "BTC-USDT", 1786538760218 * _MS, 5, 1040968612, 1040968613, u("64040.2"), u("0.00240857"),
        False,
    )  # fmt: skip
    assert OkxFrames().trade(event, 79706765242).decode() == (
        '{"arg":{"channel":"trades","instId":"BTC-USDT"},"data":[{"instId":"BTC-USDT",'
        '"tradeId":"1040968613","px":"64040.2","sz":"0.00240857","side":"buy",'
        '"ts":"1786538760218","count":"2","source":"0","seqId":79706765242}]}'
    )


def test_tickers_are_written_as_the_venue_writes_them() -> None:
    spec = listed("BTC-USDT-SWAP").spec
    event = Ticker(
        "BTC-USDT-SWAP", 1786540471710 * _MS, 0, u("64297.6"), u("64466"), u("63162.7"),
        u("63921"), u("64297.6"), u("0.4"), u("63921"), u("779.3"), u("63921.1"), u("1871.75"),
        u("7399887.86"), 0, 1, 2, 2,
    )  # fmt: skip
    told = OkxFrames().ticker(spec, event)
    assert _framed("tickers", told, instId="BTC-USDT-SWAP") == (
        '{"arg":{"channel":"tickers","instId":"BTC-USDT-SWAP"},"data":[{"instType":"SWAP",'
        '"instId":"BTC-USDT-SWAP","last":"63921","lastSz":"0.4","askPx":"63921.1",'
        '"askSz":"1871.75","bidPx":"63921","bidSz":"779.3","open24h":"64297.6",'
        '"high24h":"64466","low24h":"63162.7","sodUtc0":"64297.6","sodUtc8":"64297.6",'
        '"volCcy24h":"73998.8786","vol24h":"7399887.86","ts":"1786540471710"}]}'
    ), "the volume in coins is that in contracts times the contract's size"


def test_index_mark_and_liquidation_are_written_as_the_venue_writes_them() -> None:
    frames = OkxFrames()
    index = IndexPrice(
        "BTC-USD", 1785870839964 * _MS, u("64280"), u("63848.2"), u("64360.7"), u("63265.5")
    )
    told = frames.index(index)
    assert _framed("index-tickers", told, instId="BTC-USD").startswith(
        '{"arg":{"channel":"index-tickers","instId":"BTC-USD"},"data":[{"instId":"BTC-USD",'
        '"idxPx":"64280","open24h":"63848.2","high24h":"64360.7","low24h":"63265.5",'
    )
    assert dumps(
        frames.mark(
            listed("BTC-USDT-SWAP").spec, MarkPrice("", 1762079224447 * _MS, u("110562.1"), 1, 1)
        )
    ).decode() == (
        '{"instId":"BTC-USDT-SWAP","instType":"SWAP","markPx":"110562.1","ts":"1762079224447"}'
    )
    liquidation = Liquidation(
        "BTC-USDT-SWAP", 1791565600771 * _MS, 1, True, u("82700"), u("82655.7"), u("8.55")
    )
    told_liquidation = frames.liquidation(listed("BTC-USDT-SWAP").spec, liquidation)
    assert _framed("liquidation-orders", told_liquidation, instType="SWAP") == (
        '{"arg":{"channel":"liquidation-orders","instType":"SWAP"},"data":[{"details":['
        '{"bkLoss":"0","bkPx":"82655.7","ccy":"","posSide":"long","side":"sell","sz":"8.55",'
        '"ts":"1791565600771"}],"instFamily":"BTC-USDT","instId":"BTC-USDT-SWAP",'
        '"instType":"SWAP","uly":"BTC-USDT"}]}'
    )


def test_funding_has_the_venues_fields_in_its_order() -> None:
    event = FundingRate("BTC-USDT-SWAP", 1, u("-0.00042703"), 0, 1, 2, 3, 4, 5, 1)
    told = OkxFrames().funding(listed("BTC-USDT-SWAP").spec, event)
    assert list(told) == [
        "formulaType", "fundingRate", "fundingTime", "impactValue", "instId", "instType",
        "interestRate", "maxFundingRate", "method", "minFundingRate", "nextFundingRate",
        "nextFundingTime", "premium", "prevFundingTime", "settFundingRate", "settState", "ts",
    ]  # fmt: skip
    assert told["fundingRate"] == "-0.0004270300000000"


def test_the_best_prices_carry_the_sequence_of_the_book() -> None:
    event = BestPrices("BTC-USDT", 363996337, u("19918.9"), u("34"), u("19920"), u("3"))
    told = json.loads(OkxFrames().best(event, 1656633600013 * _MS))
    (best,) = told["data"]
    assert (best["seqId"], best["bids"][0][:2], best["asks"][0][:2]) == (
        363996337,
        ["19918.9", "34"],
        ["19920", "3"],
    )


def test_a_candle_tells_volumes_in_contracts_coins_and_dollars() -> None:
    candle = Candle(
        "BTC-USD-SWAP", 0, 1662716640000 * _MS, 0, 1, 2, u("20713.4"), u("20721.5"), u("20721.5"),
        u("20711.1"), u("1400"), 0, 3, 0, 0, True,
    )  # fmt: skip
    row = json.loads(OkxFrames().candle_row(listed("BTC-USD-SWAP").spec, candle))
    assert row[:6] == ["1662716640000", "20713.4", "20721.5", "20711.1", "20721.5", "1400"]
    assert row[6].startswith("6.756"), "1,400 contracts of 100 dollars"
    assert row[7:] == ["140000", "1"]


@pytest.mark.skipif(_CAPTURES is None, reason="set MARKETPRISM_CAPTURES to the captures")
def test_the_checksum_and_the_levels_are_those_of_real_frames() -> None:
    checked = 0
    for record in read_capture(Path(_CAPTURES or "") / "streams" / "OKX.jsonl.gz"):
        if record.kind != "ws" or b'"action":"snapshot"' not in record.payload():
            continue
        (book,) = json.loads(record.payload())["data"]
        bids, asks = (
            [(u(price), u(size)) for price, size, _, _ in book[side]] for side in ("bids", "asks")
        )
        frames = OkxFrames()
        assert frames.checksum(bids[:25], asks[:25]) == book["checksum"]
        told = json.loads(f"[{frames.levels(bids)}]")
        assert [level[:3] for level in told] == [level[:3] for level in book["bids"]]
        checked += 1
    assert checked == 3


def test_open_interest_of_an_inverse_contract_counts_dollars() -> None:
    event = OpenInterest("BTC-USD-SWAP", 0, u("10"), u("0.02"), u("1000"))
    told = OkxFrames().open_interest(listed("BTC-USD-SWAP").spec, event)
    assert (told["oi"], told["oiCcy"], told["oiUsd"]) == ("10", "0.02", "1000")


@pytest.mark.parametrize(
    ("name", "kind", "size", "multiplier", "inverse"),
    [
        ("BTC-USDT", InstrumentKind.SPOT, "1", "1", False),
        ("BTC-USDT-SWAP", InstrumentKind.PERPETUAL, "0.01", "1", False),
        ("BTC-USD-SWAP", InstrumentKind.PERPETUAL, "100", "1", True),
        ("ETH-USD-261225", InstrumentKind.FUTURE, "10", "1", True),
        ("BTC-USD_UM_XPERP-310404", InstrumentKind.FUTURE, "0.01", "1", False),
        ("BTC-USD-261225-65000-C", InstrumentKind.OPTION, "1", "0.01", False),
        ("币安人生-USDT", InstrumentKind.SPOT, "1", "1", False),
        ("SIM0001-USDT-SWAP", InstrumentKind.PERPETUAL, None, "1", False),
    ],
)
def test_a_name_tells_what_an_instrument_is(
    name: str, kind: InstrumentKind, size: str | None, multiplier: str, inverse: bool
) -> None:
    spec = listed(name).spec
    assert (spec.symbol, spec.kind, spec.inverse) == (name, kind, inverse)
    assert size is None or spec.contract_size == u(size)
    assert spec.multiplier == u(multiplier)
    assert listed(name) == listed(name)
    assert listed(name).price >= 10 * spec.tick
    assert listed(name).quantity >= spec.lot


@pytest.mark.parametrize(
    "name", ["BTCUSDT", "", "BTC-", "-USDT", "BTC-USDT-SWAPS", "BTC-USD-261399", "A B-USDT",
             "BTC-USD-261225-65000-X", "x" * 70 + "-USDT"],
)  # fmt: skip
def test_a_name_that_okx_would_not_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        listed(name)


def test_any_number_of_instruments_can_be_had_and_the_dated_ones_lie_ahead() -> None:
    now = datetime(2026, 12, 20, tzinfo=UTC)
    names = more_symbols(200, default_symbols(now))
    assert len(set(names)) == 200
    for name in names:
        expiry = listed(name).spec.expiry_us
        assert expiry is None or expiry > now.timestamp() * 1e6 + 14 * 86400e6
    assert more_symbols(2, names) == names[:2]


def test_the_collector_reads_every_instrument_as_it_is() -> None:
    names = more_symbols(20, default_symbols())
    body = dumps({"code": "0", "data": [instrument(listed(n).spec) for n in names], "msg": ""})
    read = {spec.native_symbol: spec for spec in Adapter().decode_instruments(body)}
    assert set(read) == set(names)
    assert read["BTC-USD-SWAP"].contract_size == "100"
    option = read[next(name for name in names if name.endswith("-C"))]
    assert (option.strike, option.contract_size) == ("65000", "0.01")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "60012"),
        ("[]", "60012"),
        ('{"op":"order","args":[{}]}', "60012"),
        ('{"op":"subscribe"}', "60012"),
        ('{"op":"subscribe","args":[]}', "60013"),
        ('{"op":"subscribe","id":"a-b","args":[{}]}', "60033"),
        ("[" * 100_000, "60012"),
    ],
)
def test_a_request_that_makes_no_sense_has_the_venues_error(text: str, code: str) -> None:
    with pytest.raises(OkxRefusalError) as refused:
        read_request(text)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("given", "path", "code"),
    [
        ({"channel": "candle1m", "instId": "BTC-USDT"}, "public", "60018"),
        ({"channel": "books", "instId": "BTC-USDT"}, "business", "60018"),
        ({"channel": "books"}, "public", "60018"),
        ({"channel": "nope", "instId": "BTC-USDT"}, "public", "60018"),
        ({"channel": "liquidation-orders", "instId": "BTC-USDT-SWAP"}, "public", "60018"),
        ({"channel": "instruments", "instType": "SPOTS"}, "public", "60018"),
        ({"channel": "books-l2-tbt", "instId": "BTC-USDT"}, "public", "60011"),
        ("books", "public", "60013"),
    ],
)
def test_a_channel_that_is_not_there_is_refused(given: object, path: str, code: str) -> None:
    with pytest.raises(OkxRefusalError) as refused:
        read_argument(given, path)
    assert refused.value.code == code


def test_the_acknowledgement_leaves_out_what_the_channel_does_not_know() -> None:
    given = {"channel": "liquidation-orders", "instType": "SWAP", "instFamily": "BTC-USDT"}
    read = read_argument(given, "public")
    assert read.told == {"channel": "liquidation-orders", "instType": "SWAP"}
    assert read.stream == "liquidation-orders:SWAP"
    old = read_argument({"channel": "opt-summary", "uly": "BTC-USD"}, "public")
    assert old.told == {"channel": "opt-summary", "instFamily": "BTC-USD"}


def test_streams_of_several_instruments_belong_to_no_symbol() -> None:
    protocol = Okx()
    assert protocol.symbol_of("books:BTC-USDT") == "BTC-USDT"
    for stream in ("instruments:SPOT", "opt-summary:BTC-USD", "index-tickers:BTC-USDT"):
        assert protocol.symbol_of(stream) is None
        assert protocol.is_reference(stream)
    assert not protocol.is_reference("books:BTC-USDT")


def test_an_instrument_with_another_tick_is_told_with_it() -> None:
    spec = dataclasses.replace(listed("BTC-USDT").spec, tick=u("0.5"))
    assert instrument(spec)["tickSz"] == "0.5"
    assert instrument(spec, "expired")["state"] == "expired"
