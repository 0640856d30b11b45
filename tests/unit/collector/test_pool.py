"""Subscriptions are shared out among connections, which are replaced without anything missing."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Any

import pytest
from marketprism.market.v1 import common_pb2

from services.collector.pool import ConnectionPool
from services.collector.settings import ExchangeSettings
from services.collector.venues.base import ConnectionRules, Subscription
from tests.integration.nats_tools import until

_KINDS = (common_pb2.EVENT_KIND_ORDER_BOOK,)


class Connection:
    """Stands for a connection: the test says what the venue does."""

    made: "list[Connection]"

    def __init__(
        self,
        connection_id: str,
        _adapter: object,
        _settings: object,
        _handler: object,
        *,
        route: str,
        connects: object,
    ) -> None:
        self.connection_id = connection_id
        self.route = route
        self.topics: list[str] = []
        self.active: set[str] = set()
        self.refused: set[str] = set()
        self.renewed: list[str] = []
        self.is_open = False
        self.age = 0.0
        self.open_time = 0
        self.running = False
        self.slow_end: asyncio.Event | None = None
        Connection.made.append(self)

    @property
    def settled(self) -> bool:
        return self.is_open and self.active | self.refused >= set(self.topics)

    def is_active(self, topic: str) -> bool:
        return topic in self.active

    def add(self, subscriptions: Iterable[Subscription]) -> None:
        self.topics += [each.topic for each in subscriptions]

    def remove(self, topics: Iterable[str]) -> None:
        for topic in topics:
            self.topics.remove(topic)
            self.active.discard(topic)

    def renew(self, topic: str) -> bool:
        self.renewed.append(topic)
        return topic in self.active

    async def run(self) -> None:
        self.running = True
        try:
            await asyncio.Event().wait()
        finally:
            if self.slow_end is not None:
                await self.slow_end.wait()
            self.running = False

    def open(self, *, refused: Iterable[str] = ()) -> None:
        """The venue lets it in and acknowledges everything but what is refused."""
        self.is_open = True
        self.refused = set(refused)
        self.active = set(self.topics) - self.refused
        self.open_time = time.time_ns()


class Adapter:
    connection_rules = ConnectionRules(topics=3, request_seconds=0.1, life_seconds=1000.0)


class Bench:
    """A pool whose connections are the test's. It is its handler."""

    def __init__(self, **settings: Any) -> None:
        Connection.made = []
        self.aligned = True
        self.rolled: list[tuple[str, str, str]] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.pool = ConnectionPool(
            "venue",
            Adapter(),  # type: ignore[arg-type]
            ExchangeSettings(symbols=("*",), **settings),
            self,  # type: ignore[arg-type]
            self.spawn,
        )

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        self.tasks.append(asyncio.create_task(work, name=name))
        return self.tasks[-1]

    def is_aligned(self, connection: Connection) -> bool:
        return self.aligned

    def on_rolled_over(self, old: Connection, new: Connection, reason: str, now: int) -> None:
        self.rolled.append((old.connection_id, new.connection_id, reason))

    @property
    def connections(self) -> list[Connection]:
        return self.pool.connections  # type: ignore[return-value]

    def add(self, *topics: str, route: str = "") -> None:
        self.pool.add(Subscription(topic, _KINDS, route=route) for topic in topics)

    def told(self) -> dict[str, list[str]]:
        return {each.connection_id: each.topics for each in self.connections}

    def connection(self, name: str) -> Connection:
        return next(each for each in Connection.made if each.connection_id == name)

    async def turns(self, count: int = 5) -> None:
        """Let the pool look after everything a few times."""
        turned = asyncio.Event()
        look, seen = self.pool._look_after, 0

        async def noted(shard: Any) -> None:
            nonlocal seen
            await look(shard)
            seen += 1
            if seen >= count:
                turned.set()

        self.pool._look_after = noted  # type: ignore[method-assign]
        async with asyncio.timeout(5):
            await turned.wait()
        self.pool._look_after = look  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.collector.pool.VenueConnectionTask", Connection)
    monkeypatch.setattr("services.collector.pool._TURN_SECONDS", 0.002)
    monkeypatch.setattr("services.collector.pool.random.uniform", lambda *_: 1.0)


@contextlib.asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[Bench]:
    bench = Bench(**settings)
    owner = asyncio.create_task(bench.pool.run())
    await asyncio.sleep(0)  # to its first wait
    try:
        yield bench
    finally:
        owner.cancel()
        await asyncio.wait([owner, *bench.tasks], timeout=5)
        assert all(task.done() for task in (owner, *bench.tasks)), "every connection has ended"


# Sharing out


