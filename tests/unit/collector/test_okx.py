"""Frames of OKX are read exactly, and its books follow the snapshot in the stream."""

import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketprism.market.v1 import order_book_pb2 as pb

from services.collector.synchroniser import BookSynchroniser, SnapshotPolicy
from services.collector.venues.base import (
    Acknowledgement,
    BookHeartbeat,
    BookSnapshot,
    Goodbye,
    Ignored,
    MalformedFrameError,
    Several,
    TopOfBook,
    TradePrint,
    VenueFault,
)
from services.collector.venues.okx import OkxBookUpdate
from services.collector.venues.okx_checksum import OkxChecksum
from tests.unit.collector.okx_support import MS, OKX, book, frame
from tests.unit.collector.support import Subscriber


def test_a_book_is_a_snapshot_then_changes() -> None:
    first = book(10, -1, asks=[["2", "1", "0", "3"]], bids=[["1.0", "2.50", "0", "1"]], checksum=-7)
    assert OKX.decode(frame("books", first, action="snapshot")) == BookSnapshot(
        10, [("1.0", "2.50")], [("2", "1")], 400, 5 * MS, -7, "BTC-USDT"
    )
    then = book(15, 10, asks=[["2", "0", "0", "0"]], bids=[])
    assert OKX.decode(frame("books-l2-tbt", then, action="update")) == OkxBookUpdate(
        "BTC-USDT", 10, 15, [], [("2", "0")], 5 * MS, 0
    )
    assert OKX.decode(frame("books", book(15, 15), action="update")) == BookHeartbeat(
        "BTC-USDT", 15
    )


def test_recordings_without_ids_have_zeros() -> None:
    old = book(None, None, bids=[["1", "2", "0", "1"]], checksum=9)
    message = OKX.decode(frame("books", old, action="update"))
    assert isinstance(message, OkxBookUpdate)
    assert (message.first, message.last, message.previous, message.checksum) == (0, 0, 0, 9)


def test_a_push_of_more_than_one_is_several() -> None:
    trade = {
        "instId": "BTC-USDT",
        "tradeId": "7",
        "px": "1.50",
        "sz": "2",
        "side": "buy",
        "ts": "5",
    }
    first = TradePrint("BTC-USDT", 7, 5 * MS, "1.5", "2", False)
    assert OKX.decode(frame("trades", trade)) == first
    second = {**trade, "tradeId": "8", "side": "sell"}
    assert OKX.decode(frame("trades", trade, second)) == Several(
        (first, TradePrint("BTC-USDT", 8, 5 * MS, "1.5", "2", True))
    )


def test_the_best_bid_and_offer_may_be_one_sided() -> None:
    top = {"asks": [["0.00150", "8", "0", "1"]], "bids": [], "ts": "5", "seqId": 3}
    assert OKX.decode(frame("bbo-tbt", top)) == TopOfBook(
        "BTC-USDT", 3, 5 * MS, ("", ""), ("0.0015", "8")
    )


def test_the_order_of_keys_does_not_matter() -> None:
    push = json.loads(frame("books", book(15, 10), action="update"))
    turned = json.dumps(dict(reversed(push.items())))
    assert OKX.decode(turned) == OKX.decode(frame("books", book(15, 10), action="update"))


def test_answers_and_what_nobody_asked_for() -> None:
    taken = {"event": "subscribe", "arg": {"channel": "books", "instId": "BTC-USDT"}}
    assert OKX.decode(json.dumps({**taken, "id": "12", "connId": "a"})) == Acknowledgement(
        12, ("books:BTC-USDT",), complete=False
    )
    refused = '{"id":"3","event":"error","code":"60012","msg":"Invalid request"}'
    assert OKX.decode(refused) == VenueFault(3, "60012", "Invalid request")
    notice = '{"event":"notice","code":"64008","msg":"The connection will soon be closed"}'
    assert OKX.decode(notice) == Goodbye("The connection will soon be closed")
    assert OKX.decode("pong") == Ignored("pong")
    assert OKX.decode(frame("price-limit", {"buyLmt": "1"})) == Ignored("price-limit")
    assert OKX.decode('{"table":"spot/trade","data":[]}') == Ignored("v3 spot/trade")


@pytest.mark.parametrize(
    "text",
    [
        frame("books", book(15, -1), action="update"),
        frame("books", {**book(None, None), "seqId": 5}, action="update"),
        frame("books", book(15, 10), action="partial"),
        frame("books", book(15, 10)),
        frame("books", action="update"),
        frame("books", book(15, 10, bids=[["1"]]), action="update"),
        frame("books", book(15, 10, bids=[["1", 2]]), action="update"),
        frame("books", book(15, 10, ts="x"), action="update"),
        frame("books", book(2**63, 10), action="update"),
        frame("books", book(15, 10), action="update")[:-9],
        '{"table":"spot/depth","action":"?","data":[{"instrument_id":"BTC-USDT","asks":[],'
        '"bids":[],"timestamp":"2020-02-06T23:42:51.121Z"}]}',
    ],
)
def test_a_book_that_is_none_names_its_instrument(text: str) -> None:
    with pytest.raises(MalformedFrameError) as caught:
        OKX.decode(text)
    assert (caught.value.native_symbol, caught.value.concerns_book) == ("BTC-USDT", True)


