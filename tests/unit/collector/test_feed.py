"""What goes wrong with an instrument is in the ledger once, with its true cause and times."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2, events_pb2
from marketprism.market.v1 import order_book_pb2 as pb
from prometheus_client import CollectorRegistry, Counter

from services.collector.feed import InstrumentFeed
from services.collector.ledger import CAUSE_OF_REASON, Ledger
from services.collector.synchroniser import SnapshotPolicy
from services.collector.venues.base import BookSnapshot, InstrumentSpec, TopOfBook, TradePrint
from services.collector.venues.binance_spot import BinanceSpot
from tests.unit.collector.support import diff

SECOND = 1_000_000_000
T0 = 1_700_000_000 * SECOND


@dataclass
class Outbox:
    """A publisher that keeps what it is given, until it is told to drop."""

    messages: list[tuple[str, bytes, str, str | None]] = field(default_factory=list)
    on_publish: Callable[[str | None], None] = lambda key: None

    def publish(
        self, subject: str, payload: bytes, message_id: str, *, droppable_key: str | None = None
    ) -> bool:
        self.messages.append((subject, payload, message_id, droppable_key))
        self.on_publish(droppable_key)
        return True

    def of(self, kind: str) -> list[bytes]:
        return [payload for subject, payload, _, _ in self.messages if f"market.{kind}." in subject]


class Bench:
    """A feed with a clock of its own."""

    def __init__(self, last_trade_id: int = 0, symbol: str = "BTC-USDT") -> None:
        self.out = Outbox()
        self.now = T0
        self.snapshots: list[int] = []
        self.histories: list[tuple[int, int]] = []
        self.counter = Counter(
            "events", "Entries.", ["exchange", "kind"], registry=CollectorRegistry()
        )
        self.feed = InstrumentFeed(
            InstrumentSpec("binance", symbol, symbol.replace("-", ""), *symbol.split("-")),
            BinanceSpot(),
            self.out,  # type: ignore[arg-type]
            Ledger("col-1", self.out.publish, self.counter),
            SnapshotPolicy(),
            lambda feed, reason: self.snapshots.append(reason),
            lambda feed, first, last: self.histories.append((first, last)),
            last_trade_id=last_trade_id,
        )

    def tick(self, seconds: float = 0.1) -> int:
        self.now += int(seconds * SECOND)
        return self.now

    def in_step(self, last: int = 100) -> None:
        self.feed.lanes.join("binance-1", self.tick())
        self.feed.on_diff("binance-1", diff(last, last), self.tick())
        self.feed.book.on_snapshot(BookSnapshot(last, [("10", "1")], [("11", "1")]), self.tick())
        assert self.feed.book.in_step

    def top(self, sequence: int, bid: str = "10", ask: str = "11") -> None:
        self.feed.on_top(TopOfBook("BTCUSDT", sequence, 0, (bid, "1"), (ask, "1")), self.tick(0.01))

    def trade(self, number: int) -> None:
        self.feed.on_trade(TradePrint("BTCUSDT", number, T0, "1", "1", False), self.tick(0.01))

    @property
    def entries(self) -> list[integrity.IntegrityEvent]:
        return [integrity.IntegrityEvent.FromString(each) for each in self.out.of("integrity")]

    @property
    def kinds(self) -> list[str]:
        return [_kind(entry) for entry in self.entries]


def _kind(entry: integrity.IntegrityEvent) -> str:
    return integrity.IntegrityKind.Name(entry.kind).removeprefix("INTEGRITY_KIND_")


def _cause(entry: integrity.IntegrityEvent) -> str:
    return integrity.IntegrityCause.Name(entry.cause).removeprefix("INTEGRITY_CAUSE_")


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_every_reason_of_a_book_has_a_cause_in_the_ledger() -> None:
    here = set(pb.OrderBookReason.values()) - {
        pb.ORDER_BOOK_REASON_UNSPECIFIED,
        pb.ORDER_BOOK_REASON_SYNCHRONISED,
        # Told by those who serve, not by those who collect.
        pb.ORDER_BOOK_REASON_DELIVERY_GAP,
        pb.ORDER_BOOK_REASON_BROKER_DISCONNECTED,
    }
    assert here <= set(CAUSE_OF_REASON)


def test_a_gap_is_told_with_the_rebuild_that_mends_it(bench: Bench) -> None:
    bench.in_step(100)
    bench.feed.on_diff("binance-1", diff(101, 101), bench.tick())
    good = bench.now
    epoch = bench.feed.book.epoch
    bench.feed.on_diff("binance-1", diff(105, 105), bench.tick())
    noticed = bench.now
    bench.feed.book.on_snapshot(BookSnapshot(105, [("10", "1")], [("11", "1")]), bench.tick(2))
    assert bench.kinds == [
        "RESYNC_BEGUN", "RESYNC_FINISHED", "GAP", "RESYNC_BEGUN", "RESYNC_FINISHED",
    ]  # fmt: skip
    gap, begun, finished = bench.entries[-3:]
    assert (_cause(gap), gap.epoch, gap.sequence, gap.venue_sequence) == (
        "VENUE_SEQUENCE",
        epoch,
        1,
        101,
    )
    assert gap.event_kind == common_pb2.EVENT_KIND_ORDER_BOOK
    assert (gap.begin_time.ToNanoseconds(), gap.end_time.ToNanoseconds()) == (good, noticed)
    assert (gap.connection_id, gap.collector_id) == ("binance-1", "col-1")
    assert finished.previous_event_id == begun.event_id
    assert finished.epoch == bench.feed.book.epoch > epoch
    assert finished.begin_time.ToNanoseconds() == noticed
    assert finished.end_time.ToNanoseconds() == bench.now


def test_ids_of_entries_are_unique_and_sort_by_time_though_the_clock_stands_still() -> None:
    out = Outbox()
    counter = Counter("events", "Entries.", ["exchange", "kind"], registry=CollectorRegistry())
    ledger = Ledger("col-1", out.publish, counter)
    ids = [
        ledger.record(
            integrity.INTEGRITY_KIND_GAP, 0, "x" * 2000, exchange="binance", now=T0 - back
        )
        for back in (0, 0, 5, 1)
    ]
    assert ids == sorted(set(ids))
    subject, payload, message_id, key = out.messages[0]
    assert (subject, message_id, key) == ("market.integrity.binance._", ids[0], None)
    assert len(integrity.IntegrityEvent.FromString(payload).detail) == 500
    assert counter.labels("binance", "gap")._value.get() == 4


def test_silence_is_told_with_its_end(bench: Bench) -> None:
    bench.in_step(100)
    bench.feed.book.on_silence("no frame for 10 s", bench.tick(10))
    silent_since = bench.now
    bench.feed.on_diff("binance-1", diff(101, 101), bench.tick(3))
    silent, speaking = bench.entries[-2:]
    assert (_kind(silent), _kind(speaking)) == ("SILENT", "SPEAKING")
    assert speaking.previous_event_id == silent.event_id
    assert speaking.begin_time.ToNanoseconds() == silent_since
    assert speaking.end_time.ToNanoseconds() == bench.now


def test_silence_that_ends_in_a_rebuild_is_named_by_it(bench: Bench) -> None:
    bench.in_step(100)
    bench.feed.book.on_silence("no frame for 10 s", bench.tick(10))
    bench.feed.on_disconnected("binance-1", "no frame for 20 s", bench.tick(10))
    silent, begun = bench.entries[-2:]
    assert (_kind(silent), _kind(begun)) == ("SILENT", "RESYNC_BEGUN")
    assert begun.previous_event_id == silent.event_id


def test_a_stop_of_our_own_is_not_the_networks_fault(bench: Bench) -> None:
    bench.in_step(100)
    bench.feed.book.on_silence(
        "the collector stopped", bench.tick(), pb.ORDER_BOOK_REASON_COLLECTOR_SILENT
    )
    assert _cause(bench.entries[-1]) == "PROCESS"


@pytest.mark.parametrize("concerns_book", [True, False])
def test_a_malformed_frame_costs_the_book_only_when_it_was_of_the_book(
    bench: Bench, concerns_book: bool
) -> None:
    bench.in_step(100)
    bench.feed.on_malformed("binance-1", "not JSON", bench.tick(), concerns_book=concerns_book)
    entry = next(each for each in bench.entries if _kind(each) == "MALFORMED_FRAME")
    assert (_cause(entry), entry.count, entry.symbol) == ("UNDECODABLE", 1, "BTC-USDT")
    assert bench.feed.book.in_step is not concerns_book


def test_message_ids_of_two_instruments_never_meet(bench: Bench) -> None:
    """JetStream drops a message whose id came before in its stream, which holds all instruments."""
    other = Bench(symbol="ETH-USDT")
    for each in (bench, other):
        each.in_step(100)
        each.feed.on_diff("binance-1", diff(101, 101), each.tick())
        each.top(102)
        each.trade(7)
        each.feed.on_diff("binance-1", diff(110, 110), each.tick())
        each.feed.book.on_snapshot(BookSnapshot(110, [("10", "1")], [("11", "1")]), each.tick())
    assert bench.now == other.now
    ids = [
        [
            message_id
            for subject, _, message_id, _ in each.out.messages
            if "integrity" not in subject
        ]
        for each in (bench, other)
    ]
    assert len(ids[0]) == len(ids[1]) == len(set(ids[0])) > 8
    assert not set(ids[0]) & set(ids[1])


# Best bid and offer.


def test_a_top_that_is_not_newer_is_dropped(bench: Bench) -> None:
    for sequence in (5, 5, 4, 6):
        bench.top(sequence)
    told = [events_pb2.BestBidOffer.FromString(each) for each in bench.out.of("best_bid_offer")]
    assert [each.venue_sequence for each in told] == [5, 6]
    bench.feed.on_disconnected("binance-1", "cut", bench.tick())
    bench.top(3)
    assert len(bench.out.of("best_bid_offer")) == 3


def test_a_book_whose_stream_died_lags_however_fast_the_tops_come(bench: Bench) -> None:
    bench.in_step(100)
    for sequence in range(101, 701):
        bench.top(sequence)
    assert bench.feed.lag_behind_top(bench.now) == pytest.approx(6.0, abs=0.05)
    bench.feed.on_diff("binance-1", diff(101, 650), bench.tick(0.01))
    assert bench.feed.lag_behind_top(bench.now) < 1.0
    bench.feed.on_diff("binance-1", diff(651, 700), bench.tick(0.01))
    assert bench.feed.lag_behind_top(bench.now + 100 * SECOND) == 0.0


def test_a_quiet_market_does_not_lag(bench: Bench) -> None:
    bench.in_step(100)
    bench.top(100)
    assert bench.feed.lag_behind_top(bench.now + 3600 * SECOND) == 0.0
    bench.top(101)
    assert bench.feed.lag_behind_top(bench.now + 3 * SECOND) == pytest.approx(3.0)


def test_tops_are_taken_again_from_a_venue_that_numbers_anew(bench: Bench) -> None:
    bench.in_step(1_000_000)
    bench.feed.on_diff("binance-1", diff(1_000_001, 1_000_001, ms=1), bench.tick())
    bench.top(1_000_002)
    bench.top(3)
    assert len(bench.out.of("best_bid_offer")) == 1
    for number in (1, 2, 3):
        bench.feed.on_diff("binance-1", diff(number, number, ms=1 + number), bench.tick())
    assert bench.feed.book.reason == pb.ORDER_BOOK_REASON_VENUE_RESET
    bench.top(4)
    assert len(bench.out.of("best_bid_offer")) == 2
    bench.feed.book.on_snapshot(BookSnapshot(4, [("10", "1")], [("11", "1")]), bench.tick())
    assert bench.feed.lag_behind_top(bench.now + 3600 * SECOND) == 0.0


def test_a_book_that_differs_from_the_venues_own_top_is_rebuilt(bench: Bench) -> None:
    bench.in_step(100)
    bench.feed.on_diff("binance-1", diff(101, 101), bench.tick())
    bench.top(102, bid="10.5")
    bench.feed.on_diff("binance-1", diff(102, 102, [("10.4", "1")]), bench.tick())
    assert not bench.feed.book.in_step
    assert (bench.feed.top_checks, bench.feed.top_mismatches) == (1, 1)
    assert _cause(bench.entries[-1]) == "CHECKSUM_MISMATCH"


def test_a_book_that_agrees_with_the_top_is_checked_about_once_a_second(bench: Bench) -> None:
    bench.in_step(100)
    for sequence in range(101, 141):
        bench.top(sequence)
        bench.feed.on_diff("binance-1", diff(sequence, sequence), bench.tick(0.1))
    assert bench.feed.top_mismatches == 0
    assert 3 <= bench.feed.top_checks <= 6
    assert bench.feed.book.in_step


# Trades.


def test_a_hole_of_trades_is_told_with_what_was_found_and_what_is_lost(bench: Bench) -> None:
    for number in (1, 2, 8):
        bench.trade(number)
    assert bench.histories == [(3, 7)]
    history = [TradePrint("BTCUSDT", number, T0, "1", "1", False) for number in (6, 7, 8)]
    bench.feed.on_history(3, history, "the venue's history begins at 6", bench.tick())
    found, lost = bench.entries
    assert (_kind(found), found.count) == ("BACKFILLED", 2)
    assert (_kind(lost), lost.count, lost.first_missing_id, lost.last_missing_id) == (
        "GAP",
        3,
        3,
        5,
    )
    assert "begins at 6" in lost.detail
    assert {found.event_kind, lost.event_kind} == {common_pb2.EVENT_KIND_TRADE}


def test_an_answer_about_a_hole_that_is_closed_is_dropped(bench: Bench) -> None:
    for number in (1, 3, 2, 6):
        bench.trade(number)
    assert bench.histories == [(2, 2), (4, 5)]
    bench.feed.on_history(2, [], "late", bench.tick())
    assert bench.feed.trades.missing == (4, 5)
    assert bench.entries == []


def test_trades_that_cannot_be_held_are_let_go_and_the_loss_is_told(bench: Bench) -> None:
    bench.trade(1)
    for number in range(3, 20_010):
        bench.trade(number)
    assert bench.feed.trades.missing is None
    (lost,) = bench.entries
    assert (_kind(lost), lost.count, lost.first_missing_id, lost.last_missing_id) == (
        "GAP",
        1,
        2,
        2,
    )
    assert len(bench.out.of("trade")) == 20_008


def test_a_new_numbering_of_trades_is_told() -> None:
    bench = Bench(last_trade_id=10**9)
    for number in range(1, 70):
        bench.trade(number)
    (entry,) = bench.entries
    assert (_kind(entry), _cause(entry)) == ("GAP", "VENUE_MAINTENANCE")
    assert len(bench.out.of("trade")) == 69


# A broker that is away.


def test_what_the_buffer_could_not_hold_is_told_once_there_is_room(bench: Bench) -> None:
    bench.in_step(100)
    feed = bench.feed
    feed.on_broker(False, bench.tick())
    away = bench.now
    feed.on_diff("binance-1", diff(101, 101), bench.tick())
    feed.on_dropped(feed.key, 2)
    for number in range(102, 112):
        feed.on_diff("binance-1", diff(number, number), bench.tick())
    feed.on_dropped(f"top:{feed.key}", 5)
    feed.on_rejected("market.trade.binance.BTC-USDT", "binance.BTC-USDT.900")
    feed.on_rejected("market.trade.binance.BTC-USDT", "binance.BTC-USDT.902")
    feed.on_broker(True, bench.tick())
    before = len(bench.entries)
    feed.report_drops(bench.tick())
    feed.report_drops(bench.tick())
    book, tops, trades = bench.entries[before:]
    assert {_kind(each) for each in (book, tops, trades)} == {"DROPPED"}
    assert {_cause(each) for each in (book, tops, trades)} == {"BROKER_BACKPRESSURE"}
    assert (book.event_kind, book.count) == (common_pb2.EVENT_KIND_ORDER_BOOK, 12)
    assert book.begin_time.ToNanoseconds() == away, "what waited since then may be missing"
    assert (tops.event_kind, tops.count) == (common_pb2.EVENT_KIND_BEST_BID_OFFER, 5)
    assert (trades.event_kind, trades.count) == (common_pb2.EVENT_KIND_TRADE, 2)
    assert (trades.first_missing_id, trades.last_missing_id) == (900, 902)


def test_a_drop_in_the_middle_of_a_publish_mutes_the_book_at_once(bench: Bench) -> None:
    bench.in_step(100)
    feed = bench.feed

    def drop(key: str | None) -> None:
        if key == feed.key:
            feed.on_dropped(key, 1)

    bench.out.on_publish = drop
    feed.on_diff("binance-1", diff(101, 101), bench.tick())
    assert feed.book.muted
    sent = [subject for subject, *_ in bench.out.messages if "order_book" in subject]
    feed.on_diff("binance-1", diff(102, 102), bench.tick())
    feed.on_diff("binance-1", diff(105, 105), bench.tick())
    assert [subject for subject, *_ in bench.out.messages if "order_book" in subject] == sent
    assert bench.kinds[-2:] == ["GAP", "RESYNC_BEGUN"], "the ledger has it all the same"


@pytest.mark.parametrize("state", ["SYNCED", "STALE", "RESYNCING"])
def test_a_book_that_is_given_up_says_so_where_it_cannot_be_given_up(
    bench: Bench, state: str
) -> None:
    bench.in_step(100)
    feed = bench.feed
    if state == "STALE":
        feed.book.on_silence("no frame", bench.tick())
    elif state == "RESYNCING":
        feed.on_diff("binance-1", diff(200, 200), bench.tick())
    feed.on_dropped(feed.key, 3)
    feed.on_dropped(feed.key, 1)
    told = [
        pb.OrderBookStatus.FromString(payload)
        for subject, payload, _, key in bench.out.messages
        if "order_book_status" in subject and key is None
    ]
    assert len(told) == 1
    if state == "RESYNCING":
        assert told[0].state == pb.ORDER_BOOK_STATE_RESYNCING
        assert told[0].reason == pb.ORDER_BOOK_REASON_VENUE_GAP
    else:
        assert told[0].state == pb.ORDER_BOOK_STATE_STALE
        assert told[0].reason == pb.ORDER_BOOK_REASON_BROKER_BACKPRESSURE
    assert (told[0].epoch, told[0].sequence) == (feed.book.epoch, feed.book.sequence)
    feed.book.unmute(bench.tick())
    last = pb.OrderBookStatus.FromString(bench.out.of("order_book_status")[-1])
    expected = "RESYNCING" if state == "RESYNCING" else state
    assert pb.OrderBookState.Name(last.state) == f"ORDER_BOOK_STATE_{expected}"
    ids = [each for _, _, each, _ in bench.out.messages]
    assert len(ids) == len(set(ids))


# Snapshots.


def test_a_feed_full_of_holes_asks_ever_more_slowly(bench: Bench) -> None:
    attempts = []
    bench.feed.book.begin(bench.tick())
    for number in range(100, 2000, 100):
        attempts.append(bench.feed.next_attempt(bench.tick()))
        bench.feed.book.on_snapshot(
            BookSnapshot(number, [("10", "1")], [("11", "1")]), bench.tick()
        )
        assert bench.feed.book.in_step
        bench.feed.on_diff("binance-1", diff(number + 50, number + 50), bench.tick())
        assert not bench.feed.book.in_step
    assert attempts[0] == 0
    assert attempts == sorted(attempts)
    assert attempts[-1] == 3


def test_a_book_that_was_in_step_for_long_is_fetched_at_once(bench: Bench) -> None:
    for _ in range(3):
        bench.feed.next_attempt(bench.tick())
    bench.in_step(100)
    bench.tick(60)
    assert bench.feed.next_attempt(bench.now) == 0
    assert bench.feed.next_attempt(bench.now) == 1
