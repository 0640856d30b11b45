"""What a lease's changes do: nothing is told of what others have, nothing is lost on the way."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any

import pytest

from services.collector.leases import LeaseChange, LeaseSettings
from services.collector.leases_group import slot_of
from services.collector.sharing import Sharing

SLOTS = 4
NAMES = {slot_of(f"S{number}-USDT", SLOTS): f"S{number}-USDT" for number in range(100)}
"""A symbol of each slot."""


class World:
    """Manager, publisher and venue in one: notes what is asked of it, in order."""

    exchange = "okx"
    is_confirmed = True

    def __init__(self) -> None:
        self.done: list[str] = []
        self.subjects: list[str] = []
        self.settles = True
        self.shared = asyncio.Event()
        self.stopped: Callable[[], None] = lambda: None
        self.held: frozenset[int] = frozenset()
        self.tasks: list[asyncio.Task[Any]] = []
        settings = LeaseSettings(enabled=True, slots=SLOTS)
        self.sharing = Sharing(
            "nats://127.0.0.1:1", "me", ["okx"], settings, [self], self.spawn  # type: ignore[list-item]
        )  # fmt: skip
        self.sharing.manager = self  # type: ignore[assignment]
        self.sharing.publisher = self  # type: ignore[assignment]

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]

    def change(self, **slots: set[int]) -> None:
        sets = {name: frozenset(each) for name, each in slots.items()}
        empty: frozenset[int] = frozenset()
        self.held = sets.get("assigned", self.held)
        self.sharing._on_change(
            LeaseChange(
                "okx", self.held, sets.get("gained", empty), empty,
                sets.get("handed_over", empty), sets.get("lost", empty),
            )
        )  # fmt: skip

    async def idle(self) -> None:
        async with asyncio.timeout(5):
            await asyncio.gather(*self.tasks)

    # Manager

    def slot_of(self, exchange: str, symbol: str) -> int:
        return slot_of(symbol, SLOTS)

    def assigned(self, exchange: str) -> frozenset[int]:
        return self.held

    def release_done(self, exchange: str, slots: frozenset[int]) -> None:
        self.done.append(f"release {sorted(slots)}")

    async def stop(self) -> None:
        self.stopped()
        await asyncio.sleep(0)
        self.done.append("stop")

    # Publisher

    async def settle(self, seconds: float) -> bool:
        self.done.append("settle")
        return self.settles

    def discard(self, concerns: Callable[[str], bool]) -> int:
        gone = [subject for subject in self.subjects if concerns(subject)]
        self.done.append(f"discard {len(gone)}")
        self.subjects = [subject for subject in self.subjects if subject not in gone]
        return len(gone)

    def resume(self) -> None:
        self.done.append("resume")

    # Venue and its roster

    @property
    def roster(self) -> "World":
        return self

    def note_shares(self, slots: int, assigned: Iterable[int], now: int) -> None:
        self.done.append(f"note {slots} {sorted(assigned)}")

    async def share(self) -> None:
        await self.shared.wait()
        self.done.append("share")

    def give_up(self, is_lost: Callable[[str], bool], *, told: bool = False) -> None:
        lost = [slot for slot, symbol in sorted(NAMES.items()) if is_lost(symbol)]
        self.done.append(f"give up {lost}{' telling' if told else ''}")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)


def test_only_what_is_assigned_is_collected() -> None:
    world = World()
    world.held = frozenset({1, 3})
    ours = [slot for slot, symbol in NAMES.items() if world.sharing.shares("okx", symbol)]
    assert sorted(ours) == [1, 3]


async def test_what_is_gained_is_begun(world: World) -> None:
    world.change(assigned={0, 1}, gained={0, 1})
    world.shared.set()
    await world.idle()
    assert world.done == ["note 4 [0, 1]", "share"]


async def test_what_is_handed_over_is_ended_and_stored_before_it_is_released(world: World) -> None:
    world.change(assigned={1}, handed_over={0})
    await asyncio.sleep(0)
    assert world.done == ["note 4 [1]"], "nothing is released before it has ended"
    world.shared.set()
    await world.idle()
    assert world.done[1:] == ["share", "settle", "release [0]"]


async def test_what_a_slow_broker_did_not_store_is_given_up_before_it_is_released(
    world: World,
) -> None:
    """It would be stored behind what the next collector tells."""
    world.settles = False
    world.subjects = [
        f"market.trade.okx.{NAMES[0]}",
        f"market.trade.okx.{NAMES[1]}",
        f"market.integrity.okx.{NAMES[0]}",
        f"market.trade.binance.{NAMES[0]}",
        "market.integrity.okx",
    ]
    world.shared.set()
    world.change(assigned={1}, handed_over={0})
    await world.idle()
    assert world.done[1:] == ["share", "settle", "discard 1", "release [0]"]
    assert f"market.trade.okx.{NAMES[0]}" not in world.subjects


async def test_of_what_is_lost_nothing_more_is_let_out_at_once(world: World) -> None:
    world.subjects = [f"market.{kind}.okx.{NAMES[2]}" for kind in ("trade", "ticker", "integrity")]
    world.change(assigned={1}, lost={2, 3})
    assert world.done == ["note 4 [1]", "give up [2, 3]", "discard 2"]
    assert world.subjects == [f"market.integrity.okx.{NAMES[2]}"]
    world.shared.set()
    await world.idle()
    assert "settle" not in world.done


async def test_who_leaves_ends_tells_and_stores_everything_before_it_goes(world: World) -> None:
    world.stopped = lambda: world.change(assigned=set(), handed_over={0, 1})
    assert world.sharing.may_publish()
    world.is_confirmed = False
    assert not world.sharing.may_publish()
    await world.sharing.leave()
    assert world.done == [
        "note 4 []", "give up [0, 1] telling", "settle", "release [0, 1]", "stop",
    ]  # fmt: skip
    assert world.sharing.may_publish(), "what is left is the ledger's"


async def test_a_slow_broker_gets_nothing_more_of_what_was_left(world: World) -> None:
    world.settles = False
    world.subjects = [f"market.trade.okx.{NAMES[0]}"]
    world.stopped = lambda: world.change(assigned=set(), handed_over={0, 1})
    await world.sharing.leave()
    assert world.subjects == []


def test_what_waited_for_the_lease_goes_out_when_it_is_renewed() -> None:
    world = World()
    world.sharing._on_suspended(True)
    assert world.done == []
    world.sharing._on_suspended(False)
    assert world.done == ["resume"]


async def test_a_change_of_an_exchange_that_is_not_collected_means_nothing(world: World) -> None:
    world.exchange = "deribit"
    world.change(assigned={1}, lost={2})
    assert (world.done, world.tasks) == ([], [])
