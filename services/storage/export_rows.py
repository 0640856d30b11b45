"""What a file of each kind has: its columns, and the statements that give the next rows.

Rows come in pieces by time, oldest first. A piece ends with the instant of its last event, so that
events of one instant are never parted, and the next begins a nanosecond later; one day at a time,
because a day is a partition of the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from marketprism.market.v1 import common_pb2

from services.storage.tables import TABLES, Table
from services.storage.validators import invalid

__all__ = ["ExportKind", "Piece", "export_kind"]

_BETWEEN: Final = """\
exchange = {exchange:String} AND symbol = {symbol:String}
AND time >= fromUnixTimestamp64Nano({start:Int64}, 'UTC')
AND time < fromUnixTimestamp64Nano({end:Int64}, 'UTC')"""
_EPOCH: Final = "fromUnixTimestamp64Nano(toInt64(0), 'UTC')"
_ALWAYS_TOLD: Final = ("receive_time", "time")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of one instrument's time."""

    exchange: str
    """Venue id."""

    symbol: str
    """Canonical symbol."""

    start: int
    """Begin, inclusive, nanoseconds since 1970."""

    end: int
    """End, exclusive, nanoseconds since 1970."""

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters of the statements."""
        return {
            "exchange": self.exchange,
            "symbol": self.symbol,
            "start": self.start,
            "end": self.end,
        }


@dataclass(frozen=True, slots=True)
class ExportKind:
    """One kind of events as rows."""

    name: str
    """Its name, for the file's: `trade`, `order_book`."""

    columns: tuple[tuple[str, str], ...]
    """Name and SQL expression of each column, in order."""

    sources: tuple[Table, ...]
    """Tables that the rows come from."""

    rows_from: str
    """What the rows are selected from, given a piece."""

    order: str
    """Order of the rows."""

    events_a_piece: int
    """Events of a piece at the most, so that it fits in memory whatever they hold."""

    def narrowed(self, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Give these columns in this order, all for none; raises `InvalidArgument`."""
        if not names:
            return self.columns
        known = dict(self.columns)
        for place, name in enumerate(names):
            if name not in known:
                raise invalid(
                    f"columns[{place}]",
                    f"expected a column of {self.name}: {', '.join(known)}",
                    repr(name[:64]),
                    reason="UNKNOWN_COLUMN",
                )
            if name in names[:place]:
                raise invalid(f"columns[{place}]", "expected each column once", name)
        return tuple((name, known[name]) for name in names)

    def edge_sql(self, *, last: bool = False) -> str:
        """Give the statement of the first time of a piece that has an event, or of the last."""
        return self._over_sources(
            f"SELECT time FROM {{table}} WHERE {_BETWEEN} ORDER BY time{' DESC' if last else ''} "
            "LIMIT 1",
            "max" if last else "min",
        )

    def bound_sql(self) -> str:
        """Give the statement of the time up to which the next events reach."""
        # Rows that are there twice make a piece shorter, and do no harm.
        return self._over_sources(
            f"SELECT max(time) AS time FROM (SELECT time FROM {{table}} WHERE {_BETWEEN} "
            f"ORDER BY time LIMIT {self.events_a_piece}) HAVING count() = {self.events_a_piece}",
            "min",
        )

    def rows_sql(self, columns: Sequence[tuple[str, str]]) -> str:
        """Give the statement of a piece's rows."""
        listed = ", ".join(f"{sql} AS `{name}`" for name, sql in columns)
        return f"SELECT {listed} FROM {self.rows_from} ORDER BY {self.order}"

    def _over_sources(self, sql: str, choose: str) -> str:
        each = " UNION ALL ".join(
            f"SELECT time FROM ({sql.replace('{table}', table.name)})" for table in self.sources
        )
        return f"SELECT count(), toUnixTimestamp64Nano({choose}(time)) FROM ({each})"


def export_kind(kind: int) -> ExportKind:
    """Give the rows of an `EventKind`, which was checked."""
    return _KINDS[kind]


def _columns(table: Table) -> tuple[tuple[str, str], ...]:
    found = []
    for item in table.descriptor.fields:
        name, kind = item.name, item.message_type.name if item.message_type is not None else ""
        if kind == "Timestamp":
            told = name in _ALWAYS_TOLD
            # Qualified, because the column that is made has the same name.
            found.append((name, f"source.{name}" if told else f"nullIf(source.{name}, {_EPOCH})"))
        elif kind == "Duration":
            found.append((f"{name}_ns", f"source.{name}"))
        elif item.enum_type is not None or item.type == FieldDescriptor.TYPE_STRING:
            is_text = item.enum_type is not None or _is_text(table, name)
            found.append((name, f"toString(source.{name})" if is_text else f"source.{name}"))
        elif not kind:
            found.append((name, f"source.{name}"))
    if all(name != "time" for name, _ in found):
        found.insert(0, ("time", "source.time"))
    return tuple(found)


def _is_text(table: Table, name: str) -> bool:
    """Tell whether a column is text, which may be kept by its dictionary."""
    definition = next(each.definition for each in table.columns if each.name == name)
    return definition.startswith(("String", "LowCardinality(String)"))


def _plain(table: Table) -> ExportKind:
    rest = ", ".join(f"source.{name}" for name in table.identity if name != "time")
    return ExportKind(
        name=table.name,
        columns=_columns(table),
        sources=(table,),
        rows_from=(
            f"(SELECT *, {_aliases(table)} FROM {table.name} FINAL WHERE {_BETWEEN}) AS source"
        ),
        order=f"source.time, {rest}",
        events_a_piece=50_000,
    )


def _aliases(table: Table) -> str:
    """Select what `*` leaves out."""
    names = [each.name for each in table.columns if " ALIAS " in each.definition]
    return ", ".join(names) if names else "1 AS nothing"


def _order_book() -> ExportKind:
    update, snapshot = TABLES["order_book_update"], TABLES["order_book_snapshot"]
    common = "exchange, symbol, time, exchange_time, epoch, sequence, venue_sequence"
    levels = (
        "arrayConcat(arrayMap((p, q) -> ('bid', p, q), `bids.price`, `bids.quantity`), "
        "arrayMap((p, q) -> ('ask', p, q), `asks.price`, `asks.quantity`))"
    )
    events = " UNION ALL ".join(
        f"SELECT {common}, {is_snapshot} AS snapshot, {levels} AS levels FROM {table.name} FINAL "
        f"WHERE {_BETWEEN}"
        for table, is_snapshot in ((update, "false"), (snapshot, "true"))
    )
    return ExportKind(
        name="order_book",
        columns=(
            ("time", "source.time"),
            ("exchange", "toString(source.exchange)"),
            ("symbol", "toString(source.symbol)"),
            ("exchange_time", f"nullIf(source.exchange_time, {_EPOCH})"),
            ("epoch", "source.epoch"),
            ("sequence", "source.sequence"),
            ("venue_sequence", "source.venue_sequence"),
            ("snapshot", "source.snapshot"),
            ("side", "source.level.1"),
            ("price", "source.level.2"),
            ("quantity", "source.level.3"),
        ),
        sources=(update, snapshot),
        rows_from=f"(SELECT * EXCEPT levels, level, place FROM ({events}) "
        "ARRAY JOIN levels AS level, arrayEnumerate(levels) AS place) AS source",
        # A snapshot tells the book after the update of its sequence.
        order="source.time, source.epoch, source.sequence, source.snapshot, source.place",
        # A snapshot may have twenty thousand levels.
        events_a_piece=2_000,
    )


_KINDS: Final = {
    common_pb2.EVENT_KIND_ORDER_BOOK: _order_book(),
    **{
        table.kind: _plain(table)
        for table in TABLES.values()
        if table.kind and table.kind != common_pb2.EVENT_KIND_ORDER_BOOK
    },
}
