"""The tables of events: one a subject of the broker, made from the message that travels there.

A row is inserted as the event's own bytes with two fields more, which protobuf lets anybody append:
the place in the stream (`stream_sequence`) and when the stream was made (`stream_created`,
nanoseconds), because places begin again in a stream that was made anew. The two are the identity of
a delivery; `Table.identity` is that of the event.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from marketprism.collector.v1 import integrity_event_pb2
from marketprism.market.v1 import common_pb2, events_pb2, instrument_pb2, order_book_pb2

from services.shared.wire import varint
from services.storage.columns import (
    DECIMAL,
    WIDE_DECIMAL,
    Column,
    TimeRule,
    columns_of,
    schema_name,
)

__all__ = [
    "STREAM_CREATED_FIELD",
    "STREAM_SEQUENCE_FIELD",
    "TABLES",
    "Table",
    "create_statement",
    "frame",
]

STREAM_SEQUENCE_FIELD: Final = 1000
"""Number of the appended field with the place in the stream, a varint."""

STREAM_CREATED_FIELD: Final = 1001
"""Number of the appended field with the stream's time of creation, a varint of nanoseconds."""

_STREAM_COLUMNS: Final = (
    Column("stream_sequence", "UInt64 CODEC(Delta, ZSTD(3))"),
    Column("stream_created", "UInt64 CODEC(Delta, ZSTD(3))"),
)

_RECEIVED = TimeRule("receive_time")
_TOLD_OR_RECEIVED = TimeRule("exchange_time", "receive_time")


@dataclass(frozen=True, slots=True)
class Table:
    """One table of events."""

    name: str
    """Its name, which is also the kind in the subject `market.<kind>.<exchange>.<symbol>`."""

    message: type[Message]
    """The message that travels there."""

    stream: str
    """The broker's stream."""

    kind: int
    """`EventKind` that it belongs to; 0 for instruments and the ledger."""

    time: TimeRule
    """What `time` is."""

    identity: tuple[str, ...]
    """Columns that tell an event from every other, after exchange and symbol: the rest of the sort
    key. `time` is the first, so that ranges are read in order."""

    columns: tuple[Column, ...]
    """Its columns."""

    outputs: tuple[tuple[str, str], ...]
    """Path of each field of the message, and the SQL expression that gives it."""

    @property
    def subject(self) -> str:
        """The subjects whose messages it keeps."""
        return f"market.{self.name}.>"

    @property
    def descriptor(self) -> Descriptor:
        """Descriptor of the message."""
        return cast("Descriptor", self.message.DESCRIPTOR)

    @property
    def insert_columns(self) -> list[str]:
        """Columns that an insert of events names."""
        return [column.name for column in self.columns if column.inserted]

    @property
    def sort_key(self) -> tuple[str, ...]:
        """Columns that rows are sorted by."""
        return ("exchange", "symbol", *self.identity)

    @property
    def order_by(self) -> str:
        """Columns of `sort_key` for an ORDER BY: the order of history."""
        return ", ".join(self.sort_key)

    def event_sql(self) -> str:
        """Give the SQL expression of the event's bytes, exactly those that were inserted.

        `Engine.query(..., events_of=table)` makes ClickHouse know the schema.
        """
        fields = ", ".join(f"{sql} AS `{path}`" for path, sql in self.outputs)
        row = f"formatRow('Protobuf', {fields})"
        # The row begins with its length as a varint.
        begin = "multiIf(length(r) <= 128, 2, length(r) <= 16385, 3, length(r) <= 2097154, 4, 5)"
        return f"arrayMap(r -> substring(r, {begin}), [{row}])[1]"

    @property
    def schema_text(self) -> str:
        """Protobuf schema of the message with the two appended fields, for ClickHouse."""
        return _schema_text(self.descriptor)


def _table(
    name: str,
    message: type[Message],
    stream: str,
    kind: int,
    time: TimeRule,
    *identity: str,
) -> Table:
    decimal = WIDE_DECIMAL if stream == "MARKET_REFERENCE" else DECIMAL
    made = columns_of(cast("Descriptor", message.DESCRIPTOR), time, decimal)
    return Table(
        name=name,
        message=message,
        stream=stream,
        kind=kind,
        time=time,
        identity=identity,
        columns=(*made.columns, *_STREAM_COLUMNS),
        outputs=tuple(made.outputs),
    )


def _reference(name: str, message: type[Message], kind: int, *before: str) -> Table:
    """Make a table of a kind that has no ids: a delivery is an event."""
    return _table(
        name, message, "MARKET_REFERENCE", kind, _TOLD_OR_RECEIVED,
        *before, "time", "stream_sequence",
    )  # fmt: skip


