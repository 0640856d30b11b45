"""A subscription that says nothing is looked into, and a market that is quiet is left alone."""

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from marketprism.market.v1 import common_pb2

from services.collector.quiet import QuietWatch
from services.collector.settings import ExchangeSettings
from services.collector.topics import Topic, TopicState
from services.collector.venues.base import Subscription

_BOOK = common_pb2.EVENT_KIND_ORDER_BOOK
_TRADE = common_pb2.EVENT_KIND_TRADE
_TICKER = common_pb2.EVENT_KIND_TICKER
_INDEX = common_pb2.EVENT_KIND_INDEX_PRICE


class Connection:
    """One connection with topics that all stand."""

    def __init__(self, name: str, *subscriptions: Subscription) -> None:
        self.connection_id = name
        self.open_time = 1
        self.topics = SimpleNamespace(
            topics={each.topic: Topic(each, TopicState.ACTIVE, since=0.0) for each in subscriptions}
        )
        self.renewed: list[str] = []

    def renew(self, topic: str) -> bool:
        self.renewed.append(topic)
        return True

    def topic(self, name: str) -> Topic:
        found: Topic = self.topics.topics[name]
        return found


class Bench:
    """A watch whose clock, venue and answers are the test's."""

    def __init__(self, *connections: Connection, **settings: Any) -> None:
        self.now = 0.0
        self.connections = list(connections)
        self.best = (("9", "1"), ("10", "1"))
        levels = SimpleNamespace(best_bid=lambda: self.best[0], best_ask=lambda: self.best[1])
        self.feed = SimpleNamespace(
            book=SimpleNamespace(in_step=True, book=levels, receive_time=0),
            lanes=SimpleNamespace(names=["c"]),
            last_trade_time=0,
            last_top=SimpleNamespace(bid=("9", "1"), ask=("10", "1")),
        )
        self.last: dict[tuple[str, str], int] = {}
        self.looks: list[Callable[[bool | None], None]] = []
        self.trade_looks = 0
        self.silences: list[tuple[str, str, float]] = []
        self.watch = QuietWatch(
            ExchangeSettings(symbols=("*",), **settings),
            lambda connection, topic: self.last.get(
                (connection.connection_id, topic.subscription.topic), 0
            ),
            lambda native: self.feed if native == "X" else None,  # type: ignore[arg-type,return-value]
            lambda feed, done: self.looks.append(done),
            self._look_for_trades,
            lambda connection, topic, seconds: self.silences.append(
                (connection.connection_id, topic.subscription.topic, seconds)
            ),
            lambda: self.now,
        )
        self.look()

    def _look_for_trades(self, feed: object) -> None:
        self.trade_looks += 1

    def look(self) -> None:
        self.watch.look(self.connections)  # type: ignore[arg-type]

    def wait(self, seconds: float, step: float = 0.5) -> None:
        for _ in range(round(seconds / step)):
            self.now += step
            self.look()

    def hear(self, connection: str, topic: str) -> None:
        self.last[connection, topic] = self.last.get((connection, topic), 0) + 1


def ticker(topic: str = "ticker", quiet: float = 10.0) -> Subscription:
    return Subscription(topic, (_TICKER,), "X", quiet_seconds=quiet)


def book() -> Subscription:
    return Subscription("book", (_BOOK,), "X", quiet_seconds=10.0)


def trades() -> Subscription:
    return Subscription("trades", (_TRADE,), "X")


def test_what_speaks_is_left_alone() -> None:
    one = Connection("c", ticker(), book(), trades())
    bench = Bench(one)
    for _ in range(40):
        bench.wait(9.0)
        for topic in ("ticker", "book", "trades"):
            bench.hear("c", topic)
        bench.look()
    assert (one.renewed, bench.looks, bench.trade_looks) == ([], [], 0)


def test_a_subscription_that_ought_to_speak_is_begun_anew() -> None:
    one = Connection("c", ticker(), ticker("other"))
    bench = Bench(one)
    bench.wait(9.5)
    bench.hear("c", "other")
    bench.wait(0.5)
    assert one.renewed == ["ticker"]
    assert bench.silences == [("c", "ticker", 10.0)]
    assert (bench.watch.renewals, bench.watch.probes) == (1, 0)


