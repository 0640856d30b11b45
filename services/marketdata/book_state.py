"""What state a book is in: what the collector says of it, and what is between the collector and us.

The collector knows whether the book continues at the venue. It cannot know that an update got lost
behind it, that the broker is away, or that it died itself; that is added here.
"""

from collections.abc import Callable
from typing import Final

from marketprism.market.v1 import order_book_pb2

from services.marketdata.wire import nanoseconds, timestamp

__all__ = ["OUT_OF_STEP", "RESYNCING", "STALE", "SYNCED", "SYNCING", "BookState"]

_S: Final = order_book_pb2

SYNCING: Final = int(_S.ORDER_BOOK_STATE_SYNCING)
"""There is no book yet."""

SYNCED: Final = int(_S.ORDER_BOOK_STATE_SYNCED)
"""The book can be trusted."""

RESYNCING: Final = int(_S.ORDER_BOOK_STATE_RESYNCING)
"""Continuity was lost."""

STALE: Final = int(_S.ORDER_BOOK_STATE_STALE)
"""The book was right, and nobody says whether it still is."""

OUT_OF_STEP: Final = (0, SYNCING, RESYNCING)
"""States in which there is no book to be trusted at all."""

_NOTHING_YET: Final = "no snapshot has come yet"
_NOT_TOLD: Final = "a snapshot came, and the collector has not told that it is in step"
_NANOS_OF_MILLI: Final = 1_000_000


class BookState:
    """The state of one book, and since when; `clock` gives nanoseconds since 1970.

    What is known is set on the attributes; `settle` then draws the conclusion.
    """

    __slots__ = (
        "_clock",
        "_detail",
        "_exchange",
        "_out_since",
        "_outage_ms",
        "_reason",
        "_symbol",
        "_time",
        "broker_lost",
        "collector",
        "gap",
        "silent",
        "state",
    )

    def __init__(self, exchange: str, symbol: str, clock: Callable[[], int]) -> None:
        self._exchange = exchange
        self._symbol = symbol
        self._clock = clock
        self.collector = order_book_pb2.OrderBookStatus()
        """What the collector said last."""
        self.gap = ""
        """What is missing on the way from the collector; empty when nothing is."""
        self.broker_lost = ""
        """Why the broker cannot be read; empty when it can."""
        self.silent = ""
        """How long the collector has been silent; empty when it is not."""
        self.state = SYNCING
        """The conclusion, as it was told last."""
        self._reason = int(_S.ORDER_BOOK_REASON_STARTUP)
        self._detail = _NOTHING_YET
        self._outage_ms = 0
        self._time = self._out_since = clock()

    @property
    def is_out_of_step(self) -> bool:
        """Whether there is no book to be trusted at all."""
        return self.state in OUT_OF_STEP

    def settle(self, *, has_book: bool, is_news: bool) -> tuple[bool, bool]:
        """Draw the conclusion: whether it is to be told, and whether in the collector's own words.

        `is_news` says that the collector's status has only just come.
        """
        state, reason, detail, is_collectors = self._conclusion(has_book)
        in_its_words = is_news and is_collectors
        if not in_its_words and (state, reason) == (self.state, self._reason):
            return False, False
        now = self._clock()
        was_synced = self.state == SYNCED
        self._outage_ms = 0
        if in_its_words:
            self._outage_ms = self.collector.outage_ms
        elif state == SYNCED and not was_synced:
            self._outage_ms = (now - self._out_since) // _NANOS_OF_MILLI
        if was_synced and state != SYNCED:
            self._out_since = now
        self.state, self._reason, self._detail = state, reason, detail
        self._time = nanoseconds(self.collector.time) if in_its_words else now
        return True, in_its_words

    def status(
        self, epoch: int, sequence: int, venue_sequence: int
    ) -> order_book_pb2.OrderBookStatus:
        """Make the status that tells the conclusion of a book at this place."""
        return order_book_pb2.OrderBookStatus(
            exchange=self._exchange,
            symbol=self._symbol,
            epoch=epoch,
            sequence=sequence,
            time=timestamp(self._time),
            venue_sequence=venue_sequence,
            state=self.state,  # type: ignore[arg-type]  # the enum's value is an int
            reason=self._reason,  # type: ignore[arg-type]  # the enum's value is an int
            detail=self._detail,
            outage_ms=self._outage_ms,
        )

    def _conclusion(self, has_book: bool) -> tuple[int, int, str, bool]:
        """Give state, reason, detail, and whether they are the collector's own."""
        told = self.collector
        if not has_book:
            if told.state in (SYNCING, RESYNCING):
                return told.state, told.reason, told.detail, True
            return SYNCING, int(_S.ORDER_BOOK_REASON_STARTUP), _NOTHING_YET, False
        if self.gap:
            return RESYNCING, int(_S.ORDER_BOOK_REASON_DELIVERY_GAP), self.gap, False
        if told.state in (SYNCING, RESYNCING):
            return told.state, told.reason, told.detail, True
        if told.state == 0:
            return SYNCING, int(_S.ORDER_BOOK_REASON_STARTUP), _NOT_TOLD, False
        if self.broker_lost:
            reason = int(_S.ORDER_BOOK_REASON_BROKER_DISCONNECTED)
            return STALE, reason, self.broker_lost, False
        if self.silent:
            return STALE, int(_S.ORDER_BOOK_REASON_COLLECTOR_SILENT), self.silent, False
        return told.state, told.reason, told.detail, True
