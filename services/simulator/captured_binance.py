"""What captures of Binance hold that can be played: spot, USD-M and COIN-M futures, Binance.US."""

from urllib.parse import parse_qs, urlsplit

import msgspec

from services.shared.capture import CaptureRecord
from services.simulator.binance_futures_market import EXECUTIONS
from services.simulator.captured import (
    CapturedDepth,
    CapturedFrame,
    CapturedInfo,
    CapturedSnapshot,
    CapturedTrade,
    CaptureItem,
)
from services.simulator.fixed import to_units

__all__ = ["binance_item", "binance_listing", "captured_units"]


class _Wrapper(msgspec.Struct):
    stream: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"")


class _Order(msgspec.Struct):
    s: str | None = None


class _Event(msgspec.Struct):
    e: str | None = None
    s: str | None = None
    u: int | None = None
    o: _Order | str | None = None
    """The order of a `forceOrder`; an opening price elsewhere."""


class _Depth(msgspec.Struct):
    s: str
    first: int = msgspec.field(name="U")
    last: int = msgspec.field(name="u")
    bids: list[tuple[str, str]] = msgspec.field(name="b")
    asks: list[tuple[str, str]] = msgspec.field(name="a")
    previous: int | None = msgspec.field(name="pu", default=None)


class _Trade(msgspec.Struct):
    time: int = msgspec.field(name="T")
    trade_id: int = msgspec.field(name="t")
    price: str = msgspec.field(name="p")
    quantity: str = msgspec.field(name="q")
    buyer_is_maker: bool = msgspec.field(name="m")
    execution: str = msgspec.field(name="X", default="MARKET")


class _Aggregate(msgspec.Struct):
    aggregate_id: int = msgspec.field(name="a")


class _Snapshot(msgspec.Struct):
    update_id: int = msgspec.field(name="lastUpdateId")
    bids: list[tuple[str, str]]
    asks: list[tuple[str, str]]


class _Filter(msgspec.Struct):
    kind: str = msgspec.field(name="filterType")
    tick: str | None = msgspec.field(name="tickSize", default=None)
    lot: str | None = msgspec.field(name="stepSize", default=None)


class _Entry(msgspec.Struct):
    symbol: str
    base: str = msgspec.field(name="baseAsset")
    quote: str = msgspec.field(name="quoteAsset")
    filters: list[_Filter] = []
    contract_size: int | float | None = msgspec.field(name="contractSize", default=None)


class _Info(msgspec.Struct):
    symbols: list[_Entry] = []


_KINDS = {
    "depthUpdate": "depth@100ms",
    "trade": "trade",
    "aggTrade": "aggTrade",
    "24hrTicker": "ticker",
    "24hrMiniTicker": "miniTicker",
    "kline": "kline_1m",
    "bookTicker": "bookTicker",
    "markPriceUpdate": "markPrice@1s",
    "forceOrder": "forceOrder",
}

_ANSWERS = (
    *("/exchangeInfo", "/premiumIndex", "/fundingInfo", "/fundingRate", "/openInterest"),
    *("/ticker/24hr", "/klines"),
)

_wrapper_decoder = msgspec.json.Decoder(_Wrapper)
_event_decoder = msgspec.json.Decoder(_Event)
_depth_decoder = msgspec.json.Decoder(_Depth)
_trade_decoder = msgspec.json.Decoder(_Trade)
_aggregate_decoder = msgspec.json.Decoder(_Aggregate)
_snapshot_decoder = msgspec.json.Decoder(_Snapshot)


def binance_item(record: CaptureRecord) -> CaptureItem | None:
    """Read a line of a capture of any Binance site."""
    if record.kind not in ("ws", "http"):
        return None
    payload = record.payload()
    time = record.ts if record.ts_ns is None else record.ts_ns / 1e9
    if record.kind == "ws":
        return _frame(payload, record.url, time)
    url = urlsplit(record.url or "")
    if url.path.endswith(_ANSWERS) or url.path.startswith("/futures/data/"):
        msgspec.json.decode(payload)
        return CapturedInfo(time, payload, record.url or "")
    if url.path.endswith("/depth"):
        symbol = parse_qs(url.query).get("symbol")
        if not symbol:
            raise ValueError(f"expected a depth URL with a symbol, got {record.url}")
        told = _snapshot_decoder.decode(payload)
        return CapturedSnapshot(
            time,
            symbol[0].upper(),
            told.update_id,
            dict(_levels(told.bids)),
            dict(_levels(told.asks)),
        )
    return None


