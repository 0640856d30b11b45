"""A book is SYNCED only while it equals the venue's, and everything else is told."""

from typing import Any

import pytest
from marketprism.market.v1 import order_book_pb2 as pb

from services.collector.synchroniser import BookSynchroniser, SnapshotPolicy
from services.collector.venues.base import BookSnapshot
from services.collector.venues.binance_spot import BinanceSpot
from tests.unit.collector.support import Subscriber, as_decimals, diff

SECOND = 1_000_000_000
T0 = 1_700_000_000 * SECOND


class Bench:
    """A synchroniser, what follows it, and a clock of its own."""

    def __init__(self, *, epoch_floor: int = 0, **policy: Any) -> None:
        self.out = Subscriber()
        self.now = T0
        self.book = BookSynchroniser(
            "binance", "BTC-USDT", BinanceSpot(), self.out,
            SnapshotPolicy(**policy), epoch_floor=epoch_floor,
        )  # fmt: skip
        self.out.is_muted = lambda: self.book.muted

    def begin(self) -> None:
        self.book.begin(self.tick())

    def tick(self, seconds: float = 0.1) -> int:
        self.now += int(seconds * SECOND)
        return self.now

    def diff(self, first: int, last: int, bid: str = "", quantity: str = "1") -> None:
        bids = [(bid, quantity)] if bid else []
        self.book.on_diff(diff(first, last, bids, ms=self.now // 1_000_000), self.tick())

    def snapshot(
        self, last: int, *bids: str, asks: tuple[str, ...] = ("1000",), limit: int = 0
    ) -> None:
        self.book.on_snapshot(
            BookSnapshot(last, [(bid, "1") for bid in bids], [(ask, "1") for ask in asks], limit),
            self.tick(),
        )

    def in_step(self, last: int = 100) -> None:
        """Reach SYNCED at an update id."""
        self.begin()
        self.diff(last, last)
        self.snapshot(last, "10")
        assert self.state == "SYNCED"

    @property
    def state(self) -> str:
        return pb.OrderBookState.Name(self.book.state).removeprefix("ORDER_BOOK_STATE_")

    def assert_contract(self) -> None:
        assert not self.out.problems
        if self.book.in_step and not self.book.muted:
            bids, asks = self.out.book.sorted()
            assert as_decimals(self.book.book.bids()) == bids
            assert as_decimals(self.book.book.asks()) == asks
            assert self.out.venue_sequence == self.book.venue_sequence
            assert self.out.state == pb.ORDER_BOOK_STATE_SYNCED


@pytest.fixture
def bench() -> Bench:
    return Bench()


# The venue's rules, "How to manage a local order book correctly".


def test_a_snapshot_is_asked_for_once_while_diffs_are_buffered(bench: Bench) -> None:
    bench.begin()
    for number in range(101, 111):
        bench.diff(number, number)
    assert bench.out.requests == [pb.ORDER_BOOK_REASON_STARTUP]
    assert bench.out.states == ["SYNCING"]
    assert bench.state == "SYNCING"
    assert not bench.out.updates


def test_buffered_diffs_that_the_snapshot_contains_are_dropped(bench: Bench) -> None:
    bench.begin()
    for first, last, bid in [(90, 95, "1"), (96, 100, "2"), (101, 105, "3"), (106, 110, "4")]:
        bench.diff(first, last, bid)
    bench.snapshot(100, "10")
    assert [update.first_venue_sequence for update in bench.out.updates] == [101, 106]
    assert [level.price for level in bench.book.book.bids()] == ["10", "4", "3"]
    assert (bench.book.applied, bench.book.frames, bench.book.sequence) == (2, 4, 2)
    bench.assert_contract()


@pytest.mark.parametrize(("first", "last"), [(101, 105), (100, 101), (95, 101), (101, 101)])
def test_the_first_diff_that_is_kept_spans_the_snapshot(
    bench: Bench, first: int, last: int
) -> None:
    bench.begin()
    bench.diff(first, last, "5")
    bench.snapshot(100, "10")
    assert (bench.state, bench.book.venue_sequence) == ("SYNCED", last)
    (update,) = bench.out.updates
    assert (update.first_venue_sequence, update.previous_venue_sequence) == (first, 100)
    bench.assert_contract()


@pytest.mark.parametrize(("first", "last"), [(102, 103), (150, 160)])
def test_a_snapshot_older_than_the_buffer_is_stale_and_another_one_is_asked_for(
    bench: Bench, first: int, last: int
) -> None:
    bench.begin()
    bench.diff(first, last)
    bench.snapshot(100, "10")
    assert bench.state == "SYNCING"
    assert bench.out.reasons == ["STARTUP", "SNAPSHOT_STALE"]
    assert len(bench.out.requests) == 2
    bench.snapshot(last, "10")
    assert (bench.state, bench.book.venue_sequence) == ("SYNCED", last)
    bench.assert_contract()


def test_in_step_every_diff_begins_where_the_last_one_ended(bench: Bench) -> None:
    bench.in_step(100)
    for first, last in [(101, 101), (102, 150), (151, 152)]:
        bench.diff(first, last, str(last))
    assert [(u.sequence, u.venue_sequence) for u in bench.out.updates] == [
        (1, 101),
        (2, 150),
        (3, 152),
    ]
    bench.assert_contract()


def test_a_snapshot_ahead_of_the_stream_waits_for_the_diff_that_spans_it(bench: Bench) -> None:
    bench.begin()
    bench.diff(90, 95)
    bench.snapshot(120, "10")
    assert (bench.state, bench.book.venue_sequence) == ("SYNCED", 120)
    bench.diff(96, 110)
    bench.diff(111, 119)
    assert (bench.state, bench.book.duplicates) == ("SYNCED", 2)
    bench.diff(120, 130, "7")
    assert (bench.state, bench.book.venue_sequence) == ("SYNCED", 130)
    assert bench.book.gaps == 0
    bench.assert_contract()


def test_a_snapshot_before_any_diff_is_taken_and_held_against_the_first(bench: Bench) -> None:
    bench.begin()
    bench.snapshot(120, "10")
    assert bench.state == "SYNCED"
    bench.diff(125, 130)
    assert (bench.state, bench.book.gaps) == ("RESYNCING", 1)


# What goes wrong on the way.


def test_a_gap_gives_the_book_up_and_a_fresh_snapshot_begins_a_new_epoch(bench: Bench) -> None:
    bench.in_step(100)
    epoch = bench.book.epoch
    bench.diff(101, 102, "3")
    bench.diff(104, 105, "4")
    assert (bench.state, bench.book.gaps, bench.book.resyncs) == ("RESYNCING", 1, 1)
    assert bench.out.requests[-1] == pb.ORDER_BOOK_REASON_VENUE_GAP
    told = bench.out.statuses[-1]
    assert (told.epoch, told.sequence, told.venue_sequence) == (epoch, 1, 102)
    assert "102" in told.detail
    assert "104..105" in told.detail
    published = len(bench.out.updates)
    bench.diff(106, 106, "6")
    assert len(bench.out.updates) == published, "nothing is published of a book out of step"
    bench.tick(1.5)
    bench.snapshot(104, "10", "4")
    assert (bench.state, bench.book.venue_sequence) == ("SYNCED", 106)
    assert bench.book.epoch > epoch
    assert bench.out.statuses[-1].reason == pb.ORDER_BOOK_REASON_SYNCHRONISED
    assert bench.out.statuses[-1].outage_ms == 1700
    bench.assert_contract()


def test_a_diff_that_repeats_part_of_the_book_is_a_gap_once_it_is_in_step(bench: Bench) -> None:
    bench.in_step(100)
    bench.diff(101, 103)
    bench.diff(103, 105)
    assert (bench.state, bench.book.gaps, bench.out.reasons[-1]) == ("RESYNCING", 1, "VENUE_GAP")
    bench.assert_contract()


def test_a_duplicate_changes_nothing(bench: Bench) -> None:
    bench.in_step(100)
    bench.diff(101, 105, "3")
    bench.diff(101, 105, "3")
    bench.diff(102, 104, "9")
    assert (bench.state, bench.book.duplicates, bench.book.sequence) == ("SYNCED", 2, 1)
    bench.diff(106, 106)
    assert (bench.state, bench.book.sequence) == ("SYNCED", 2)
    bench.assert_contract()


def test_diffs_in_the_wrong_order_are_a_gap_and_the_late_one_does_no_harm(bench: Bench) -> None:
    bench.in_step(100)
    bench.diff(103, 104, "4")
    assert bench.state == "RESYNCING"
    bench.diff(101, 102, "2")
    bench.diff(105, 106, "6")
    bench.snapshot(104, "10", "4", "2")
    assert (bench.state, bench.book.venue_sequence) == ("SYNCED", 106)
    bench.assert_contract()


def test_a_hole_among_the_buffered_diffs_is_found_when_they_are_applied(bench: Bench) -> None:
    bench.begin()
    for first, last in [(101, 105), (108, 110), (111, 112)]:
        bench.diff(first, last)
    bench.snapshot(100, "10")
    assert (bench.state, bench.book.gaps, bench.book.frames) == ("RESYNCING", 1, 3)
    assert len(bench.out.requests) == 2
    bench.snapshot(109, "10")
    assert (bench.state, bench.book.venue_sequence) == ("SYNCED", 112)
    bench.assert_contract()


def test_endless_diffs_behind_the_book_are_a_venue_that_numbers_anew(bench: Bench) -> None:
    bench.in_step(1_000_000)
    for number in range(1, 150):
        bench.diff(number, number)
    assert bench.state == "RESYNCING"
    assert bench.out.reasons[-1] == "VENUE_RESET"
    bench.snapshot(140, "10")
    assert (bench.state, bench.book.venue_sequence) == ("SYNCED", 149)
    bench.assert_contract()


def test_three_diffs_behind_the_book_and_newer_than_it_are_a_venue_that_numbers_anew(
    bench: Bench,
) -> None:
    bench.in_step(1_000_000)
    bench.diff(1_000_001, 1_000_001)
    bench.diff(1, 5)
    bench.diff(6, 9)
    assert bench.state == "SYNCED"
    bench.diff(10, 12)
    assert (bench.state, bench.out.reasons[-1]) == ("RESYNCING", "VENUE_RESET")
    bench.snapshot(11, "10")
    assert (bench.state, bench.book.venue_sequence) == ("SYNCED", 12)
    bench.assert_contract()


def test_what_is_told_twice_is_no_new_numbering_however_often(bench: Bench) -> None:
    bench.in_step(100)
    told = [diff(number, number, ms=bench.now // 1_000_000 + number) for number in range(101, 131)]
    for each in told:
        bench.book.on_diff(each, bench.tick())
    for each in told[-30:]:
        bench.book.on_diff(each, bench.tick())
    assert (bench.state, bench.book.duplicates, bench.book.resyncs) == ("SYNCED", 30, 0)


def test_a_malformed_snapshot_is_told_and_another_one_is_asked_for(bench: Bench) -> None:
    bench.begin()
    bench.diff(101, 101)
    bench.snapshot(100, "ten")
    assert bench.state == "SYNCING"
    assert bench.out.reasons[-1] == "SNAPSHOT_FAILED"
    assert len(bench.out.requests) == 2
    bench.snapshot(100, "10")
    assert bench.state == "SYNCED"
    bench.assert_contract()


@pytest.mark.parametrize("when", ["in step", "buffered"])
def test_a_malformed_level_gives_the_book_up(bench: Bench, when: str) -> None:
    if when == "in step":
        bench.in_step(100)
        bench.diff(101, 101, "ten")
    else:
        bench.begin()
        bench.diff(101, 101, "ten")
        bench.snapshot(100, "10")
    assert (bench.state, bench.book.malformed) == ("RESYNCING", 1)
    assert bench.out.reasons[-1] == "MALFORMED_FRAME"
    bench.diff(102, 102)
    bench.snapshot(101, "10")
    assert bench.state == "SYNCED"
    bench.assert_contract()


def test_a_malformed_frame_empties_the_buffer_but_not_the_request(bench: Bench) -> None:
    bench.begin()
    bench.diff(101, 101)
    bench.book.on_malformed("not JSON", bench.tick())
    assert len(bench.out.requests) == 1, "one request is under way already"
    bench.diff(103, 103)
    bench.snapshot(101, "10")
    assert bench.out.reasons[-1] == "SNAPSHOT_STALE", "102 is missing: 103 does not continue 101"
    bench.snapshot(102, "10")
    assert bench.state == "SYNCED"


def test_the_buffer_is_bounded_and_what_it_lost_is_noticed() -> None:
    bench = Bench(max_buffered=5)
    bench.begin()
    for number in range(101, 201):
        bench.diff(number, number)
    bench.snapshot(100, "10")
    assert bench.out.reasons[-1] == "SNAPSHOT_STALE"
    bench.snapshot(197, "10")
    assert (bench.state, bench.book.venue_sequence) == ("SYNCED", 200)
    bench.assert_contract()


def test_failures_to_fetch_are_told_with_their_reason_and_asked_again(bench: Bench) -> None:
    bench.begin()
    for reason in (pb.ORDER_BOOK_REASON_RATE_LIMITED, pb.ORDER_BOOK_REASON_SNAPSHOT_FAILED):
        bench.book.on_snapshot_failed(reason, "HTTP", bench.tick())
    assert bench.out.reasons == ["STARTUP", "RATE_LIMITED", "SNAPSHOT_FAILED"]
    assert len(bench.out.requests) == 3


# Connections.


def test_the_end_of_the_connection_ends_continuity_and_forgets_the_buffer(bench: Bench) -> None:
    bench.in_step(100)
    bench.book.on_disconnected("reset by peer", bench.tick())
    assert bench.state == "RESYNCING"
    assert bench.out.reasons[-1] == "VENUE_DISCONNECTED"
    assert len(bench.out.requests) == 1, "nothing is asked for before diffs flow again"
    bench.begin()
    assert len(bench.out.requests) == 2
    bench.diff(201, 201)
    bench.snapshot(200, "10")
    assert (bench.state, bench.book.venue_sequence) == ("SYNCED", 201)
    bench.assert_contract()


def test_diffs_before_the_acknowledgement_are_kept(bench: Bench) -> None:
    bench.in_step(100)
    bench.book.on_disconnected("reset by peer", bench.tick())
    bench.diff(201, 201)
    bench.begin()
    bench.snapshot(200, "10")
    assert (bench.state, bench.book.venue_sequence) == ("SYNCED", 201)


@pytest.mark.parametrize("cause", ["rebuild", "malformed"])
def test_a_request_that_nobody_could_serve_does_not_keep_the_next_one_from_being_made(
    bench: Bench, cause: str
) -> None:
    bench.in_step(100)
    bench.book.on_disconnected("reset by peer", bench.tick())
    if cause == "rebuild":
        bench.book.rebuild(pb.ORDER_BOOK_REASON_REQUESTED, "asked for", bench.tick())
    else:
        bench.book.on_malformed("not JSON", bench.tick())
    asked = len(bench.out.requests)
    bench.begin()
    assert len(bench.out.requests) == asked + 1


def test_an_answer_that_comes_when_the_book_is_in_step_is_dropped(bench: Bench) -> None:
    bench.in_step(100)
    before = (bench.book.epoch, bench.book.book.bids(), len(bench.out.payloads))
    bench.snapshot(150, "20")
    bench.book.on_snapshot_failed(pb.ORDER_BOOK_REASON_RATE_LIMITED, "429", bench.tick())
    assert (bench.book.epoch, bench.book.book.bids(), len(bench.out.payloads)) == before
    assert bench.state == "SYNCED"


# Silence.


def test_silence_is_stale_and_the_diff_that_continues_ends_it(bench: Bench) -> None:
    bench.in_step(100)
    epoch = bench.book.epoch
    bench.book.on_silence("no frame for 10 s", bench.tick())
    bench.book.on_silence("no frame for 12 s", bench.tick(2))
    assert bench.state == "STALE"
    assert bench.out.states[-2:] == ["SYNCED", "STALE"], "told once"
    bench.tick(1)
    bench.diff(101, 101, "7")
    assert (bench.state, bench.book.epoch) == ("SYNCED", epoch)
    assert bench.out.statuses[-1].outage_ms >= 3000
    bench.assert_contract()


def test_a_repeated_diff_does_not_end_silence_and_is_no_gap(bench: Bench) -> None:
    bench.in_step(100)
    bench.diff(101, 105)
    bench.book.on_silence("no frame for 10 s", bench.tick())
    bench.diff(101, 105)
    assert (bench.state, bench.book.gaps, bench.book.duplicates) == ("STALE", 0, 1)
    bench.diff(106, 106)
    assert bench.state == "SYNCED"


def test_a_gap_after_silence_is_a_gap(bench: Bench) -> None:
    bench.in_step(100)
    bench.book.on_silence("no frame for 10 s", bench.tick())
    bench.diff(103, 103)
    assert (bench.state, bench.book.gaps) == ("RESYNCING", 1)
    assert len(bench.out.requests) == 2


def test_a_book_that_is_stale_before_its_first_diff_goes_on_with_the_diff_that_spans_it(
    bench: Bench,
) -> None:
    bench.begin()
    bench.snapshot(100, "10")
    bench.book.on_silence("no frame for 10 s", bench.tick())
    bench.diff(99, 101, "7")
    assert (bench.state, bench.book.gaps, bench.book.venue_sequence) == ("SYNCED", 0, 101)
    bench.assert_contract()


def test_a_book_out_of_step_is_not_called_stale(bench: Bench) -> None:
    bench.begin()
    bench.book.on_silence("no frame for 10 s", bench.tick())
    assert bench.state == "SYNCING"


# A broker that is away.


def test_a_muted_book_goes_on_silently_and_begins_a_new_epoch_when_it_may_speak(
    bench: Bench,
) -> None:
    bench.in_step(100)
    epoch = bench.book.epoch
    bench.book.mute()
    told = len(bench.out.payloads), len(bench.out.statuses)
    bench.diff(101, 101, "7")
    bench.diff(102, 102, "8")
    bench.book.tick(bench.tick(1000))
    assert (len(bench.out.payloads), len(bench.out.statuses)) == told
    assert (bench.state, bench.book.unpublished) == ("SYNCED", 2)
    bench.book.unmute(bench.tick())
    assert bench.book.epoch > epoch
    assert bench.out.snapshots[-1].venue_sequence == 102
    bench.assert_contract()
    bench.diff(103, 103, "9")
    assert bench.out.updates[-1].sequence == 1
    bench.book.unmute(bench.tick())
    assert bench.book.sequence == 1, "speaking already: nothing begins anew"
    bench.assert_contract()


def test_what_happened_to_a_muted_book_is_told_afterwards(bench: Bench) -> None:
    bench.in_step(100)
    bench.book.mute()
    bench.diff(105, 105)
    assert bench.state == "RESYNCING"
    assert bench.out.states[-1] == "SYNCED"
    bench.book.unmute(bench.tick())
    assert (bench.out.states[-1], bench.out.reasons[-1]) == ("RESYNCING", "VENUE_GAP")
    bench.snapshot(105, "10")
    assert bench.out.states[-1] == "SYNCED"
    bench.assert_contract()


def test_a_book_rebuilt_while_muted_is_whole_when_it_speaks(bench: Bench) -> None:
    bench.in_step(100)
    bench.book.mute()
    bench.diff(105, 105)
    bench.snapshot(105, "30")
    assert bench.state == "SYNCED"
    epoch = bench.book.epoch
    bench.book.unmute(bench.tick())
    assert bench.book.epoch > epoch
    bench.assert_contract()


def test_a_book_that_is_stale_when_it_may_speak_again_begins_anew_and_stays_stale(
    bench: Bench,
) -> None:
    bench.in_step(100)
    bench.book.mute()
    bench.diff(101, 101, "7")
    bench.book.on_silence("no frame for 10 s", bench.tick())
    bench.book.unmute(bench.tick())
    assert bench.out.snapshots[-1].venue_sequence == 101
    assert (bench.state, bench.out.states[-1]) == ("STALE", "STALE")
    bench.diff(102, 102, "8")
    bench.assert_contract()


# Time and size.


def test_a_snapshot_is_repeated_after_so_many_updates() -> None:
    bench = Bench(every_updates=10)
    bench.in_step(100)
    for number in range(101, 126):
        bench.diff(number, number, str(number))
    reasons = [snapshot.reason for snapshot in bench.out.snapshots]
    assert reasons == [pb.SNAPSHOT_REASON_EPOCH_START] + [pb.SNAPSHOT_REASON_PERIODIC] * 2
    assert [snapshot.sequence for snapshot in bench.out.snapshots] == [0, 10, 20]
    bench.assert_contract()


def test_a_snapshot_is_repeated_after_so_long_when_something_changed() -> None:
    bench = Bench(every_seconds=30, refresh_seconds=240)
    bench.in_step(100)
    bench.book.tick(bench.tick(31))
    assert len(bench.out.snapshots) == 1, "nothing changed"
    bench.diff(101, 101)
    bench.book.tick(bench.tick(1))
    assert len(bench.out.snapshots) == 2
    bench.book.tick(bench.tick(200))
    assert len(bench.out.snapshots) == 2
    bench.book.tick(bench.tick(41))
    assert len(bench.out.snapshots) == 3, "so that retention never leaves a book without one"
    bench.assert_contract()


def test_a_clock_set_back_does_not_end_the_periodic_snapshots() -> None:
    bench = Bench(every_seconds=30, refresh_seconds=240)
    bench.in_step(100)
    bench.book.tick(bench.tick(-3600))
    assert len(bench.out.snapshots) == 2
    bench.book.tick(bench.tick(1))
    assert len(bench.out.snapshots) == 2
    bench.book.tick(bench.tick(240))
    assert len(bench.out.snapshots) == 3
    bench.assert_contract()


def test_a_crossed_book_is_given_up() -> None:
    bench = Bench(every_seconds=1)
    bench.in_step(100)
    bench.diff(101, 101, "1000")
    bench.book.tick(bench.tick(2))
    assert (bench.state, bench.out.reasons[-1]) == ("RESYNCING", "CROSSED")
    assert len(bench.out.snapshots) == 1, "a wrong book is not repeated"


@pytest.mark.parametrize("side", ["bids", "asks"])
def test_a_book_with_too_little_left_within_its_horizon_is_rebuilt(side: str) -> None:
    bench = Bench(every_seconds=1, min_levels=3)
    bench.begin()
    bench.diff(100, 100)
    bench.snapshot(100, "10", "9", "8", "7", asks=("11", "12", "13", "14"), limit=4)
    gone = ["10", "9"] if side == "bids" else ["11", "12"]
    for number, price in enumerate(gone, 101):
        levels = [(price, "0")]
        changes = {side: levels}
        bench.book.on_diff(diff(number, number, **changes), bench.tick())
    # Levels beyond the horizon do not count.
    bench.book.on_diff(diff(103, 103, [("1", "1")], [("99", "1")]), bench.tick())
    bench.book.tick(bench.tick(2))
    assert (bench.state, bench.out.reasons[-1]) == ("RESYNCING", "HORIZON_REACHED")


def test_a_side_that_is_known_whole_may_be_short() -> None:
    bench = Bench(every_seconds=1, min_levels=3)
    bench.in_step(100)
    bench.diff(101, 101)
    bench.book.tick(bench.tick(2))
    assert bench.state == "SYNCED"


def test_a_book_is_held_to_its_size_and_says_where_it_ends() -> None:
    bench = Bench(every_updates=50, max_levels=100)
    bench.in_step(100)
    for number in range(101, 351):
        bench.diff(number, number, str(number))
    assert bench.book.book.bid_count <= 150
    last = bench.out.snapshots[-1]
    assert (len(last.bids), last.bid_horizon) == (100, last.bids[-1].price)
    bench.assert_contract()


# Epochs.


def test_an_epoch_never_goes_back_whatever_the_clock_does(bench: Bench) -> None:
    bench.in_step(100)
    epochs = [bench.book.epoch]
    assert epochs[0] == bench.now // 1000, "microseconds, so that it grows across restarts"
    for back in range(3):
        bench.now -= 3600 * SECOND
        bench.book.rebuild(pb.ORDER_BOOK_REASON_REQUESTED, "asked for", bench.tick())
        bench.snapshot(200 + back, "10")
        epochs.append(bench.book.epoch)
    assert epochs == sorted(set(epochs))
    assert all(status.outage_ms >= 0 for status in bench.out.statuses)
    bench.assert_contract()


def test_the_first_epoch_is_above_what_an_earlier_process_reached() -> None:
    floor = (T0 + 3600 * SECOND) // 1000
    bench = Bench(epoch_floor=floor)
    bench.in_step(100)
    assert bench.book.epoch == floor + 1


def test_a_rebuild_on_request_tells_it_and_asks_once(bench: Bench) -> None:
    bench.in_step(100)
    for _ in range(3):
        bench.book.rebuild(pb.ORDER_BOOK_REASON_REQUESTED, "asked for", bench.tick())
    assert bench.out.states.count("RESYNCING") == 1
    assert bench.out.requests[1:] == [pb.ORDER_BOOK_REASON_REQUESTED]
    assert bench.book.resyncs == 1
