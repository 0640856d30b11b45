"""Puts events into responses by their bytes: nothing is decoded to be encoded again.

A repeated message field is the join of its items, each a tag, a length and the item's bytes.
https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterable

from services.storage.tables import varint

__all__ = ["field", "repeated"]

_LENGTH_DELIMITED = 2


def field(number: int, payload: bytes) -> bytes:
    """Encode a length-delimited field: a message, text or bytes."""
    return b"%b%b%b" % (varint(number << 3 | _LENGTH_DELIMITED), varint(len(payload)), payload)


def repeated(number: int, payloads: Iterable[bytes]) -> bytes:
    """Encode a repeated field of encoded messages."""
    tag = varint(number << 3 | _LENGTH_DELIMITED)
    encoded = bytearray()
    for payload in payloads:
        encoded += tag
        encoded += varint(len(payload))
        encoded += payload
    return bytes(encoded)
