"""Whatever the network does, a book that says SYNCED equals the venue's book at its id."""

import copy
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from marketprism.market.v1 import order_book_pb2 as pb

from services.collector.synchroniser import BookSynchroniser, SnapshotPolicy
from services.collector.venues.base import BookSnapshot
from services.collector.venues.binance_spot import BinanceSpot, DepthUpdate
from tests.unit.collector.support import PlainBook, Subscriber, as_decimals, diff

SECOND = 1_000_000_000

_prices = st.integers(1, 12).map(lambda number: f"{number}.50")
_quantities = st.integers(0, 4).map(lambda number: f"{number}.00")
_bids = st.lists(st.tuples(_prices, _quantities), max_size=4, unique_by=lambda level: level[0])
_asks = st.lists(
    st.tuples(st.integers(20, 32).map(str), _quantities),
    max_size=4,
    unique_by=lambda level: level[0],
)


class Network(RuleBasedStateMachine):
    """A venue that is always right, and a network that drops, repeats, reorders and cuts."""

    @initialize(
        first=st.integers(1, 1000),
        floor=st.integers(0, 10**6),
        buffered=st.sampled_from([3, 50]),
        every=st.sampled_from([2, 7, 1000]),
        max_levels=st.sampled_from([5, 100]),
    )
    def start(self, first: int, floor: int, buffered: int, every: int, max_levels: int) -> None:
        self.now = 10**9 * SECOND
        self.truth = PlainBook()
        self.truth.apply([("9.5", "1"), ("8.5", "2")], [("20", "1"), ("21", "3")])
        self.at = first
        self.history: dict[int, PlainBook] = {first: copy.deepcopy(self.truth)}
        self.last_told = first
        self.wire: list[DepthUpdate] = []
        self.held: DepthUpdate | None = None
        self.connected = False
        self.pending = False
        self.trimming = max_levels < 50
        self.out = Subscriber()
        self.book = BookSynchroniser(
            "sim", "A-B", BinanceSpot(), self.out,
            SnapshotPolicy(every_updates=every, max_buffered=buffered, max_levels=max_levels),
            epoch_floor=floor,
        )  # fmt: skip
        self.out.is_muted = lambda: self.book.muted
        self.asked = 0
        self.clock: list[int] = []

    def _tick(self) -> int:
        self.now += 10_000_000
        return self.now

    # The venue.

    @rule(bids=_bids, asks=_asks, ids=st.integers(1, 5))
    def venue_changes(self, bids: Any, asks: Any, ids: int) -> None:
        self.truth.apply(bids, asks)
        self.at += ids
        self.history[self.at] = copy.deepcopy(self.truth)
        event = diff(self.last_told + 1, self.at, bids, asks)
        self.last_told = self.at
        if self.connected:
            self.wire.append(event)

    # The connection.

    @precondition(lambda self: not self.connected)
    @rule()
    def connect(self) -> None:
        self.connected = True
        self.book.begin(self._tick())
        self.asked = len(self.out.requests)
        assert self.out.requests, "a book that begins asks for a snapshot"
        self.pending = True

    @precondition(lambda self: self.connected)
    @rule()
    def disconnect(self) -> None:
        self.connected = False
        self.wire.clear()
        self.held = None
        self.pending = False
        self.book.on_disconnected("cut", self._tick())

    def _deliver(self, event: DepthUpdate) -> None:
        self.book.on_diff(event, self._tick())

    @precondition(lambda self: self.wire)
    @rule()
    def deliver(self) -> None:
        self._deliver(self.wire.pop(0))
        if self.held is not None:
            event, self.held = self.held, None
            self._deliver(event)

    @precondition(lambda self: self.wire)
    @rule()
    def deliver_all(self) -> None:
        while self.wire:
            self._deliver(self.wire.pop(0))

    @precondition(lambda self: self.wire)
    @rule()
    def drop(self) -> None:
        self.wire.pop(0)

    @precondition(lambda self: self.wire)
    @rule(times=st.integers(2, 3))
    def duplicate(self, times: int) -> None:
        event = self.wire.pop(0)
        for _ in range(times):
            self._deliver(event)

    @precondition(lambda self: self.wire and self.held is None)
    @rule()
    def hold_back(self) -> None:
        self.held = self.wire.pop(0)

    @precondition(lambda self: self.wire)
    @rule()
    def damage(self) -> None:
        self.wire.pop(0)
        self.book.on_malformed("not JSON", self._tick())

    @precondition(lambda self: self.connected)
    @rule()
    def silence(self) -> None:
        self.book.on_silence("silent", self._tick())

    # REST.

    def _asked_again(self) -> None:
        if len(self.out.requests) > self.asked:
            self.asked = len(self.out.requests)
            self.pending = True

    @precondition(lambda self: self.connected and self.pending)
    @rule(back=st.integers(0, 6), depth=st.sampled_from([2, 1000]))
    def snapshot_answers(self, back: int, depth: int) -> None:
        self.pending = False
        ids = sorted(self.history)
        at = ids[max(0, len(ids) - 1 - back)]
        bids, asks = self.history[at].sorted()
        self.book.on_snapshot(
            BookSnapshot(
                at,
                [(f"{p:f}", f"{q:f}") for p, q in bids[:depth]],
                [(f"{p:f}", f"{q:f}") for p, q in asks[:depth]],
                depth,
            ),
            self._tick(),
        )

    @precondition(lambda self: self.connected and self.pending)
    @rule()
    def snapshot_fails(self) -> None:
        self.pending = False
        self.book.on_snapshot_failed(pb.ORDER_BOOK_REASON_SNAPSHOT_FAILED, "500", self._tick())

    # The broker, a person, the clock.

    @rule()
    def mute(self) -> None:
        self.book.mute()

    @rule()
    def unmute(self) -> None:
        self.book.unmute(self._tick())

    @precondition(lambda self: self.connected)
    @rule()
    def rebuild(self) -> None:
        self.book.rebuild(pb.ORDER_BOOK_REASON_REQUESTED, "asked for", self._tick())

    @rule(seconds=st.sampled_from([0, 1, 31, 241]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds * SECOND
        self.book.tick(self.now)

    @rule()
    def clock_is_set_back(self) -> None:
        self.now -= 7200 * SECOND

    # What must hold.

    @invariant()
    def a_synced_book_is_the_venues_book(self) -> None:
        if not self.book.in_step:
            return
        assert self.book.venue_sequence in self.history
        bids, asks = self.history[self.book.venue_sequence].sorted()
        book = self.book.book
        known_bids = [
            level for level in bids
            if not book.bid_horizon or level[0] >= as_decimals([(book.bid_horizon, "1")])[0][0]
        ]  # fmt: skip
        known_asks = [
            level for level in asks
            if not book.ask_horizon or level[0] <= as_decimals([(book.ask_horizon, "1")])[0][0]
        ]  # fmt: skip
        mine_bids, mine_asks = as_decimals(book.bids()), as_decimals(book.asks())
        assert mine_bids[: len(known_bids)] == known_bids
        assert mine_asks[: len(known_asks)] == known_asks
        # Beyond the horizon the book is unknown, but what it holds there is true.
        assert set(mine_bids) <= set(bids)
        assert set(mine_asks) <= set(asks)

    @invariant()
    def whoever_follows_has_the_same_book(self) -> None:
        assert not self.out.problems
        if self.book.muted or not self.book.in_step or not self.out.has_book:
            return
        assert (self.out.epoch, self.out.sequence) == (self.book.epoch, self.book.sequence)
        assert self.out.venue_sequence == self.book.venue_sequence
        assert self.out.state == pb.ORDER_BOOK_STATE_SYNCED
        bids, asks = self.out.book.sorted()
        assert as_decimals(self.book.book.bids()) == bids
        assert as_decimals(self.book.book.asks()) == asks

    @invariant()
    def a_book_out_of_step_waits_for_something(self) -> None:
        self._asked_again()
        if self.connected and self.book.state in (
            pb.ORDER_BOOK_STATE_SYNCING,
            pb.ORDER_BOOK_STATE_RESYNCING,
        ):
            assert self.pending, "expected a request for a snapshot under way"

    @invariant()
    def the_buffer_is_bounded(self) -> None:
        assert len(self.book._buffer) <= 50


Network.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestNetwork = Network.TestCase
