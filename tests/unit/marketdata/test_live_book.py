"""Continuity of a book: what subscribers get is a book without hole or overlap, or is told."""

import dataclasses
import random

import pytest
from marketprism.market.v1 import market_data_service_pb2, order_book_pb2

from services.marketdata.levels import MalformedLevelError
from services.marketdata.live_book import BookLimits, LiveBook, Opening
from services.marketdata.tally import Tally
from tests.unit.marketdata.truth import ClientBook, Collected, levels_of

S = order_book_pb2
SYNCED, RESYNCING, STALE, SYNCING = (
    S.ORDER_BOOK_STATE_SYNCED,
    S.ORDER_BOOK_STATE_RESYNCING,
    S.ORDER_BOOK_STATE_STALE,
    S.ORDER_BOOK_STATE_SYNCING,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000_000_000_000

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)


class Reader:
    """A subscriber of a live book, without the stream around it."""

    def __init__(self, live: LiveBook, opening: Opening) -> None:
        self.live = live
        self.client = ClientBook()
        self.position = opening.position
        self._take(b"".join(opening.items))

    def read(self) -> "Reader":
        while self.position < self.live.log.end:
            assert self.position >= self.live.log.first
            message, self.position = self.live.log.read(self.position, 2000)
            self._take(message)
        return self

    def _take(self, message: bytes) -> None:
        response = market_data_service_pb2.StreamOrderBookResponse.FromString(message)
        self.client.take(response.events)


@dataclasses.dataclass
class Scene:
    book: Collected
    live: LiveBook
    tally: Tally
    clock: Clock

    def begin(self) -> "Scene":
        self.live.on_snapshot(self.book.rebuild())
        self.live.on_status(self.book.synced())
        return self

    def updates(self, count: int) -> "Scene":
        for _ in range(count):
            self.live.on_update(self.book.update())
        return self

    def open(self, resume: tuple[int, int] | None = None) -> Reader:
        return Reader(self.live, self.live.open(resume))

    def check(self, reader: Reader) -> None:
        reader.read()
        assert (reader.client.epoch, reader.client.sequence) == (
            self.book.epoch,
            self.book.sequence,
        )
        assert reader.client.best() == self.book.best()

    def told(self) -> list[tuple[int, int]]:
        """Give state and reason of every status in the log."""
        reader = Reader(self.live, Opening((), self.live.log.first))
        reader.client.has_book = True
        events = market_data_service_pb2.StreamOrderBookResponse.FromString(
            b"".join(self.live.log.items(self.live.log.first))
        ).events
        return [
            (e.order_book_status.state, e.order_book_status.reason)
            for e in events
            if e.HasField("order_book_status")
        ]


@pytest.fixture
def scene() -> Scene:
    return make_scene()


def make_scene(**limits: int) -> Scene:
    tally, clock, book = Tally(), Clock(), Collected()
    live = LiveBook(
        book.exchange, book.symbol, limits=BookLimits(**limits), tally=tally, clock=clock
    )
    return Scene(book, live, tally, clock)


def test_a_newcomer_gets_a_snapshot_its_status_and_all_that_follows(scene: Scene) -> None:
    scene.begin().updates(5)
    reader = scene.open()
    assert reader.client.kinds == ["order_book_snapshot", "order_book_status"]
    assert reader.client.snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED]
    assert reader.client.statuses[0].sequence == reader.client.sequence
    scene.updates(20)
    scene.check(reader)


def test_the_events_are_the_collectors_own_bytes(scene: Scene) -> None:
    scene.begin()
    update = scene.book.update()
    scene.live.on_update(update)
    assert scene.live.log.items(scene.live.log.end - 1)[0].endswith(update)


def test_newcomers_share_one_encoded_snapshot(scene: Scene) -> None:
    scene.begin().updates(300)
    first = scene.live.open().items[0]
    scene.updates(2)
    second = scene.live.open()
    assert second.items[0] is first, "expected the recent snapshot and the two updates after it"
    assert scene.live.log.end - second.position == 2
    scene.check(Reader(scene.live, second))


def test_a_periodic_snapshot_is_not_sent_to_who_is_in_step(scene: Scene) -> None:
    scene.begin().updates(3)
    reader = scene.open()
    scene.live.on_snapshot(scene.book.snapshot())
    scene.updates(3)
    scene.check(reader)
    assert reader.client.snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED]
    scene.check(scene.open())


