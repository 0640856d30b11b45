"""Frames are the venue's, byte for byte where a real one is at hand."""

import json

import pytest

from services.simulator.binance import BinanceSpot, to_microseconds
from services.simulator.connection import Variant, websocket_frame
from services.simulator.fixed import to_units as u
from services.simulator.market import (
    AggregateTrade,
    BestPrices,
    Candle,
    DepthUpdate,
    Event,
    RawFrame,
    Ticker,
    Trade,
)

_MS = 1000

# Each text is a frame that the venue sent (2021 to 2024); the event says the same.
_FRAMES: list[tuple[Event, str, str]] = [
    (
        DepthUpdate(
            "ETHUSDT",
            100,
            1723161255408 * _MS,
            35346513506,
            35346513512,
            [(u("2683.8"), u("3.0292")), (u("2683.48"), 0)],
            [(u("2687.31"), u("81.3572"))],
        ),
        "ethusdt@depth@100ms",
        '{"e":"depthUpdate","E":1723161255408,"s":"ETHUSDT","U":35346513506,"u":35346513512,'
        '"b":[["2683.80000000","3.02920000"],["2683.48000000","0.00000000"]],'
        '"a":[["2687.31000000","81.35720000"]]}',
    ),
    (
        BestPrices("NKNUSDT", 499869768, u("0.3521"), u("672"), u("0.3526"), u("3199")),
        "nknusdt@bookTicker",
        '{"u":499869768,"s":"NKNUSDT","b":"0.35210000","B":"672.00000000",'
        '"a":"0.35260000","A":"3199.00000000"}',
    ),
    (
        Trade("ETHUSDT", 1723161255612 * _MS, 1520538925, u("2683.8"), u("0.002"), True),
        "ethusdt@trade",
        '{"e":"trade","E":1723161255612,"s":"ETHUSDT","t":1520538925,"p":"2683.80000000",'
        '"q":"0.00200000","T":1723161255612,"m":true,"M":true}',
    ),
    (
        AggregateTrade(
            "LRCBTC",
            1633998534486 * _MS,
            9213679,
            12368013,
            12368013,
            u("0.00000638"),
            u("177"),
            False,
        ),
        "lrcbtc@aggTrade",
        '{"e":"aggTrade","E":1633998534486,"s":"LRCBTC","a":9213679,"p":"0.00000638",'
        '"q":"177.00000000","f":12368013,"l":12368013,"T":1633998534486,"m":false,"M":true}',
    ),
    (
        Candle(
            "NKNUSDT",
            1633998523963 * _MS,
            1633998480000 * _MS,
            1633998539999 * _MS,
            19862761,
            19862790,
            u("0.3527"),
            u("0.3528"),
            u("0.3528"),
            u("0.3522"),
            u("25877"),
            u("9116.046"),
            30,
            u("58"),
            u("20.4624"),
            False,
        ),
        "nknusdt@kline_1m",
        '{"e":"kline","E":1633998523963,"s":"NKNUSDT","k":{"t":1633998480000,"T":1633998539999,'
        '"s":"NKNUSDT","i":"1m","f":19862761,"L":19862790,"o":"0.35270000","c":"0.35280000",'
        '"h":"0.35280000","l":"0.35220000","v":"25877.00000000","n":30,"x":false,'
        '"q":"9116.04600000","V":"58.00000000","Q":"20.46240000","B":"0"}}',
    ),
]


@pytest.mark.parametrize(("event", "stream", "text"), _FRAMES, ids=lambda part: str(part)[:20])
def test_an_event_is_written_as_the_venue_writes_it(event: Event, stream: str, text: str) -> None:
    protocol = BinanceSpot()
    payload = protocol.encode(event)
    assert payload.decode() == text
    assert stream in protocol.streams_of(event)
    wrapped = protocol.frame(event, stream, payload, Variant(combined=True, microseconds=False))
    assert wrapped.decode() == f'{{"stream":"{stream}","data":{text}}}'
    assert protocol.frame(event, stream, payload, Variant(False, False)) == payload


def test_the_ticker_has_the_venues_fields_in_its_order() -> None:
    event = Ticker("ETHUSDT", 10**15, 10**15 - 1, *(u("2") for _ in range(12)), 1, 2, 2)
    told = json.loads(BinanceSpot().encode(event))
    assert "".join(key for key in told if key != "e") == "EspPwxcQbBaAohlvqOCFLn"
    assert told["P"] == "0.000"


def test_the_slower_diff_stream_has_the_short_name() -> None:
    event = DepthUpdate("BTCUSDT", 1000, 0, 1, 2, [], [])
    assert list(BinanceSpot().streams_of(event)) == ["btcusdt@depth"]


def test_microseconds_change_times_and_nothing_else() -> None:
    trade = _FRAMES[2][2].encode()
    told = json.loads(to_microseconds(trade))
    assert told == {**json.loads(trade), "E": 1723161255612000, "T": 1723161255612000}
    candle = json.loads(to_microseconds(_FRAMES[4][2].encode()))
    assert candle["k"]["t"] == 1633998480000000
    depth = json.loads(to_microseconds(_FRAMES[0][2].encode()))
    assert (depth["U"], depth["u"]) == (35346513506, 35346513512)


def test_a_captured_frame_is_sent_as_it_came() -> None:
    protocol = BinanceSpot()
    whole = b'{"stream":"x@trade","data":{"s":"X", "odd" : 1}}'
    event = RawFrame("X", "x@trade", b'{"s":"X", "odd" : 1}', whole, 7)
    payload = protocol.encode(event)
    assert protocol.frame(event, "x@trade", payload, Variant(True, False)) == whole
    assert protocol.frame(event, "x@trade", payload, Variant(False, False)) == event.payload
    bare = event._replace(wrapped=None)
    assert (
        protocol.frame(bare, "x@trade", payload, Variant(True, False))
        == b'{"stream":"x@trade","data":{"s":"X", "odd" : 1}}'
    )
    assert protocol.event_id(event) == 7
    assert protocol.event_id(event._replace(stream="x@bookTicker")) is None


@pytest.mark.parametrize("length", [0, 125, 126, 65535, 65536])
def test_frame_headers_follow_the_length(length: int) -> None:
    frame = websocket_frame(b"x" * length)
    header = len(frame) - length
    assert header == (2 if length < 126 else 4 if length < 65536 else 10)
    assert frame[0] == 0x81
