"""OKX is asked for the right channels in few requests, and its answers name the topics."""

import json
from typing import Any

import pytest
from marketprism.market.v1 import common_pb2

from services.collector.venues.base import (
    Acknowledgement,
    Goodbye,
    Ignored,
    MalformedFrameError,
    Selection,
    Subscription,
    VenueFault,
)
from tests.unit.collector.okx_support import OKX, frame, spec

_ALL = Selection(OKX.kinds, (1, 60, 3600, 86_400, 7))
_TRADE = common_pb2.EVENT_KIND_TRADE
_BOOK = common_pb2.EVENT_KIND_ORDER_BOOK


def routes(subscriptions: list[Subscription]) -> dict[str, set[str]]:
    """Topics by route."""
    by_route: dict[str, set[str]] = {}
    for each in subscriptions:
        by_route.setdefault(each.route, set()).add(each.topic)
    return by_route


def streams(name: str) -> dict[str, set[str]]:
    """Channels of an instrument by route."""
    subscriptions = OKX.subscriptions(spec(name), _ALL)
    assert {each.native_symbol for each in subscriptions} == {name}
    return {
        route: {topic.removesuffix(f":{name}") for topic in topics}
        for route, topics in routes(subscriptions).items()
    }


_MARKET = {"books", "bbo-tbt", "tickers"}
_BUSINESS = {"trades-all", "candle1s", "candle1m", "candle1H", "candle1Dutc"}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("BTC-USDT", set()),
        ("BTC-USDT-SWAP", {"mark-price", "open-interest", "funding-rate"}),
        ("BTC-USD-261225", {"mark-price", "open-interest"}),
        ("BTC-USD_UM_XPERP-310404", {"mark-price", "open-interest", "funding-rate"}),
        ("BTC-USD-261225-66000-C", {"mark-price"}),
    ],
)
def test_every_sort_of_instrument_has_its_channels(name: str, more: set[str]) -> None:
    assert streams(name) == {"": _MARKET | more, "business": _BUSINESS}


def test_only_what_is_selected_is_subscribed_to() -> None:
    only = Selection(frozenset((_TRADE,)))
    assert [each.topic for each in OKX.subscriptions(spec("A-B-SWAP"), only)] == [
        "trades-all:A-B-SWAP"
    ]
    assert [each.topic for each in OKX.shared_subscriptions([spec("A-B-SWAP")], only)] == [
        "instruments:SWAP"
    ]


def test_a_book_that_says_nothing_for_longer_than_its_keepalive_is_silent() -> None:
    quiet = {each.kinds: each.quiet_seconds for each in OKX.subscriptions(spec("A-B-SWAP"), _ALL)}
    assert quiet[_BOOK,] > 60
    assert quiet[_TRADE,] == 0
    assert quiet[common_pb2.EVENT_KIND_FUNDING_RATE,] > 90


def test_what_several_instruments_share_is_asked_for_once() -> None:
    names = ["BTC-USDT", "ETH-USDT", "BTC-USDT-SWAP", "BTC-USD-SWAP", "BTC-USD_UM-SWAP",
             "BTC-USD-261225", "BTC-USD-261225-66000-C", "BTC-USD-261225-66000-P",
             "ETH-USD-261225-4000-P"]  # fmt: skip
    subscriptions = OKX.shared_subscriptions([spec(name) for name in names], _ALL)
    assert [each.topic for each in subscriptions] == [
        "instruments:FUTURES", "instruments:OPTION", "instruments:SPOT", "instruments:SWAP",
        "liquidation-orders:FUTURES", "liquidation-orders:OPTION", "liquidation-orders:SWAP",
        "index-tickers:BTC-USD", "index-tickers:BTC-USDT", "index-tickers:ETH-USD",
        "opt-summary:BTC-USD", "opt-summary:ETH-USD",
    ]  # fmt: skip
    assert {each.route for each in subscriptions} == {""}


def test_a_topic_maps_back_to_its_argument() -> None:
    topics = ["books:BTC-USDT", "opt-summary:BTC-USD", "liquidation-orders:SWAP",
              "instruments:SPOT", "index-tickers:BTC-USD", "candle1m:BTC-USD_UM-SWAP"]  # fmt: skip
    (request,) = OKX.subscribe(topics, 7)
    assert (request.request_id, request.topics) == (7, tuple(topics))
    assert json.loads(request.frame) == {"id": "7", "op": "subscribe", "args": [
        {"channel": "books", "instId": "BTC-USDT"},
        {"channel": "opt-summary", "instFamily": "BTC-USD"},
        {"channel": "liquidation-orders", "instType": "SWAP"},
        {"channel": "instruments", "instType": "SPOT"},
        {"channel": "index-tickers", "instId": "BTC-USD"},
        {"channel": "candle1m", "instId": "BTC-USD_UM-SWAP"},
    ]}  # fmt: skip
    (leaving,) = OKX.unsubscribe(topics[:1], 8)
    assert json.loads(leaving.frame) == {
        "id": "8", "op": "unsubscribe", "args": [{"channel": "books", "instId": "BTC-USDT"}]
    }  # fmt: skip
    for topic, argument in zip(topics, json.loads(request.frame)["args"], strict=True):
        answer = json.dumps({"event": "subscribe", "arg": argument, "connId": "a"})
        assert OKX.decode(answer) == Acknowledgement(None, (topic,), complete=False)


