"""One book and one series of trades, rebuilt from what is published by the rules of the contract.

Follows proto/marketprism/market/v1/order_book.proto: a snapshot stands at (epoch, sequence), the
update that continues it has the same epoch and sequence + 1, and anything else is a breach.
"""

import time
from dataclasses import dataclass, field

from marketprism.market.v1 import events_pb2
from marketprism.market.v1 import order_book_pb2 as pb

__all__ = ["FollowedBook", "FollowedTrades", "Moment", "Said"]

_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Moment:
    """A book at one place, to be held against the truth."""

    symbol: str
    """Canonical symbol."""
    epoch: int
    """Its epoch."""
    sequence: int
    """Its sequence."""
    venue_sequence: int
    """The venue's id that it names."""
    bids: dict[str, str]
    """Quantity by price."""
    asks: dict[str, str]
    """Quantity by price."""
    bid_horizon: str
    """Below it nothing is known; empty when everything is."""
    ask_horizon: str
    """Above it nothing is known; empty when everything is."""


@dataclass(frozen=True, slots=True)
class Said:
    """A status and when it came, by the monotonic clock."""

    at: float
    """When it came."""
    status: pb.OrderBookStatus
    """What it says."""

    @property
    def state(self) -> str:
        """Name of the state without its prefix."""
        return pb.OrderBookState.Name(self.status.state).removeprefix("ORDER_BOOK_STATE_")

    @property
    def reason(self) -> str:
        """Name of the reason without its prefix."""
        return pb.OrderBookReason.Name(self.status.reason).removeprefix("ORDER_BOOK_REASON_")


@dataclass
class FollowedBook:
    """A book as a subscriber keeps it. `breaches` are violations of the contract."""

    symbol: str
    epoch: int = 0
    sequence: int = 0
    venue_sequence: int = 0
    has_book: bool = False
    bids: dict[str, str] = field(default_factory=dict)
    asks: dict[str, str] = field(default_factory=dict)
    bid_horizon: str = ""
    ask_horizon: str = ""
    said: list[Said] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    updates: int = 0
    breaches: list[str] = field(default_factory=list)
    reached: list[tuple[float, int]] = field(default_factory=list)
    """When it came to which venue sequence, the newest last; bounded."""

    @property
    def state(self) -> str:
        """Name of its state; empty before anything was said."""
        return self.said[-1].state if self.said else ""

    @property
    def in_step(self) -> bool:
        """Whether it claims to be the venue's book."""
        return self.has_book and self.state == "SYNCED"

    def on_snapshot(self, message: pb.OrderBookSnapshot) -> None:
        """Take a snapshot."""
        if message.epoch < self.epoch:
            self.breaches.append(f"the epoch went back from {self.epoch} to {message.epoch}")
        if message.epoch != self.epoch:
            self.epochs.append(message.epoch)
        elif self.has_book and message.sequence != self.sequence:
            self.breaches.append(
                f"a snapshot at {message.epoch}.{message.sequence} came where the book stands at "
                f"{self.epoch}.{self.sequence}"
            )
        bids = {level.price: level.quantity for level in message.bids}
        asks = {level.price: level.quantity for level in message.asks}
        repeated = (message.epoch, message.sequence) == (self.epoch, self.sequence)
        if self.has_book and repeated and not self._same(bids, asks, message):
            self.breaches.append(
                f"a snapshot at {self.epoch}.{self.sequence} tells another book than the updates"
            )
        self.bids, self.asks = bids, asks
        self.bid_horizon, self.ask_horizon = message.bid_horizon, message.ask_horizon
        self.epoch, self.sequence = message.epoch, message.sequence
        self._stands(message.venue_sequence)
        self.has_book = True

    def on_update(self, message: pb.OrderBookUpdate) -> None:
        """Take an update."""
        if not self.has_book:
            return
        if (message.epoch, message.sequence) != (self.epoch, self.sequence + 1):
            self.breaches.append(
                f"update {message.epoch}.{message.sequence} does not continue "
                f"{self.epoch}.{self.sequence}"
            )
            self.has_book = False
            return
        if self.state not in ("SYNCED", ""):
            self.breaches.append(
                f"update {message.epoch}.{message.sequence} came while the book is {self.state}"
            )
        self.updates += 1
        self.sequence = message.sequence
        for side, levels in ((self.bids, message.bids), (self.asks, message.asks)):
            for level in levels:
                if level.quantity == "0":
                    side.pop(level.price, None)
                else:
                    side[level.price] = level.quantity
        self._stands(message.venue_sequence)

    def on_status(self, message: pb.OrderBookStatus) -> None:
        """Take a status."""
        self.said.append(Said(time.monotonic(), message))

    def moment(self) -> Moment:
        """Give what it holds now."""
        return Moment(
            self.symbol,
            self.epoch,
            self.sequence,
            self.venue_sequence,
            dict(self.bids),
            dict(self.asks),
            self.bid_horizon,
            self.ask_horizon,
        )

    def _stands(self, venue_sequence: int) -> None:
        self.venue_sequence = venue_sequence
        self.reached.append((time.monotonic(), venue_sequence))
        if len(self.reached) > _KEPT:
            del self.reached[: _KEPT // 2]

    def _same(
        self, bids: dict[str, str], asks: dict[str, str], message: pb.OrderBookSnapshot
    ) -> bool:
        # What left the horizon may still be held by those who only apply updates.
        held_bids, held_asks = self.bids, self.asks
        if message.bid_horizon:
            edge = float(message.bid_horizon)
            held_bids = {p: q for p, q in held_bids.items() if float(p) >= edge}
            bids = {p: q for p, q in bids.items() if float(p) >= edge}
        if message.ask_horizon:
            edge = float(message.ask_horizon)
            held_asks = {p: q for p, q in held_asks.items() if float(p) <= edge}
            asks = {p: q for p, q in asks.items() if float(p) <= edge}
        return (bids, asks) == (held_bids, held_asks)


@dataclass
class FollowedTrades:
    """The trades of one instrument: the venue's numbers in the order of publication.

    A trade may stand for several of the venue's, of which it bears the last number.
    """

    numbers: list[int] = field(default_factory=list)
    first: int = 0
    """The first number that is to be there."""
    last: int = 0
    """The newest number."""
    backfilled: int = 0
    missing: set[int] = field(default_factory=set)
    """Numbers below the newest that did not come."""
    breaches: list[str] = field(default_factory=list)
    reached: list[tuple[float, int]] = field(default_factory=list)
    """When it came to which number, the newest last; bounded."""

    def on_trade(self, message: events_pb2.Trade) -> None:
        """Take a trade."""
        number = message.venue_sequence or int(message.trade_id)
        begin = number - max(message.trade_count, 1) + 1
        self.backfilled += message.backfilled
        if not self.last:
            self.first = begin
        elif number <= self.last:
            late = set(range(begin, number + 1))
            if message.backfilled and late <= self.missing:
                # What could not be fetched in time follows behind newer ones.
                self.missing -= late
                self.numbers.append(number)
            else:
                self.breaches.append(f"trade {number} came after {self.last}")
            return
        else:
            self.missing.update(range(self.last + 1, begin))
        self.last = number
        self.numbers.append(number)
        self.reached.append((time.monotonic(), number))
        if len(self.reached) > _KEPT:
            del self.reached[: _KEPT // 2]
