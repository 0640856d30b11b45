"""What one subscription asks for, read once from the request and held to its rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.duration_pb2 import Duration
from marketprism.market.v1 import common_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb

from services.marketdata.catalog import Key
from services.marketdata.patterns import Pattern
from services.marketdata.settings import SubscriptionLimits
from services.marketdata.views import BookWish, book_wish
from services.shared.errors import FieldViolation, InvalidArgument, ResourceExhausted

__all__ = ["ORDER_BOOK", "Subscription", "read_subscription"]

ORDER_BOOK: Final = int(common_pb2.EVENT_KIND_ORDER_BOOK)
"""The EventKind that is a book, and not one message."""

_KINDS: Final = common_pb2.EventKind.DESCRIPTOR.values_by_number
_MAX_ID: Final = 128


@dataclass(frozen=True, slots=True, eq=False)
class Subscription:
    """Patterns, kinds, and how books are wanted."""

    id: str
    """As the client named it; empty for the only one of a StreamMarketData."""

    patterns: tuple[Pattern, ...]
    """Those with a `*`."""

    literals: frozenset[Key]
    """Instruments named without one."""

    kinds: frozenset[int]
    """EventKinds."""

    wish: BookWish = field(default_factory=BookWish)
    """How books are wanted."""

    resumes: Mapping[Key, tuple[int, int]] = field(default_factory=dict)
    """Where the client's books stand, (epoch, sequence)."""

    @property
    def size(self) -> int:
        """Number of patterns and instruments named."""
        return len(self.patterns) + len(self.literals)

    def covers(self, kind: int, key: Key) -> bool:
        """Tell whether events of one kind of one instrument are asked for."""
        return kind in self.kinds and (
            key in self.literals or any(pattern.matches(key) for pattern in self.patterns)
        )


def read_subscription(
    request: pb.Subscription | pb.StreamMarketDataRequest,
    limits: SubscriptionLimits,
    prefix: str = "",
) -> Subscription:
    """Read a subscription.

    Raises `InvalidArgument` that names the field, whose path begins with `prefix`, with reason
    INVALID_PATTERN, UNKNOWN_KIND, INVALID_RESUME, INVALID_SUBSCRIPTION_ID, INVALID_BOOK_OPTIONS;
    `ResourceExhausted` with TOO_MANY_PATTERNS.
    """
    instruments = request.instruments
    if len(instruments) > limits.max_patterns:
        what = "instruments and patterns"
        raise _too_many(f"{prefix}instruments", what, len(instruments), limits)
    identity, resumes = "", {}
    if isinstance(request, pb.Subscription):
        identity = _identity(request.subscription_id, prefix)
        if len(request.resumes) > limits.max_patterns:
            raise _too_many(f"{prefix}resumes", "resume points", len(request.resumes), limits)
        resumes = _resumes(request.resumes, f"{prefix}resumes")
    patterns = _patterns(instruments, f"{prefix}instruments")
    return Subscription(
        id=identity,
        patterns=tuple(pattern for pattern in patterns if not pattern.is_literal),
        literals=frozenset(pattern.key for pattern in patterns if pattern.is_literal),
        kinds=_kinds(request.kinds, f"{prefix}kinds"),
        wish=_wish(request, prefix),
        resumes=resumes,
    )


def _too_many(path: str, what: str, count: int, limits: SubscriptionLimits) -> ResourceExhausted:
    return ResourceExhausted(
        f"{path}: expected at most {limits.max_patterns} {what}, got {count}",
        reason="TOO_MANY_PATTERNS",
        metadata={"field": path, "limit": limits.max_patterns},
    )


def _identity(text: str, prefix: str) -> str:
    if not 0 < len(text) <= _MAX_ID:
        raise _invalid(
            f"{prefix}subscription_id",
            "INVALID_SUBSCRIPTION_ID",
            f"expected 1 to {_MAX_ID} characters, got {len(text)}",
        )
    return text


def _patterns(texts: Sequence[str], path: str) -> list[Pattern]:
    found: dict[str, Pattern] = {}
    for index, text in enumerate(texts):
        if text not in found:
            try:
                found[text] = Pattern(text)
            except InvalidArgument as error:
                raise _invalid(f"{path}[{index}]", error.reason, error.message) from None
    return list(found.values())


def _kinds(kinds: Sequence[int], path: str) -> frozenset[int]:
    for index, kind in enumerate(kinds):
        if not kind or kind not in _KINDS:
            names = ", ".join(value.name for number, value in _KINDS.items() if number)
            raise _invalid(
                f"{path}[{index}]", "UNKNOWN_KIND", f"expected one of {names}, got {kind}"
            )
    return frozenset(int(kind) for kind in kinds)


def _wish(request: pb.Subscription | pb.StreamMarketDataRequest, prefix: str) -> BookWish:
    interval: Duration | None = None
    if request.HasField("conflation_interval"):
        interval = request.conflation_interval
    try:
        return book_wish(
            request.order_book_mode, request.depth, interval, request.price_grouping, prefix
        )
    except InvalidArgument as error:
        raise InvalidArgument(
            error.message,
            reason="INVALID_BOOK_OPTIONS",
            metadata=error.metadata,
            violations=error.violations,
        ) from None


def _resumes(resumes: Sequence[pb.InstrumentResume], path: str) -> dict[Key, tuple[int, int]]:
    found = {}
    for index, each in enumerate(resumes):
        if each.resume.epoch == 0:
            raise _invalid(
                f"{path}[{index}].resume.epoch",
                "INVALID_RESUME",
                "expected the epoch of the last snapshot or update that was applied; leave the "
                "entry out to begin with a snapshot",
            )
        key = (each.instrument.exchange, each.instrument.symbol)
        found[key] = (each.resume.epoch, each.resume.sequence)
    return found


def _invalid(path: str, reason: str, description: str) -> InvalidArgument:
    return InvalidArgument(
        f"{path}: {description}",
        reason=reason,
        metadata={"field": path},
        violations=[FieldViolation(path, description, reason)],
    )