def test_the_settings_say_how_long_is_too_long_for_everything() -> None:
    one = Connection("c", ticker(quiet=10.0), trades(), Subscription("rare", (_TICKER,), "X"))
    bench = Bench(one, quiet_seconds=2.0)
    bench.wait(2.0)
    assert one.renewed == ["ticker"]
    assert bench.trade_looks == 0
    bench.wait(6.0)
    assert bench.trade_looks == 1, "trades are given four times as long"
    assert "rare" not in one.renewed, "what may be silent for ever is never begun anew"


def changes(kind: "common_pb2.EventKind.ValueType") -> Subscription:
    return Subscription("changes", (kind,), "X")


def test_a_ticker_that_tells_only_changes_is_begun_anew_when_trades_come_without_it() -> None:
    one = Connection("c", changes(_TICKER))
    bench = Bench(one)
    bench.wait(300.0)
    assert one.renewed == [], "without a trade there is nothing to tell"
    bench.feed.last_trade_time = 1
    bench.wait(30.0)
    bench.hear("c", "changes")
    bench.wait(300.0)
    assert one.renewed == [], "it told the trade"
    bench.feed.last_trade_time = 2
    bench.wait(59.0)
    assert one.renewed == []
    bench.wait(20.0)
    assert one.renewed == ["changes"]


def test_a_best_bid_and_offer_that_is_not_the_books_for_long_is_begun_anew() -> None:
    one = Connection("c", changes(common_pb2.EVENT_KIND_BEST_BID_OFFER))
    bench = Bench(one)
    bench.wait(300.0)
    assert one.renewed == [], "it told what the book says"
    told, bench.best = bench.best, (("9", "2"), ("10", "1"))
    bench.wait(40.0)
    bench.best = told
    bench.wait(300.0)
    assert one.renewed == [], "the book came back to it"
    bench.best = (("9", "2"), ("10", "1"))
    bench.feed.book.in_step = False
    bench.wait(300.0)
    assert one.renewed == [], "a book that is out of step says nothing"
    bench.feed.book.in_step = True
    bench.wait(80.0)
    assert one.renewed == ["changes"]


def test_a_best_bid_and_offer_that_never_came_is_begun_anew() -> None:
    one = Connection("c", changes(common_pb2.EVENT_KIND_BEST_BID_OFFER))
    bench = Bench(one, quiet_seconds=2.0)
    bench.feed.last_top = None
    bench.wait(3.0)
    assert one.renewed == ["changes"]


def test_what_brings_no_kind_at_all_is_left_alone() -> None:
    one = Connection("c", Subscription("instrument.state", (), ""))
    bench = Bench(one, quiet_seconds=1.0)
    bench.wait(100.0)
    assert one.renewed == []


def test_what_is_about_no_instrument_is_begun_anew_too() -> None:
    one = Connection("c", Subscription("index", (_INDEX,), quiet_seconds=5.0))
    bench = Bench(one)
    bench.wait(5.0)
    assert one.renewed == ["index"]


def renewals(bench: Bench, connection: Connection, topic: str, seconds: float) -> list[float]:
    """Times at which a topic was begun anew, which takes the venue two seconds each time."""
    times: list[float] = []
    known = len(connection.renewed)
    begun = 0.0
    for _ in range(round(seconds / 0.5)):
        bench.now += 0.5
        found = connection.topic(topic)
        if len(connection.renewed) > known:
            known = len(connection.renewed)
            times.append(bench.now - 0.5)
            found.state = TopicState.LEAVING
            begun = bench.now
        elif found.state is TopicState.LEAVING and bench.now - begun >= 2.0:
            found.state, found.since = TopicState.ACTIVE, bench.now
        bench.look()
    return times


def test_where_beginning_anew_does_not_help_the_next_time_comes_twice_as_late() -> None:
    one = Connection("c", ticker())
    bench = Bench(one)
    times = renewals(bench, one, "ticker", 1000.0)
    pauses = [round(b - a) for a, b in pairwise(times)]
    assert times[0] == 10.0
    assert pauses[:5] == [22, 42, 82, 162, 322], "two seconds to begin anew, and its patience"


def test_patience_is_bounded_and_forgotten_when_it_speaks() -> None:
    one = Connection("c", ticker())
    bench = Bench(one)
    times = renewals(bench, one, "ticker", 4000.0)
    assert round(times[-1] - times[-2]) == 322
    bench.hear("c", "ticker")
    bench.look()
    spoke = bench.now
    assert renewals(bench, one, "ticker", 12.0) == [spoke + 10.0]


def test_a_new_connection_is_given_the_time_of_a_new_one() -> None:
    one = Connection("c", ticker())
    bench = Bench(one)
    bench.wait(9.0)
    one.topic("ticker").since = bench.now
    bench.wait(9.5)
    assert one.renewed == []


