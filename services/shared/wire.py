"""The two pieces of protobuf's encoding that everything written by hand is made of.

https://protobuf.dev/programming-guides/encoding/
"""

__all__ = ["LENGTH_DELIMITED", "field", "varint"]

LENGTH_DELIMITED = 2
"""Wire type of messages, text and bytes."""


def varint(value: int) -> bytes:
    """Encode a non-negative integer, or a negative int64 as its two's complement."""
    if 0 <= value < 0x80:
        return bytes((value,))
    if 0 <= value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if value < 0:
        value += 1 << 64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, payload: bytes) -> bytes:
    """Encode a length-delimited field: a message, text or bytes."""
    return b"%b%b%b" % (varint(number << 3 | LENGTH_DELIMITED), varint(len(payload)), payload)
