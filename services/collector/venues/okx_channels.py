"""Which of OKX's channels bring what, how they are asked for, and what OKX answers.

A topic is `channel:argument`, for example "books:BTC-USDT" or "opt-summary:BTC-USD"; the argument
is an instrument or index, else what `_ARGUMENT` says. Follows "WebSocket - Subscribe" of OKX's v5
documents.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from marketprism.market.v1 import common_pb2, instrument_pb2

from services.collector.venues.base import (
    Acknowledgement,
    Goodbye,
    Ignored,
    InstrumentSpec,
    Selection,
    Subscription,
    VenueFault,
    VenueMessage,
    VenueRequest,
)
from services.collector.venues.okx_observations import CANDLES

__all__ = [
    "BUSINESS",
    "instrument_type",
    "requests",
    "response",
    "shared_subscriptions",
    "subscriptions",
]

BUSINESS = "business"
"""Route of the channels that are served apart: candles and every single trade."""

_PERPETUAL = instrument_pb2.INSTRUMENT_KIND_PERPETUAL
_FUTURE = instrument_pb2.INSTRUMENT_KIND_FUTURE
_OPTION = instrument_pb2.INSTRUMENT_KIND_OPTION
_TYPES = {_PERPETUAL: "SWAP", _FUTURE: "FUTURES", _OPTION: "OPTION"}
_ARGUMENT = {
    "opt-summary": "instFamily",
    "liquidation-orders": "instType",
    "instruments": "instType",
}
_PERPETUAL_FUTURE = re.compile(r"_XPERP-[0-9]+\Z", re.ASCII)
# By seconds, the channel to ask for; of two that are as long, the one that begins by UTC.
_CANDLES_OF = {seconds: length for length, seconds in CANDLES.items()}
# Without changes a book is repeated once a minute, mark prices every 10 s, an index once a minute;
# funding comes every 30 to 90 s.
_BOOK_QUIET = 90.0
_MARK_QUIET = 30.0
_INDEX_QUIET = 150.0
_FUNDING_QUIET = 240.0
_SUMMARY_QUIET = 60.0
# OKX takes 64 KB in one request.
_REQUEST_BYTES = 60_000
_REQUEST_TOPICS = 240
_FREQUENT = frozenset(("60014", "60023"))
# "Wrong URL or channel:books,instId:ABC-USDT doesn't exist. Please use ..."
_REFUSED = re.compile(r"channel:\s*([\w-]+)\s*,\s*\w+:\s*([\w-]+)", re.ASCII)


def instrument_type(spec: InstrumentSpec) -> str:
    """Give OKX's `instType` of an instrument."""
    return _TYPES.get(spec.kind, "SPOT")


def subscriptions(spec: InstrumentSpec, selection: Selection) -> list[Subscription]:
    """Streams of one instrument that bring what is selected."""
    wanted: list[Subscription] = []

    def want(
        kind: "common_pb2.EventKind.ValueType", channel: str, route: str = "", quiet: float = 0.0
    ) -> None:
        if kind in selection.kinds:
            topic = f"{channel}:{spec.native_symbol}"
            wanted.append(Subscription(topic, (kind,), spec.native_symbol, route, quiet))

    want(common_pb2.EVENT_KIND_ORDER_BOOK, "books", quiet=_BOOK_QUIET)
    want(common_pb2.EVENT_KIND_TRADE, "trades-all", BUSINESS)
    want(common_pb2.EVENT_KIND_BEST_BID_OFFER, "bbo-tbt")
    want(common_pb2.EVENT_KIND_TICKER, "tickers")
    for seconds in selection.candle_intervals:
        if seconds in _CANDLES_OF:
            want(common_pb2.EVENT_KIND_CANDLE, f"candle{_CANDLES_OF[seconds]}", BUSINESS)
    if spec.kind in _TYPES:
        want(common_pb2.EVENT_KIND_MARK_PRICE, "mark-price", quiet=_MARK_QUIET)
    # Options come by the hundred: one poll tells the open interest of a whole family.
    if spec.kind in (_PERPETUAL, _FUTURE):
        want(common_pb2.EVENT_KIND_OPEN_INTEREST, "open-interest")
    if spec.kind == _PERPETUAL or _PERPETUAL_FUTURE.search(spec.native_symbol):
        want(common_pb2.EVENT_KIND_FUNDING_RATE, "funding-rate", quiet=_FUNDING_QUIET)
    return wanted