@pytest.mark.parametrize("length", [9, 3000])
def test_requests_are_few_and_stay_within_64_kilobytes(length: int) -> None:
    topics = [f"books:{number:0{length}d}" for number in range(1000)]
    requests = OKX.subscribe(topics, 1)
    assert [each.request_id for each in requests] == list(range(1, len(requests) + 1))
    assert [topic for each in requests for topic in each.topics] == topics
    assert max(len(each.frame) for each in requests) < 64 * 1024
    if length == 9:
        assert len(requests) == 5
    assert OKX.subscribe([], 1) == []
    assert OKX.opening_requests(1) == []


@pytest.mark.parametrize("topic", ["books", ":BTC-USDT", "books:", ""])
def test_what_is_no_topic_is_refused(topic: str) -> None:
    with pytest.raises(ValueError, match="expected a topic like books:BTC-USDT"):
        OKX.subscribe([topic], 1)


@pytest.mark.parametrize(
    "url",
    ["wss://ws.okx.com:8443", "wss://ws.okx.com:8443/", "wss://ws.okx.com:8443/ws/v5/business",
     "wss://ws.okx.com:8443/ws/v5/public"],
)  # fmt: skip
def test_routes_are_addresses_below_the_configured_one(url: str) -> None:
    assert OKX.route_url(url, "") == "wss://ws.okx.com:8443/ws/v5/public"
    assert OKX.route_url(url, "business") == "wss://ws.okx.com:8443/ws/v5/business"
    assert OKX.route_url("ws://127.0.0.1:9300/okx", "") == "ws://127.0.0.1:9300/okx/ws/v5/public"


def test_the_venues_rules_are_kept() -> None:
    rules = OKX.connection_rules
    assert (rules.connects, rules.connect_seconds, rules.requests_per_hour) == (3, 1.0, 480)
    assert rules.keepalive_frame == "ping"
    assert rules.keepalive_seconds < 30
    assert rules.life_seconds == 0
    # Every topic subscribed to, and once anew, within the first minute of an hour.
    assert 2 * rules.topics <= rules.requests_per_hour


# Answers


def answer(**fields: Any) -> Any:
    return OKX.decode(json.dumps(fields))


def test_an_acknowledgement_carries_the_id_of_its_request() -> None:
    argument = {"channel": "books", "instId": "BTC-USDT"}
    for event in ("subscribe", "unsubscribe"):
        assert answer(id="12", event=event, arg=argument, connId="a") == Acknowledgement(
            12, ("books:BTC-USDT",), complete=False
        )
    assert answer(id="12", event="subscribe") == Acknowledgement(12)
    assert answer(event="subscribe", arg={}) == Ignored("subscribe")
    older = {"channel": "opt-summary", "uly": "BTC-USD"}
    assert answer(event="subscribe", arg=older).topics == ("opt-summary:BTC-USD",)


@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ("Wrong URL or channel:books,instId:ABC-USDT doesn't exist. Please use the correct URL, "
         "channel and parameters referring to API document.", "books:ABC-USDT"),
        ("Subscribe failed, wrong URL or channel:candle1m,instId:BTC-USD_UM-SWAP doesn't exist.",
         "candle1m:BTC-USD_UM-SWAP"),
        ("Wrong URL or channel:index-tickers, instId:NEAR-USDT-SWAP doesn't exist.",
         "index-tickers:NEAR-USDT-SWAP"),
        ("Wrong URL or channel:opt-summary,instFamily:XYZ-USD doesn't exist.",
         "opt-summary:XYZ-USD"),
        ("Invalid request: {\"op\": \"subscribe\"}", ""),
    ],
)  # fmt: skip
def test_a_refusal_names_the_topic_as_far_as_the_venue_does(text: str, topic: str) -> None:
    fault = answer(event="error", code="60018", msg=text, connId="a")
    assert fault == VenueFault(None, "60018", text, topic)
    argument = {"channel": "books", "instId": "X-Y"}
    fault = answer(event="error", code="60018", msg=text, arg=argument, id="3")
    assert (fault.request_id, fault.topic) == (3, "books:X-Y")


def test_too_many_requests_are_worth_another_try() -> None:
    assert answer(event="error", code="60014", msg="Requests too frequent").rate_limited
    assert not answer(event="error", code="60012", msg="Invalid request").rate_limited
    lost = answer(event="channel-conn-count-error", channel="books", code="60030", msg="too many")
    assert lost == VenueFault(None, "60030", "too many")


def test_what_the_venue_says_of_itself() -> None:
    soon = "The connection will soon be closed for a service upgrade. Please reconnect."
    assert answer(event="notice", code="64008", msg=soon, connId="a") == Goodbye(soon)
    assert answer(event="notice", code="64008") == Goodbye("64008")
    counted = answer(event="channel-conn-count", channel="orders", connCount="2", connId="a")
    assert counted == Ignored("channel-conn-count")
    assert OKX.decode(b"pong") == Ignored("pong")
    assert OKX.decode(frame("price-limit", {"buyLmt": "1"})) == Ignored("price-limit")
    with pytest.raises(MalformedFrameError, match="a frame of no known kind"):
        answer(hello=1)
