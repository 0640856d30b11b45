"""The finer rules of requests, as the contract's comments state them; REQUIRED is checked before.

Each raises `InvalidArgument` with a violation that names the field.
"""

from collections.abc import Iterable, Sequence

from google.protobuf.duration_pb2 import Duration
from marketprism.market.v1 import (
    common_pb2,
    instrument_pb2,
    market_data_service_pb2,
    order_book_pb2,
)

from services.shared.errors import FieldViolation, InvalidArgument

__all__ = [
    "MAX_DEPTH",
    "check_batch_size",
    "check_depth",
    "check_event_kinds",
    "check_instrument_kind",
    "check_states",
    "heartbeat_seconds",
    "resume_point",
]

MAX_DEPTH = 10_000
"""Most levels a side that can be asked for."""

_MAX_BATCH = 100
_MIN_HEARTBEAT = 0.1
_MAX_HEARTBEAT = 60.0


def check_depth(depth: int, field: str = "depth") -> None:
    """Check the number of levels a side: 1 to 10000, or 0 for all."""
    if not 0 <= depth <= MAX_DEPTH:
        raise _invalid(field, f"expected 1 to {MAX_DEPTH} levels a side, or 0 for all", depth)


def check_batch_size(count: int) -> None:
    """Check the number of books of one call: 1 to 100."""
    if count > _MAX_BATCH:
        raise _invalid("instruments", f"expected 1 to {_MAX_BATCH} instruments", count)


def check_event_kinds(kinds: Sequence[int]) -> None:
    """Check the kinds of a filter: each one that exists, and not UNSPECIFIED."""
    known = common_pb2.EventKind.DESCRIPTOR.values_by_number
    for index, kind in enumerate(kinds):
        if kind == 0 or kind not in known:
            names = ", ".join(value.name for number, value in known.items() if number)
            raise _invalid(f"kinds[{index}]", f"expected one of {names}", kind)


def check_states(states: Iterable[int]) -> None:
    """Check the states of a filter: each one that exists, and not UNSPECIFIED."""
    known = order_book_pb2.OrderBookState.DESCRIPTOR.values_by_number
    for index, state in enumerate(states):
        if state == 0 or state not in known:
            names = ", ".join(value.name for number, value in known.items() if number)
            raise _invalid(f"states[{index}]", f"expected one of {names}", state)


def check_instrument_kind(kind: int) -> None:
    """Check the kind of a filter: one that exists, or UNSPECIFIED for all."""
    known = instrument_pb2.InstrumentKind.DESCRIPTOR.values_by_number
    if kind not in known:
        names = ", ".join(value.name for number, value in known.items() if number)
        raise _invalid("kind", f"expected one of {names}, or unset for all", kind)


def heartbeat_seconds(interval: Duration | None, default: float) -> float:
    """Give the heartbeat interval in seconds: 100 ms to 60 s, `default` when unset."""
    if interval is None:
        return default
    seconds = interval.seconds + interval.nanos / 1e9
    if not _MIN_HEARTBEAT <= seconds <= _MAX_HEARTBEAT:
        raise _invalid(
            "heartbeat_interval",
            "expected 100 ms to 60 s, or unset for the default",
            f"{seconds:g} s",
        )
    return seconds


def resume_point(
    request: market_data_service_pb2.StreamOrderBookRequest,
) -> tuple[int, int] | None:
    """Give the (epoch, sequence) that a stream is to be resumed from, None when unset."""
    if not request.HasField("resume"):
        return None
    if request.resume.epoch == 0:
        raise _invalid(
            "resume.epoch",
            "expected the epoch of the last snapshot or update that was applied; leave resume out "
            "to begin with a snapshot",
            0,
        )
    return request.resume.epoch, request.resume.sequence


def _invalid(field: str, expected: str, got: object) -> InvalidArgument:
    description = f"{expected}, got {got}"
    return InvalidArgument(
        f"{field}: {description}",
        metadata={"field": field},
        violations=[FieldViolation(field, description, "OUT_OF_RANGE")],
    )
