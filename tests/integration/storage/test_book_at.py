"""A book of the past is the venue's, or says why it is not."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marketprism.collector.v1.integrity_event_pb2 import IntegrityEvent
from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.history.v1 import order_book_history_pb2 as books
from marketprism.market.v1 import order_book_pb2

from services.shared.errors import InvalidArgument, NotFound
from services.storage.book_history import BookHistory
from services.storage.engine import Engine
from services.storage.known import KnownInstruments
from tests.integration.storage.book_tools import (
    SECOND,
    Naive,
    Story,
    by_table,
    deribit_capture,
    published_books,
)
from tests.integration.storage.store_tools import (
    fill,
    make_answers,
    no_context,
    open_store,
    timestamp,
)
from tests.unit.collector.support import captures, pairs

CONTINUOUS = books.ORDER_BOOK_CONTINUITY_CONTINUOUS
BROKEN = books.ORDER_BOOK_CONTINUITY_BROKEN
OUT_OF_STEP = books.ORDER_BOOK_CONTINUITY_OUT_OF_STEP
STALE = books.ORDER_BOOK_CONTINUITY_STALE
UPDATE = order_book_pb2.OrderBookUpdate


class Asked:
    """History's books as a client asks for them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.calls = BookHistory(engine, KnownInstruments(engine), make_answers(changing_seconds=0))
        self.key = {"exchange": "binance", "symbol": "BTC-USDT"}

    async def keep(self, events: list[Any], *, first_sequence: int = 1) -> None:
        await fill(self.engine, by_table(events), first_sequence=first_sequence)

    async def at(self, time: int, depth: int = 0) -> pb.GetOrderBookAtResponse:
        request = pb.GetOrderBookAtRequest(**self.key, time=timestamp(time), depth=depth)
        answer = await self.calls.GetOrderBookAt(request, no_context())
        return pb.GetOrderBookAtResponse.FromString(answer)

    async def series(self, rpc: str, start: int, end: int, step: int, **more: Any) -> list[Any]:
        """Give every point of a grid, page by page."""
        request = getattr(pb, f"{rpc}Request")(
            **self.key, start_time=timestamp(start), end_time=timestamp(end), **more
        )
        request.step.FromNanoseconds(step)
        points: list[Any] = []
        while True:
            answer = await getattr(self.calls, rpc)(request, no_context())
            page = getattr(pb, f"{rpc}Response").FromString(answer)
            points += page.order_books if rpc == "ListOrderBooks" else page.points
            if not page.next_page_token:
                return points
            request.page_token = page.next_page_token


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
async def asked(folder: Path) -> AsyncIterator[Asked]:
    async with open_store(folder) as engine:
        await clear(engine)
        yield Asked(engine)


async def clear(engine: Engine) -> None:
    for table in ("order_book_snapshot", "order_book_update", "order_book_status", "integrity"):
        await engine.command(f"TRUNCATE TABLE {table}")


def levels(book: order_book_pb2.OrderBookSnapshot) -> tuple[Any, Any]:
    return pairs(book.bids), pairs(book.asks)


def story() -> Story:
    """A book that ticks every second for 20 s, with a snapshot again at 10.5 s."""
    told = Story()
    told.status(0, "SYNCING", "STARTUP", epoch=0)
    told.snapshot(1, epoch=1_000)
    told.status(1, "SYNCED", "SYNCHRONISED")
    for second in range(2, 21):
        told.update(second, "bids", 100 - second % 3, second)
        if second == 10:
            told.snapshot(10)
    return told


# ---- what the venues really sent


