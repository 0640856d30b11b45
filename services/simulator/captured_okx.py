"""What captures of OKX v5 hold that can be played.

Captures from before 2022 name no sequence: there a book's ids are counted, from its snapshot on.
"""

from collections import defaultdict
from urllib.parse import urlsplit

import msgspec

from services.shared.capture import CaptureRecord
from services.simulator.captured import (
    CapturedDepth,
    CapturedFrame,
    CapturedInfo,
    CapturedSnapshot,
    CapturedTrade,
    CaptureItem,
)
from services.simulator.captured_binance import captured_units
from services.simulator.fixed import SCALE, to_units

__all__ = ["OkxParser", "okx_listing"]

BOOKS = ("books", "books-l2-tbt", "books50-l2-tbt")
"""Channels that tell a book by its changes."""


class _Argument(msgspec.Struct):
    channel: str
    instrument: str | None = msgspec.field(name="instId", default=None)
    family: str | None = msgspec.field(name="instFamily", default=None)
    underlying: str | None = msgspec.field(name="uly", default=None)
    kind: str | None = msgspec.field(name="instType", default=None)


class _Frame(msgspec.Struct):
    arg: _Argument | None = None
    action: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"")
    event: str | None = None


class _Book(msgspec.Struct):
    bids: list[list[str]]
    asks: list[list[str]]
    last: int | None = msgspec.field(name="seqId", default=None)
    previous: int | None = msgspec.field(name="prevSeqId", default=None)


class _Trade(msgspec.Struct):
    trade_id: str = msgspec.field(name="tradeId")
    price: str = msgspec.field(name="px")
    quantity: str = msgspec.field(name="sz")
    side: str
    time: str = msgspec.field(name="ts")


class _Instrument(msgspec.Struct):
    name: str = msgspec.field(name="instId")
    tick: str = msgspec.field(name="tickSz", default="")
    lot: str = msgspec.field(name="lotSz", default="")
    size: str = msgspec.field(name="ctVal", default="")
    multiplier: str = msgspec.field(name="ctMult", default="")


class _Instruments(msgspec.Struct):
    data: list[_Instrument] = []


_decode_frame = msgspec.json.Decoder(_Frame).decode
_decode_books = msgspec.json.Decoder(list[_Book]).decode
_decode_trades = msgspec.json.Decoder(list[_Trade]).decode


class OkxParser:
    """Reads one pass over a capture of OKX."""

    def __init__(self) -> None:
        self._counted: defaultdict[tuple[str | None, str], int] = defaultdict(int)

    def __call__(self, record: CaptureRecord) -> CaptureItem | None:
        """Read a line."""
        if record.kind not in ("ws", "http"):
            return None
        payload = record.payload()
        time = record.ts if record.ts_ns is None else record.ts_ns / 1e9
        if record.kind == "http":
            if urlsplit(record.url or "").path.endswith("/public/instruments"):
                msgspec.json.decode(payload)
                return CapturedInfo(time, payload, record.url or "")
            return None
        if payload == b"pong":
            return None
        frame = _decode_frame(payload)
        if frame.arg is None or frame.event is not None or not frame.data:
            return None
        return self._frame(frame, frame.arg, payload, time, record.conn)

    def _frame(
        self, frame: _Frame, arg: _Argument, payload: bytes, time: float | None, conn: str | None
    ) -> CapturedFrame | None:
        key = arg.instrument or arg.family or arg.underlying or arg.kind
        if key is None:
            return None
        stream = f"{arg.channel}:{key}"
        event_id, depth, trade, snapshot = -1, None, None, None
        if arg.channel in BOOKS:
            (book,) = _decode_books(frame.data)
            bids, asks = _levels(book.bids), _levels(book.asks)
            event_id = -1 if book.last is None else book.last
            self._counted[conn, key] += 1
            last = self._counted[conn, key] if book.last is None else book.last
            if frame.action == "snapshot":
                snapshot = CapturedSnapshot(time, key, last, dict(bids), dict(asks))
            else:
                previous = last - 1 if book.last is None else book.previous
                depth = CapturedDepth(last, last, bids, asks, previous)
        elif arg.channel in ("trades", "trades-all"):
            told = _decode_trades(frame.data)
            if told:
                match = told[-1]
                event_id = int(match.trade_id)
                trade = CapturedTrade(
                    event_id,
                    int(match.time) * 1000,
                    to_units(match.price),
                    to_units(match.quantity),
                    match.side == "sell",
                )
        symbol = "" if arg.instrument is None or arg.channel.startswith("index-") else key
        return CapturedFrame(time, symbol, stream, payload, None, event_id, depth, trade, snapshot)


def _levels(levels: list[list[str]]) -> list[tuple[int, int]]:
    return [(captured_units(level[0]), captured_units(level[1])) for level in levels]


def okx_listing(body: bytes) -> dict[str, dict[str, object]]:
    """Return tick, lot and contract size of what `public/instruments` lists, by `instId`.

    Raises:
        msgspec.MsgspecError: when it is no such answer.

    """
    listing: dict[str, dict[str, object]] = {}
    for entry in msgspec.json.decode(body, type=_Instruments).data:
        try:
            told = {"tick": to_units(entry.tick), "lot": to_units(entry.lot)}
            told["contract_size"] = to_units(entry.size) if entry.size else SCALE
            told["multiplier"] = to_units(entry.multiplier) if entry.multiplier else SCALE
        except ValueError:
            continue  # finer than can be told here; its steps are then those that are seen
        listing[entry.name] = dict(told)
    return listing