def test_what_is_not_acknowledged_is_not_waited_for() -> None:
    one = Connection("c", ticker())
    one.topic("ticker").state = TopicState.ASKED
    bench = Bench(one)
    bench.wait(100.0)
    assert one.renewed == [], "the connection itself sees to that"


def test_a_connection_that_is_down_is_not_waited_for() -> None:
    one = Connection("c", ticker(), book())
    bench = Bench(one)
    bench.wait(5.0)
    one.open_time = 0
    bench.wait(100.0)
    assert (one.renewed, bench.silences, bench.looks) == ([], [], [])


def test_each_of_two_connections_has_to_speak() -> None:
    one, two = Connection("one", ticker()), Connection("two", ticker())
    bench = Bench(one, two)
    for _ in range(21):
        bench.wait(0.5)
        bench.hear("one", "ticker")
    assert (one.renewed, two.renewed) == ([], ["ticker"])


def test_a_connection_that_is_gone_is_forgotten() -> None:
    one = Connection("c", ticker())
    bench = Bench(one)
    bench.connections.clear()
    bench.look()
    assert (bench.watch._watched, bench.watch._told) == ({}, {})


# Books


def test_a_silent_book_is_held_against_the_venue_and_left_alone_when_it_is_right() -> None:
    one = Connection("c", book())
    bench = Bench(one)
    bench.wait(10.0)
    assert (len(bench.looks), one.renewed, bench.watch.probes) == (1, [], 1)
    bench.looks[0](True)
    bench.wait(19.5)
    assert len(bench.looks) == 1
    bench.wait(0.5)
    assert len(bench.looks) == 2, "a quiet market is looked at half as often"
    bench.looks[1](None)
    assert one.renewed == [], "no answer is no disagreement"


def test_a_silent_book_that_the_venue_is_ahead_of_is_begun_anew() -> None:
    one = Connection("c", book())
    bench = Bench(one)
    bench.wait(10.0)
    bench.looks[0](False)
    assert one.renewed == ["book"]
    assert bench.silences == [("c", "book", 10.0)]


def test_an_answer_that_comes_when_the_subscription_has_ended_changes_nothing() -> None:
    one = Connection("c", book())
    bench = Bench(one)
    bench.wait(10.0)
    one.topic("book").state = TopicState.LEAVING
    bench.looks[0](False)
    assert one.renewed == []


def test_a_book_that_is_not_in_step_has_nothing_to_compare_and_begins_anew() -> None:
    one = Connection("c", book())
    bench = Bench(one)
    bench.feed.book.in_step = False
    bench.wait(10.0)
    assert (bench.looks, one.renewed) == ([], ["book"])


def test_a_book_that_only_the_other_connection_tells_is_begun_anew_where_it_is_silent() -> None:
    """Held against the venue it is right: the other one sees to that, as long as it lives."""
    one, two = Connection("one", book()), Connection("two", book())
    bench = Bench(one, two)
    bench.feed.lanes.names = ["one", "two"]
    bench.last["two", "book"] = 1
    for number in range(2, 25):
        bench.wait(0.5)
        bench.last["one", "book"] = bench.feed.book.receive_time = number
        bench.look()
    assert (one.renewed, two.renewed) == ([], ["book"])
    assert bench.looks == []


def test_a_change_that_the_other_connection_told_a_moment_ago_proves_nothing() -> None:
    one, two = Connection("one", book()), Connection("two", book())
    bench = Bench(one, two)
    bench.feed.lanes.names = ["one", "two"]
    bench.wait(9.5)
    bench.last["one", "book"] = bench.feed.book.receive_time = 5
    bench.wait(0.5)
    bench.last["two", "book"] = 6
    bench.wait(5.0)
    assert (one.renewed, two.renewed) == ([], [])


# Trades


def test_silent_trades_are_looked_for_at_the_venue_less_and_less_often() -> None:
    one = Connection("c", trades())
    bench = Bench(one)
    bench.wait(119.5)
    assert bench.trade_looks == 0
    bench.wait(0.5)
    assert (bench.trade_looks, one.renewed) == (1, []), "a market without trades is no fault"
    bench.wait(239.5)
    assert bench.trade_looks == 1
    bench.wait(0.5)
    assert bench.trade_looks == 2
    bench.hear("c", "trades")
    bench.wait(0.5)
    bench.wait(120.0)
    assert bench.trade_looks == 3