def test_a_trade_that_is_none_does_not_concern_the_book() -> None:
    trade = {"instId": "BTC-USDT", "tradeId": "x", "px": "1", "sz": "2", "side": "buy", "ts": "5"}
    for change in ({}, {"tradeId": "7", "side": "?"}, {"tradeId": "7", "px": "NaN"}):
        with pytest.raises(MalformedFrameError) as caught:
            OKX.decode(frame("trades", {**trade, **change}))
        assert not caught.value.concerns_book


# The checksum


def test_the_checksum_alternates_the_sides_and_goes_on_alone() -> None:
    checksum = OkxChecksum()
    checksum.replace([("3366.1", "7")], [("3368", "8"), ("3366.8", "9")])
    crc = zlib.crc32(b"3366.1:7:3366.8:9:3368:8")
    assert crc >= 2**31, "the example shows the sign as well"
    assert checksum.value() == crc - 2**32


def test_the_checksum_takes_the_best_25_levels() -> None:
    checksum = OkxChecksum()
    checksum.replace([(str(price), "1") for price in range(100, 160)], [])
    text = ":".join(f"{price}:1" for price in range(159, 134, -1))
    assert checksum.value() % 2**32 == zlib.crc32(text.encode())


def test_the_checksum_keeps_the_venues_own_spelling() -> None:
    one, other = OkxChecksum(), OkxChecksum()
    one.replace([("1.10", "2.0")], [])
    other.replace([("1.1", "2")], [])
    assert one.value() != other.value()
    one.apply([("1.1", "0")], [])
    other.apply([("1.100", "0.00")], [])
    assert one.value() == other.value() == 0, "a price is the same however it is spelt"


_prices = st.integers(1, 60).map(lambda number: f"{number / 10:g}")
_sizes = st.sampled_from(["0", "0.0", "1", "2.50", "0.001", "10"])
_sides = st.dictionaries(_prices, _sizes, max_size=12).map(lambda side: list(side.items()))


@given(st.lists(st.tuples(_sides, _sides, st.sampled_from(["replace", "apply", "ask"]))))
def test_the_checksum_is_that_of_a_naive_book_whenever_it_is_asked_for(
    steps: list[tuple[list[tuple[str, str]], list[tuple[str, str]], str]],
) -> None:
    checksum = OkxChecksum()
    books: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for bids, asks, step in steps:
        if step == "replace":
            checksum.replace(bids, asks)
        else:
            checksum.apply(bids, asks)
        for book_side, changes in zip(books, (bids, asks), strict=True):
            if step == "replace":
                book_side.clear()
            book_side.update(changes)
        if step == "ask":
            assert checksum.value() % 2**32 == _naive(*books)
    assert checksum.value() % 2**32 == _naive(*books)


def _naive(bids: dict[str, str], asks: dict[str, str]) -> int:
    sides = [
        sorted(((p, q) for p, q in side.items() if float(q)), key=lambda each: float(each[0]))
        for side in (bids, asks)
    ]
    sides[0].reverse()
    parts = []
    for rank in range(25):
        parts += [":".join(side[rank]) for side in sides if rank < len(side)]
    return zlib.crc32(":".join(parts).encode())


def test_changes_that_nobody_asks_about_take_no_room_without_end() -> None:
    checksum = OkxChecksum()
    checksum.replace([("1", "1")], [])
    for price in range(1, 20_000):
        checksum.apply([(str(price), "0"), (str(price + 1), "1")], [])
    sizes = [len(getattr(checksum._bids, name)) for name in ("_pending", "_order", "_texts")]
    assert max(sizes) <= 1025
    assert checksum.value() % 2**32 == zlib.crc32(b"20000:1")


# The book


class Bench:
    """A book of OKX and what follows it."""

    def __init__(self) -> None:
        self.out = Subscriber()
        self.book = BookSynchroniser("okx", "BTC-USDT", OKX, self.out, SnapshotPolicy())
        self.book.begin(1)
        self.now = 1

    def take(self, message: BookSnapshot | BookHeartbeat | OkxBookUpdate) -> None:
        self.now += 1
        if isinstance(message, BookSnapshot):
            self.book.on_stream_snapshot(message, self.now)
        elif isinstance(message, BookHeartbeat):
            self.book.on_heartbeat(message, self.now)
        else:
            self.book.on_diff(message, self.now)
        assert not self.out.problems

    def snapshot(self, last: int, bid: str = "10", checksum: int = 0) -> None:
        self.take(BookSnapshot(last, [(bid, "1")], [("20", "1")], 400, 0, checksum, "BTC-USDT"))

    def update(self, previous: int, last: int, bid: str = "11", checksum: int = 0) -> None:
        self.take(OkxBookUpdate("BTC-USDT", previous, last, [(bid, "1")], [], 0, checksum))

    @property
    def told(self) -> tuple[bool, int, int]:
        return self.book.in_step, self.book.venue_sequence, self.book.gaps


