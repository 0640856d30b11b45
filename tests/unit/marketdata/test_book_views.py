"""Views of books: whatever the wish, what a subscriber holds is the true book, or it is told."""

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marketprism.market.v1 import instrument_pb2, order_book_pb2

from services.marketdata.settings import LogBounds
from services.marketdata.views import BookWish
from services.shared.errors import NotFound
from tests.unit.marketdata.book_scene import (
    INCREMENTAL,
    KEY,
    TOP,
    Client,
    Scene,
    advance,
    on_fake_time,
)

S = order_book_pb2
SECOND = BookWish(interval=1.0)
BEST = BookWish(mode=TOP, depth=1)
WISHES = [
    BookWish(mode, depth, grouping, interval)
    for (mode, depth), grouping, interval in itertools.product(
        ((INCREMENTAL, 0), (TOP, 1), (TOP, 5), (TOP, 1000)), ("", "0.75", "10"), (0.0, 1.0)
    )
]
STEPS = st.sampled_from(
    [
        *("update", "burst", "turn", "interval", "read", "join", "leave", "come back"),
        *("rebuild", "resync", "synced", "stale", "gap", "late", "periodic", "flood"),
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1 << 30), st.lists(st.tuples(STEPS, st.integers(0, len(WISHES))), max_size=40)
)
def test_every_view_is_the_true_book_at_the_place_that_it_tells(
    seed: int, steps: list[tuple[str, int]]
) -> None:
    async def scenario() -> None:
        scene = Scene(seed, levels=6, bounds=LogBounds(max_events=16))
        clients = [scene.client(wish) for wish in WISHES[seed % 3 :: 3]]
        for step, number in steps:
            await _play(scene, clients, step, number)
        scene.live.set_silent("")
        scene.begin().updates(3)
        await advance(2.0)
        scene.updates(2)
        await advance(2.0)
        for client in clients:
            client.read()
            assert client.epoch == scene.book.epoch, "expected a snapshot of the new epoch"
            if client.wish.mode == INCREMENTAL:
                assert client.place == scene.place, "expected nothing to be kept back"
            assert client.best() == scene.truth(client.wish, scene.place)
            assert client.statuses[-1].state == S.ORDER_BOOK_STATE_SYNCED
            client.close()
        assert len(scene.views) == 0
        assert scene.live.log.waiting == 0, "expected nobody to listen when all have gone"

    on_fake_time(scenario)


async def _play(scene: Scene, clients: list[Client], step: str, number: int) -> None:
    live = scene.live
    which = number % len(clients) if clients else 0
    if step == "update" and live.has_levels:
        scene.updates(1, changes=number)
    elif step == "burst" and live.has_levels:
        scene.updates(number)
    elif step == "flood" and live.has_levels:
        scene.updates(20)
    elif step == "turn":
        await advance()
    elif step == "interval":
        await advance(0.6)
    elif step == "read":
        for client in clients[which:]:
            client.read()
    elif step == "join":
        clients.append(scene.client(WISHES[number % len(WISHES)]))
    elif step == "leave" and clients:
        clients.pop(which).close()
    elif step == "come back" and clients:
        before = clients.pop(which)
        before.close()
        clients.append(scene.client(before.wish, resume=before))
    elif step == "rebuild":
        scene.begin()
    elif step == "resync":
        scene.status(scene.book.resyncing())
    elif step == "synced" and live.has_levels:
        scene.status(scene.book.synced())
    elif step == "stale":
        live.set_silent("silent" if number % 2 else "")
    elif step == "gap" and live.has_levels:
        scene.hidden_update()
        scene.updates(1)
        scene.snapshot(scene.book.snapshot())
    elif step == "late" and live.has_levels:
        missing = scene.hidden_update()
        live.on_missed("a message is gone")
        clients.append(scene.client(WISHES[number % len(WISHES)]))
        live.on_update(missing)
    elif step == "periodic" and live.has_levels:
        scene.snapshot(scene.book.snapshot())


