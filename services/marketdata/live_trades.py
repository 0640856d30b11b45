"""One instrument's live trades: the latest ones, the log subscribers read, and what was missed."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from google.protobuf.message import DecodeError
from marketprism.collector.v1 import integrity_event_pb2
from marketprism.market.v1 import common_pb2, events_pb2, market_event_pb2

from services.marketdata.event_log import EventLog
from services.marketdata.tally import Tally
from services.marketdata.wire import (
    TRADE,
    event_item,
    nanoseconds,
    stream_status_item,
)

__all__ = ["BROKER", "COLLECTOR", "LiveTrades", "concerns_trades", "trades_field"]

_I: Final = integrity_event_pb2
_OPEN: Final = int(market_event_pb2.STREAM_STATE_OPEN)
_INTERRUPTED: Final = int(market_event_pb2.STREAM_STATE_INTERRUPTED)

_MOMENTARY: Final = {
    _I.INTEGRITY_KIND_GAP: "VENUE_GAP",
    _I.INTEGRITY_KIND_DROPPED: "DROPPED",
    _I.INTEGRITY_KIND_MALFORMED_FRAME: "MALFORMED_FRAME",
    _I.INTEGRITY_KIND_COLLECTOR_STARTED: "COLLECTOR_STARTED",
}
_BEGINS: Final = {
    _I.INTEGRITY_KIND_DISCONNECTED: "VENUE_DISCONNECTED",
    _I.INTEGRITY_KIND_SILENT: "FEED_SILENT",
    _I.INTEGRITY_KIND_SUBSCRIPTION_REFUSED: "SUBSCRIPTION_REFUSED",
    _I.INTEGRITY_KIND_COLLECTOR_STOPPED: "COLLECTOR_STOPPED",
}
_ENDS: Final = {
    _I.INTEGRITY_KIND_CONNECTED: _I.INTEGRITY_KIND_DISCONNECTED,
    _I.INTEGRITY_KIND_SPEAKING: _I.INTEGRITY_KIND_SILENT,
}

BROKER: Final = "broker"
"""Key of the interruption while the broker is away."""

COLLECTOR: Final = "collector"
"""Key of the interruption while the collector is silent."""


def concerns_trades(event: integrity_event_pb2.IntegrityEvent) -> bool:
    """Tell whether an entry of the gap ledger may mean missed trades."""
    if event.event_kind == common_pb2.EVENT_KIND_TRADE:
        return True
    # A malformed frame of no kind is one frame of a connection, most likely of a busier kind.
    return (
        event.event_kind == common_pb2.EVENT_KIND_UNSPECIFIED
        and event.kind != _I.INTEGRITY_KIND_MALFORMED_FRAME
    )


class LiveTrades:
    """The live trades of one instrument.

    `recent_limit` trades are kept for `recent`. What keeps trades from coming is told to
    subscribers as INTERRUPTED, and OPEN when nothing does any more.
    """

    def __init__(
        self,
        exchange: str,
        symbol: str,
        *,
        max_events: int,
        max_bytes: int,
        recent_limit: int,
        tally: Tally,
        clock: Callable[[], int],
    ) -> None:
        self.exchange = exchange
        self.symbol = symbol
        self.log = EventLog(max_events, max_bytes)
        """What subscribers read: trades, and statuses of the stream."""
        self._tally = tally
        self._clock = clock
        self._recent: deque[bytes] = deque(maxlen=recent_limit)
        self._count = 0
        # What interrupts, by a key that its end names again: (reason, message, since).
        self._interruptions: dict[str, tuple[str, str, int]] = {}

    @property
    def heard_of(self) -> bool:
        """Whether a trade ever came."""
        return self._count > 0

    def on_trade(self, payload: bytes) -> None:
        """Take an encoded Trade; never raises for what it holds."""
        try:
            trade = events_pb2.Trade.FromString(payload)
        except DecodeError:
            trade = None
        if trade is None or trade.symbol != self.symbol or trade.exchange != self.exchange:
            self._tally.malformed += 1
            self._tell_moment("MALFORMED_EVENT", "an event could not be decoded and was left out")
            return
        if self._interruptions and not trade.backfilled:
            self._on_sign_of_life(nanoseconds(trade.receive_time))
        item = event_item(TRADE, payload)
        self._recent.append(item)
        self._count += 1
        self.log.append(item)

    def on_integrity(self, event: integrity_event_pb2.IntegrityEvent) -> None:
        """Take an entry of the gap ledger that speaks of this instrument, or of its venue."""
        kind = event.kind
        message = event.detail
        if event.count:
            message = f"{message} ({event.count} missing)" if message else f"{event.count} missing"
        if kind == _I.INTEGRITY_KIND_COLLECTOR_STARTED:
            self._end(lambda key: key not in (BROKER, COLLECTOR))
        if kind in _MOMENTARY:
            self._tell_moment(_MOMENTARY[kind], message)
        elif kind in _BEGINS:
            self.interrupt(_key(kind, event.connection_id), _BEGINS[kind], message)
        elif kind in _ENDS:
            ended = _key(_ENDS[kind], event.connection_id)
            self._end(lambda key: key == ended, message)

    def interrupt(self, key: str, reason: str, message: str) -> None:
        """Tell that trades may be missing from now on, until `resume` with the same key."""
        self._interruptions[key] = (reason, message, self._clock())
        self.log.append(self._status(_INTERRUPTED, reason, message))

    def is_interrupted_by(self, key: str) -> bool:
        """Tell whether an interruption with this key lasts."""
        return key in self._interruptions

    def resume(self, key: str, message: str = "") -> None:
        """Tell that what began under this key is over."""
        self._end(lambda other: other == key, message)

    def lose(self, reason: str, message: str) -> None:
        """Tell that trades are gone for good, and that more follow."""
        self._tell_moment(reason, message)

    def opening(self) -> tuple[bytes, ...]:
        """Give the items that a subscriber gets first: OPEN, and what interrupts at present."""
        items = [self._status(_OPEN, "SUBSCRIBED", "")]
        items += [
            self._status(_INTERRUPTED, reason, message)
            for reason, message, _ in self._interruptions.values()
        ]
        return tuple(items)

    def recent(self, limit: int, before: int | None) -> tuple[list[bytes], int | None]:
        """Give `limit` trades, newest first, older than number `before`; and the next `before`.

        Trades come as `events` items; their inner part is the item of ListRecentTradesResponse.
        """
        oldest = self._count - len(self._recent)
        newest = self._count if before is None else min(before, self._count)
        last = max(oldest, newest - limit)
        trades = [self._recent[number - oldest] for number in range(newest - 1, last - 1, -1)]
        return trades, last if last > oldest else None

    def _on_sign_of_life(self, receive_time: int) -> None:
        # A trade read after the path broke shows that it is whole again, whoever forgot to say so.
        self._end(lambda key: key != BROKER and self._interruptions[key][2] < receive_time)

    def _tell_moment(self, reason: str, message: str) -> None:
        self.log.append(self._status(_INTERRUPTED, reason, message))
        if not self._interruptions:
            self.log.append(self._status(_OPEN, reason, "trades follow again"))

    def _end(self, is_over: Callable[[str], bool], message: str = "") -> None:
        over = [key for key in self._interruptions if is_over(key)]
        reason = ""
        for key in over:
            reason, _, _ = self._interruptions.pop(key)
        if over and not self._interruptions:
            self.log.append(self._status(_OPEN, reason, message or "trades follow again"))

    def _status(self, state: int, reason: str, message: str) -> bytes:
        return stream_status_item(
            state,
            now=self._clock(),
            reason=reason,
            message=message,
            exchange=self.exchange,
            symbol=self.symbol,
        )


def _key(kind: int, connection_id: str) -> str:
    return f"{kind}/{connection_id}"


def trades_field(items: Iterable[bytes]) -> bytes:
    """Give the trades of `events` items as the repeated field 1 of ListRecentTradesResponse."""
    # MarketEvent.trade is field 1 as well: what is within an item is the field already.
    out = []
    for item in items:
        position = 1
        while item[position] > 0x7F:
            position += 1
        out.append(item[position + 1 :])
    return b"".join(out)