async def test_a_connection_is_given_no_more_than_the_venue_allows() -> None:
    async with running() as bench:
        bench.add("a", "b", "c", "d", "e")
        bench.add("f", "a")
        assert bench.told() == {"venue-1": ["a", "b", "c"], "venue-2": ["d", "e", "f"]}
        await until(lambda: all(each.running for each in bench.connections), "all are kept")


async def test_settings_may_be_stricter_than_the_venue_but_not_laxer() -> None:
    async with running(topics_per_connection=2) as strict, running(topics_per_connection=9) as lax:
        for bench in (strict, lax):
            bench.add("a", "b", "c", "d")
        assert [len(topics) for topics in strict.told().values()] == [2, 2]
        assert [len(topics) for topics in lax.told().values()] == [3, 1]


async def test_each_route_of_the_venue_has_connections_of_its_own() -> None:
    async with running() as bench:
        bench.add("a", "b", route="public")
        bench.add("c", "d", route="market")
        bench.add("e", "f", route="public")
        assert [(each.route, each.topics) for each in bench.connections] == [
            ("public", ["a", "b", "e"]),
            ("market", ["c", "d"]),
            ("public", ["f"]),
        ]
        assert [each.connection_id for each in bench.connections] == [
            "venue-public-1",
            "venue-market-2",
            "venue-public-3",
        ]


async def test_what_was_removed_makes_room_and_a_connection_without_any_ends() -> None:
    async with running() as bench:
        bench.add("a", "b", "c", "d")
        await until(lambda: all(each.running for each in bench.connections), "all are kept")
        last = bench.connection("venue-2")
        bench.pool.remove(["b", "d", "stranger"])
        await until(lambda: not last.running, "the connection without subscriptions ends")
        assert bench.told() == {"venue-1": ["a", "c"]}
        bench.add("e", "f")
        assert bench.told() == {"venue-1": ["a", "c", "e"], "venue-3": ["f"]}
        assert bench.pool.connections_of("d") == []


async def test_a_connection_that_is_wanted_again_at_once_is_kept() -> None:
    async with running() as bench:
        bench.add("a")
        bench.pool.remove(["a"])
        bench.add("b")
        await bench.turns()
        assert bench.told() == {"venue-1": ["b"]}


async def test_a_subscription_is_renewed_where_it_stands() -> None:
    async with running(redundancy=2) as bench:
        bench.add("a")
        first, second = bench.connections
        assert not bench.pool.renew("a"), "neither has it yet"
        second.open()
        assert bench.pool.renew("a")
        assert not bench.pool.renew("stranger")
        assert (first.renewed, second.renewed) == (["a", "a"], ["a", "a"])
        first.open()
        assert bench.pool.renew("a")
        assert len(second.renewed) == 2, "one at a time: the other one goes on"


# Rolling over


async def test_a_successor_takes_over_once_everything_flows_on_it() -> None:
    async with running(overlap_seconds=60) as bench:
        bench.add("a", "b")
        old = bench.connection("venue-1")
        old.open()
        bench.aligned = False
        bench.pool.roll_over(old, "told to")  # type: ignore[arg-type]
        bench.pool.roll_over(old, "told twice")  # type: ignore[arg-type]
        assert bench.told() == {"venue-1": ["a", "b"], "venue-1.2": ["a", "b"]}
        new = bench.connection("venue-1.2")
        bench.add("c")
        await bench.turns()
        assert bench.rolled == [], "it is not even open"
        new.is_open = True
        await bench.turns()
        assert bench.rolled == [], "nothing is acknowledged"
        new.open()
        await bench.turns()
        assert bench.rolled == [], "the books do not go on from it yet"
        bench.aligned = True
        await until(lambda: bench.rolled, "it takes over")
        assert bench.rolled == [("venue-1", "venue-1.2", "told to")]
        await until(lambda: not old.running, "the old one ends")
        assert bench.told() == {"venue-1.2": ["a", "b", "c"]}
        assert bench.pool.rollovers == 1
        assert new.running


async def test_a_successor_that_is_refused_what_the_old_one_has_is_given_time() -> None:
    async with running(overlap_seconds=60) as bench:
        bench.add("a", "b", "c")
        old = bench.connection("venue-1")
        old.open(refused=["c"])
        bench.pool.roll_over(old, "told to")  # type: ignore[arg-type]
        new = bench.connection("venue-1.2")
        new.open(refused=["b", "c"])
        await bench.turns()
        assert bench.rolled == []
        new.open(refused=["c"])
        await until(lambda: bench.rolled, "what neither has does not hold it up")


async def test_the_old_one_waits_no_longer_than_the_overlap() -> None:
    async with running(overlap_seconds=0.02) as bench:
        bench.add("a", "b")
        old = bench.connection("venue-1")
        old.open()
        bench.aligned = False
        bench.pool.roll_over(old, "told to")  # type: ignore[arg-type]
        new = bench.connection("venue-1.2")
        new.open(refused=["b"])
        await until(lambda: bench.rolled, "it takes over when the time is up")