@pytest.mark.parametrize(
    ("name", "every"),
    [("HBT_spot_ethusdt", 400), ("HBT_usdm_ethusdt", 400), ("OKX", 20), ("deribit", 50)],
)
async def test_the_book_at_random_instants_is_that_of_the_capture(
    asked: Asked, tmp_path: Path, name: str, every: int
) -> None:
    if name == "deribit":
        changes = captures("frames", "deribit_book_changes_normalised.jsonl.gz")
        path = deribit_capture(changes, tmp_path / "deribit.jsonl")
    else:
        path = captures("streams", f"{name}.jsonl.gz")
    events = published_books(path, every)
    await asked.keep(events)
    asked.key = {"exchange": events[0].exchange, "symbol": events[0].symbol}
    times = [e.receive_time.ToNanoseconds() for e in events if isinstance(e, UPDATE)]
    begin = next(e for e in events if isinstance(e, order_book_pb2.OrderBookSnapshot))
    chosen = random.Random(name)
    first = begin.receive_time.ToNanoseconds()
    instants = sorted(
        chosen.choice((chosen.randrange(first, max(times) + SECOND), chosen.choice(times)))
        for _ in range(250)
    )
    naive = Naive(events)
    answers = await asyncio.gather(*(asked.at(max(at, first)) for at in instants))
    for at, answer in zip(instants, answers, strict=True):
        naive.move_to(max(at, first))
        book = answer.order_book
        assert (book.epoch, book.sequence) == (naive.epoch, naive.sequence)
        assert book.venue_sequence == naive.venue_sequence
        assert levels(book) == naive.levels()
        assert answer.verdict.continuity == CONTINUOUS, answer.verdict.detail


async def test_a_rebuilt_book_is_what_the_collector_repeats_later_and_claims_no_more(
    asked: Asked,
) -> None:
    events = published_books(captures("streams", "OKX.jsonl.gz"), 20)
    asked.key = {"exchange": events[0].exchange, "symbol": events[0].symbol}
    snapshots = [e for e in events if isinstance(e, order_book_pb2.OrderBookSnapshot)]
    # Only the first is stored; the others are what has to come out.
    await asked.keep([e for e in events if e not in snapshots[1:]])
    assert len(snapshots) > 3
    for snapshot in snapshots[1:]:
        at = snapshot.receive_time.ToNanoseconds()
        book = (await asked.at(at)).order_book
        if book.sequence != snapshot.sequence:
            continue  # several updates came in the same frame
        assert levels(book) == levels(snapshot)
        for mine, told, sign in (
            (book.bid_horizon, snapshot.bid_horizon, 1),
            (book.ask_horizon, snapshot.ask_horizon, -1),
        ):
            assert bool(mine) == bool(told)
            assert not told or (Decimal(mine) - Decimal(told)) * sign >= 0
        for part in ("epoch", "venue_sequence", "exchange_time", "receive_time"):
            assert getattr(book, part) == getattr(snapshot, part)


# ---- continuous


async def test_the_verdict_says_how_the_book_was_rebuilt(asked: Asked) -> None:
    told = story()
    await asked.keep(told.events)
    for seconds, base, applied, sequence in (
        (1, 1, 0, 0), (1.5, 1, 0, 0), (9.5, 1, 8, 8), (10, 10, 0, 9), (12, 10, 2, 11),
        (19.9, 10, 9, 18), (20, 10, 10, 19), (25, 10, 10, 19),
    ):  # fmt: skip
        answer = await asked.at(told.at(seconds))
        verdict = answer.verdict
        assert verdict.continuity == CONTINUOUS
        assert verdict.base_time == timestamp(told.at(base))
        assert (verdict.base_epoch, verdict.updates_applied) == (1_000, applied)
        assert answer.order_book.sequence == sequence == verdict.base_sequence + applied
        last = min(20, int(seconds))
        assert verdict.age.ToNanoseconds() == told.at(seconds) - told.at(last)
        assert answer.order_book.receive_time == timestamp(told.at(last))
        assert answer.order_book.reason == order_book_pb2.SNAPSHOT_REASON_REQUESTED
        assert not verdict.HasField("gap")
        assert not verdict.HasField("next_right_time")


async def test_depth_cuts_both_sides(asked: Asked) -> None:
    told = story()
    await asked.keep(told.events)
    whole = (await asked.at(told.at(20))).order_book
    cut = (await asked.at(told.at(20), depth=1)).order_book
    assert len(whole.bids) == 3
    assert pairs(cut.bids) == pairs(whole.bids)[:1] == [("100", "18")]


