"""Events and books as columns, for pandas, Arrow and whatever takes them.

`columns` needs nothing; `to_arrow` needs pyarrow, `to_pandas` pandas: neither is installed with
MarketPrism. Numbers stay the exact decimal strings of the contract unless `floats` is asked for.
"""

from collections.abc import Iterable
from importlib import import_module
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.client.book import OrderBook
from marketprism.market.v1.market_event_pb2 import MarketEvent

__all__ = ["book_columns", "columns", "to_arrow", "to_pandas"]


def columns(
    events: Iterable[MarketEvent | Message], *, floats: Iterable[str] = ()
) -> dict[str, list[Any]]:
    """Give one list a field of messages of one kind: trades, tickers, candles ...

    Times are nanoseconds since 1970 (None when unset), durations seconds, enums their names.
    `floats` names fields to convert, at the loss of exactness. Raises ValueError for mixed kinds
    and for messages that hold others (books): see `book_columns`.
    """
    wanted = set(floats)
    table: dict[str, list[Any]] = {}
    descriptor = None
    for event in events:
        message: Message = event
        if isinstance(event, MarketEvent):
            kind = event.WhichOneof("event")
            if kind is None or kind == "stream_status":
                continue
            message = getattr(event, kind)
        if descriptor is None:
            descriptor = message.DESCRIPTOR
            for field in descriptor.fields:
                if field.is_repeated:
                    raise ValueError(f"{descriptor.name}: expected a kind without lists")
                table[field.name] = []
        elif message.DESCRIPTOR is not descriptor:
            raise ValueError(
                f"expected messages of one kind, got {descriptor.name} and "
                f"{message.DESCRIPTOR.name}"
            )
        for field in descriptor.fields:
            table[field.name].append(_value(message, field, as_float=field.name in wanted))
    return table


def book_columns(book: OrderBook, depth: int | None = None) -> dict[str, list[Any]]:
    """Give a book's levels as columns: side ("bid", "ask"), level (0 is the best), price, quantity.

    Prices and quantities are decimal strings.
    """
    table: dict[str, list[Any]] = {"side": [], "level": [], "price": [], "quantity": []}
    for side, levels in (("bid", book.bids(depth)), ("ask", book.asks(depth))):
        for number, level in enumerate(levels):
            table["side"].append(side)
            table["level"].append(number)
            table["price"].append(format(level.price, "f"))
            table["quantity"].append(format(level.quantity, "f"))
    return table


def to_arrow(table: dict[str, list[Any]]) -> Any:
    """Make a pyarrow.Table of columns."""
    try:
        pyarrow = import_module("pyarrow")
    except ImportError as error:
        raise ImportError("to_arrow: expected pyarrow; pip install pyarrow") from error
    return pyarrow.table(table)


def to_pandas(table: dict[str, list[Any]]) -> Any:
    """Make a pandas.DataFrame of columns."""
    try:
        pandas = import_module("pandas")
    except ImportError as error:
        raise ImportError("to_pandas: expected pandas; pip install pandas") from error
    return pandas.DataFrame(table)


def _value(message: Message, field: Any, *, as_float: bool) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None:
        if not message.HasField(field.name):
            return None
        if isinstance(value, Timestamp):
            return value.ToNanoseconds()
        return value.ToNanoseconds() / 1e9
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    if as_float:
        return float(value) if value != "" else None
    return value
