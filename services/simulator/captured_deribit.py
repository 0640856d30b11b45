"""What captures of Deribit's notifications hold that can be played."""

from decimal import Decimal

import msgspec

from services.shared.capture import CaptureRecord
from services.simulator.captured import (
    CapturedDepth,
    CapturedFrame,
    CapturedSnapshot,
    CapturedTrade,
    CaptureItem,
)
from services.simulator.fixed import to_units

__all__ = ["deribit_item", "deribit_listing"]

_NO_INSTRUMENT = ("deribit_", "markprice.", "estimated_", "instrument.state", "block_")
_KINDS = ("future", "option", "spot", "any", "future_combo", "option_combo")


class _Params(msgspec.Struct):
    channel: str = ""
    data: msgspec.Raw = msgspec.Raw(b"")


class _Message(msgspec.Struct):
    method: str | None = None
    params: _Params | None = None


class _Book(msgspec.Struct):
    change_id: int
    bids: list[tuple[str, Decimal, Decimal]]
    asks: list[tuple[str, Decimal, Decimal]]
    type: str
    prev_change_id: int | None = None


class _Trade(msgspec.Struct):
    trade_seq: int
    timestamp: int
    price: Decimal
    amount: Decimal
    direction: str


_decode_message = msgspec.json.Decoder(_Message).decode
_decode_book = msgspec.json.Decoder(_Book).decode
_decode_trades = msgspec.json.Decoder(list[_Trade]).decode


def deribit_item(record: CaptureRecord) -> CaptureItem | None:
    """Read a line of a capture of Deribit. REST answers are not played: books need none."""
    if record.kind != "ws":
        return None
    payload = record.payload()
    message = _decode_message(payload)
    if message.method != "subscription" or message.params is None or not message.params.channel:
        return None
    time = record.ts if record.ts_ns is None else record.ts_ns / 1e9
    channel = message.params.channel
    parts = channel.split(".")
    name = parts[2] if channel.startswith("chart.trades.") else parts[1] if len(parts) > 1 else ""
    if channel.startswith(_NO_INSTRUMENT) or name in _KINDS:
        name = ""
    event_id, depth, trade, snapshot = -1, None, None, None
    if parts[0] == "book" and len(parts) == 3:
        book = _decode_book(message.params.data)
        bids, asks = _levels(book.bids), _levels(book.asks)
        event_id = book.change_id
        if book.type == "snapshot":
            snapshot = CapturedSnapshot(time, name, event_id, dict(bids), dict(asks))
        else:
            depth = CapturedDepth(event_id, event_id, bids, asks, book.prev_change_id)
    elif parts[0] == "trades" and name:
        told = _decode_trades(message.params.data)
        if told:
            match = told[-1]
            event_id = match.trade_seq
            trade = CapturedTrade(
                event_id,
                match.timestamp * 1000,
                to_units(match.price),
                to_units(match.amount),
                match.direction == "sell",
            )
    return CapturedFrame(time, name, channel, payload, None, event_id, depth, trade, snapshot)


def _levels(levels: list[tuple[str, Decimal, Decimal]]) -> list[tuple[int, int]]:
    return [
        (to_units(price), 0 if action == "delete" else to_units(amount))
        for action, price, amount in levels
    ]


def deribit_listing(_: bytes) -> dict[str, dict[str, object]]:
    """Nothing: an instrument's steps are those that are seen."""
    return {}
