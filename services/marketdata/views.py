"""What a book view is: one book as some subscribers want it, made once for all of them.

A subscription engine asks for views and knows nothing of how they are made; who makes them knows
nothing of subscribers. A `LiveBook` itself is the view of those who want a book as it comes.
"""

from dataclasses import dataclass
from typing import Final, Protocol

from google.protobuf.duration_pb2 import Duration
from marketprism.market.v1 import market_data_service_pb2 as pb

from services.marketdata.catalog import Key
from services.marketdata.event_log import EventLog
from services.marketdata.live_book import Opening
from services.shared.decimals import canonical_decimal
from services.shared.errors import FieldViolation, InvalidArgument

__all__ = ["BookView", "BookViews", "BookWish", "book_wish"]

_INCREMENTAL: Final = int(pb.ORDER_BOOK_MODE_INCREMENTAL)
_TOP: Final = int(pb.ORDER_BOOK_MODE_TOP)
_MAX_TOP = 1000
_USUAL_TOP = 20
_MIN_CONFLATION = 0.01
_MAX_CONFLATION = 60.0


@dataclass(frozen=True, slots=True)
class BookWish:
    """How a subscriber wants books; equal wishes for one book share one view."""

    mode: int = _INCREMENTAL
    """OrderBookMode: INCREMENTAL or TOP, never UNSPECIFIED."""

    depth: int = 0
    """Levels a side in TOP mode, 1 to 1000; 0 in INCREMENTAL mode, which has all."""

    grouping: str = ""
    """Price step by which levels are grouped, a canonical decimal; empty: not at all."""

    interval: float = 0.0
    """Shortest time between two items, seconds, 0.01 to 60; 0: as they come."""

    @property
    def is_plain(self) -> bool:
        """Whether the book is wanted as the collector publishes it, so that no view is needed."""
        return self == _PLAIN


_PLAIN: Final = BookWish()


class BookView(Protocol):
    """One book as a wish has it. Everything happens in the event loop's thread."""

    @property
    def log(self) -> EventLog:
        """What subscribers read: `events` items ready to send, statuses of the book among them.

        Items may be dropped early where a later one says the same (TOP mode): a subscriber whose
        place is no longer held is given an opening again.
        """

    def open(self, resume: tuple[int, int] | None = None, *, conflated: bool = False) -> Opening:
        """Give what a subscriber gets first, as `LiveBook.open` does.

        The snapshot and the status when the book is in step, else the status alone: the snapshot
        then comes in the log. `resume` is the (epoch, sequence) that the subscriber has: what it
        missed when the view can tell that, else a snapshot with reason RESUME_TOO_OLD. `conflated`
        says that it fell behind the log: the snapshot has reason CONFLATED.
        """

    def close(self) -> None:
        """Give the view back, once; the last one who does ends it."""


class BookViews(Protocol):
    """Makes views, and shares them among all who have the same wish."""

    def open(self, key: Key, wish: BookWish) -> BookView:
        """Give the view of a book, of a plain wish too; `close` it when done.

        Also for a known instrument that no book has come of yet. Raises `NotFound`, or
        `Unavailable` while nothing is known, as `Market.book` does.
        """


def book_wish(
    mode: int, depth: int, interval: Duration | None, price_grouping: str, prefix: str = ""
) -> BookWish:
    """Read a wish from a request's fields; raises `InvalidArgument` that names the field.

    `prefix` is the path of the message that the fields are in, with its dot.
    """
    if mode not in (0, _INCREMENTAL, _TOP):
        raise _invalid(
            f"{prefix}order_book_mode",
            "expected ORDER_BOOK_MODE_INCREMENTAL, ORDER_BOOK_MODE_TOP, or unset",
            mode,
        )
    if mode != _TOP and depth:
        raise _invalid(
            f"{prefix}depth",
            "expected none, because only ORDER_BOOK_MODE_TOP has a depth and INCREMENTAL has all "
            "levels",
            depth,
        )
    if not 0 <= depth <= _MAX_TOP:
        raise _invalid(
            f"{prefix}depth",
            f"expected 1 to {_MAX_TOP} levels a side, or 0 for {_USUAL_TOP}",
            depth,
        )
    return BookWish(
        mode=mode or _INCREMENTAL,
        depth=(depth or _USUAL_TOP) if mode == _TOP else 0,
        grouping=_grouping(price_grouping, prefix),
        interval=_conflation(interval, prefix),
    )


def _grouping(text: str, prefix: str) -> str:
    if not text:
        return ""
    try:
        step = canonical_decimal(text)
    except ValueError:
        step = ""
    if not step or step == "0" or step.startswith("-"):
        raise _invalid(
            f"{prefix}price_grouping",
            'expected a price step as a positive decimal, for example "0.5", or unset',
            repr(text[:40]),
        )
    return step


def _conflation(interval: Duration | None, prefix: str) -> float:
    if interval is None:
        return 0.0
    seconds = interval.seconds + interval.nanos / 1e9
    if seconds and not _MIN_CONFLATION <= seconds <= _MAX_CONFLATION:
        raise _invalid(
            f"{prefix}conflation_interval",
            "expected 10 ms to 60 s, or unset for updates as they come",
            f"{seconds:g} s",
        )
    return seconds


def _invalid(field: str, expected: str, got: object) -> InvalidArgument:
    description = f"{expected}, got {got}"
    return InvalidArgument(
        f"{field}: {description}",
        metadata={"field": field},
        violations=[FieldViolation(field, description, "OUT_OF_RANGE")],
    )