def test_repeated_and_outdated_updates_are_dropped_and_counted(scene: Scene) -> None:
    scene.begin()
    reader = scene.open()
    update = scene.book.update()
    for _ in range(3):
        scene.live.on_update(update)
    old_epoch = scene.book.update()
    scene.live.on_update(old_epoch)
    scene.begin()
    scene.live.on_update(old_epoch)
    scene.updates(2)
    scene.check(reader)
    assert (scene.tally.duplicates, scene.tally.old_epoch, scene.tally.gaps) == (2, 1, 0)


def test_a_missing_update_is_told_and_the_next_snapshot_mends_it(scene: Scene) -> None:
    scene.begin().updates(3)
    reader = scene.open().read()
    right = scene.book.best()
    sequence = scene.book.sequence
    scene.book.update()
    scene.updates(4)
    reader.read()
    assert (scene.live.state, scene.live.sequence) == (RESYNCING, sequence)
    assert reader.client.statuses[-1].reason == S.ORDER_BOOK_REASON_DELIVERY_GAP
    assert "expected update 4" in reader.client.statuses[-1].detail
    assert reader.client.best() == right, "expected nothing to be applied over the hole"
    assert (scene.tally.gaps, scene.tally.skipped) == (1, 4)
    newcomer = scene.open()
    assert newcomer.client.kinds == ["order_book_status"]
    scene.clock.advance(2.5)
    scene.live.on_snapshot(scene.book.snapshot())
    scene.updates(2)
    for each in (reader, newcomer):
        scene.check(each)
        assert each.client.state == SYNCED
        assert each.client.statuses[-1].outage_ms == 2500


def test_the_missing_update_itself_mends_the_book(scene: Scene) -> None:
    scene.begin().updates(1)
    reader = scene.open().read()
    lost = scene.book.update()
    scene.live.on_update(b"\xff" + lost)
    assert scene.live.state == RESYNCING
    newcomer = scene.open()
    scene.live.on_update(lost)
    assert scene.live.state == SYNCED
    scene.updates(2)
    scene.check(reader)
    scene.check(newcomer)
    assert scene.tally.malformed == 1


def test_a_snapshot_ahead_of_us_shows_a_hole_that_no_update_showed(scene: Scene) -> None:
    scene.begin().updates(1)
    reader = scene.open()
    scene.book.update()
    scene.live.on_snapshot(scene.book.snapshot())
    scene.check(reader)
    assert scene.told()[-2:] == [
        (RESYNCING, S.ORDER_BOOK_REASON_DELIVERY_GAP),
        (SYNCED, S.ORDER_BOOK_REASON_SYNCHRONISED),
    ]


@pytest.mark.parametrize("of_old_epoch", [True, False], ids=["epoch", "sequence"])
def test_a_snapshot_from_before_sets_no_book_back(scene: Scene, of_old_epoch: bool) -> None:
    scene.begin().updates(3)
    before, told = scene.book.snapshot(), scene.book.synced()
    if of_old_epoch:
        scene.live.on_snapshot(scene.book.rebuild())
        scene.live.on_status(scene.book.synced())
    reader = scene.updates(2).open()
    end = scene.live.log.end
    scene.live.on_snapshot(before)
    scene.live.on_status(told)
    assert scene.tally.duplicates == 1
    assert scene.live.log.end - end == (0 if of_old_epoch else 1), "expected no snapshot among them"
    assert (scene.live.epoch, scene.live.sequence) == (scene.book.epoch, scene.book.sequence)
    scene.updates(2)
    assert scene.live.state == SYNCED
    scene.check(reader.read())
    scene.check(scene.open())


def test_a_rebuild_is_told_and_followed_by_the_new_epoch(scene: Scene) -> None:
    scene.begin().updates(3)
    reader = scene.open()
    scene.live.on_status(scene.book.resyncing())
    waiting = scene.open()
    assert waiting.client.kinds == ["order_book_status"]
    assert waiting.client.state == RESYNCING
    scene.live.on_snapshot(scene.book.rebuild())
    between = scene.open()
    assert between.client.kinds[0] == "order_book_snapshot", "expected no wait: it is there"
    scene.live.on_status(scene.book.synced())
    scene.updates(3)
    for each in (reader, waiting, between):
        scene.check(each)
        assert each.client.state == SYNCED
    assert reader.client.snapshots[-1] == S.SNAPSHOT_REASON_EPOCH_START


