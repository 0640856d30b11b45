"""The trades of one instrument: each once, in the venue's order, holes noticed and filled."""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

from marketprism.market.v1 import common_pb2

from services.collector.contracts import ContractSize
from services.collector.encoding import TradeEncoder
from services.collector.venues.base import SkippedTrade, TradePrint
from services.shared.ranges import Ranges

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
    """Numbers that stay missing, or are owed."""
    runs: tuple[tuple[int, int], ...]
    """The first and the last of each run of them."""


class TradeTape:
    """Publishes trades in the order of their ids.

    Trade ids of one instrument are contiguous. When one is skipped, the trades that follow are
    held while `request_history(first, last)` fetches the missing ones. What it finds is given to
    `take`; `fill` then publishes it, marked as backfilled, and what was held. A trade that was
    published before is dropped. `publish(payload, trade_id)` takes the encoded message.

    Nothing is held for ever: `release` lets the stream go on, and what is still missing is `owed`.
    What `take` gets of it from then on is published at once, behind what is newer. Who calls
    `on_trade` looks at `is_full` afterwards, and releases when more than `max_held` are held.

    `last_id` is the highest id published, `last_time` when that trade was made, `last_received`
    when the last one came in the stream (nanoseconds since 1970). The caller sets them to those of
    the last one that an earlier process stored, so that what was traded in between is a hole like
    any other, and adds to `owed` what that process still owed. A venue that numbers anew is
    followed after 50 trades in a row that are old by their number and new by their time, which
    `renumbered` counts; nothing is owed then.

    A number may be used up without a trade of the market (`SkippedTrade`), and one trade may stand
    for several numbers, the last of which it bears (`trade_count`). One of the venue's history that
    stands for numbers of which some were published is of no use.
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
        self.last_received = 0
        self.received = 0
        self.duplicates = 0
        self.missed = 0
        self.backfilled = 0
        self.renumbered = 0
        self.owed = Ranges()
        self._encoder = TradeEncoder(exchange, symbol)
        self._publish = publish
        self._request_history = request_history
        self._max_held = max_held
        self._held: list[tuple[_Numbered, int]] = []
        self._late: dict[int, tuple[_Numbered, int]] = {}
        self._late_numbers = 0
        self._missing: tuple[int, int] | None = None
        self._found: dict[int, TradePrint] = {}
        self._skipped = Ranges()
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
            if self.owed and self._pay(trade, receive_time, backfilled=False):
                return
            self.duplicates += 1
            self._look_back(trade, receive_time)
        else:
            self._missing = (self.last_id + 1, _first(trade) - 1)
            self._held.append((trade, receive_time))
            self._request_history(*self._missing)

    def take(self, history: Iterable[_Numbered], receive_time: int) -> int:
        """Take what the venue's history has of what is missing or owed.

        Gives how many trades of it were published at once; those of a hole wait for `fill`.
        """
        hole = self._missing
        paid = 0
        for past in history:
            if isinstance(past, SkippedTrade):
                if hole is not None:
                    self._skipped.add(max(_first(past), hole[0]), min(past.trade_id, hole[1]))
                self.owed.discard(_first(past), past.trade_id)
            elif hole is not None and hole[0] <= _first(past) and past.trade_id <= hole[1]:
                self._found[past.trade_id] = past
            elif self.owed and self._pay(past, receive_time, backfilled=True):
                paid += 1
        self.backfilled += paid
        return paid

    def fill(self, history: Iterable[_Numbered], receive_time: int) -> Filled:
        """Close the hole with what the venue's history had, and what came late."""
        self.take(history, receive_time)
        return self._close(receive_time)

    def release(self, receive_time: int, tell: Callable[[Filled], object]) -> Filled:
        """Publish what is held, and owe what is still missing of the hole.

        `tell` is told of it before anything is published: who reads afterwards knows what is owed.
        """
        return self._close(receive_time, tell)

    def wants(self, first: int, last: int) -> bool:
        """Tell whether any of the numbers first..last is still looked for."""
        missing = self._missing
        return bool(
            (missing is not None and first <= missing[1] and missing[0] <= last)
            or self.owed.within(first, last)
        )

    def give_up(self, first: int, last: int) -> list[tuple[int, int]]:
        """Owe nothing any more of the numbers first..last; gives what was owed."""
        runs = self.owed.within(first, last)
        self.owed.discard(first, last)
        self.missed += sum(end - begin + 1 for begin, end in runs)
        return runs

    def _close(self, receive_time: int, tell: Callable[[Filled], object] | None = None) -> Filled:
        if self._missing is None:
            return Filled(0, 0, ())
        first, last = self._missing
        self._missing = None
        late, self._late, self._late_numbers = self._late, {}, 0
        history, self._found = self._found, {}
        skipped, self._skipped = self._skipped, Ranges()
        told: list[tuple[_Numbered, int, bool]] = [(*each, False) for each in late.values()]
        numbers = sorted(late)
        for past in history.values():
            # What came late may stand for several of those that the history has one by one, and the
            # other way round.
            place = bisect_left(numbers, _first(past))
            came = place < len(numbers) and _first(late[numbers[place]][0]) <= past.trade_id
            if not came:
                told.append((past, receive_time, True))
        for each, _ in late.values():
            skipped.discard(_first(each), each.trade_id)
        for begin, end in skipped:
            told.append((SkippedTrade("", end, end - begin + 1), receive_time, True))
        ordered: list[tuple[_Numbered, int, bool]] = []
        found = 0
        holes: list[tuple[int, int]] = []
        expected = first
        for each, received, backfilled in sorted(told, key=lambda one: one[0].trade_id):
            begin = max(_first(each), first)
            if begin < expected and backfilled:
                # The history told some of its numbers in two ways.
                continue
            if begin > expected:
                holes.append((expected, begin - 1))
            expected = each.trade_id + 1
            ordered.append((each, received, backfilled))
            found += backfilled and not isinstance(each, SkippedTrade)
        if expected <= last:
            holes.append((expected, last))
        lost = sum(end - begin + 1 for begin, end in holes)
        filled = Filled(found, lost, tuple(holes))
        self.backfilled += found
        if tell is not None:
            for begin, end in holes:
                self.owed.add(begin, end)
            tell(filled)
        else:
            self.missed += lost
        for each, received, backfilled in ordered:
            self._emit(each, received, backfilled=backfilled)
        self.last_id = last
        held, self._held = self._held, []
        for trade, received in held:
            # `received` counted these when they came; a hole among them holds the rest again.
            self.received -= 1
            self.on_trade(trade, received)
        return filled

    def _pay(self, trade: _Numbered, receive_time: int, *, backfilled: bool) -> bool:
        """Publish what is owed, behind newer ones; tells whether it was."""
        first, last = _first(trade), trade.trade_id
        if not self.owed.holds(first, last):
            return False
        self.owed.discard(first, last)
        if not isinstance(trade, SkippedTrade):
            self._tell(trade, receive_time, backfilled=backfilled)
        return True

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
                self._close(receive_time)

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
            self.owed = Ranges()
            self.renumbered += 1
            self.duplicates -= len(behind)
            for each, received in behind:
                self._emit(each, received, backfilled=False)

    def _emit(self, trade: _Numbered, receive_time: int, *, backfilled: bool) -> None:
        self.last_id = trade.trade_id
        if isinstance(trade, SkippedTrade):
            return
        self.last_time = trade.exchange_time
        if not backfilled:
            self.last_received = receive_time
        self._tell(trade, receive_time, backfilled=backfilled)

    def _tell(self, trade: TradePrint, receive_time: int, *, backfilled: bool) -> None:
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
    count = trade.count if isinstance(trade, SkippedTrade) else trade.trade_count
    return trade.trade_id - max(count, 1) + 1
