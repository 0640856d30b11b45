"""What the collector asks of Binance: streams and their routes, polls, and the venue's limits."""

import json
from typing import Any

import pytest
from marketprism.market.v1 import common_pb2

from services.collector.venues.base import (
    ConnectionRules,
    InstrumentSpec,
    MalformedFrameError,
    Poll,
    RestRequest,
    Selection,
    Subscription,
    VenueAdapter,
)
from services.collector.venues.binance_adapter import BinanceAdapter
from services.collector.venues.registry import adapter_for_exchange, exchange_for_url
from tests.unit.collector.binance_support import ADAPTERS, COINM, SPOT, US, USDM, plain

EVERY_KIND = frozenset(common_pb2.EventKind.values()) - {0}
ALL = Selection(EVERY_KIND, (1, 60, 3600, 61))
BOOK = common_pb2.EVENT_KIND_ORDER_BOOK
TRADE = common_pb2.EVENT_KIND_TRADE
TOP = common_pb2.EVENT_KIND_BEST_BID_OFFER
TICKER = common_pb2.EVENT_KIND_TICKER
CANDLE = common_pb2.EVENT_KIND_CANDLE
FUNDING = common_pb2.EVENT_KIND_FUNDING_RATE
MARK = common_pb2.EVENT_KIND_MARK_PRICE
INDEX = common_pb2.EVENT_KIND_INDEX_PRICE
INTEREST = common_pb2.EVENT_KIND_OPEN_INTEREST
LIQUIDATION = common_pb2.EVENT_KIND_LIQUIDATION
RATIO = common_pb2.EVENT_KIND_LONG_SHORT_RATIO


