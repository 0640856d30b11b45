"""What a capture of Binance spot traffic holds that can be played.

A line that cannot be used is skipped, counted, and the first ones are kept for people to look at.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec

from services.shared.capture import CaptureRecord, read_numbered
from services.shared.errors import InvalidArgument
from services.simulator.fixed import to_units

__all__ = [
    "CaptureError",
    "CaptureItem",
    "CaptureReader",
    "CapturedDepth",
    "CapturedFrame",
    "CapturedInfo",
    "CapturedSnapshot",
    "CapturedTrade",
]

_KEPT_COMPLAINTS = 10


class CaptureError(ValueError):
    """A capture file that cannot be played at all."""


class _Wrapper(msgspec.Struct):
    stream: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"")


class _Event(msgspec.Struct):
    e: str | None = None
    s: str | None = None
    u: int | None = None


class _Depth(msgspec.Struct):
    s: str
    first: int = msgspec.field(name="U")
    last: int = msgspec.field(name="u")
    bids: list[tuple[str, str]] = msgspec.field(name="b")
    asks: list[tuple[str, str]] = msgspec.field(name="a")


class _Trade(msgspec.Struct):
    time: int = msgspec.field(name="T")
    trade_id: int = msgspec.field(name="t")
    price: str = msgspec.field(name="p")
    quantity: str = msgspec.field(name="q")
    buyer_is_maker: bool = msgspec.field(name="m")


class _Aggregate(msgspec.Struct):
    aggregate_id: int = msgspec.field(name="a")


class _Snapshot(msgspec.Struct):
    update_id: int = msgspec.field(name="lastUpdateId")
    bids: list[tuple[str, str]]
    asks: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class CapturedDepth:
    """The book changes that a frame tells, in units of 1e-8."""

    first_id: int
    last_id: int
    bids: list[tuple[int, int]]
    asks: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class CapturedTrade:
    """The trade that a frame tells, in units of 1e-8."""

    trade_id: int
    time_us: int
    price: int
    quantity: int
    buyer_is_maker: bool


@dataclass(frozen=True, slots=True)
class CapturedFrame:
    """A received WebSocket frame."""

    time: float | None
    """Receive time, Unix seconds."""
    symbol: str
    stream: str
    payload: bytes
    """The bare event."""
    wrapped: bytes | None
    """The whole text when the frame came on a combined stream."""
    event_id: int
    """Trade id, aggregate trade id or last update id; -1 where the stream has none."""
    depth: CapturedDepth | None
    trade: CapturedTrade | None


@dataclass(frozen=True, slots=True)
class CapturedSnapshot:
    """A REST answer with a book."""

    time: float | None
    symbol: str
    update_id: int
    bids: dict[int, int]
    asks: dict[int, int]


@dataclass(frozen=True, slots=True)
class CapturedInfo:
    """A REST answer with the venue's listing."""

    time: float | None
    body: bytes


CaptureItem = CapturedFrame | CapturedSnapshot | CapturedInfo

_KINDS = {
    "depthUpdate": "depth@100ms",
    "trade": "trade",
    "aggTrade": "aggTrade",
    "24hrTicker": "ticker",
    "24hrMiniTicker": "miniTicker",
    "kline": "kline_1m",
    "bookTicker": "bookTicker",
}


@dataclass(slots=True)
class CaptureReader:
    """Iterates over what can be played in a capture, in its order."""

    path: Path
    malformed: int = 0
    """Lines which could not be used."""
    complaints: list[str] = field(default_factory=list)
    """What was wrong with the first of them: line, what was expected, what came."""

    def __iter__(self) -> Iterator[CaptureItem]:
        self.malformed = 0
        self.complaints = []
        try:
            for number, record in read_numbered(self.path, self._complain):
                try:
                    item = self._item(record)
                except (msgspec.MsgspecError, ValueError, LookupError, RecursionError) as error:
                    self._complain(number, str(error))
                    continue
                if item is not None:
                    yield item
        except InvalidArgument as error:
            raise CaptureError(str(error)) from error

    def _complain(self, number: int, error: str) -> None:
        self.malformed += 1
        if len(self.complaints) < _KEPT_COMPLAINTS:
            self.complaints.append(f"{self.path.name}:{number}: {error}")

    def _item(self, record: CaptureRecord) -> CaptureItem | None:
        if record.kind not in ("ws", "http"):
            return None
        payload = record.payload()
        time = record.ts if record.ts_ns is None else record.ts_ns / 1e9
        if record.kind == "ws":
            return _frame(payload, record.url, time)
        url = urlsplit(record.url or "")
        if url.path.endswith("/exchangeInfo"):
            msgspec.json.decode(payload)
            return CapturedInfo(time, payload)
        if url.path.endswith("/depth"):
            symbol = parse_qs(url.query).get("symbol")
            if not symbol:
                raise ValueError(f"expected a depth URL with a symbol, got {record.url}")
            told = _snapshot_decoder.decode(payload)
            return CapturedSnapshot(
                time,
                symbol[0].upper(),
                told.update_id,
                dict(_units(told.bids)),
                dict(_units(told.asks)),
            )
        return None


_wrapper_decoder = msgspec.json.Decoder(_Wrapper)
_event_decoder = msgspec.json.Decoder(_Event)
_depth_decoder = msgspec.json.Decoder(_Depth)
_trade_decoder = msgspec.json.Decoder(_Trade)
_aggregate_decoder = msgspec.json.Decoder(_Aggregate)
_snapshot_decoder = msgspec.json.Decoder(_Snapshot)


def _frame(text: bytes, url: str | None, time: float | None) -> CapturedFrame | None:
    wrapper = _wrapper_decoder.decode(text)
    payload = text if wrapper.stream is None else bytes(wrapper.data)
    event = _event_decoder.decode(payload)
    if event.s is None:
        return None
    stream = wrapper.stream or _raw_stream(event, url)
    if stream is None:
        return None
    kind = stream.partition("@")[2]
    event_id, depth, trade = -1, None, None
    if kind.startswith("depth") and event.e == "depthUpdate":
        told = _depth_decoder.decode(payload)
        depth = CapturedDepth(told.first, told.last, _units(told.bids), _units(told.asks))
        event_id = told.last
    elif kind == "trade":
        match = _trade_decoder.decode(payload)
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
    whole = None if wrapper.stream is None else text
    return CapturedFrame(time, event.s, stream, payload, whole, event_id, depth, trade)


def _raw_stream(event: _Event, url: str | None) -> str | None:
    # A raw connection tells its stream in the URL only; one that subscribed later, nowhere.
    named = urlsplit(url or "").path.rpartition("/ws/")[2]
    symbol = (event.s or "").lower()
    kind = _KINDS.get(event.e or "bookTicker")
    for stream in named.split("/"):
        if stream.startswith(f"{symbol}@{kind and kind.partition('@')[0]}"):
            return stream
    return f"{symbol}@{kind}" if kind else None


def _units(levels: list[tuple[str, str]]) -> list[tuple[int, int]]:
    return [(_fixed(price), _fixed(quantity)) for price, quantity in levels]


def _fixed(text: str) -> int:
    # Eight decimals is what the venue prints; anything else takes the careful way.
    if text[-9:-8] == "." and text[:1] != "-":
        return int(text[:-9] + text[-8:])
    return to_units(text)