def test_an_update_of_an_epoch_whose_snapshot_did_not_come_is_a_gap(scene: Scene) -> None:
    scene.begin()
    scene.book.rebuild()
    scene.updates(2)
    assert scene.live.state == RESYNCING
    assert "no snapshot of it" in scene.live.status().detail
    scene.live.on_snapshot(scene.book.snapshot())
    assert scene.live.state == SYNCED
    scene.check(scene.open())


def test_updates_before_any_snapshot_are_no_gap(scene: Scene) -> None:
    scene.book.rebuild()
    scene.updates(3)
    assert (scene.tally.unplaced, scene.tally.gaps) == (3, 0)
    assert scene.live.state == SYNCING
    waiting = scene.open()
    scene.live.on_snapshot(scene.book.snapshot())
    scene.check(waiting)


def test_a_status_read_before_its_snapshot_counts(scene: Scene) -> None:
    scene.book.rebuild()
    scene.live.on_status(scene.book.synced())
    waiting = scene.open()
    assert waiting.client.state == SYNCING
    scene.book.update()
    scene.live.on_snapshot(scene.book.snapshot())
    assert scene.live.state == SYNCED
    newcomer = scene.open()
    scene.updates(2)
    scene.check(waiting)
    scene.check(newcomer)


def test_being_in_step_is_implied_where_the_status_did_not_come(scene: Scene) -> None:
    scene.live.on_snapshot(scene.book.rebuild())
    assert scene.live.state == SYNCING
    reader = scene.open()
    scene.updates(1)
    assert scene.live.state == SYNCED, "expected updates to show it: others are not published"
    scene.check(reader)
    quiet = make_scene()
    quiet.live.on_snapshot(quiet.book.rebuild(S.SNAPSHOT_REASON_PERIODIC))
    assert quiet.live.state == SYNCED, "expected a periodic snapshot to show it too"


@pytest.mark.parametrize("garbage", [b"\xff\xff", b"\x0a\x05ab", b""])
def test_garbage_is_counted_and_costs_the_book_its_state_only(scene: Scene, garbage: bytes) -> None:
    scene.begin().updates(2)
    scene.live.on_snapshot(garbage)
    scene.live.on_status(garbage)
    assert scene.live.state == SYNCED
    scene.live.on_update(garbage)
    assert scene.tally.malformed == 3
    assert scene.live.state == RESYNCING
    scene.updates(1)
    assert scene.live.state == SYNCED, "expected the book to go on: nothing of it is missing"
    scene.check(scene.open())


def test_another_books_update_is_not_taken(scene: Scene) -> None:
    scene.begin()
    other = Collected(symbol="ETH-USDT")
    other.epoch = scene.book.epoch
    scene.live.on_update(other.update())
    assert scene.tally.malformed == 1
    assert scene.live.sequence == 0


def test_levels_that_are_no_numbers_take_the_book_out_of_step(scene: Scene) -> None:
    scene.begin()
    scene.book.sequence += 1
    update = S.OrderBookUpdate(
        exchange="binance", symbol="BTC-USDT", epoch=scene.book.epoch, sequence=1
    )
    update.bids.add(price="much", quantity="1")
    scene.live.on_update(update.SerializeToString())
    with pytest.raises(MalformedLevelError):
        scene.live.order_book(0, S.SNAPSHOT_REASON_REQUESTED)
    reader = scene.open()
    assert reader.client.state == RESYNCING
    assert not scene.live.has_levels
    scene.live.on_snapshot(scene.book.snapshot())
    scene.updates(1)
    scene.check(reader)
    assert reader.client.state == SYNCED


def test_the_broker_lost_and_back_is_stale_and_synced_again(scene: Scene) -> None:
    scene.begin().updates(2)
    reader = scene.open()
    scene.live.set_broker_lost("the broker is gone")
    scene.live.set_broker_lost("the broker is gone")
    assert (scene.live.state, scene.live.status().detail) == (STALE, "the broker is gone")
    newcomer = scene.open()
    assert newcomer.client.kinds == ["order_book_snapshot", "order_book_status"]
    assert newcomer.client.state == STALE
    scene.clock.advance(1)
    scene.live.set_broker_lost("")
    scene.updates(2)
    for each in (reader, newcomer):
        scene.check(each)
        assert each.client.state == SYNCED
    assert scene.told()[-2:] == [
        (STALE, S.ORDER_BOOK_REASON_BROKER_DISCONNECTED),
        (SYNCED, S.ORDER_BOOK_REASON_SYNCHRONISED),
    ]
    assert reader.client.snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED], "expected the epoch to go on"