async def test_rows_that_were_inserted_twice_change_nothing(asked: Asked) -> None:
    told = story()
    await asked.keep(told.events)
    await asked.keep(told.events, first_sequence=1000)
    answer = await asked.at(told.at(20))
    assert (answer.verdict.continuity, answer.verdict.updates_applied) == (CONTINUOUS, 10)


async def test_updates_that_were_received_before_the_venues_snapshot_continue_it(
    asked: Asked,
) -> None:
    told = Story()
    told.status(0, "SYNCING", "STARTUP", epoch=0)
    told.snapshot(5, epoch=1_000)
    told.status(5, "SYNCED", "SYNCHRONISED")
    told.update(3, "bids", 99, 3)
    told.update(4, "bids", 98, 4)
    told.update(6, "bids", 97, 6)
    await asked.keep(told.events)
    answer = await asked.at(told.at(5))
    assert pairs(answer.order_book.bids) == [("100", "1000"), ("99", "3"), ("98", "4")]
    assert answer.verdict.continuity == CONTINUOUS
    assert answer.order_book.receive_time == timestamp(told.at(4))
    with pytest.raises(NotFound):
        await asked.at(told.at(4))


async def test_a_clock_that_was_set_back_makes_no_hole(asked: Asked) -> None:
    told = Story()
    told.snapshot(1, epoch=1_000)
    for second in (2, 5, 3, 4, 6):
        told.update(second, "bids", 99, second)
    await asked.keep(told.events)
    for seconds, sequence in ((2.5, 1), (4.5, 1), (5, 4), (6, 5)):
        answer = await asked.at(told.at(seconds))
        assert answer.order_book.sequence == sequence
        assert answer.verdict.continuity == CONTINUOUS, seconds


async def test_the_later_epoch_counts_when_collectors_take_over(asked: Asked) -> None:
    old, new = story(), Story()
    new.snapshot(12.5, epoch=2_000)
    new.status(12.5, "SYNCED", "SYNCHRONISED")
    for second in range(13, 25):
        new.update(second + 0.5, "asks", 103, second)
    await asked.keep([*old.events, *new.events])
    for seconds, epoch, sequence in ((12.4, 1_000, 11), (12.5, 2_000, 0), (18.7, 2_000, 6)):
        answer = await asked.at(old.at(seconds))
        assert (answer.order_book.epoch, answer.order_book.sequence) == (epoch, sequence)
        assert answer.verdict.continuity == CONTINUOUS


# ---- broken


async def test_updates_that_are_missing_are_named_and_the_book_is_that_before_them(
    asked: Asked,
) -> None:
    told = story()
    entry = told.entry(7, "DROPPED", 5, 7, count=3)
    events = [e for e in told.events if not (isinstance(e, UPDATE) and 4 <= e.sequence <= 6)]
    await asked.keep(events)
    naive = Naive(events)
    naive.move_to(told.at(4))
    for seconds in (4.5, 5.5, 7.5, 8, 9.99):
        answer = await asked.at(told.at(seconds))
        verdict = answer.verdict
        assert verdict.continuity == BROKEN
        assert (verdict.first_missing_sequence, verdict.last_missing_sequence) == (4, 6)
        assert answer.order_book.sequence == 3
        assert levels(answer.order_book) == naive.levels()
        assert verdict.next_right_time == timestamp(told.at(10)), "the snapshot mends it"
        if seconds >= 5:
            assert verdict.gap.event_id == entry
    assert (await asked.at(told.at(4))).verdict.continuity == CONTINUOUS
    assert (await asked.at(told.at(10))).verdict.continuity == CONTINUOUS


async def test_what_the_collector_says_that_it_published_is_missing_when_it_is_not_held(
    asked: Asked,
) -> None:
    told = story()
    told.status(20.5, "STALE", "FEED_SILENT")
    events = [e for e in told.events if not (isinstance(e, UPDATE) and e.sequence > 16)]
    await asked.keep(events)
    verdict = (await asked.at(told.at(21))).verdict
    assert verdict.continuity == BROKEN
    assert (verdict.first_missing_sequence, verdict.last_missing_sequence) == (17, 19)


