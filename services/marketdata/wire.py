"""Puts events into stream messages by their bytes: nothing is decoded to be encoded again.

A repeated message field concatenates, so a stream's message is the join of its events' items, and
an item is a field tag, a length, and the collector's own bytes.
https://protobuf.dev/programming-guides/encoding/

Fields stay in the order of their numbers, and each occurs once: Envoy renders JSON in wire order
and would repeat a key.
"""

from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.market.v1 import market_event_pb2, order_book_pb2

from services.shared.wire import LENGTH_DELIMITED, varint

__all__ = [
    "BEST_BID_OFFER",
    "ORDER_BOOK_SNAPSHOT",
    "ORDER_BOOK_STATUS",
    "ORDER_BOOK_UPDATE",
    "STREAM_STATUS",
    "TRADE",
    "event_item",
    "event_kind",
    "event_payload",
    "nanoseconds",
    "stream_status_item",
    "timestamp",
    "with_reason",
]

_FIELDS = market_event_pb2.MarketEvent.DESCRIPTOR.fields_by_name

TRADE: Final[int] = _FIELDS["trade"].number
"""Field of MarketEvent that carries a Trade."""

ORDER_BOOK_SNAPSHOT: Final[int] = _FIELDS["order_book_snapshot"].number
"""Field of MarketEvent that carries an OrderBookSnapshot."""

ORDER_BOOK_UPDATE: Final[int] = _FIELDS["order_book_update"].number
"""Field of MarketEvent that carries an OrderBookUpdate."""

ORDER_BOOK_STATUS: Final[int] = _FIELDS["order_book_status"].number
"""Field of MarketEvent that carries an OrderBookStatus."""

BEST_BID_OFFER: Final[int] = _FIELDS["best_bid_offer"].number
"""Field of MarketEvent that carries a BestBidOffer."""

STREAM_STATUS: Final[int] = _FIELDS["stream_status"].number
"""Field of MarketEvent that carries a StreamStatus."""

_REASON: Final[int] = order_book_pb2.OrderBookSnapshot.DESCRIPTOR.fields_by_name["reason"].number
_NANOS = 1_000_000_000


def event_item(kind: int, payload: bytes) -> bytes:
    """Encode one `events` item of a stream response around an encoded event.

    `kind` is the field of MarketEvent; `events` is field 1 of every stream's response.
    """
    head = varint(kind << 3 | LENGTH_DELIMITED) + varint(len(payload))
    return b"\x0a%b%b%b" % (varint(len(head) + len(payload)), head, payload)


def event_kind(item: bytes) -> int:
    """Give the field of MarketEvent that an `events` item carries."""
    position = 1
    while item[position] > 0x7F:
        position += 1
    tag = item[position + 1]
    if tag > 0x7F:
        tag = tag & 0x7F | item[position + 2] << 7
    return tag >> 3


def event_payload(item: bytes) -> bytes:
    """Give the encoded event within an `events` item."""
    position = 1
    # The length of the item, the tag of its kind, the length of the event.
    for _ in range(3):
        while item[position] > 0x7F:
            position += 1
        position += 1
    return item[position:]


def with_reason(snapshot: bytes, reason: int) -> bytes:
    """Give an encoded OrderBookSnapshot with another SnapshotReason, its levels untouched."""
    position = 0
    size = len(snapshot)
    while position < size:
        tag = snapshot[position]
        if tag > 0x7F or tag >> 3 >= _REASON:
            break
        position = _skip(snapshot, position + 1, tag & 7)
    rest = position
    if position < size and snapshot[position] == _REASON << 3:
        rest = _skip(snapshot, position + 1, 0)
    changed = b"%b%b%b%b" % (
        snapshot[:position],
        varint(_REASON << 3),
        varint(reason),
        snapshot[rest:],
    )
    # An encoder is free in the order of fields; ours is not, a stranger's may be.
    if rest < size and snapshot[rest] >> 3 < _REASON:
        message = order_book_pb2.OrderBookSnapshot.FromString(snapshot)
        message.reason = reason  # type: ignore[assignment]  # the enum's value is an int
        return message.SerializeToString()
    return changed


def _skip(data: bytes, position: int, wire_type: int) -> int:
    if wire_type == 0:
        while data[position] > 0x7F:
            position += 1
        return position + 1
    length = shift = 0
    while data[position] > 0x7F:
        length |= (data[position] & 0x7F) << shift
        shift += 7
        position += 1
    return position + 1 + (length | data[position] << shift)


def nanoseconds(time: Timestamp) -> int:
    """Give a timestamp as nanoseconds since 1970."""
    return time.seconds * _NANOS + time.nanos


def timestamp(nanos: int) -> Timestamp:
    """Make a timestamp of nanoseconds since 1970."""
    seconds, rest = divmod(nanos, _NANOS)
    return Timestamp(seconds=seconds, nanos=rest)


def stream_status_item(
    state: int,
    *,
    now: int,
    reason: str = "",
    message: str = "",
    dropped_events: int = 0,
    exchange: str = "",
    symbol: str = "",
    subscription_id: str = "",
) -> bytes:
    """Encode an `events` item with a StreamStatus; `now` is nanoseconds since 1970."""
    status = market_event_pb2.StreamStatus(
        state=state,  # type: ignore[arg-type]  # the enum's value is an int
        reason=reason,
        message=message,
        time=timestamp(now),
        dropped_events=dropped_events,
        exchange=exchange,
        symbol=symbol,
        subscription_id=subscription_id,
    )
    return event_item(STREAM_STATUS, status.SerializeToString())