def _sum(*bids: str) -> int:
    checksum = OkxChecksum()
    checksum.replace([(bid, "1") for bid in bids], [("20", "1")])
    return checksum.value()


def test_only_identity_continues_a_book() -> None:
    bench = Bench()
    bench.update(5, 10)
    assert not bench.book.in_step, "what came before the snapshot is over"
    bench.snapshot(10)
    bench.update(10, 17)
    bench.update(10, 17)
    assert (bench.told, bench.book.duplicates) == ((True, 17, 0), 1)
    bench.update(16, 20)
    assert bench.told == (False, 17, 1)
    bench.update(20, 21)
    bench.snapshot(30)
    bench.update(30, 31)
    assert bench.told == (True, 31, 1)
    assert bench.book.resyncs == 1


def test_after_maintenance_ids_begin_anew_and_the_chain_holds() -> None:
    bench = Bench()
    bench.snapshot(1000)
    bench.update(1000, 3)
    bench.update(3, 9)
    assert bench.told == (True, 9, 0)


def test_a_lower_id_that_is_not_chained_is_a_gap() -> None:
    bench = Bench()
    bench.snapshot(1000)
    bench.update(2, 3)
    assert bench.told == (False, 1000, 1)


def test_a_keepalive_changes_nothing_but_proves_the_chain() -> None:
    bench = Bench()
    bench.snapshot(10)
    bench.take(BookHeartbeat("BTC-USDT", 10, _sum("10")))
    assert (bench.told, bench.book.applied, bench.book.checksums_ok) == ((True, 10, 0), 0, 1)
    bench.take(BookHeartbeat("BTC-USDT", 11))
    assert bench.told == (False, 10, 1)
    bench.take(BookHeartbeat("BTC-USDT", 11))
    assert bench.book.gaps == 1, "a book that is out of step is told so once"


def test_a_keepalive_ends_a_silence() -> None:
    bench = Bench()
    bench.snapshot(10)
    bench.book.on_silence("no frame", 50)
    bench.take(BookHeartbeat("BTC-USDT", 10))
    assert bench.book.in_step


def test_a_snapshot_while_in_step_begins_a_new_epoch() -> None:
    bench = Bench()
    bench.snapshot(10)
    epoch = bench.book.epoch
    bench.snapshot(50, bid="12")
    bench.update(50, 51)
    assert bench.told == (True, 51, 0)
    assert bench.book.epoch > epoch
    assert [level.price for level in bench.book.book.bids()] == ["12", "11"]


def test_the_horizon_moves_with_the_levels_that_the_venue_keeps() -> None:
    out = Subscriber()
    book = BookSynchroniser(
        "okx", "BTC-USDT", OKX, out, SnapshotPolicy(every_updates=2, min_levels=1)
    )
    book.begin(1)
    bids = [("12", "1"), ("11", "1"), ("10", "1")]
    book.on_stream_snapshot(BookSnapshot(1, bids, [("99", "1")], 3, 0, 0, "BTC-USDT"), 2)
    assert (out.snapshots[-1].bid_horizon, out.snapshots[-1].ask_horizon) == ("10", "")
    for previous in (1, 2):
        # A better level comes, the worst leaves the venue's view.
        changes = [(str(12 + previous), "1"), (str(9 + previous), "0")]
        update = OkxBookUpdate("BTC-USDT", previous, previous + 1, changes, [], 0, 0)
        book.on_diff(update, 2 + previous)
    assert book.in_step
    assert (out.snapshots[-1].sequence, out.snapshots[-1].bid_horizon) == (2, "12")


def test_checksums_are_counted_and_one_that_differs_publishes_nothing() -> None:
    bench = Bench()
    bench.snapshot(10, checksum=_sum("10"))
    bench.update(10, 11, "11", _sum("10", "11"))
    bench.update(11, 12, "12")
    assert (bench.book.checksums_ok, bench.book.checksums_bad, bench.book.applied) == (2, 0, 2)
    bench.update(12, 13, "13", 12345)
    assert (bench.book.checksums_bad, len(bench.out.updates)) == (1, 2)
    assert bench.book.reason == pb.ORDER_BOOK_REASON_CHECKSUM_MISMATCH
    assert not bench.book.in_step


@pytest.mark.parametrize("in_step", [True, False])
def test_a_snapshot_that_contradicts_itself_is_refused(in_step: bool) -> None:
    bench = Bench()
    if in_step:
        bench.snapshot(10)
    bench.snapshot(20, checksum=12345)
    assert not bench.book.in_step
    assert bench.book.reason == pb.ORDER_BOOK_REASON_CHECKSUM_MISMATCH
    bench.snapshot(30, bid="x")
    assert bench.book.reason == pb.ORDER_BOOK_REASON_SNAPSHOT_FAILED
    bench.snapshot(40)
    assert bench.book.in_step