async def test_an_epoch_without_its_snapshot_is_broken(asked: Asked) -> None:
    told = story()
    told.snapshot(21, epoch=2_000)
    told.events.pop()
    told.status(21, "SYNCED", "SYNCHRONISED")
    told.update(22, "bids", 100, 1)
    await asked.keep(told.events)
    answer = await asked.at(told.at(22.5))
    assert answer.verdict.continuity == BROKEN
    assert "epoch 2000" in answer.verdict.detail
    assert answer.order_book.epoch == 1_000


# ---- out of step, and silent


def resynced() -> tuple[Story, str]:
    told = story()
    told.status(22, "RESYNCING", "VENUE_GAP")
    entry = told.entry(22, "RESYNC_BEGUN", 20, 22)
    told.snapshot(25, epoch=2_000)
    told.status(25, "SYNCED", "SYNCHRONISED")
    told.entry(25, "RESYNC_FINISHED", 22, 25, previous_event_id=entry)
    told.update(26, "bids", 99, 1)
    return told, entry


async def test_during_a_resync_the_book_is_the_last_right_one(asked: Asked) -> None:
    told, entry = resynced()
    await asked.keep(told.events)
    for seconds in (22, 23, 24.9):
        answer = await asked.at(told.at(seconds))
        verdict = answer.verdict
        assert verdict.continuity == OUT_OF_STEP
        assert "VENUE_GAP" in verdict.detail
        assert answer.order_book.sequence == 19
        assert verdict.gap.event_id == entry
        assert verdict.next_right_time == timestamp(told.at(25))
    assert (await asked.at(told.at(25))).verdict.continuity == CONTINUOUS


async def test_what_was_lost_before_the_collector_noticed_is_not_vouched_for(asked: Asked) -> None:
    told, entry = resynced()
    await asked.keep(told.events)
    verdict = (await asked.at(told.at(21))).verdict
    assert verdict.continuity == STALE
    assert verdict.gap.event_id == entry
    assert verdict.next_right_time == timestamp(told.at(25))
    assert (await asked.at(told.at(20))).verdict.continuity == CONTINUOUS


async def test_a_silent_feed_is_stale_until_it_goes_on(asked: Asked) -> None:
    told = story()
    told.status(30, "STALE", "FEED_SILENT")
    entry = told.entry(30, "SILENT", 20, 30)
    told.status(40, "SYNCED", "SYNCHRONISED")
    told.update(40, "bids", 99, 1)
    await asked.keep(told.events)
    verdict = (await asked.at(told.at(35))).verdict
    assert verdict.continuity == STALE
    assert verdict.gap.event_id == entry
    assert verdict.age == Duration(seconds=15)
    assert verdict.next_right_time == timestamp(told.at(40))
    for seconds in (25, 40, 45):
        assert (await asked.at(told.at(seconds))).verdict.continuity == CONTINUOUS


async def test_behind_the_last_event_a_book_grows_stale_also_in_the_future(asked: Asked) -> None:
    told = story()
    await asked.keep(told.events)
    assert (await asked.at(told.at(30))).verdict.continuity == CONTINUOUS
    for seconds in (30.1, 3600, 400 * 86_400):
        verdict = (await asked.at(told.at(seconds))).verdict
        assert verdict.continuity == STALE
        assert not verdict.HasField("next_right_time")


async def test_between_a_death_and_the_next_start_a_book_is_stale(asked: Asked) -> None:
    told = story()
    entry = told.entry(30, "COLLECTOR_STARTED", 20, 30)
    told.status(30.5, "SYNCING", "STARTUP", epoch=0)
    told.snapshot(31, epoch=2_000)
    told.status(31, "SYNCED", "SYNCHRONISED")
    await asked.keep(told.events)
    verdict = (await asked.at(told.at(25))).verdict
    assert (verdict.continuity, verdict.gap.event_id) == (STALE, entry)
    assert verdict.next_right_time == timestamp(told.at(31))
    verdict = (await asked.at(told.at(30.7))).verdict
    assert verdict.continuity == OUT_OF_STEP
    assert (await asked.at(told.at(31))).verdict.continuity == CONTINUOUS


