"""Two connections make one book: the first to tell wins, and the loss of one loses nothing."""

import random
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.collector.lanes import BookLanes
from services.collector.synchroniser import BookSynchroniser, SnapshotPolicy
from services.collector.venues.base import BookHeartbeat, BookSnapshot
from services.collector.venues.binance_futures import BinanceFutures, FuturesDepthUpdate
from services.collector.venues.okx import Okx, OkxBookUpdate
from tests.unit.collector.support import Levels, PlainBook, Subscriber

MS = 1_000_000
T0 = 1_700_000_000_000 * MS


@dataclass
class Venue:
    """A venue that tells the same changes on every connection."""

    from_stream: bool
    ids: list[int]
    levels: list[tuple[Levels, Levels]]

    def diff(self, index: int) -> FuturesDepthUpdate | OkxBookUpdate:
        bids, asks = self.levels[index]
        previous, last = self.ids[index], self.ids[index + 1]
        if self.from_stream:
            return OkxBookUpdate("X", previous, last, bids, asks, index * MS, 0)
        return FuturesDepthUpdate("X", previous + 1, last, previous, list(bids), list(asks), index)

    def book(self, count: int) -> PlainBook:
        plain = PlainBook()
        plain.apply([("100", "1")], [("101", "1")])
        for bids, asks in self.levels[:count]:
            plain.apply(bids, asks)
        return plain

    def snapshot(self, count: int) -> BookSnapshot:
        bids, asks = self.book(count).sorted()
        return BookSnapshot(
            self.ids[count],
            [(str(p), str(q)) for p, q in bids],
            [(str(p), str(q)) for p, q in asks],
            native_symbol="X" if self.from_stream else "",
        )


def venue(seed: int, count: int, *, from_stream: bool) -> Venue:
    chance = random.Random(seed)
    ids = [1000]
    levels: list[tuple[Levels, Levels]] = []
    for _ in range(count):
        ids.append(ids[-1] + chance.randint(1, 5))
        bid, ask = 100 - chance.randint(0, 20), 101 + chance.randint(0, 20)
        quantity = str(chance.randint(0, 3))
        levels.append(([(str(bid), quantity)], [(str(ask), quantity)]))
    return Venue(from_stream, ids, levels)


class Bench:
    """A book with lanes and a subscriber that checks the contract."""

    def __init__(self, told: Venue) -> None:
        self.venue = told
        self.out = Subscriber()
        adapter = Okx() if told.from_stream else BinanceFutures()
        self.book = BookSynchroniser("x", "X", adapter, self.out, SnapshotPolicy())
        self.lanes = BookLanes(self.book, adapter)
        self.now = T0

    def tick(self, ms: int = 1) -> int:
        self.now += ms * MS
        return self.now

    def join(self, name: str, at: int) -> None:
        self.lanes.join(name, self.tick())
        if self.venue.from_stream:
            self.lanes.on_snapshot(name, self.venue.snapshot(at), self.tick())
        elif not self.book.in_step:
            self.book.on_snapshot(self.venue.snapshot(at), self.tick())

    def tell(self, name: str, index: int) -> None:
        self.lanes.on_diff(name, self.venue.diff(index), self.tick())

    def check(self, count: int) -> None:
        assert self.out.problems == []
        assert self.book.venue_sequence == self.venue.ids[count]
        assert self.out.book.sorted() == self.venue.book(count).sorted()


both = pytest.mark.parametrize("from_stream", [True, False], ids=["stream", "request"])


@both
def test_what_a_second_connection_repeats_is_dropped(from_stream: bool) -> None:
    bench = Bench(venue(1, 20, from_stream=from_stream))
    bench.join("a", 0)
    bench.join("b", 0)
    for index in range(20):
        bench.tell("a", index)
        bench.tell("b", index)
    bench.check(20)
    assert len(bench.out.snapshots) == 1, "one epoch"
    assert bench.lanes.duplicates == 20


@both
def test_a_frame_lost_on_one_connection_comes_over_the_other(from_stream: bool) -> None:
    bench = Bench(venue(2, 20, from_stream=from_stream))
    bench.join("a", 0)
    bench.join("b", 0)
    for index in range(20):
        if index % 3:
            bench.tell("a", index)
    for index in range(20):
        if index % 3 != 1:
            bench.tell("b", index)
    bench.check(20)
    assert bench.book.gaps == 0
    assert len(bench.out.snapshots) == 1


@both
def test_what_neither_connection_brings_is_a_gap(from_stream: bool) -> None:
    bench = Bench(venue(3, 10, from_stream=from_stream))
    bench.join("a", 0)
    bench.join("b", 0)
    for index in (0, 1):
        bench.tell("a", index)
        bench.tell("b", index)
    bench.tell("a", 3)
    assert bench.book.in_step, "the other one may still bring it"
    bench.tell("b", 3)
    assert bench.book.gaps == 1
    assert not bench.book.in_step


