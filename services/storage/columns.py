"""Which columns a message's fields become, and how the columns become the message's bytes again.

ClickHouse reads the events' own bytes (FORMAT Protobuf). A column takes the field of its name; `_`
in a column's name also stands for the step into a nested message, so `receive_time_seconds` is
`receive_time.seconds`. https://clickhouse.com/docs/interfaces/formats/Protobuf

Everything is exact, and reversible: a decimal whose text the column does not give back is refused
(ClickHouse by itself would cut digits off, or read junk as 0), times keep nanoseconds, and what the
venue did not tell is NULL, the epoch, or zero, which all encode as an absent field.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

__all__ = [
    "DECIMAL",
    "INPUT",
    "WIDE_DECIMAL",
    "Column",
    "Columns",
    "TimeRule",
    "columns_of",
    "schema_name",
]

DECIMAL: Final = "Decimal(38, 18)"
"""Type of prices and quantities: 20 digits before the point, 18 after."""

WIDE_DECIMAL: Final = "Decimal(76, 38)"
"""Type of what venues compute (rates, greeks, averages): 38 digits before the point, 38 after."""

INPUT: Final = "_input"
"""Ends the name of a field in the schema that ClickHouse reads when the column of the field's own
name is made of it."""

_TIME = "DateTime64(9, 'UTC')"
_TIME_CODEC = "CODEC(Delta, ZSTD(3))"
_ZSTD = "CODEC(ZSTD(3))"
_SEQUENCE_CODEC = "CODEC(Delta, ZSTD(3))"

# Text that is not a decimal.
_TEXTS: Final = frozenset({
    "collector_id", "connection_id", "detail", "event_id", "exchange", "liquidation_id",
    "native_symbol", "base", "quote", "previous_event_id", "settlement", "symbol", "trade_id",
    "underlying",
})  # fmt: skip
_REPEATED_TEXTS: Final = frozenset({
    "collector_id", "connection_id", "exchange", "native_symbol", "base", "quote", "settlement",
    "symbol", "underlying",
})  # fmt: skip
# Decimals that every venue tells, so that the column needs no NULL.
_ALWAYS_TOLD: Final = frozenset({("Trade", "price"), ("Trade", "quantity")})

_INTEGERS: Final = {
    FieldDescriptor.CPPTYPE_INT32: "Int32",
    FieldDescriptor.CPPTYPE_INT64: "Int64",
    FieldDescriptor.CPPTYPE_UINT32: "UInt32",
    FieldDescriptor.CPPTYPE_UINT64: "UInt64",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    name: str
    """Its name."""

    definition: str
    """Its type, default and codec, as CREATE TABLE takes them."""

    inserted: bool = True
    """Whether an insert of events names it."""

    stored: bool = True
    """Whether it is on disk, or only an input (EPHEMERAL) or a name (ALIAS)."""


@dataclass(frozen=True, slots=True)
class TimeRule:
    """Where a table's `time` comes from: what ranges, partitions and order go by."""

    field: str
    """The message's field."""

    fallback: str = ""
    """The field that counts where the venue tells no `field`; empty when there is none."""


@dataclass(slots=True)
class Columns:
    """The columns of one table, and the message again."""

    columns: list[Column] = field(default_factory=list)
    """In the order of the fields."""

    outputs: list[tuple[str, str]] = field(default_factory=list)
    """Path of the message's field, and the SQL expression that gives it."""


def columns_of(message: Descriptor, time: TimeRule, decimal: str = DECIMAL) -> Columns:
    """Give the columns of a message's table, in the order of its fields."""
    made = Columns()
    for item in message.fields:
        for column in _columns(message, item, time, decimal):
            made.columns.append(column)
        made.outputs.extend(_outputs(item))
    return made


def schema_name(item: FieldDescriptor) -> str:
    """Give a field's name in the schema that ClickHouse reads."""
    is_read_as_text = item.name == "trade_id" or _is_decimal(item)
    return f"{item.name}{INPUT}" if is_read_as_text else str(item.name)


def _is_decimal(item: FieldDescriptor) -> bool:
    return item.type == FieldDescriptor.TYPE_STRING and item.name not in _TEXTS


def _columns(
    message: Descriptor, item: FieldDescriptor, time: TimeRule, decimal: str
) -> Iterator[Column]:
    name = item.name
    kind = item.message_type.name if item.message_type is not None else ""
    if kind == "Timestamp":
        yield from _time_columns(name, time)
    elif kind == "Duration":
        yield from _inputs(name)
        yield Column(name, f"Int64 DEFAULT {_nanoseconds(name)} {_ZSTD}", inserted=False)
    elif item.message_type is not None and kind == "PriceLevel":
        for part in item.message_type.fields:
            yield from _level_columns(f"{name}.{part.name}")
    elif kind:
        raise TypeError(f"{message.name}.{name}: no column is made of a {kind}")
    elif item.enum_type is not None:
        yield Column(name, f"{_enum_type(item.enum_type)} {_ZSTD}")
    elif item.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        yield Column(name, f"Bool {_ZSTD}")
    elif item.cpp_type in _INTEGERS:
        yield Column(name, f"{_INTEGERS[item.cpp_type]} {_SEQUENCE_CODEC}")
    elif name == "trade_id":
        yield from _trade_id_columns(name)
    elif name in _TEXTS:
        text = "LowCardinality(String)" if name in _REPEATED_TEXTS else "String"
        yield Column(name, f"{text} {_ZSTD}")
    else:
        told = (message.name, name) in _ALWAYS_TOLD
        yield from _decimal_columns(name, decimal, always_told=told)


