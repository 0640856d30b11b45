"""Arbitrary events of every table, as a collector could publish them."""

from collections.abc import Callable

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from services.storage.columns import schema_name
from services.storage.tables import Table

__all__ = ["EVENTS", "message_time"]

SECOND = 1_795_529_124
TEXTS = ["", "a", "BTC-USDT", "Ω ünïcode", "line\nbreak", "'quoted'", "\\"]
TRADE_IDS = ["0", "7", "007", "18446744073709551615", "18446744073709551616", "ETH-12", "-1", " 3"]


@st.composite
def decimals(draw: st.DrawFn) -> str:
    """Give a plain decimal without trailing zeros, at most 20 digits before the point, 18 after."""
    whole = draw(st.one_of(st.just(0), st.integers(0, 10**19)))
    part = draw(st.one_of(st.just(""), st.text("0123456789", max_size=18))).rstrip("0")
    sign = "-" if draw(st.booleans()) and (whole or part) else ""
    return f"{sign}{whole}.{part}" if part else f"{sign}{whole}"


def message_time(table: Table, message: Message) -> int:
    """Give what `time` is of an event, nanoseconds."""
    for name in (table.time.field, table.time.fallback):
        if name and message.HasField(name):
            return int(getattr(message, name).ToNanoseconds())
    return 0


def fill(draw: st.DrawFn, table: Table, message: Message, place: int) -> Message:
    for item in message.DESCRIPTOR.fields:
        name = item.name
        if item.is_repeated:
            for _ in range(draw(st.sampled_from([0, 1, 3]))):
                getattr(message, name).add(price=draw(decimals()), quantity=draw(decimals()))
        elif name in (table.time.field, table.time.fallback):
            # Distinct, so that no event replaces another; the fallback is always told.
            if name != table.time.field or not table.time.fallback or draw(st.booleans()):
                getattr(message, name).seconds = SECOND + 90_000 * (place % 3) + place
                getattr(message, name).nanos = draw(st.sampled_from([0, 1, 999_999_999]))
        elif item.message_type is not None:
            if draw(st.booleans()):
                getattr(message, name).seconds = draw(st.integers(1, 2**32))
                getattr(message, name).nanos = draw(st.integers(0, 999_999_999))
        elif item.enum_type is not None:
            setattr(message, name, draw(st.sampled_from([v.number for v in item.enum_type.values])))
        elif item.type == FieldDescriptor.TYPE_BOOL:
            setattr(message, name, draw(st.booleans()))
        elif name == "trade_id":
            setattr(message, name, draw(st.sampled_from(TRADE_IDS)))
        elif item.type == FieldDescriptor.TYPE_STRING and schema_name(item) != name:
            told = name in ("price", "quantity") or draw(st.booleans())
            setattr(message, name, draw(decimals()) if told else "")
        elif item.type == FieldDescriptor.TYPE_STRING:
            # Whatever else a venue does not tell, an event names its venue.
            texts = TEXTS[1:] if name == "exchange" else TEXTS
            setattr(message, name, draw(st.sampled_from(texts)))
        elif item.type == FieldDescriptor.TYPE_UINT64:
            setattr(message, name, draw(st.integers(0, 2**64 - 1)))
        else:
            setattr(message, name, draw(st.integers(-(2**63), 2**63 - 1)))
    return message


@st.composite
def events(draw: st.DrawFn) -> Callable[[Table], list[Message]]:
    count = draw(st.integers(1, 8))

    def make(table: Table) -> list[Message]:
        return [fill(draw, table, table.message(), place) for place in range(count)]

    return make


EVENTS = events()
"""A function that gives arbitrary events of a table."""