@both
def test_what_the_other_connection_never_brings_is_a_gap_after_a_second(from_stream: bool) -> None:
    bench = Bench(venue(3, 10, from_stream=from_stream))
    bench.join("a", 0)
    bench.join("b", 0)
    for name in ("a", "b"):
        bench.tell(name, 0)
    bench.tell("a", 2)
    bench.lanes.tick(bench.tick(900))
    assert bench.book.in_step
    bench.lanes.tick(bench.tick(200))
    assert bench.book.gaps == 1


@both
@pytest.mark.parametrize("behind", [0, 1, 5])
def test_a_successor_takes_over_without_a_new_epoch(from_stream: bool, behind: int) -> None:
    bench = Bench(venue(4, 40, from_stream=from_stream))
    bench.join("old", 0)
    for index in range(10):
        bench.tell("old", index)
    bench.join("new", 10)
    assert bench.lanes.is_aligned("new"), "both stand at the same id"
    for index in range(10, 20):
        bench.tell("old", index)
        if index - behind >= 10:
            bench.tell("new", index - behind)
    assert bench.lanes.is_aligned("new")
    assert bench.lanes.leave("old", bench.tick())
    for index in range(20 - behind, 40):
        bench.tell("new", index)
    bench.check(40)
    assert len(bench.out.snapshots) == 1, "the epoch goes on"


def test_a_successor_whose_snapshot_is_ahead_waits_for_the_old_connection_to_reach_it() -> None:
    bench = Bench(venue(5, 40, from_stream=True))
    bench.join("old", 0)
    bench.tell("old", 0)
    bench.join("new", 10)
    assert not bench.lanes.is_aligned("new")
    for index in range(10, 15):
        bench.tell("new", index)
    assert not bench.lanes.is_aligned("new")
    for index in range(1, 12):
        bench.tell("old", index)
    assert bench.lanes.is_aligned("new")
    bench.lanes.leave("old", bench.tick())
    for index in range(15, 40):
        bench.tell("new", index)
    bench.check(40)
    assert len(bench.out.snapshots) == 1


def test_a_successor_that_never_met_the_book_begins_a_new_epoch_from_its_own_snapshot() -> None:
    bench = Bench(venue(6, 30, from_stream=True))
    bench.join("old", 0)
    bench.tell("old", 0)
    bench.join("new", 10)
    for index in range(10, 15):
        bench.tell("new", index)
    assert bench.lanes.leave("old", bench.tick())
    for index in range(15, 30):
        bench.tell("new", index)
    bench.check(30)
    assert len(bench.out.snapshots) == 2


@both
def test_the_last_connection_that_leaves_carries_nothing_on(from_stream: bool) -> None:
    bench = Bench(venue(7, 5, from_stream=from_stream))
    bench.join("a", 0)
    assert not bench.lanes.leave("a", bench.tick())
    assert bench.lanes.names == []


def test_a_heartbeat_of_a_connection_that_is_behind_is_no_gap() -> None:
    bench = Bench(venue(8, 10, from_stream=True))
    bench.join("a", 0)
    bench.join("b", 0)
    for index in range(5):
        bench.tell("a", index)
    bench.lanes.on_heartbeat("b", BookHeartbeat("X", bench.venue.ids[2]), bench.tick())
    assert bench.book.in_step
    bench.lanes.on_heartbeat("a", BookHeartbeat("X", bench.venue.ids[5]), bench.tick())
    assert bench.book.in_step


@both
def test_a_frame_that_cannot_be_read_on_one_connection_costs_nothing(from_stream: bool) -> None:
    bench = Bench(venue(9, 10, from_stream=from_stream))
    bench.join("a", 0)
    bench.join("b", 0)
    for name in ("a", "b"):
        bench.tell(name, 0)
    assert not bench.lanes.on_malformed("a", "broken", bench.tick())
    bench.tell("a", 2)
    bench.tell("b", 1)
    bench.tell("b", 2)
    bench.check(3)
    assert bench.book.gaps == 0


@both
@given(
    seed=st.integers(0, 1000),
    events=st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(1, 6), st.booleans()), max_size=60
    ),
)
def test_a_book_in_step_is_always_the_venues_book_whatever_is_lost(
    from_stream: bool, seed: int, events: list[tuple[str, int, bool]]
) -> None:
    told = venue(seed, 80, from_stream=from_stream)
    by_id = {number: index for index, number in enumerate(told.ids)}
    bench = Bench(told)
    bench.join("a", 0)
    bench.join("b", 0)
    at = {"a": 0, "b": 0}
    for name, count, lose in events:
        for _ in range(count):
            if at[name] >= 80:
                break
            if not (lose and count == 3):
                bench.tell(name, at[name])
            at[name] += 1
        if not bench.book.in_step:
            # Everybody resynchronises from where the venue is now.
            now = max(at.values())
            at = {"a": now, "b": now}
            for each in ("a", "b"):
                bench.join(each, now)
        bench.lanes.tick(bench.tick(10))
        assert bench.out.problems == []
        if bench.book.in_step:
            count_told = by_id[bench.book.venue_sequence]
            assert bench.out.book.sorted() == told.book(count_told).sorted()
    assert all(a.epoch <= b.epoch for a, b in pairwise(bench.out.snapshots))
