"""Which stored events a stream of the past is about: instruments by pattern, and kinds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from marketprism.market.v1 import market_event_pb2

from services.marketdata.patterns import Pattern
from services.shared.errors import FieldViolation, InvalidArgument, ResourceExhausted
from services.shared.wire import varint
from services.storage.engine import Engine
from services.storage.known import KnownInstruments
from services.storage.replay_settings import ReplaySettings
from services.storage.tables import TABLES, Table
from services.storage.validators import check_event_kinds

__all__ = ["LEDGER", "Selection", "item_sql", "read_selection", "received"]

LEDGER: Final = TABLES["integrity"]
"""The gap ledger."""

_FIELDS: Final = market_event_pb2.MarketEvent.DESCRIPTOR.fields_by_name
_LENGTH_DELIMITED: Final = 2


class _Request(Protocol):
    """A request that names instruments and kinds."""

    @property
    def instruments(self) -> Sequence[str]: ...

    @property
    def kinds(self) -> Sequence[Any]: ...


@dataclass(frozen=True, slots=True)
class Selection:
    """Instruments and kinds."""

    patterns: tuple[Pattern, ...]
    """Instruments, named or by pattern."""

    kinds: frozenset[int]
    """EventKinds."""

    @property
    def tables(self) -> list[Table]:
        """Tables of these kinds, always in the same order; not the ledger."""
        return [table for table in TABLES.values() if table.kind in self.kinds]

    @property
    def literals(self) -> list[tuple[str, str]]:
        """Instruments that are named without a `*`."""
        return [pattern.key for pattern in self.patterns if pattern.is_literal]

    def condition(self, table: Table) -> tuple[str, dict[str, Any]]:
        """Give the SQL condition for events of these instruments, and its parameters.

        Of the ledger: entries about them, their venues or their connections, and about these kinds.
        """
        is_ledger = table is LEDGER
        named: dict[str, list[str]] = {}
        parameters: dict[str, Any] = {}
        either = []
        for exchange, symbol in self.literals:
            named.setdefault(exchange, [""] if is_ledger else []).append(symbol)
        for number, (exchange, symbols) in enumerate(named.items()):
            parameters[f"exchange_{number}"] = exchange
            parameters[f"symbols_{number}"] = symbols
            either.append(
                f"exchange = {{exchange_{number}:String}}"
                f" AND symbol IN {{symbols_{number}:Array(String)}}"
            )
        wild = [pattern for pattern in self.patterns if not pattern.is_literal]
        for number, pattern in enumerate(wild):
            exchange, symbol = (_like(part) for part in pattern.key)
            parameters[f"like_exchange_{number}"] = exchange
            meant = f"exchange LIKE {{like_exchange_{number}:String}}"
            if symbol != "%":
                parameters[f"like_symbol_{number}"] = symbol
                whole = " OR symbol = ''" if is_ledger else ""
                meant += f" AND (symbol LIKE {{like_symbol_{number}:String}}{whole})"
            either.append(meant)
        condition = " OR ".join(f"({each})" for each in either)
        if is_ledger:
            parameters["ledger_kinds"] = sorted({0, *self.kinds})
            kinds = "CAST(event_kind AS Int16) IN {ledger_kinds:Array(Int16)}"
            return f"({condition}) AND {kinds}", parameters
        return f"({condition})", parameters

    async def check_known(self, engine: Engine, known: KnownInstruments) -> None:
        """Raise `NotFound` for a name without `*` of which nothing was ever stored."""
        literals = self.literals
        described: set[tuple[str, str]] = set()
        if len(literals) > 1:
            table = TABLES["instrument"]
            only = Selection(tuple(each for each in self.patterns if each.is_literal), self.kinds)
            condition, parameters = only.condition(table)
            rows = await engine.query(
                f"SELECT DISTINCT exchange, symbol FROM instrument WHERE {condition}", parameters
            )
            described = {(str(exchange), str(symbol)) for exchange, symbol in rows}
        for key in literals:
            if key not in described:
                await known.check(*key)


def _like(part: str) -> str:
    escaped = part.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%")


def read_selection(request: _Request, settings: ReplaySettings) -> Selection:
    """Read a request's instruments and kinds.

    Raises `InvalidArgument` that names the field, INVALID_PATTERN for a text that is no pattern,
    and `ResourceExhausted` (TOO_MANY_PATTERNS).
    """
    check_event_kinds(request.kinds)
    texts = request.instruments
    if len(texts) > settings.max_patterns:
        raise _too_many(settings.max_patterns, "instruments and patterns", len(texts))
    patterns = _patterns(texts)
    wild = sum(not pattern.is_literal for pattern in patterns)
    if wild > settings.max_wildcards:
        raise _too_many(settings.max_wildcards, 'patterns with a "*"', wild)
    return Selection(tuple(patterns), frozenset(int(kind) for kind in request.kinds))


def _patterns(texts: Iterable[str]) -> list[Pattern]:
    found: dict[str, Pattern] = {}
    for index, text in enumerate(texts):
        if text not in found:
            try:
                found[text] = Pattern(text)
            except InvalidArgument as error:
                path = f"instruments[{index}]"
                raise InvalidArgument(
                    f"{path}: {error.message}",
                    reason=error.reason,
                    metadata={"field": path},
                    violations=[FieldViolation(path, error.message, error.reason)],
                ) from None
    return list(found.values())


def _too_many(limit: int, what: str, count: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"instruments: expected at most {limit} {what}, got {count}; use wider patterns, or "
        "several streams",
        reason="TOO_MANY_PATTERNS",
        metadata={"field": "instruments", "limit": limit},
    )


def received(table: Table) -> str:
    """Give the column with the receive time of a table's events.

    Of a book's status it is when its state changed: it is received from nobody.
    """
    return "time" if table.time.field in ("receive_time", "time") else "receive_time"


def item_sql(table: Table) -> str:
    """Give the SQL expression of an event as one item of field 1, `events`, of a response.

    Of a ledger's entry: as field 2, `gap`.
    """
    event = table.event_sql()
    if table is LEDGER:
        return f"arrayMap(e -> concat(char(18), {_varint_sql('length(e)')}, e), [{event}])[1]"
    tag = varint(_FIELDS[table.name].number << 3 | _LENGTH_DELIMITED)
    inner = (
        f"arrayMap(e -> concat(char({', '.join(map(str, tag))}), {_varint_sql('length(e)')}, e), "
        f"[{event}])[1]"
    )
    return f"arrayMap(m -> concat(char(10), {_varint_sql('length(m)')}, m), [{inner}])[1]"


def _varint_sql(value: str) -> str:
    """Give the SQL of an unsigned integer below 2^28 as protobuf encodes it."""

    def group(number: int, *, last: bool) -> str:
        part = f"bitShiftRight({value}, {7 * number})" if number else value
        return part if last else f"bitOr(bitAnd({part}, 127), 128)"

    forms = [
        f"char({', '.join(group(each, last=each == size - 1) for each in range(size))})"
        for size in range(1, 5)
    ]
    return (
        f"multiIf({value} < 128, {forms[0]}, {value} < 16384, {forms[1]}, "
        f"{value} < 2097152, {forms[2]}, {forms[3]})"
    )
