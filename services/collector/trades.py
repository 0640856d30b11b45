"""The trades of one instrument: each once, in the venue's order, holes noticed and filled."""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

from marketprism.market.v1 import common_pb2

from services.collector.contracts import ContractSize
from services.collector.encoding import TradeEncoder
from services.collector.venues.base import SkippedTrade, TradePrint

__all__ = ["Filled", "TradeTape"]

_BUY = common_pb2.SIDE_BUY
_SELL = common_pb2.SIDE_SELL
# Old ids that continue each other so many times are a new numbering, not repetitions.
_NEW_NUMBERING = 50


_Numbered: TypeAlias = TradePrint | SkippedTrade


class Filled(NamedTuple):
    """What became of a hole."""

    found: int
    """Trades that the venue's history had."""
    lost: int
    """Trades that stay missing."""
    first_lost: int
    """The first of them, 0 when there is none."""
    last_lost: int
    """The last of them, 0 when there is none."""


class TradeTape:
    """Publishes trades in the order of their ids.

    Trade ids of one instrument are contiguous. When one is skipped, the trades that follow are
    held while `request_history(first, last)` fetches the missing ones; `fill` then publishes what
    was found, marked as backfilled, and what was held. Who calls `on_trade` looks at `is_full`
    afterwards, and fills without a history when more than `max_held` are held. A trade that was
    published before is dropped. `publish(payload, trade_id)` takes the encoded message.

    `last_id` is the highest id published; the caller sets it to the last one stored by an earlier
    process, so that what was traded in between is a hole like any other. A venue that numbers anew
    is followed after 50 trades in a row that are old by their number and new by their time, which
    `renumbered` counts.

    A number may be used up without a trade of the market (`SkippedTrade`), and one trade may stand
    for several numbers, the last of which it bears (`trade_count`).
    """

    def __init__(
        self,
        exchange: str,
        symbol: str,
        publish: Callable[[bytes, int], object],
        request_history: Callable[[int, int], None],
        max_held: int = 20_000,
        sizes: ContractSize | None = None,
    ) -> None:
        self.sizes = sizes
        self.last_id = 0
        self.last_time = 0
        self.received = 0
        self.duplicates = 0
        self.missed = 0
        self.backfilled = 0
        self.renumbered = 0
        self._encoder = TradeEncoder(exchange, symbol)
        self._publish = publish
        self._request_history = request_history
        self._max_held = max_held
        self._held: list[tuple[_Numbered, int]] = []
        self._late: dict[int, tuple[_Numbered, int]] = {}
        self._late_numbers = 0
        self._missing: tuple[int, int] | None = None
        self._behind: list[tuple[_Numbered, int]] = []

    @property
    def missing(self) -> tuple[int, int] | None:
        """First and last id that are being fetched, None when there is no hole."""
        return self._missing

    @property
    def is_full(self) -> bool:
        """Whether no more trades should be held."""
        return len(self._held) + len(self._late) > self._max_held

    def on_trade(self, trade: _Numbered, receive_time: int) -> None:
        """Take a trade of the live feed."""
        self.received += 1
        number = trade.trade_id
        if self._missing is not None:
            self._hold(trade, receive_time, *self._missing)
        elif _first(trade) <= self.last_id + 1 <= number or self.last_id == 0:
            if self._behind:
                self._behind = []
            self._emit(trade, receive_time, backfilled=False)
        elif number <= self.last_id:
            self.duplicates += 1
            self._look_back(trade, receive_time)
        else:
            self._missing = (self.last_id + 1, _first(trade) - 1)
            self._held.append((trade, receive_time))
            self._request_history(*self._missing)

    def fill(self, history: Iterable[_Numbered], receive_time: int) -> Filled:
        """Close the hole with what the venue's history had, and what came late."""
        if self._missing is None:
            return Filled(0, 0, 0, 0)
        first, last = self._missing
        self._missing = None
        late, self._late, self._late_numbers = self._late, {}, 0
        told: list[tuple[_Numbered, int, bool]] = [(*each, False) for each in late.values()]
        numbers = sorted(late)
        for past in {trade.trade_id: trade for trade in history}.values():
            number = past.trade_id
            # What came late may stand for several of those that the history has one by one.
            place = bisect_left(numbers, number)
            came = place < len(numbers) and _first(late[numbers[place]][0]) <= number
            if first <= number <= last and not came:
                told.append((past, receive_time, True))
        found = lost = 0
        holes: list[int] = []
        expected = first
        for each, received, backfilled in sorted(told, key=lambda one: one[0].trade_id):
            begin = max(_first(each), first)
            if begin > expected:
                holes += (expected, begin - 1)
                lost += begin - expected
            expected = each.trade_id + 1
            self._emit(each, received, backfilled=backfilled)
            found += backfilled and not isinstance(each, SkippedTrade)
        if expected <= last:
            holes += (expected, last)
            lost += last + 1 - expected
        self.backfilled += found
        self.missed += lost
        self.last_id = last
        held, self._held = self._held, []
        for trade, received in held:
            # `received` counted these when they came; a hole among them holds the rest again.
            self.received -= 1
            self.on_trade(trade, received)
        return Filled(found, lost, *((holes[0], holes[-1]) if holes else (0, 0)))

    def _hold(self, trade: _Numbered, receive_time: int, first: int, last: int) -> None:
        number = trade.trade_id
        if number > last:
            self._held.append((trade, receive_time))
        elif number < first or number in self._late:
            self.duplicates += 1
        else:
            self._late[number] = (trade, receive_time)
            self._late_numbers += number - max(_first(trade), first) + 1
            if self._late_numbers >= last - first + 1:
                # It was only out of order.
                self.fill((), receive_time)

    def _look_back(self, trade: _Numbered, receive_time: int) -> None:
        if isinstance(trade, SkippedTrade) or trade.exchange_time <= self.last_time:
            # Another connection, or the venue itself, tells again what was told: one order may
            # make hundreds of trades at one time.
            return
        behind = self._behind
        if behind and _first(trade) != behind[-1][0].trade_id + 1:
            behind.clear()
        behind.append((trade, receive_time))
        if len(behind) >= _NEW_NUMBERING:
            self._behind = []
            self.renumbered += 1
            self.duplicates -= len(behind)
            for each, received in behind:
                self._emit(each, received, backfilled=False)

    def _emit(self, trade: _Numbered, receive_time: int, *, backfilled: bool) -> None:
        self.last_id = trade.trade_id
        if isinstance(trade, SkippedTrade):
            return
        self.last_time = trade.exchange_time
        venue_id = trade.venue_id
        self._publish(
            self._encoder.trade(
                venue_id or str(trade.trade_id),
                trade.exchange_time,
                receive_time,
                trade.price,
                trade.quantity if self.sizes is None else self.sizes.sizes[trade.quantity],
                _SELL if trade.buyer_is_maker else _BUY,
                venue_sequence=trade.trade_id if venue_id else 0,
                trade_count=trade.trade_count,
                liquidation=trade.liquidation,
                backfilled=backfilled,
            ),
            trade.trade_id,
        )


def _first(trade: _Numbered) -> int:
    """Give the first of the numbers that it stands for."""
    count = 1 if isinstance(trade, SkippedTrade) else max(trade.trade_count, 1)
    return trade.trade_id - count + 1