def _frame(text: bytes, url: str | None, time: float | None) -> CapturedFrame | None:
    # An array has no wrapper.
    wrapper = _Wrapper() if text.startswith(b"[") else _wrapper_decoder.decode(text)
    payload = text if wrapper.stream is None else bytes(wrapper.data)
    whole = None if wrapper.stream is None else text
    if payload.startswith(b"["):
        # What tells of several symbols at once: `!markPrice@arr`, btcusd@markPrice of COIN-M.
        return _unnamed(time, wrapper.stream or _named(url), payload, whole)
    event = _event_decoder.decode(payload)
    symbol = event.o.s if isinstance(event.o, _Order) else event.s
    if not symbol:
        # An index is named by its pair; without `e` it is an answer to a request.
        named = wrapper.stream or _named(url)
        return None if event.e is None else _unnamed(time, named, payload, whole)
    stream = wrapper.stream or _raw_stream(event, symbol, url)
    if stream is None:
        return None
    kind = stream.partition("@")[2]
    event_id, depth, trade = -1, None, None
    if kind.startswith("depth") and event.e == "depthUpdate":
        told = _depth_decoder.decode(payload)
        depth = CapturedDepth(
            told.first, told.last, _levels(told.bids), _levels(told.asks), told.previous
        )
        event_id = told.last
    elif kind == "trade":
        match = _trade_decoder.decode(payload)
        if match.execution not in EXECUTIONS:
            trade = CapturedTrade(
                match.trade_id,
                match.time * (1 if match.time > 10**14 else 1000),
                to_units(match.price),
                to_units(match.quantity),
                match.buyer_is_maker,
            )
        event_id = match.trade_id
    elif kind == "aggTrade":
        event_id = _aggregate_decoder.decode(payload).aggregate_id
    elif kind == "bookTicker" and isinstance(event.u, int):
        event_id = event.u
    return CapturedFrame(time, symbol, stream, payload, whole, event_id, depth, trade)


def _unnamed(
    time: float | None, stream: str, payload: bytes, whole: bytes | None
) -> CapturedFrame | None:
    if not stream:
        return None
    return CapturedFrame(time, "", stream, payload, whole, -1, None, None)


def _raw_stream(event: _Event, symbol: str, url: str | None) -> str | None:
    # A raw connection tells its stream in the URL only; one that subscribed later, nowhere.
    kind = _KINDS.get(event.e or "bookTicker")
    for stream in urlsplit(url or "").path.rpartition("/ws/")[2].split("/"):
        if stream.startswith(f"{symbol.lower()}@{kind and kind.partition('@')[0]}"):
            return stream
    return f"{symbol.lower()}@{kind}" if kind else None


def _named(url: str | None) -> str:
    # The stream of a raw URL which names but one.
    stream = urlsplit(url or "").path.rpartition("/ws/")[2]
    return "" if "/" in stream else stream


def _levels(levels: list[tuple[str, str]]) -> list[tuple[int, int]]:
    return [(captured_units(price), captured_units(quantity)) for price, quantity in levels]


def captured_units(text: str) -> int:
    """Units of a number as venues write it.

    Raises:
        ValueError: if it is no plain decimal, or finer than 1e-8.

    """
    # Eight decimals is what Binance spot prints; anything else takes the careful way.
    if text[-9:-8] == "." and text[:1] != "-":
        return int(text[:-9] + text[-8:])
    return to_units(text)


def binance_listing(body: bytes) -> dict[str, dict[str, object]]:
    """Return tick, lot, base and quote of what an `exchangeInfo` lists; nothing of other answers.

    Raises:
        msgspec.MsgspecError: when it is none.
        ValueError: when it lists steps that are no numbers.

    """
    listing: dict[str, dict[str, object]] = {}
    if body.lstrip().startswith(b"["):
        return listing
    for entry in msgspec.json.decode(body, type=_Info).symbols:
        tick = next((f.tick for f in entry.filters if f.kind == "PRICE_FILTER" and f.tick), None)
        lot = next((f.lot for f in entry.filters if f.kind == "LOT_SIZE" and f.lot), None)
        if tick is None or lot is None:
            continue
        listing[entry.symbol] = {
            "base": entry.base,
            "quote": entry.quote,
            "tick": to_units(tick),
            "lot": to_units(lot),
        }
        if entry.contract_size is not None:
            listing[entry.symbol]["contract_size"] = to_units(str(entry.contract_size))
    return listing