def test_updates_of_an_interval_are_merged_into_one_that_says_all_of_it() -> None:
    async def scenario() -> None:
        scene = Scene().begin()
        client = scene.client(SECOND)
        scene.updates(1)
        await advance()
        first = client.read().updates[-1]
        assert (first.first_sequence, first.sequence) == (0, 1), "expected the first one at once"
        scene.updates(3)
        await advance(0.5)
        scene.updates(4)
        await advance(0.4)
        assert len(client.read().updates) == 1, "expected nothing more within the interval"
        await advance(0.2)
        merged = client.read().updates[-1]
        assert (merged.first_sequence, merged.sequence) == (2, 8)
        assert merged.venue_sequence == scene.book.venue_sequence
        assert merged.previous_venue_sequence == first.venue_sequence
        assert merged.HasField("exchange_time")
        assert merged.HasField("receive_time")
        prices = [level.price for level in (*merged.bids, *merged.asks)]
        assert len(prices) == len(set(prices)), "expected each price once"
        assert client.place == scene.place
        client.close()

    on_fake_time(scenario)


def test_a_newcomer_within_an_interval_continues_with_the_same_merged_update() -> None:
    async def scenario() -> None:
        scene = Scene().begin()
        first = scene.client(SECOND)
        scene.updates(2)
        await advance()
        scene.updates(2)
        await advance(0.5)
        second = scene.client(SECOND)
        assert second.view is first.view, "expected one view for equal wishes"
        assert second.snapshots[-1].reason == S.SNAPSHOT_REASON_SUBSCRIBED
        scene.updates(1)
        await advance(0.6)
        assert first.read().place == second.read().place == scene.place
        assert first.updates[-1] == second.updates[-1]

    on_fake_time(scenario)


@pytest.mark.parametrize("grouping", ["", "0.75"])
def test_a_newcomer_gets_what_was_sent_also_where_a_price_changed_again_and_again(
    grouping: str,
) -> None:
    async def scenario() -> None:
        scene = Scene(levels=3).begin()
        # Who wants a book as it comes makes it go on within the others' interval.
        eager = [scene.client(BookWish(grouping="0.75")), scene.client(BEST)]
        slow = BookWish(interval=10.0, grouping=grouping)
        first = scene.client(slow)
        scene.updates(1)
        await advance()
        for _ in range(20):
            scene.updates(1)
            await advance(0.1)
            newcomer = scene.client(slow)
            assert newcomer.read().place == first.read().place
            newcomer.close()
            first.view._base = None  # type: ignore[attr-defined]  # so that it is made anew
        await advance(10.0)
        assert first.read().place == scene.place
        for client in eager:
            client.read()

    on_fake_time(scenario)


def test_a_status_waits_for_no_interval_and_keeps_its_place() -> None:
    async def scenario() -> None:
        scene = Scene().begin()
        client = scene.client(BookWish(interval=60.0))
        scene.updates(1)
        await advance()
        scene.updates(2).status(scene.book.resyncing())
        await advance()
        client.read()
        assert client.kinds[-2:] == ["order_book_update", "order_book_status"]
        assert client.statuses[-1].state == S.ORDER_BOOK_STATE_RESYNCING
        assert client.place == scene.place, "expected what came before it to be sent before it"
        scene.begin()
        await advance()
        client.read()
        assert client.kinds[-2:] == ["order_book_snapshot", "order_book_status"]
        assert client.snapshots[-1].reason == S.SNAPSHOT_REASON_EPOCH_START

    on_fake_time(scenario)


def test_the_top_is_sent_only_when_it_changed() -> None:
    async def scenario() -> None:
        scene = Scene(levels=50).begin()
        client = scene.client(BEST)
        best = scene.book.best(1)
        count = 0
        for _ in range(200):
            scene.updates(1)
            await advance()
            count += scene.book.best(1) != best
            best = scene.book.best(1)
        client.read()
        changed = [s for s in client.snapshots if s.reason == S.SNAPSHOT_REASON_TOP_CHANGED]
        assert len(changed) == count
        assert 0 < count < 200
        assert client.best() == best

    on_fake_time(scenario)