def _topics(found: list[Subscription]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {each.topic: (each.route, each.kinds) for each in found}


def _infer(adapter: Any, name: str) -> InstrumentSpec:
    spec: InstrumentSpec = adapter.infer_instrument(name)
    return spec


@pytest.mark.parametrize("exchange", sorted(ADAPTERS))
def test_every_adapter_is_one_of_the_interface(exchange: str) -> None:
    adapter: VenueAdapter = adapter_for_exchange(exchange)
    assert adapter.exchange == exchange
    assert adapter.ordered_ids
    assert adapter.default_rest_url.startswith("https://")
    assert adapter.default_ws_url.startswith("wss://")
    assert adapter.opening_requests(1) == []
    assert BOOK in adapter.kinds
    assert [request.path[-12:] for request in adapter.instrument_requests()] == ["exchangeInfo"]


# Streams


def test_spot_has_a_stream_for_each_kind_on_its_only_route() -> None:
    found = SPOT.subscriptions(_infer(SPOT, "BTCUSDT"), ALL)
    assert _topics(found) == {
        "btcusdt@depth@100ms": ("", (BOOK,)),
        "btcusdt@trade": ("", (TRADE,)),
        "btcusdt@bookTicker": ("", (TOP,)),
        "btcusdt@ticker": ("", (TICKER,)),
        "btcusdt@kline_1s": ("", (CANDLE,)),
        "btcusdt@kline_1m": ("", (CANDLE,)),
        "btcusdt@kline_1h": ("", (CANDLE,)),
    }
    assert {each.native_symbol for each in found} == {"BTCUSDT"}
    assert SPOT.shared_subscriptions([_infer(SPOT, "BTCUSDT")], ALL) == []
    assert SPOT.route_url("wss://x/stream", "") == "wss://x/stream"


def test_usdm_asks_for_each_stream_on_the_route_that_serves_it() -> None:
    found = USDM.subscriptions(_infer(USDM, "BTCUSDT"), ALL)
    assert _topics(found) == {
        "btcusdt@depth@100ms": ("public", (BOOK,)),
        "btcusdt@trade": ("public", (TRADE,)),
        "btcusdt@bookTicker": ("public", (TOP,)),
        "btcusdt@ticker": ("market", (TICKER,)),
        "btcusdt@forceOrder": ("market", (LIQUIDATION,)),
        "btcusdt@markPrice@1s": ("market", (MARK, INDEX, FUNDING)),
        "btcusdt@kline_1m": ("market", (CANDLE,)),
        "btcusdt@kline_1h": ("market", (CANDLE,)),
    }
    shared = USDM.shared_subscriptions([_infer(USDM, "BTCUSDT")], ALL)
    assert _topics(shared) == {"!contractInfo": ("market", ())}
    base = USDM.default_ws_url
    assert USDM.route_url(base, "public") == "wss://fstream.binance.com/public/stream"
    assert USDM.route_url(base + "/", "market") == "wss://fstream.binance.com/market/stream"
    assert USDM.route_url("ws://127.0.0.1:1/x/stream", "public") == (
        "ws://127.0.0.1:1/x/public/stream"
    )


def test_coinm_has_one_route_and_indices_by_pair() -> None:
    specs = [_infer(COINM, name) for name in ("BTCUSD_PERP", "BTCUSD_261225", "DOTUSD_PERP")]
    found = _topics(COINM.subscriptions(specs[0], ALL))
    assert {route for route, _ in found.values()} == {""}
    assert found["btcusd_perp@markPrice@1s"] == ("", (MARK, FUNDING))
    dated = _topics(COINM.subscriptions(specs[1], ALL))
    assert dated["btcusd_261225@markPrice@1s"] == ("", (MARK,))
    assert _topics(COINM.shared_subscriptions(specs, ALL)) == {
        "!contractInfo": ("", ()),
        "btcusd@indexPrice@1s": ("", (INDEX,)),
        "dotusd@indexPrice@1s": ("", (INDEX,)),
    }
    assert COINM.route_url(COINM.default_ws_url, "") == "wss://dstream.binance.com/stream"
    assert COINM.shared_subscriptions([], ALL) == []


@pytest.mark.parametrize("adapter", [SPOT, USDM, COINM])
def test_nothing_is_asked_for_that_is_not_selected(adapter: Any) -> None:
    spec = _infer(adapter, "BTCUSDT" if adapter is not COINM else "BTCUSD_261225")
    (only,) = adapter.subscriptions(spec, Selection(frozenset((TOP,))))
    assert only.kinds == (TOP,)
    assert adapter.subscriptions(spec, Selection(frozenset())) == []
    assert adapter.polls([spec], Selection(frozenset((TOP,)))) == []
    if adapter is COINM:
        # A dated future has no funding, and COIN-M's index comes from elsewhere.
        assert adapter.subscriptions(spec, Selection(frozenset((FUNDING, INDEX)))) == []


def test_what_comes_every_second_is_missed_soon_and_what_happens_rarely_never() -> None:
    found = USDM.subscriptions(_infer(USDM, "BTCUSDT"), ALL)
    quiet = {each.topic.partition("@")[2]: each.quiet_seconds for each in found}
    assert quiet["trade"] == quiet["forceOrder"] == 0
    assert quiet["markPrice@1s"] == 15
    assert quiet["depth@100ms"] == 120
    assert min(quiet["bookTicker"], quiet["ticker"], quiet["kline_1h"]) >= 120


@pytest.mark.parametrize("adapter", [SPOT, US, USDM, COINM])
def test_requests_name_what_they_are_about_and_stay_small(adapter: BinanceAdapter) -> None:
    topics = [f"s{number}usdt@depth@100ms" for number in range(310)]
    for make, method in ((adapter.subscribe, "SUBSCRIBE"), (adapter.unsubscribe, "UNSUBSCRIBE")):
        requests = make(topics, 7)
        assert [request.request_id for request in requests] == [7, 8, 9]
        assert [topic for request in requests for topic in request.topics] == topics
        for request in requests:
            assert json.loads(request.frame) == {
                "method": method, "params": list(request.topics), "id": request.request_id,
            }  # fmt: skip
            assert len(request.frame) < 4096
    assert adapter.subscribe([], 1) == []


# Limits


def test_connections_and_requests_stay_within_the_venues_rules() -> None:
    spot: ConnectionRules = SPOT.connection_rules
    assert spot.topics <= 1024
    assert 1 / spot.request_seconds <= 4  # of 5: our answers to pings count
    futures: ConnectionRules = USDM.connection_rules
    assert futures.topics <= 200
    assert 1 / futures.request_seconds <= 8  # of 10
    for rules in (spot, futures, COINM.connection_rules):
        assert rules.connects / rules.connect_seconds <= 300 / 300
        assert rules.life_seconds == 86_400


def test_usdm_and_coinm_share_their_weight() -> None:
    assert USDM.rest_pool == COINM.rest_pool
    pools = {pool.name: pool for pool in (SPOT.rest_pool, US.rest_pool, USDM.rest_pool)}
    limits = {"binance": 6000, "binance_us": 1200, "binance_futures": 2400}
    assert pools.keys() == limits.keys()
    for name, pool in pools.items():
        assert 0.5 * limits[name] <= pool.limit < limits[name]
        assert pool.window_seconds == 60


@pytest.mark.parametrize(
    ("status", "body", "refused"),
    [
        (429, b"", True),
        (418, b'{"code":-1003,"msg":"IP banned until 1573027200123."}', True),
        (400, b'{"code":-1003,"msg":"Too many requests."}', True),
        (200, b'{"code":-1003,"msg":"Too many requests."}', True),
        (400, b'{"code":-1121,"msg":"Invalid symbol."}', False),
        (200, b'{"lastUpdateId":-1003}', False),
        (500, b"<html>", False),
        (200, b'{"code":', False),
        (200, b'["code"]', False),
    ],
)
def test_only_asking_too_much_is_a_refusal_of_that_sort(
    status: int, body: bytes, refused: bool
) -> None:
    assert USDM.rest_refusal(status, body) == (0.0 if refused else None)


def test_a_snapshot_of_binance_us_costs_a_fifth() -> None:
    assert [US.snapshot_request("BTCUSD", depth).weight for depth in (100, 500, 1000, 5000)] == [
        1, 5, 10, 50,
    ]  # fmt: skip


# Polls


def _polls(adapter: Any, names: list[str], kind: "common_pb2.EventKind.ValueType") -> list[Poll]:
    specs = [_infer(adapter, name) for name in names]
    polls: list[Poll] = adapter.polls(specs, Selection(frozenset((kind,))))
    assert all(poll.kind == kind for poll in polls)
    return polls


def test_open_interest_is_asked_for_of_each_instrument_within_a_quarter_of_the_weight() -> None:
    (poll,) = _polls(USDM, ["BTCUSDT"], INTEREST)
    assert (poll.request.path, poll.request.query) == (
        "/fapi/v1/openInterest",
        {"symbol": "BTCUSDT"},
    )
    assert (poll.native_symbol, poll.every_seconds) == ("BTCUSDT", 15)
    many = _polls(USDM, [f"S{number}USDT" for number in range(600)], INTEREST)
    assert len(many) == 600
    assert sum(60 / each.every_seconds * each.request.weight for each in many) <= 601


def test_the_three_ratios_are_asked_for_of_perpetuals_or_of_coinm_pairs() -> None:
    polls = _polls(USDM, ["BTCUSDT", "BTCUSDT_261225"], RATIO)
    paths = {
        f"/futures/data/{path}"
        for path in (
            "topLongShortAccountRatio", "topLongShortPositionRatio", "globalLongShortAccountRatio",
        )
    }  # fmt: skip
    assert {poll.request.path for poll in polls} == paths
    assert [poll.request.query for poll in polls] == [
        {"symbol": "BTCUSDT", "period": "5m", "limit": "1"}
    ] * 3
    assert {poll.every_seconds for poll in polls} == {300}
    inverse = _polls(COINM, ["BTCUSD_PERP", "BTCUSD_261225"], RATIO)
    assert [poll.request.query["pair"] for poll in inverse] == ["BTCUSD"] * 3
    many = _polls(USDM, [f"S{number}USDT" for number in range(700)], RATIO)
    assert sum(300 / each.every_seconds for each in many) <= 1000  # the venue's own limit


@pytest.mark.parametrize(
    ("path", "name", "answer", "shares"),
    [
        ("topLongShortAccountRatio", "TOP_ACCOUNTS",
         {"symbol": "X", "longShortRatio": "1.8105", "longAccount": "0.6442",
          "shortAccount": "0.3558", "timestamp": "1583139600000"}, ("0.6442", "0.3558")),
        ("topLongShortPositionRatio", "TOP_POSITIONS",
         {"pair": "X", "longShortRatio": "0.7869", "longPosition": "0.6440",
          "shortPosition": "0.3560", "timestamp": 1583139600000}, ("0.644", "0.356")),
        ("globalLongShortAccountRatio", "ALL_ACCOUNTS",
         {"symbol": "X", "longShortRatio": "2.0", "timestamp": 1583139600000}, None),
    ],
)  # fmt: skip
def test_ratios_say_whose_they_are(
    path: str, name: str, answer: dict[str, Any], shares: tuple[str, str] | None
) -> None:
    message: dict[str, Any] = {
        "kind": {"TOP_ACCOUNTS": 1, "TOP_POSITIONS": 2, "ALL_ACCOUNTS": 3}[name],
        "period": 300,
        "exchange_time": 1583139600 * 10**9,
        "ratio": answer["longShortRatio"].rstrip("0").rstrip("."),
    }
    if shares is not None:
        message |= {"long_share": shares[0], "short_share": shares[1]}
    body = json.dumps([answer]).encode()
    for adapter, names, native, symbol in (
        (USDM, ["BTCUSDT"], "BTCUSDT", ""), (COINM, ["BTCUSD_PERP"], "", "BTC-USD"),
    ):  # fmt: skip
        (poll,) = (each for each in _polls(adapter, names, RATIO) if path in each.request.path)
        (told,) = adapter.decode_poll(body, poll)
        assert plain(told) == ("LONG_SHORT_RATIO", native, symbol, message, (), name, "")
        assert adapter.decode_poll(b"[]", poll) == []


def test_what_rest_tells_of_funding_completes_the_stream() -> None:
    adapter: Any = adapter_for_exchange("binance_usdm")
    mark = {"e": "markPriceUpdate", "E": 1, "s": "BTCUSDT", "p": "2", "r": "0.0001", "T": 0}

    def funding(native: str) -> dict[str, Any]:
        told: dict[str, Any] = plain(adapter.decode(json.dumps({**mark, "s": native})))[1][3]
        return told

    assert "funding_interval" not in funding("BTCUSDT")
    terms, premium = _polls(adapter, ["BTCUSDT"], FUNDING)
    body = json.dumps([{"symbol": "BTCUSDT", "fundingIntervalHours": 4, "disclaimer": False}])
    assert adapter.decode_poll(body.encode(), terms) == []
    rates = [{"symbol": "BTCUSDT", "interestRate": "0.00010000"}, {"symbol": "BTCUSDT_261225"}]
    assert adapter.decode_poll(json.dumps(rates).encode(), premium) == []
    assert funding("BTCUSDT")["funding_interval"] == 4 * 3600
    assert funding("BTCUSDT")["interest_rate"] == "0.0001"
    # Only those are listed that have not the usual eight hours.
    assert funding("ETHUSDT")["funding_interval"] == 8 * 3600
    assert "interest_rate" not in funding("ETHUSDT")


@pytest.mark.parametrize("body", [b"", b"{}", b'{"code":-1121,"msg":"Invalid symbol."}', b"[1]"])
def test_an_answer_to_a_poll_that_is_none_is_malformed_and_concerns_no_book(body: bytes) -> None:
    for kind in (INTEREST, RATIO, FUNDING):
        for poll in _polls(USDM, ["BTCUSDT"], kind):
            with pytest.raises(MalformedFrameError) as caught:
                USDM.decode_poll(body, poll)
            assert not caught.value.concerns_book
            assert caught.value.native_symbol == poll.native_symbol
    with pytest.raises(MalformedFrameError, match="no poll of"):
        SPOT.decode_poll(body, Poll(TICKER, RestRequest("/x", 1), 1.0))


# Hosts


@pytest.mark.parametrize(
    ("exchange", "urls"),
    [
        ("binance", [
            "wss://stream.binance.com:9443/stream?streams=a@depth", "wss://stream.binance.com/ws",
            "wss://data-stream.binance.vision/stream", "https://data-api.binance.vision/api/v3/depth",
            "https://api1.binance.com/api/v3/depth", "https://api-gcp.binance.com/api/v3/depth",
            "wss://stream.testnet.binance.vision/stream", "https://testnet.binance.vision/api/v3/depth",
            "wss://demo-stream.binance.com/stream", "https://demo-api.binance.com/api/v3/depth",
            "wss://stream.binance.je:9443/stream", "https://api.binance.je/api/v3/depth",
            "wss://stream-cloud.trbinance.com/stream", "https://api.binance.me/api/v3/exchangeInfo",
            "wss://stream-cloud.binance.tr/stream", "https://www.trbinance.com/open/v1",
            "wss://stream-th.2meta.app/stream", "https://api.binance.th/api/v1/depth",
        ]),
        ("binance_us", [
            "wss://stream.binance.us:9443/stream", "https://api.binance.us/api/v3/depth",
        ]),
        ("binance_usdm", [
            "wss://fstream.binance.com/public/stream", "wss://fstream-auth.binance.com/stream",
            "https://fapi.binance.com/fapi/v1/depth", "https://fapi1.binance.com/fapi/v1/depth",
            "wss://stream.binancefuture.com/stream", "wss://fstream.binancefuture.com/public/stream",
            "https://testnet.binancefuture.com/fapi/v1/depth?symbol=X",
            "https://demo-fapi.binance.com/fapi/v1/depth",
        ]),
        ("binance_coinm", [
            "wss://dstream.binance.com/stream?streams=a@depth", "wss://dstream.binancefuture.com/ws",
            "https://dapi.binance.com/dapi/v1/depth", "https://demo-dapi.binance.com/dapi/v1/depth",
            "https://testnet.binancefuture.com/dapi/v1/depth?symbol=X",
        ]),
    ],
)  # fmt: skip
def test_the_host_tells_which_market_it_is(exchange: str, urls: list[str]) -> None:
    assert {exchange_for_url(url) for url in urls} == {exchange}


@pytest.mark.parametrize(
    "url",
    ["wss://stream.binance.com.example.org/stream", "https://binance.com.evil/api", "wss://x/",
     "wss://nbstream.binance.com/eoptions/stream", "https://eapi.binance.com/eapi/v1/depth"],
)  # fmt: skip
def test_hosts_of_others_and_of_options_are_none_of_them(url: str) -> None:
    assert exchange_for_url(url) is None