def _decimal_columns(name: str, decimal: str, *, always_told: bool) -> Iterator[Column]:
    given = f"{name}{INPUT}"
    yield Column(given, "String EPHEMERAL", stored=False)
    read = "toDecimal128OrNull" if decimal == DECIMAL else "toDecimal256OrNull"
    value = f"{read}({given}, {18 if decimal == DECIMAL else 38})"
    absent = "'none'" if always_told else "''"
    wrong = f"throwIf(ifNull(toString({value}), {absent}) != {given}, '{_refusal(name, decimal)}')"
    if always_told:
        made = f"{decimal} DEFAULT if({wrong} = 0, assumeNotNull({value}), 0)"
    else:
        made = f"Nullable({decimal}) DEFAULT if({wrong} = 0, {value}, NULL)"
    yield Column(name, f"{made} {_ZSTD}", inserted=False)


def _level_columns(name: str) -> Iterator[Column]:
    given = f"`{name}{INPUT}`"
    yield Column(f"{name}{INPUT}", "Array(String) EPHEMERAL", stored=False)
    values = f"CAST({given} AS Array({DECIMAL}))"
    wrong = f"throwIf(CAST({values} AS Array(String)) != {given}, '{_refusal(name, DECIMAL)}')"
    yield Column(
        name, f"Array({DECIMAL}) DEFAULT if({wrong} = 0, {values}, []) {_ZSTD}", inserted=False
    )


def _refusal(name: str, decimal: str) -> str:
    return f"{name}: expected a plain decimal that fits {decimal} exactly"


def _inputs(name: str) -> Iterator[Column]:
    yield Column(f"{name}_seconds", "Int64 EPHEMERAL", stored=False)
    yield Column(f"{name}_nanos", "Int32 EPHEMERAL", stored=False)


def _nanoseconds(name: str) -> str:
    return f"{name}_seconds * 1000000000 + {name}_nanos"


def _time_columns(name: str, time: TimeRule) -> Iterator[Column]:
    """Store a time once: the field that `time` comes from is another name of it."""
    if name not in (time.field, time.fallback):
        yield from _inputs(name)
        moment = f"fromUnixTimestamp64Nano({_nanoseconds(name)}, 'UTC')"
        yield Column(name, f"{_TIME} DEFAULT {moment} {_TIME_CODEC}", inserted=False)
        return
    yield from _inputs(name)
    if name == time.fallback:
        moment = f"fromUnixTimestamp64Nano({_nanoseconds(name)}, 'UTC')"
        yield Column(name, f"{_TIME} DEFAULT {moment} {_TIME_CODEC}", inserted=False)
        return
    told = _nanoseconds(name)
    if not time.fallback:
        moment = f"fromUnixTimestamp64Nano({told}, 'UTC')"
        yield Column("time", f"{_TIME} DEFAULT {moment} {_TIME_CODEC}", inserted=False)
        if name != "time":
            yield Column(name, f"{_TIME} ALIAS time", inserted=False, stored=False)
        return
    moment = (
        f"fromUnixTimestamp64Nano(if({told} = 0, {_nanoseconds(time.fallback)}, {told}), 'UTC')"
    )
    yield Column("time", f"{_TIME} DEFAULT {moment} {_TIME_CODEC}", inserted=False)
    yield Column(f"{name}_told", f"Bool DEFAULT {told} != 0 {_ZSTD}", inserted=False)
    unset = "fromUnixTimestamp64Nano(toInt64(0), 'UTC')"
    yield Column(
        name, f"{_TIME} ALIAS if({name}_told, time, {unset})", inserted=False, stored=False
    )


def _trade_id_columns(name: str) -> Iterator[Column]:
    """Ids are numbers nearly always, and those of one day differ little: a byte for what is ten."""
    given = f"{name}{INPUT}"
    number = f"toUInt64OrZero({given})"
    plain = f"{number} != 0 AND toString({number}) = {given}"
    yield Column(given, "String EPHEMERAL", stored=False)
    yield Column(
        "trade_number", f"UInt64 DEFAULT if({plain}, {number}, 0) {_SEQUENCE_CODEC}", inserted=False
    )
    yield Column("trade_text", f"String DEFAULT if({plain}, '', {given}) {_ZSTD}", inserted=False)
    told = "if(trade_number = 0, trade_text, toString(trade_number))"
    yield Column(name, f"String ALIAS {told}", inserted=False, stored=False)


def _enum_type(enum: EnumDescriptor) -> str:
    values = ", ".join(f"'{value.name}' = {value.number}" for value in enum.values)
    return f"Enum8({values})"


def _outputs(item: FieldDescriptor) -> Iterator[tuple[str, str]]:
    name = item.name
    kind = item.message_type.name if item.message_type is not None else ""
    if kind == "Timestamp":
        nanoseconds = f"toUnixTimestamp64Nano({name})"
        yield f"{name}.seconds", f"intDiv({nanoseconds}, 1000000000)"
        yield f"{name}.nanos", f"toInt32({nanoseconds} % 1000000000)"
    elif kind == "Duration":
        yield f"{name}.seconds", f"intDiv({name}, 1000000000)"
        yield f"{name}.nanos", f"toInt32({name} % 1000000000)"
    elif item.message_type is not None and kind == "PriceLevel":
        for part in item.message_type.fields:
            yield f"{name}.{part.name}{INPUT}", f"`{name}.{part.name}`"
    else:
        yield schema_name(item), f"`{name}`"
