"""The finer rules of HistoryService's requests, as the contract's comments state them.

REQUIRED is checked before. Each raises `InvalidArgument` with a violation that names the field.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.market.v1 import common_pb2

from services.shared.errors import FieldViolation, InvalidArgument

__all__ = [
    "MAX_TIME",
    "NANOS",
    "TimeRange",
    "check_enum",
    "check_event_kind",
    "check_event_kinds",
    "check_exchange",
    "check_instrument",
    "check_symbol",
    "duration_ns",
    "invalid",
    "page_size",
    "time_ns",
    "time_range",
]

NANOS: Final = 1_000_000_000
"""Nanoseconds of a second."""

MAX_TIME: Final = 9_214_646_400 * NANOS
"""2262-01-01 UTC, nanoseconds since 1970: the first instant that cannot be asked for. What the
database keeps of times ends in that year."""

# Capitals are well-formed, so that "BINANCE" gets the better answer: did you mean binance?
_EXCHANGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SYMBOL: Final = re.compile(r"[!-)+-.0-~]{1,128}")


@dataclass(frozen=True, slots=True)
class TimeRange:
    """A range of time, nanoseconds since 1970."""

    start: int
    """Begin, inclusive; 0 when the request has none."""

    end: int
    """End, exclusive; now when the request has none."""


class _InstrumentRequest(Protocol):
    """A request about one instrument."""

    @property
    def exchange(self) -> str: ...

    @property
    def symbol(self) -> str: ...


def invalid(
    field: str, expected: str, got: object, *, reason: str = "OUT_OF_RANGE"
) -> InvalidArgument:
    """Make the error about one field: what was expected, what came.

    `reason` is the violation's, for programs.
    """
    description = f"{expected}, got {got}"
    return InvalidArgument(
        f"{field}: {description}",
        metadata={"field": field},
        violations=[FieldViolation(field, description, reason)],
    )


def check_exchange(exchange: str, field: str = "exchange") -> None:
    """Check the form of a venue's id: letters, digits, `_`, `.` and `-`, at most 64."""
    if not _EXCHANGE.fullmatch(exchange):
        raise invalid(
            field,
            'expected a venue id of at most 64 letters, digits, "_", "." and "-", for example '
            '"binance"',
            _shown(exchange),
            reason="MALFORMED",
        )


def check_symbol(symbol: str, field: str = "symbol") -> None:
    """Check the form of a symbol: printable ASCII without spaces, `*` and `/`, at most 128."""
    if not _SYMBOL.fullmatch(symbol):
        raise invalid(
            field,
            'expected a canonical symbol of at most 128 printable ASCII characters without "*" '
            'and "/", for example "BTC-USDT"',
            _shown(symbol),
            reason="MALFORMED",
        )


def check_instrument(request: _InstrumentRequest) -> tuple[str, str]:
    """Check the form of a request's exchange and symbol; gives the two."""
    check_exchange(request.exchange)
    check_symbol(request.symbol)
    return request.exchange, request.symbol


def check_enum(
    enum: EnumDescriptor, number: int, field: str, *, unset: str = "", most: int = 0
) -> None:
    """Check that an enum has the value.

    `unset` says what UNSPECIFIED stands for, such as "all kinds"; without it the value is refused.
    `most` cuts the list of names in the message, 0 gives all.
    """
    known = enum.values_by_number
    if number in known and (number or unset):
        return
    names = [value.name for value in enum.values if value.number]
    listed = ", ".join(names[:most] if most else names)
    raise invalid(
        field, f"expected one of {listed}{f', or unset for {unset}' if unset else ''}", number
    )


def check_event_kind(kind: int, field: str = "kind", *, unset: str = "") -> None:
    """Check a kind of events; `unset` as for `check_enum`."""
    check_enum(common_pb2.EventKind.DESCRIPTOR, kind, field, unset=unset)


def check_event_kinds(kinds: Iterable[int], field: str = "kinds") -> None:
    """Check a list of kinds of events: each exists and is not UNSPECIFIED."""
    for index, kind in enumerate(kinds):
        check_event_kind(kind, f"{field}[{index}]")


def time_ns(time: Timestamp, field: str) -> int:
    """Give a timestamp as nanoseconds since 1970, which it is not before; before `MAX_TIME`."""
    if not 0 <= time.nanos < NANOS:
        raise invalid(f"{field}.nanos", "expected 0 to 999999999", time.nanos)
    moment = time.seconds * NANOS + time.nanos
    if not 0 <= moment < MAX_TIME:
        raise invalid(
            field, "expected a time from 1970 to 2261", f"{time.seconds} seconds since 1970"
        )
    return moment


def time_range(
    request: Any, now: int, *, start: str = "start_time", end: str = "end_time"
) -> TimeRange:
    """Give the range of a request: the two fields, each unset or a time, and start before end.

    `now` is nanoseconds since 1970 and stands for an end that is unset; a range that begins later
    is empty then, and not refused: clocks differ.
    """
    begins = time_ns(getattr(request, start), start) if request.HasField(start) else 0
    if not request.HasField(end):
        return TimeRange(begins, max(begins, now))
    ends = time_ns(getattr(request, end), end)
    if begins >= ends:
        if not request.HasField(start):
            raise invalid(end, "expected a time after 1970-01-01T00:00:00Z", _moment(ends))
        raise invalid(start, f"expected a time before {end}, {_moment(ends)}", _moment(begins))
    return TimeRange(begins, ends)


def duration_ns(duration: Duration, field: str, *, least: int, most: int, expected: str) -> int:
    """Give a duration in nanoseconds: `least` to `most` of them, which `expected` tells."""
    if not -NANOS < duration.nanos < NANOS or duration.seconds * duration.nanos < 0:
        raise invalid(
            f"{field}.nanos", "expected 0 to 999999999 of the sign of seconds", duration.nanos
        )
    length = duration.seconds * NANOS + duration.nanos
    if not least <= length <= most:
        raise invalid(field, f"expected {expected}", f"{length / NANOS:.9g} s")
    return length


def page_size(size: int, *, default: int = 1000, most: int = 10_000) -> int:
    """Give the number of items on a page: 1 to `most`, `default` for 0."""
    if not 0 <= size <= most:
        raise invalid("page_size", f"expected 1 to {most}, or 0 for {default}", size)
    return size or default


def _moment(nanoseconds: int) -> str:
    seconds, nanos = divmod(nanoseconds, NANOS)
    return Timestamp(seconds=seconds, nanos=nanos).ToJsonString()


def _shown(text: str) -> str:
    if len(text) <= 128:
        return repr(text)
    return f"{text[:32]!r}… ({len(text)} characters)"