def test_the_top_is_sent_at_most_once_an_interval() -> None:
    async def scenario() -> None:
        scene = Scene().begin()
        client = scene.client(dataclasses.replace(BEST, depth=5, interval=1.0))
        for _ in range(100):
            scene.updates(3)
            await advance(0.1)
        assert 9 <= len(client.read().snapshots) <= 12

    on_fake_time(scenario)


def test_a_side_that_is_cut_has_its_horizon_at_the_last_level() -> None:
    async def scenario() -> None:
        scene = Scene(levels=10).begin()
        cut = scene.client(BookWish(mode=TOP, depth=3)).snapshots[-1]
        assert cut.bid_horizon == cut.bids[-1].price
        assert cut.ask_horizon == cut.asks[-1].price
        whole = scene.client(BookWish(mode=TOP, depth=10)).snapshots[-1]
        assert (whole.bid_horizon, whole.ask_horizon) == ("100", "90000")
        by_steps = scene.client(BookWish(grouping="30")).snapshots[-1]
        # A group beyond the horizon is one that may be known in part.
        assert (by_steps.bid_horizon, by_steps.ask_horizon) == ("120", "90000")

    on_fake_time(scenario)


def test_a_group_that_keeps_its_sum_is_not_sent() -> None:
    async def scenario() -> None:
        scene = Scene().begin()
        client = scene.client(BookWish(grouping="100000"))
        scene.updates(5)
        await advance()
        update = client.read().updates[-1]
        assert (update.first_sequence, update.sequence) == (1, 5)
        assert len(update.bids) <= 1
        assert len(update.asks) <= 1

    on_fake_time(scenario)


def test_a_book_is_resumed_where_the_view_or_the_book_can_tell_what_was_missed() -> None:
    async def scenario() -> None:
        scene = Scene().begin()
        keeper = scene.client(SECOND)
        scene.updates(2)
        await advance()
        left = scene.client(SECOND)
        left.close()
        scene.updates(2)
        await advance(1.1)
        back = scene.client(SECOND, resume=left).read()
        assert back.opening.resumed
        assert not back.snapshots
        assert back.updates[-1] == keeper.read().updates[-1]
        # One who was sent other updates than the view sent, for example by another server.
        elsewhere = scene.client(BookWish())
        scene.updates(1)
        elsewhere.read().close()
        scene.updates(2)
        await advance(1.1)
        back = scene.client(SECOND, resume=elsewhere)
        assert back.opening.resumed
        assert not back.snapshots
        assert back.place == scene.place
        assert back.updates[-1].first_sequence == scene.book.sequence - 1

    on_fake_time(scenario)


def test_a_resume_that_cannot_be_told_begins_with_a_snapshot_that_says_so() -> None:
    async def scenario() -> None:
        scene = Scene().begin()
        for wish in (SECOND, BEST, BookWish(grouping="5")):
            left = scene.client(wish)
            left.close()
            scene.begin()
            back = scene.client(wish, resume=left)
            assert not back.opening.resumed
            assert back.snapshots[-1].reason == S.SNAPSHOT_REASON_RESUME_TOO_OLD

    on_fake_time(scenario)


def test_the_top_resumes_with_what_it_is_now() -> None:
    async def scenario() -> None:
        scene = Scene().begin()
        client = scene.client(BEST)
        same = scene.client(BEST, resume=client)
        assert same.opening.resumed
        assert not same.snapshots
        scene.updates(30)
        await advance()
        back = scene.client(BEST, resume=client)
        assert back.opening.resumed
        assert back.snapshots[-1].reason == S.SNAPSHOT_REASON_TOP_CHANGED
        assert back.best() == scene.book.best(1)

    on_fake_time(scenario)