def shared_subscriptions(
    specs: Sequence[InstrumentSpec], selection: Selection
) -> list[Subscription]:
    """Streams that concern several of these instruments at once, or an index of theirs."""
    types = sorted({instrument_type(spec) for spec in specs})
    wanted = [Subscription(f"instruments:{each}", ()) for each in types]
    derivatives = [spec for spec in specs if spec.kind in _TYPES]
    if common_pb2.EVENT_KIND_LIQUIDATION in selection.kinds:
        kinds = (common_pb2.EVENT_KIND_LIQUIDATION,)
        wanted += [
            Subscription(f"liquidation-orders:{each}", kinds) for each in types if each != "SPOT"
        ]
    if common_pb2.EVENT_KIND_INDEX_PRICE in selection.kinds:
        kinds = (common_pb2.EVENT_KIND_INDEX_PRICE,)
        indices = sorted({spec.underlying for spec in derivatives if spec.underlying})
        wanted += [
            Subscription(f"index-tickers:{each}", kinds, quiet_seconds=_INDEX_QUIET)
            for each in indices
        ]
    if common_pb2.EVENT_KIND_OPTION_GREEKS in selection.kinds:
        kinds = (common_pb2.EVENT_KIND_OPTION_GREEKS,)
        families = sorted({spec.family for spec in specs if spec.kind == _OPTION and spec.family})
        wanted += [
            Subscription(f"opt-summary:{each}", kinds, quiet_seconds=_SUMMARY_QUIET)
            for each in families
        ]
    return wanted


def requests(
    operation: str, topics: Iterable[str], first_request_id: int, *, exchange: str
) -> list[VenueRequest]:
    """Make the requests to `subscribe` to or `unsubscribe` from topics, as few as OKX allows.

    Raises ValueError on what is no topic.
    """
    parts: list[list[str]] = []
    room = 0
    for topic in topics:
        size = 6 * len(topic.encode()) + 40  # the most that its argument takes, escapes and all
        if size > room or len(parts[-1]) >= _REQUEST_TOPICS:
            parts.append([])
            room = _REQUEST_BYTES
        parts[-1].append(topic)
        room -= size
    made = []
    for number, part in enumerate(parts, first_request_id):
        arguments = [_argument(topic, exchange) for topic in part]
        request = {"id": str(number), "op": operation, "args": arguments}
        made.append(VenueRequest(number, tuple(part), msgspec.json.encode(request).decode()))
    return made


def response(message: Mapping[Any, Any]) -> VenueMessage | None:
    """Read what is no push: an answer or a notice. None when it is neither."""
    event = message.get("event")
    if event is None:
        return None
    request_id = _request_id(message.get("id"))
    topic = _topic(message.get("arg"))
    if event in ("subscribe", "unsubscribe"):
        if topic:
            return Acknowledgement(request_id, (topic,), complete=False)
        if request_id is not None:
            return Acknowledgement(request_id)
    code, text = str(message.get("code", "")), str(message.get("msg", ""))
    if event in ("error", "channel-conn-count-error"):
        if not topic and (named := _REFUSED.search(text)) is not None:
            topic = f"{named[1]}:{named[2]}"
        return VenueFault(request_id, code, text, topic, rate_limited=code in _FREQUENT)
    if event == "notice":
        return Goodbye(text or code)
    return Ignored(str(event)[:80])


def _argument(topic: str, exchange: str) -> dict[str, str]:
    channel, colon, name = topic.partition(":")
    if not (channel and colon and name):
        raise ValueError(f"{exchange}: expected a topic like books:BTC-USDT, got {topic[:80]!r}")
    return {"channel": channel, _ARGUMENT.get(channel, "instId"): name}


def _topic(argument: Any) -> str:
    """Name the topic of an argument; empty when it is none of ours."""
    if not isinstance(argument, dict):
        return ""
    channel = argument.get("channel")
    if not isinstance(channel, str):
        return ""
    name = argument.get(_ARGUMENT.get(channel, "instId"), argument.get("uly"))
    return f"{channel}:{name}" if isinstance(name, str) and channel and name else ""


def _request_id(value: Any) -> int | None:
    """OKX repeats the id that a request carried, as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    return None