# ---- nothing, and bad requests


async def test_before_the_first_snapshot_there_is_no_book(asked: Asked) -> None:
    told = story()
    await asked.keep(told.events)
    with pytest.raises(NotFound) as refusal:
        await asked.at(told.at(0.9))
    assert refusal.value.reason == "ORDER_BOOK_NOT_RECORDED"
    points = await asked.series("ListOrderBooks", told.at(0), told.at(2), SECOND)
    assert [point.HasField("order_book") for point in points] == [False, True]
    assert points[0].verdict.continuity == OUT_OF_STEP, "the collector said that it was syncing"
    assert points[0].verdict.next_right_time == timestamp(told.at(1))
    asked.key = {"exchange": "binance", "symbol": "ETH-USDT"}
    with pytest.raises(NotFound) as refusal:
        await asked.at(told.at(5))
    assert refusal.value.reason == "INSTRUMENT_NOT_FOUND"


@pytest.mark.parametrize(
    ("rpc", "request_fields", "wrong"),
    [
        ("GetOrderBookAt", {"depth": 10_001}, "depth"),
        ("GetOrderBookAt", {"depth": -1}, "depth"),
        ("ListOrderBooks", {"depth": 1001}, "depth"),
        ("ListOrderBooks", {"page_size": 1001}, "page_size"),
        ("ListSpreads", {"step": Duration(nanos=9_999_999)}, "step"),
        ("ListSpreads", {"step": Duration(seconds=86_401)}, "step"),
        ("ListSpreads", {"start_time": timestamp(20 * SECOND)}, "start_time"),
        ("ListSpreads", {"page_token": "x"}, "page_token"),
        ("ListDepths", {"distances_bps": [0]}, "distances_bps[0]"),
        ("ListDepths", {"distances_bps": [10, 5001]}, "distances_bps[1]"),
        ("ListDepths", {"distances_bps": [1] * 21}, "distances_bps"),
    ],
)
async def test_bad_requests_name_the_field(
    asked: Asked, rpc: str, request_fields: dict[str, Any], wrong: str
) -> None:
    usual: dict[str, Any] = {"time": timestamp(SECOND)}
    if rpc != "GetOrderBookAt":
        usual = {
            "start_time": timestamp(SECOND),
            "end_time": timestamp(10 * SECOND),
            "step": Duration(seconds=1),
        }
    request = getattr(pb, f"{rpc}Request")(**asked.key, **{**usual, **request_fields})
    with pytest.raises(InvalidArgument) as refusal:
        await getattr(asked.calls, rpc)(request, no_context())
    assert refusal.value.metadata["field"] == wrong


# ---- series


async def test_spreads_and_depths_are_exact(asked: Asked) -> None:
    told = Story()
    told.snapshot(1, epoch=5)
    told.events[0].bid_horizon = "99"
    told.events[0].bids.add(price="99.5", quantity="0.000000000000000001")
    told.events[0].asks.add(price="110", quantity="3")
    await asked.keep(told.events)
    (spread,) = await asked.series("ListSpreads", told.at(1), told.at(2), SECOND)
    assert (spread.bid_price, spread.bid_quantity) == ("100", "5")
    assert (spread.ask_price, spread.ask_quantity) == ("102", "7")
    assert (spread.spread, spread.mid_price, spread.spread_bps) == ("2", "101", "198.0198")
    assert spread.continuity == CONTINUOUS
    (depth,) = await asked.series(
        "ListDepths", told.at(1), told.at(2), SECOND, distances_bps=[99, 150, 1000]
    )
    assert depth.mid_price == "101"
    near, middle, far = depth.bands
    # 99 basis points of 101 reach 100.0001 and 101.9999.
    assert (near.bid_quantity, near.ask_quantity, near.beyond_horizon) == ("0", "0", False)
    assert (middle.bid_quantity, middle.bid_notional) == (
        "5.000000000000000001", "500.0000000000000000995",
    )  # fmt: skip
    assert (middle.ask_quantity, middle.ask_notional) == ("7", "714")
    assert not middle.beyond_horizon, "150 basis points end at 99.485"
    assert (far.ask_quantity, far.ask_notional, far.beyond_horizon) == ("10", "1044", True)