def test_messages_lost_by_the_broker_are_a_gap_until_the_book_is_known_to_go_on(
    scene: Scene,
) -> None:
    scene.begin().updates(2)
    scene.live.on_missed("messages are gone")
    assert scene.live.state == RESYNCING
    scene.live.on_snapshot(scene.book.snapshot())
    assert scene.live.state == SYNCED, "expected a snapshot to show that nothing is missing"
    scene.live.on_missed("messages are gone")
    scene.updates(1)
    assert scene.live.state == SYNCED
    scene.check(scene.open())


def test_troubles_that_overlap_are_told_each_and_end_with_the_last(scene: Scene) -> None:
    scene.begin()
    scene.live.set_silent("silent for 5 s")
    scene.live.set_broker_lost("gone")
    scene.live.set_silent("")
    scene.live.on_status(scene.book.resyncing())
    scene.live.set_broker_lost("")
    assert [state for state, _ in scene.told()] == [SYNCED, STALE, STALE, RESYNCING]
    scene.begin()
    assert scene.live.state == SYNCED


def test_resume_goes_on_without_a_snapshot_while_the_updates_are_held() -> None:
    scene = make_scene(max_events=64)
    scene.begin()
    reader = scene.open().read()
    for _ in range(40):
        scene.updates(1)
    places = (scene.book.epoch, reader.client.sequence)
    resumed = scene.live.open(places)
    assert resumed.resumed
    assert len(resumed.items) == 1, "expected the status only"
    again = Reader(scene.live, Opening((), resumed.position))
    again.client = reader.client
    scene.check(again)
    assert reader.client.snapshots == [S.SNAPSHOT_REASON_SUBSCRIBED]
    scene.updates(60)
    late = scene.open(places)
    assert late.client.snapshots == [S.SNAPSHOT_REASON_RESUME_TOO_OLD]
    scene.check(late)


@pytest.mark.parametrize("epochs", [-1, 1])
def test_resume_in_another_epoch_begins_anew(scene: Scene, epochs: int) -> None:
    scene.begin().updates(3)
    reader = scene.open((scene.book.epoch + epochs, 2))
    assert reader.client.snapshots == [S.SNAPSHOT_REASON_RESUME_TOO_OLD]
    scene.check(reader)


def test_resume_beyond_what_is_known_begins_anew(scene: Scene) -> None:
    scene.begin().updates(3)
    reader = scene.open((scene.book.epoch, 4))
    assert reader.client.snapshots == [S.SNAPSHOT_REASON_RESUME_TOO_OLD]


def test_resume_over_a_hole_gets_the_snapshot_that_closed_it(scene: Scene) -> None:
    scene.begin().updates(5)
    for _ in range(5):
        scene.book.update()
    scene.live.on_snapshot(scene.book.snapshot())
    scene.updates(2)
    for sequence in (5, 7, 10, 11, 12):
        reader = scene.live.open((scene.book.epoch, sequence))
        assert reader.resumed
        client = Reader(scene.live, Opening((), reader.position))
        if sequence >= 10:
            client.client.has_book = True
            client.client.epoch, client.client.sequence = scene.book.epoch, sequence
            client.read()
            assert client.client.sequence == 12
        else:
            scene.check(client)


def test_a_status_missed_while_away_is_told_at_the_resume(scene: Scene) -> None:
    scene.begin().updates(3)
    place = (scene.book.epoch, 3)
    scene.live.set_broker_lost("gone")
    reader = Reader(scene.live, scene.live.open(place))
    reader.client.has_book = True
    assert reader.client.state == STALE
    scene.live.set_broker_lost("")
    scene.updates(2)
    reader.client.epoch, reader.client.sequence = place
    reader.read()
    assert reader.client.state == SYNCED


