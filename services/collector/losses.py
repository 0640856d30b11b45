"""What the broker's bounded buffer could not hold of one instrument, told to the gap ledger."""

from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2

from services.collector.ledger import Ledger

__all__ = ["BrokerLosses"]


class BrokerLosses:
    """Counts what was given up while the broker was away, and reports it when there is room again.

    Public counters only grow: `updates` (of the book), `tops`, `trades`. `since` is the receive
    time of the first message that may be missing, 0 while none is.
    """

    def __init__(self, exchange: str, symbol: str, ledger: Ledger) -> None:
        self.updates = 0
        self.tops = 0
        self.trades = 0
        self.since = 0
        self._exchange = exchange
        self._symbol = symbol
        self._ledger = ledger
        self._reported_updates = 0
        self._reported_tops = 0
        self._reported_trades = 0
        self._first_trade = 0
        self._last_trade = 0

    def on_broker(self, connected: bool, now: int, *, muted: bool) -> None:
        """Take note that the broker came or went; `muted` tells whether the book is."""
        if not connected:
            self.since = self.since or now
        elif not muted:
            self.since = 0

    def on_trade_rejected(self, number: int) -> None:
        """Take note that a trade found no room."""
        self.trades += 1
        self._last_trade = number
        self._first_trade = self._first_trade or number

    def report(self, unpublished: int, now: int) -> None:
        """Write what is new to the ledger; `unpublished` updates were applied while muted."""
        gone = self.updates + unpublished
        count = gone - self._reported_updates
        if count:
            self._reported_updates = gone
            kind = common_pb2.EVENT_KIND_ORDER_BOOK
            self._record(kind, count, now, begin=self.since, end=now)
            self.since = 0
        count = self.tops - self._reported_tops
        if count:
            self._reported_tops = self.tops
            self._record(common_pb2.EVENT_KIND_BEST_BID_OFFER, count, now)
        count = self.trades - self._reported_trades
        if count:
            self._reported_trades = self.trades
            self._record(
                common_pb2.EVENT_KIND_TRADE, count, now,
                first_missing_id=self._first_trade, last_missing_id=self._last_trade,
            )  # fmt: skip
            self._first_trade = self._last_trade = 0

    def _record(
        self, kind: "common_pb2.EventKind.ValueType", count: int, now: int, **more: int
    ) -> None:
        self._ledger.record(
            integrity.INTEGRITY_KIND_DROPPED,
            integrity.INTEGRITY_CAUSE_BROKER_BACKPRESSURE,
            "the broker was away for longer than the buffer lasts",
            exchange=self._exchange,
            symbol=self._symbol,
            now=now,
            event_kind=kind,
            count=count,
            **more,  # type: ignore[arg-type]
        )