@st.composite
def stories(draw: st.DrawFn) -> Callable[[], Story]:
    """Books whose life has everything in it: repeats, resyncs, silence, holes."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["tick"] * 6 + ["again", "resync", "silent", "hole", "long"]),
                st.integers(1, 40),
            ),
            min_size=5,
            max_size=40,
        )
    )

    def make() -> Story:
        told = Story()
        now = 5.0
        told.snapshot(now, epoch=1_000)
        told.status(now, "SYNCED", "SYNCHRONISED")
        for number, (what, size) in enumerate(steps):
            now += size / 20
            if what in ("tick", "hole"):
                side, price = ("bids" if size % 2 else "asks"), 90 + size % 30
                is_held = (side, price) in told.book
                told.update(now, side, price, size % 4 if is_held else size)
                if what == "hole":
                    told.lost.append(told.events[-1])
            elif what == "again":
                told.snapshot(now)
            elif what == "resync":
                told.status(now, "RESYNCING", "VENUE_GAP")
                told.entry(now, "RESYNC_BEGUN", now - 0.01, now)
                now += size / 10
                told.snapshot(now, epoch=2_000 + number)
                told.status(now, "SYNCED", "SYNCHRONISED")
            elif what == "silent":
                told.status(now, "STALE", "FEED_SILENT")
                now += size / 10
                told.status(now, "SYNCED", "SYNCHRONISED")
            else:
                now += size
        # What is lost at the very end shows only when something comes after it.
        told.update(now + 0.01, "bids", 80, 1)
        return told

    return make


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(make=stories(), step=st.sampled_from([70, 330, 1000, 4100]), pages=st.integers(4, 30))
async def test_every_point_of_a_series_is_the_book_of_its_instant_and_true_where_it_says_so(
    asked: Asked, make: Callable[[], Story], step: int, pages: int
) -> None:
    told = make()
    await clear(asked.engine)
    asked = Asked(asked.engine)  # whose answers are not those of another example
    await asked.keep(told.held)
    start, end = told.at(3.9), told.at(3.9) + 25 * step * 1_000_000
    grid = (start, end, step * 1_000_000)
    points = await asked.series("ListOrderBooks", *grid, depth=1000, page_size=pages)
    spreads = await asked.series("ListSpreads", *grid, page_size=pages)
    depths = await asked.series("ListDepths", *grid)
    assert [p.time.ToNanoseconds() for p in points] == list(range(*grid))
    singles = await asyncio.gather(
        *(asked.at(point.time.ToNanoseconds()) for point in points), return_exceptions=True
    )
    naive = Naive([event for event in told.events if not isinstance(event, IntegrityEvent)])
    for point, spread, depth, answer in zip(points, spreads, depths, singles, strict=True):
        assert point.time == spread.time == depth.time
        assert point.verdict.continuity == spread.continuity == depth.continuity
        if isinstance(answer, BaseException):
            assert isinstance(answer, NotFound)
            assert not point.HasField("order_book")
            continue
        assert point.order_book == answer.order_book
        assert point.verdict == answer.verdict
        bids, asks = levels(answer.order_book)
        naive.move_to(point.time.ToNanoseconds())
        if point.verdict.continuity == CONTINUOUS:
            assert (bids, asks) == naive.levels(), "of all that was published, lost or not"
        assert (spread.bid_price, spread.bid_quantity) == (bids[0] if bids else ("", ""))
        assert (spread.ask_price, spread.ask_quantity) == (asks[0] if asks else ("", ""))