def test_who_comes_while_a_book_is_out_of_step_gets_it_when_it_is_in_step_again() -> None:
    async def scenario() -> None:
        scene = Scene().begin()
        early = scene.client(SECOND)
        missing = scene.hidden_update()
        scene.live.on_missed("a message is gone")
        await advance()
        late = [scene.client(wish) for wish in WISHES]
        assert all(client.kinds == ["order_book_status"] for client in late)
        scene.live.on_update(missing)
        await advance(2.0)
        for client in (early, *late):
            client.read()
            assert client.best() == scene.truth(client.wish, scene.place)
            assert client.statuses[-1].state == S.ORDER_BOOK_STATE_SYNCED

    on_fake_time(scenario)


@pytest.mark.parametrize("wish", WISHES[2:])
def test_a_level_that_is_none_ends_the_book_until_the_next_one(wish: BookWish) -> None:
    async def scenario() -> None:
        scene = Scene().begin()
        client = scene.client(wish)
        bad = S.OrderBookUpdate.FromString(scene.hidden_update())
        bad.bids.add(price="a price", quantity="a quantity")
        scene.live.on_update(bad.SerializeToString())
        await advance(2.0)
        if wish.mode == INCREMENTAL and not wish.grouping:
            # As where a book is sent as it comes: it is the client who reads the levels.
            return
        client.read()
        assert client.statuses[-1].state == S.ORDER_BOOK_STATE_RESYNCING
        assert client.statuses[-1].reason == S.ORDER_BOOK_REASON_MALFORMED_FRAME
        scene.begin().updates(1)
        await advance(2.0)
        client.read()
        assert client.statuses[-1].state == S.ORDER_BOOK_STATE_SYNCED
        assert client.best() == scene.truth(wish, scene.place)

    on_fake_time(scenario)


def test_a_level_that_is_none_and_goes_away_ends_the_book_for_a_moment_only() -> None:
    async def scenario() -> None:
        scene = Scene().begin()
        client = scene.client(BookWish(grouping="5"))
        for quantity in ("a quantity", "0"):
            update = S.OrderBookUpdate.FromString(scene.hidden_update())
            update.bids.add(price="3", quantity=quantity)
            scene.live.on_update(update.SerializeToString())
            await advance()
        assert client.read().statuses[-1].state == S.ORDER_BOOK_STATE_RESYNCING
        await advance(2.0)
        scene.updates(1)
        await advance(2.0)
        assert client.read().statuses[-1].state == S.ORDER_BOOK_STATE_SYNCED
        assert client.place == scene.place

    on_fake_time(scenario)


def test_a_step_within_the_tick_size_groups_nothing() -> None:
    async def scenario() -> None:
        scene = Scene().begin()
        instrument = instrument_pb2.Instrument(exchange=KEY[0], symbol=KEY[1], tick_size="0.25")
        scene.market.catalog.describe(KEY, instrument.SerializeToString())
        fine = scene.views.open(KEY, BookWish(grouping="0.25", interval=1.0))
        assert fine is scene.client(SECOND).view
        assert scene.views.open(KEY, BookWish(grouping="0.1")).log is scene.live.log
        assert scene.views.open(KEY, BookWish(grouping="0.5")).log is not scene.live.log

    on_fake_time(scenario)


def test_views_end_with_the_market_and_say_all_that_they_had_before() -> None:
    async def scenario() -> None:
        scene = Scene().begin()
        client = scene.client(BookWish(interval=60.0))
        scene.updates(1)
        await advance()
        scene.updates(3)
        scene.market.close()
        await advance()
        assert client.read().place == scene.place
        assert client.view.log.closed
        assert scene.client(BEST).view.log.closed, "expected a view made later to be ended too"

    on_fake_time(scenario)


def test_an_unknown_instrument_is_refused() -> None:
    async def scenario() -> None:
        scene = Scene()
        with pytest.raises(NotFound):
            scene.views.open(("binance", "NOTHING"), SECOND)

    on_fake_time(scenario)