def _tables() -> Iterator[Table]:
    kinds = common_pb2
    book, kind = "MARKET_ORDER_BOOK", kinds.EVENT_KIND_ORDER_BOOK
    yield _table(
        "trade", events_pb2.Trade, "MARKET_TRADE", kinds.EVENT_KIND_TRADE, _TOLD_OR_RECEIVED,
        "time", "trade_number", "trade_text",
    )  # fmt: skip
    yield _table(
        "order_book_snapshot", order_book_pb2.OrderBookSnapshot, book, kind, _RECEIVED,
        "time", "epoch", "sequence", "reason",
    )  # fmt: skip
    yield _table(
        "order_book_update", order_book_pb2.OrderBookUpdate, book, kind, _RECEIVED,
        "time", "epoch", "sequence",
    )  # fmt: skip
    yield _table(
        "order_book_status", order_book_pb2.OrderBookStatus, book, kind, TimeRule("time"),
        "time", "epoch", "sequence", "state", "reason",
    )  # fmt: skip
    yield _table(
        "best_bid_offer", events_pb2.BestBidOffer, "MARKET_BEST_BID_OFFER",
        kinds.EVENT_KIND_BEST_BID_OFFER, _TOLD_OR_RECEIVED,
        "time", "venue_sequence", "stream_sequence",
    )  # fmt: skip
    yield _reference("ticker", events_pb2.Ticker, kinds.EVENT_KIND_TICKER)
    yield _table(
        "candle", events_pb2.Candle, "MARKET_REFERENCE", kinds.EVENT_KIND_CANDLE,
        TimeRule("open_time"),
        "interval", "time", "receive_time", "stream_sequence",
    )  # fmt: skip
    yield _reference("funding_rate", events_pb2.FundingRate, kinds.EVENT_KIND_FUNDING_RATE)
    yield _reference("mark_price", events_pb2.MarkPrice, kinds.EVENT_KIND_MARK_PRICE)
    yield _reference("index_price", events_pb2.IndexPrice, kinds.EVENT_KIND_INDEX_PRICE)
    yield _reference("open_interest", events_pb2.OpenInterest, kinds.EVENT_KIND_OPEN_INTEREST)
    yield _reference("liquidation", events_pb2.Liquidation, kinds.EVENT_KIND_LIQUIDATION)
    yield _reference(
        "long_short_ratio", events_pb2.LongShortRatio, kinds.EVENT_KIND_LONG_SHORT_RATIO,
    )  # fmt: skip
    yield _reference(
        "volatility_index", events_pb2.VolatilityIndex, kinds.EVENT_KIND_VOLATILITY_INDEX
    )
    yield _reference("option_greeks", events_pb2.OptionGreeks, kinds.EVENT_KIND_OPTION_GREEKS)
    # The newest description of each: what is served is looked up, not read by time.
    yield _table(
        "instrument", instrument_pb2.Instrument, "MARKET_INSTRUMENT", 0, TimeRule("update_time")
    )
    yield _table(
        "integrity", integrity_event_pb2.IntegrityEvent, "MARKET_INTEGRITY", 0, _RECEIVED,
        "time", "event_id",
    )  # fmt: skip


TABLES: Final[Mapping[str, Table]] = MappingProxyType({table.name: table for table in _tables()})
"""Every table of events by its name."""


def create_statement(table: Table) -> str:
    """Give the CREATE TABLE of a table as a migration's template (`migrate.py` tells the macros).

    It is the pattern for migrations, which are frozen once they were released; a test holds what
    the migrations make against what the contracts want.
    """
    lines = [f"    `{column.name}` {column.definition}" for column in table.columns]
    lines += [
        "    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1",
    ]
    if any(column.name == "receive_time" and column.stored for column in table.columns):
        lines.append("    INDEX by_receive_time receive_time TYPE minmax GRANULARITY 1")
    key = table.order_by
    partition = "" if table.name == "instrument" else "\nPARTITION BY toDate(time)"
    return (
        f"CREATE TABLE IF NOT EXISTS {{{{ stored('{table.name}') }}}}\n(\n"
        + ",\n".join(lines)
        + f"\n)\nENGINE = {{{{ replacing_merge_tree }}}}{partition}\nORDER BY ({key});\n"
        + f"{{{{ distributed('{table.name}') }}}}\n"
    )


# The schema that ClickHouse reads events by: the contract's message in one file without imports.


@functools.cache
def _schema_text(message: Descriptor) -> str:
    seen: dict[str, str] = {}
    _add_message(message, seen, event=True)
    return 'syntax = "proto3";\n' + "\n".join(seen.values())


def _add_message(message: Descriptor, seen: dict[str, str], *, event: bool) -> None:
    if message.name in seen:
        return
    lines = []
    for item in message.fields:
        if item.message_type is not None:
            _add_message(item.message_type, seen, event=False)
        if item.enum_type is not None:
            _add_enum(item.enum_type, seen)
        repeated = "repeated " if item.is_repeated else ""
        lines.append(f"  {repeated}{_type(item)} {schema_name(item)} = {item.number};")
    if event:
        lines.append(f"  uint64 stream_sequence = {STREAM_SEQUENCE_FIELD};")
        lines.append(f"  uint64 stream_created = {STREAM_CREATED_FIELD};")
    seen[message.name] = "\n".join([f"message {message.name} {{", *lines, "}"])


def _add_enum(enum: EnumDescriptor, seen: dict[str, str]) -> None:
    values = [f"  {value.name} = {value.number};" for value in enum.values]
    seen.setdefault(enum.name, "\n".join([f"enum {enum.name} {{", *values, "}"]))


def _type(item: FieldDescriptor) -> str:
    if item.message_type is not None:
        return str(item.message_type.name)
    if item.enum_type is not None:
        return str(item.enum_type.name)
    return {
        FieldDescriptor.TYPE_BOOL: "bool",
        FieldDescriptor.TYPE_INT32: "int32",
        FieldDescriptor.TYPE_INT64: "int64",
        FieldDescriptor.TYPE_STRING: "string",
        FieldDescriptor.TYPE_UINT32: "uint32",
        FieldDescriptor.TYPE_UINT64: "uint64",
    }[item.type]


_SEQUENCE_TAG: Final = varint(STREAM_SEQUENCE_FIELD << 3)
_CREATED_TAG: Final = varint(STREAM_CREATED_FIELD << 3)


def frame(payload: bytes, stream_sequence: int, stream_created: int) -> bytes:
    """Give the row of one event for FORMAT Protobuf: a length, the event's bytes, its place."""
    place = _SEQUENCE_TAG + varint(stream_sequence) + _CREATED_TAG + varint(stream_created)
    return varint(len(payload) + len(place)) + payload + place
