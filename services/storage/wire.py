"""Puts events into responses by their bytes: nothing is decoded to be encoded again.

A repeated message field is the join of its items, each a tag, a length and the item's bytes.
https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterable
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from services.shared.wire import LENGTH_DELIMITED, varint

__all__ = ["repeated", "stored_ns"]

_HALF: Final = 1 << 63


def repeated(number: int, payloads: Iterable[bytes]) -> bytes:
    """Encode a repeated field of encoded messages."""
    tag = varint(number << 3 | LENGTH_DELIMITED)
    encoded = bytearray()
    for payload in payloads:
        encoded += tag
        encoded += varint(len(payload))
        encoded += payload
    return bytes(encoded)


def stored_ns(time: Timestamp) -> int:
    """Give the nanoseconds since 1970 that a table holds for an event's time.

    Never raises: what no clock can show (nanos beyond a second, a year beyond 2262) wraps around at
    64 bits, as it does in the database.
    """
    return (time.seconds * 1_000_000_000 + time.nanos + _HALF) % (2 * _HALF) - _HALF
