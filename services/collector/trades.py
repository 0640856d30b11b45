"""The trades of one instrument: each once, in the venue's order, holes noticed and filled."""

from collections import deque
from collections.abc import Callable, Iterable

from marketprism.market.v1 import common_pb2

from services.collector.encoding import TradeEncoder
from services.collector.venues.base import TradePrint

__all__ = ["TradeTape"]

_BUY = common_pb2.SIDE_BUY
_SELL = common_pb2.SIDE_SELL


class TradeTape:
    """Publishes trades in the order of their ids.

    Trade ids of one instrument are contiguous. When one is skipped, the trades that follow are
    held (at most `max_held`) while `request_history(first, last)` fetches the missing ones;
    `fill` then publishes what was found, marked as backfilled, and what was held. A trade that was
    published before is dropped. `publish(payload, trade_id)` takes the encoded message.

    `last_id` is the highest id published; the caller sets it to the last one stored by an earlier
    process, so that what was traded in between is a hole like any other.
    """

    def __init__(
        self,
        exchange: str,
        symbol: str,
        publish: Callable[[bytes, int], object],
        request_history: Callable[[int, int], None],
        max_held: int = 20_000,
    ) -> None:
        self.last_id = 0
        self.received = 0
        self.duplicates = 0
        self.missed = 0
        self.backfilled = 0
        self._encoder = TradeEncoder(exchange, symbol)
        self._publish = publish
        self._request_history = request_history
        self._max_held = max_held
        self._held: deque[tuple[TradePrint, int]] = deque()
        self._missing: tuple[int, int] | None = None

    @property
    def missing(self) -> tuple[int, int] | None:
        """First and last id that are being fetched, None when there is no hole."""
        return self._missing

    def on_trade(self, trade: TradePrint, receive_time: int) -> None:
        """Take a trade of the live feed."""
        self.received += 1
        if self._missing is not None:
            self._held.append((trade, receive_time))
            if len(self._held) >= self._max_held:
                self.fill((), receive_time)
            return
        if trade.trade_id == self.last_id + 1 or self.last_id == 0:
            self._emit(trade, receive_time, backfilled=False)
        elif trade.trade_id <= self.last_id:
            self.duplicates += 1
        else:
            self._missing = (self.last_id + 1, trade.trade_id - 1)
            self._held.append((trade, receive_time))
            self._request_history(*self._missing)

    def fill(self, history: Iterable[TradePrint], receive_time: int) -> tuple[int, int]:
        """Close the hole with what the venue's history had, oldest first.

        Returns how many of the missing trades were found and how many stay missing.
        """
        if self._missing is None:
            return 0, 0
        first, last = self._missing
        self._missing = None
        found = 0
        for trade in history:
            if first <= trade.trade_id <= last and trade.trade_id > self.last_id:
                self._emit(trade, receive_time, backfilled=True)
                found += 1
        lost = last - first + 1 - found
        self.backfilled += found
        self.missed += lost
        self.last_id = last
        held, self._held = self._held, deque()
        while held:
            trade, received = held.popleft()
            self.received -= 1
            self.on_trade(trade, received)
            if self._missing is not None:
                # Another hole among the held ones: the rest waits for that one.
                self._held.extend(held)
                break
        return found, lost

    def _emit(self, trade: TradePrint, receive_time: int, *, backfilled: bool) -> None:
        self.last_id = trade.trade_id
        self._publish(
            self._encoder.trade(
                str(trade.trade_id),
                trade.exchange_time,
                receive_time,
                trade.price,
                trade.quantity,
                _SELL if trade.buyer_is_maker else _BUY,
                backfilled=backfilled,
            ),
            trade.trade_id,
        )