def test_the_book_outlives_its_log() -> None:
    scene = make_scene(max_events=50, max_bytes=20_000)
    scene.begin()
    for _ in range(40):
        scene.updates(17)
        assert scene.live.log.end - scene.live.log.first <= 50
        assert scene.live.log.size <= 20_000
    scene.check(scene.open())
    answer = S.OrderBookSnapshot.FromString(scene.live.order_book(0, S.SNAPSHOT_REASON_REQUESTED))
    assert levels_of(answer) == scene.book.best()


def test_age_lets_go_of_events_but_not_of_what_the_book_is_made_of(scene: Scene) -> None:
    scene.begin().updates(100)
    scene.live.trim_to(scene.live.log.end)
    assert scene.live.log.first <= 2
    scene.live.on_snapshot(scene.book.snapshot())
    scene.live.trim_to(scene.live.log.end)
    assert scene.live.log.first == scene.live.log.end
    resumed = scene.live.open((scene.book.epoch, scene.book.sequence))
    assert resumed.resumed
    assert not scene.live.open((scene.book.epoch, scene.book.sequence - 1)).resumed
    scene.updates(1)
    scene.check(scene.open())


@pytest.mark.parametrize("seed", range(12))
def test_random_trouble_never_gives_a_subscriber_a_wrong_book_that_claims_to_be_right(
    seed: int,
) -> None:
    rng = random.Random(seed)
    scene = make_scene(max_events=rng.choice((16, 64, 500)), max_bytes=rng.choice((9000, 10**6)))
    scene.begin()
    readers = [scene.open()]
    truth = {(scene.book.epoch, scene.book.sequence): scene.book.best()}
    for _ in range(400):
        action = rng.random()
        if action < 0.75:
            payload = scene.book.update()
            fate = rng.random()
            if fate < 0.03:
                payload = b""
            elif fate < 0.06:
                payload = b"\xff" + payload
            if payload:
                scene.live.on_update(payload)
            if fate > 0.97:
                scene.live.on_update(payload)
        elif action < 0.80:
            scene.live.on_snapshot(scene.book.snapshot())
        elif action < 0.82:
            scene.live.on_status(scene.book.resyncing())
            scene.begin()
        elif action < 0.84:
            scene.live.set_broker_lost(rng.choice(("", "gone")))
        elif action < 0.86:
            scene.live.on_missed("gone")
        elif action < 0.90:
            scene.live.trim_to(rng.randrange(scene.live.log.end + 1))
        elif action < 0.95 and len(readers) < 20:
            resume = None
            if rng.random() < 0.5:
                old = rng.choice(readers).client
                resume = (old.epoch, max(old.sequence, 0))
                opening = scene.live.open(resume)
                if opening.resumed:
                    continue
                readers.append(Reader(scene.live, opening))
            else:
                readers.append(scene.open())
        truth[scene.book.epoch, scene.book.sequence] = scene.book.best()
        for reader in list(readers):
            if reader.position < scene.live.log.first:
                readers.remove(reader)
            elif rng.random() < 0.5:
                reader.read()
                if reader.client.has_book and scene.live.state == SYNCED:
                    assert reader.client.state == SYNCED
                    place = (reader.client.epoch, reader.client.sequence)
                    assert place == (scene.live.epoch, scene.live.sequence)
                    assert reader.client.best() == truth[place]
        if scene.live.has_levels:
            answer = S.OrderBookSnapshot.FromString(
                scene.live.order_book(0, S.SNAPSHOT_REASON_REQUESTED)
            )
            assert levels_of(answer) == truth[answer.epoch, answer.sequence]
    scene.live.set_broker_lost("")
    scene.live.on_snapshot(scene.book.snapshot())
    scene.updates(1)
    assert scene.live.state == SYNCED
    scene.check(scene.open())
    for reader in readers:
        if reader.position >= scene.live.log.first:
            scene.check(reader)


def test_a_book_that_was_put_together_outlives_the_status_after_it_in_the_log(
    scene: Scene,
) -> None:
    scene.begin().updates(3)
    scene.live.order_book(0, S.SNAPSHOT_REASON_REQUESTED)
    scene.live.set_silent("silent")
    scene.open()
    scene.live.set_silent("")
    scene.live.set_silent("silent")
    scene.live.trim_to(scene.live.log.end)
    scene.updates(1)
    snapshot = S.OrderBookSnapshot.FromString(scene.live.order_book(5, S.SNAPSHOT_REASON_REQUESTED))
    assert levels_of(snapshot) == scene.book.best(5)