async def test_a_successor_that_cannot_open_leaves_the_old_one_alone() -> None:
    async with running(overlap_seconds=0.01) as bench:
        bench.add("a")
        old = bench.connection("venue-1")
        old.open()
        bench.pool.roll_over(old, "told to")  # type: ignore[arg-type]
        await bench.turns(20)
        assert bench.rolled == []
        assert old.running
        old.is_open = False
        await bench.turns()
        assert old.running, "both try to open"
        old.open()
        await bench.turns()
        assert bench.rolled == []
        bench.connection("venue-1.2").open()
        await until(lambda: bench.rolled, "it takes over when it can at last")


async def test_when_the_old_one_dies_during_the_overlap_the_successor_takes_over_at_once() -> None:
    async with running(overlap_seconds=60) as bench:
        bench.add("a")
        old = bench.connection("venue-1")
        old.open()
        bench.aligned = False
        bench.pool.roll_over(old, "told to")  # type: ignore[arg-type]
        bench.connection("venue-1.2").is_open = True
        await bench.turns()
        old.is_open = False
        await until(lambda: bench.rolled, "the successor takes over, whatever it has by then")
        await until(lambda: not old.running, "the old one does not come back")


async def test_an_old_connection_is_replaced_before_the_venue_ends_it() -> None:
    async with running(overlap_seconds=60) as bench:
        bench.add("a")
        old = bench.connection("venue-1")
        old.open()
        old.age = 979.0
        await bench.turns()
        assert len(Connection.made) == 1
        due = bench.pool.rollover_time(old)  # type: ignore[arg-type]
        assert due == old.open_time + 980 * 10**9
        old.age = 981.0
        await until(lambda: len(Connection.made) == 2, "a successor is opened")
        Connection.made[1].open()
        await until(lambda: bench.rolled, "it takes over")
        assert bench.rolled[0][2] == "it is 981 s old"


async def test_of_two_connections_one_at_a_time_is_replaced_for_its_age() -> None:
    async with running(redundancy=2, rollover_seconds=10, overlap_seconds=60) as bench:
        bench.add("a")
        first, second = bench.connections
        for each in (first, second):
            each.open()
            each.age = 11.0
        await bench.turns()
        assert bench.told() == {"venue-1": ["a"], "venue-1.3": ["a"], "venue-1.2": ["a"]}
        bench.connection("venue-1.3").open()
        await until(lambda: len(bench.rolled) == 1, "the first is replaced")
        await until(lambda: len(Connection.made) == 4, "then the second one's turn comes")
        bench.connection("venue-1.4").open()
        await until(lambda: len(bench.rolled) == 2, "it is replaced too")
        assert list(bench.told()) == ["venue-1.3", "venue-1.4"]
        await until(lambda: not first.running and not second.running, "both have ended")


async def test_both_connections_may_be_replaced_when_the_venue_ends_both() -> None:
    async with running(redundancy=2, overlap_seconds=60) as bench:
        bench.add("a")
        first, second = bench.connections
        for each in (first, second):
            each.open()
            bench.pool.roll_over(each, "the venue ends it")  # type: ignore[arg-type]
        for name in ("venue-1.3", "venue-1.4"):
            bench.connection(name).open()
        await until(lambda: len(bench.rolled) == 2, "both are replaced")


async def test_nothing_is_left_of_a_rollover_when_all_was_removed_meanwhile() -> None:
    async with running(overlap_seconds=60) as bench:
        bench.add("a")
        old = bench.connection("venue-1")
        old.open()
        bench.pool.roll_over(old, "told to")  # type: ignore[arg-type]
        await until(lambda: all(each.running for each in Connection.made), "both are kept")
        bench.pool.remove(["a"])
        await until(lambda: not any(each.running for each in Connection.made), "both end")
        assert bench.connections == []


async def test_the_pool_ends_while_it_waits_for_the_end_of_a_connection() -> None:
    bench = Bench()
    owner = asyncio.create_task(bench.pool.run())
    bench.add("a", "b", "c", "d")
    await until(lambda: all(each.running for each in bench.connections), "all are kept")
    slow = bench.connection("venue-2")
    slow.slow_end = asyncio.Event()
    bench.pool.remove(["d"])
    await until(lambda: len(bench.connections) == 1, "the pool waits for its end")
    owner.cancel()
    await asyncio.wait([owner], timeout=5)
    slow.slow_end.set()
    await asyncio.wait(bench.tasks, timeout=5)
    assert owner.cancelled(), "expected the pool to end with its task"
    assert not any(each.running for each in Connection.made)
