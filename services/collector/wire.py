"""Protobuf fields written by hand: the encoder is the dearest step of the collector.

Every function returns the bytes that the protobuf library itself would write, in the order of
field numbers and with defaults left out; the tests compare the two. Building the 40 levels of a
Binance depth frame through the library costs several times the JSON decoding of the frame.

The format is https://protobuf.dev/programming-guides/encoding/: a field is a tag
(number << 3 | wire type), then a varint (wire type 0) or a length and bytes (wire type 2).
"""

from services.shared.wire import varint

__all__ = ["message_field", "text_field", "timestamp_field", "uint_field"]

_NANOS_OF_MILLIS = tuple(b"\x10" + varint(ms * 1_000_000) if ms else b"" for ms in range(1000))


def uint_field(number: int, value: int) -> bytes:
    """Encode an integer or enum field; nothing when it is 0."""
    return varint(number << 3) + varint(value) if value else b""


def text_field(number: int, text: str) -> bytes:
    """Encode a string field; nothing when it is empty."""
    if not text:
        return b""
    data = text.encode()
    return varint(number << 3 | 2) + varint(len(data)) + data


def message_field(number: int, data: bytes) -> bytes:
    """Wrap an encoded message as a field of another; an empty message is still present."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def timestamp_field(tag: bytes, nanoseconds: int, _seconds: dict[int, bytes] = {}) -> bytes:  # noqa: B006
    """Encode a google.protobuf.Timestamp field; nothing when `nanoseconds` is 0 or less.

    `tag` is the encoded tag of the field, `nanoseconds` the time since 1970. The default argument
    remembers the encoded second, because thousands of events share one.
    """
    if nanoseconds <= 0:
        return b""
    second, nanos = divmod(nanoseconds, 1_000_000_000)
    head = _seconds.get(second)
    if head is None:
        if len(_seconds) > 64:
            _seconds.clear()
        head = _seconds[second] = b"\x08" + varint(second) if second else b""
    millis, rest = divmod(nanos, 1_000_000)
    if rest == 0:
        body = head + _NANOS_OF_MILLIS[millis]
    elif nanos >= 1 << 28:
        body = head + bytes(
            (
                0x10,
                nanos & 127 | 128,
                nanos >> 7 & 127 | 128,
                nanos >> 14 & 127 | 128,
                nanos >> 21 & 127 | 128,
                nanos >> 28,
            )
        )
    else:
        body = head + b"\x10" + varint(nanos)
    return tag + bytes((len(body),)) + body
