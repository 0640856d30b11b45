"""Leases: never two publishers of an instrument, and none no longer than a lease and a little."""

from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from services.collector.leases_plan import HOLD_SHARE
from tests.unit.collector.lease_world import LEASE, RENEW, SYMBOLS, Collector, World

SLOWEST = 0.8
"""Rate of the slowest clock in the world."""

TIMEOUT_AND_MORE = 2.0
"""Seconds until a request that was lost is given up and made again."""

RECOVERY = (LEASE + 2 * RENEW) / SLOWEST + 1.0
"""Seconds in which everything has to be collected again, on any clock of the world."""


def _step(world: World) -> None:
    """Do something to somebody."""
    random = world.random
    some: Collector | None = random.choice(world.collectors) if world.collectors else None
    names = {c.name for c in world.collectors}
    actions: list[Callable[[], object]] = [lambda: None]
    if len(names) < 4:
        name = random.choice([n for n in "abcde" if n not in names])
        slots = random.choice([8, 8, 5])
        exchanges = random.choice([("x",), ("x", "y"), ("y",)])
        actions += [lambda: world.join(name, slots=slots, exchanges=exchanges)] * 3
    if some is not None:
        actions += [
            lambda: world.kill(some),
            lambda: world.freeze(some, random.uniform(0.1, 15)),
            lambda: world.freeze(some, random.uniform(0.1, 4)),
            lambda: some.member.leave(),
            # A supervisor starts it again at once, while it may still look alive.
            lambda: (
                world.kill(some),
                world.join(some.name, exchanges=tuple(some.member._exchanges)),
            ),
            # Two are given the same name.
            lambda: world.join(some.name),
        ]
    actions += [
        lambda: setattr(world, "loss", random.choice([0.0, 0.1, 0.4])),
        lambda: setattr(world, "slow", random.choice([0.0, 0.1, 0.5])),
        lambda: setattr(world, "reachable", False),
        lambda: setattr(world, "reachable", True),
        lambda: setattr(world, "reachable", True),
        lambda: world.restart_broker(),
        lambda: world.store.delete() if random.random() < 0.5 else None,
        lambda: (world.restart_broker(), world.store.recreate()) if random.random() < 0.5 else None,
    ]
    random.choice(actions)()


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_whatever_happens_an_instrument_has_one_publisher_at_the_most(seed: int) -> None:
    world = World(seed)
    world.sees_deaths = world.random.random() < 0.5
    for _ in range(world.random.randint(5, 25)):
        _step(world)
        world.run(world.random.choice([0.05, 0.5, 2.0, 6.0]))
    # Everybody who was sent away or shares a name with another leaves the stage, then it is quiet.
    world.heal()
    for collector in list(world.collectors):
        others = [c for c in world.collectors if c is not collector and c.name == collector.name]
        if collector.member._leaving or others:
            world.kill(collector)
    last = world.join("last", exchanges=("x", "y"))
    world.run(3 * RECOVERY)
    assert not world.nobody("x"), "expected every instrument to be published again"
    assert not world.nobody("y")
    assert all(c.member.joined for c in world.collectors)
    assert last.member.group is not None
    for exchange, slots in last.member.group.exchanges.items():
        assert all(slots.owners), f"expected every slot of {exchange} to be held"
        live = {c.name for c in world.collectors}
        assert set(slots.owners) <= live, "expected only those who live to hold slots"


def _settled(*names: str, seed: int = 1, **more: int) -> tuple[World, list[Collector]]:
    """Give a world in which these share everything."""
    world = World(seed, **more)
    collectors = [world.join(name) for name in names]
    world.run(RECOVERY)
    assert not world.nobody()
    return world, collectors


def _fences(collectors: list[Collector]) -> dict[int, int]:
    return {slot: c.member.fence("x", slot) for c in collectors for slot in c.member.assigned("x")}


def _longest_without(world: World, seconds: float) -> float:
    """Let time pass and give how long some instrument had no publisher, at most."""
    longest, since = 0.0, None
    end = world.now + seconds
    while world.now < end:
        if not world.nobody():
            since = None
        elif since is None:
            since = world.now
        if since is not None:
            longest = max(longest, world.now - since)
        world.run(0.05)
    return longest


def test_the_slots_of_the_dead_are_taken_over_within_the_lease() -> None:
    world, (a, b, c) = _settled("a", "b", "c")
    before = {name: m.member.assigned("x") for name, m in (("b", b), ("c", c))}
    world.kill(a)
    assert _longest_without(world, 3 * LEASE) < (LEASE + RENEW) / SLOWEST
    assert before["b"] < b.member.assigned("x"), "expected b to keep what it had"
    assert before["c"] < c.member.assigned("x")
    assert b.member.taken_over + c.member.taken_over == 8 - sum(map(len, before.values()))
    assert b.member.removed + c.member.removed == 1, "expected one of them to be the first"


def test_the_end_of_a_process_on_the_same_machine_is_seen_at_once() -> None:
    world, (a, _, _) = _settled("a", "b", "c")
    world.sees_deaths = True
    world.kill(a)
    assert _longest_without(world, LEASE) < RENEW / SLOWEST + 0.2


def test_a_killed_collector_that_comes_back_gets_its_slots_when_its_old_life_is_over() -> None:
    world, (a,) = _settled("a")
    fences = _fences([a])
    world.kill(a)
    again = world.join("a")
    world.run(0.5 * LEASE)
    assert not again.member.joined
    assert "less than a lease ago" in again.member.problem
    world.run(RECOVERY)
    assert not world.nobody()
    assert all(fence > fences[slot] for slot, fence in _fences([again]).items())


def test_a_frozen_collector_publishes_nothing_when_it_goes_on() -> None:
    world, (a, b, c) = _settled("a", "b", "c")
    had = a.member.assigned("x")
    world.freeze(a, 4 * LEASE)
    world.run(4 * LEASE - 0.01)
    assert not world.nobody(), "expected the others to have taken over"
    assert not any(a.may_publish("x", symbol) for symbol in SYMBOLS)
    assert a.member.assigned("x") == had, "expected that it could not learn of it yet"
    world.run(RECOVERY)
    assert a.member.lost == 1
    assert a.member.joined, "expected it to come back"
    assert {n.name for n in (a, b, c) if n.member.assigned("x")} == {"a", "b", "c"}


def test_a_short_pause_costs_nothing() -> None:
    world, collectors = _settled("a", "b", "c")
    fences = _fences(collectors)
    world.freeze(collectors[0], 0.5 * HOLD_SHARE * LEASE)
    assert _longest_without(world, 2 * LEASE) == 0.0
    assert _fences(collectors) == fences


@pytest.mark.parametrize("count", [1, 3])
def test_nothing_moves_when_the_broker_was_away_for_long(count: int) -> None:
    world, collectors = _settled(*"abc"[:count])
    fences = _fences(collectors)
    world.reachable = False
    world.run(10 * LEASE)
    assert world.nobody(), "expected nobody to publish without a lease that counts"
    assert _fences(collectors) == fences, "expected all to keep what they had for later"
    world.reachable = True
    world.run(RENEW / SLOWEST + TIMEOUT_AND_MORE)
    assert not world.nobody(), "expected all to go on at once"
    world.run(2 * RECOVERY)
    assert _fences(collectors) == fences
    assert not any(c.member.lost for c in collectors)


def test_a_collector_that_alone_cannot_reach_the_broker_loses_its_slots_and_knows_it() -> None:
    world, (a, b, _) = _settled("a", "b", "c")
    world.freeze(a, 0)  # nothing: it runs on, only its requests are lost
    original, a_asks = world.ask, {"a": 0}

    def ask(request: object, answer: object) -> None:
        if getattr(answer, "__closure__", None) and any(
            cell.cell_contents is a
            for cell in answer.__closure__  # type: ignore[attr-defined]
        ):
            a_asks["a"] += 1
            return
        original(request, answer)  # type: ignore[arg-type]

    world.ask = ask  # type: ignore[method-assign, assignment]
    world.run(RECOVERY)
    assert a_asks["a"] > 3
    assert not world.nobody()
    assert not any(a.may_publish("x", symbol) for symbol in SYMBOLS)
    world.ask = original  # type: ignore[method-assign]
    world.run(RECOVERY)
    assert a.member.lost == 1
    assert a.member.joined
    assert b.member.lost == 0


@pytest.mark.parametrize("way", ["delete", "recreate"])
def test_a_wiped_record_is_written_anew_without_a_gap(way: str) -> None:
    world, collectors = _settled("a", "b", "c")
    had = [c.member.assigned("x") for c in collectors]
    world.restart_broker()
    getattr(world.store, way)()
    assert _longest_without(world, 3 * LEASE) == 0.0
    assert [c.member.assigned("x") for c in collectors] == had
    assert not any(c.member.lost for c in collectors)


def test_nothing_is_claimed_from_a_wiped_record_before_every_old_lease_has_run_out() -> None:
    world, (a,) = _settled("a")
    had = a.member.assigned("x")
    world.freeze(a, 3 * LEASE)
    world.store.recreate()
    newcomer = world.join("b")
    while not newcomer.member.joined:
        world.run(0.05)
    world.run(HOLD_SHARE * LEASE)
    assert not newcomer.member.assigned("x"), "expected it to wait for those who still hold"
    world.run(RECOVERY)
    assert len(newcomer.member.assigned("x")) == len(had), "expected it to take all after a lease"


@pytest.mark.parametrize("writes", [1, 5, 40])
def test_a_broker_that_forgot_what_it_acknowledged_is_noticed(writes: int) -> None:
    world, collectors = _settled("a", "b")
    world.kill(collectors[0])
    world.run(RECOVERY)
    late = world.join("c")
    world.run(RECOVERY)
    era = late.member.group.era if late.member.group else ""
    world.restart_broker()
    world.store.forget(writes)
    world.run(RECOVERY)
    assert not world.nobody()
    assert late.member.group is not None
    assert late.member.group.era != era, "expected a new era"


def test_who_comes_moves_only_what_becomes_its_own_and_nobody_publishes_twice() -> None:
    world, collectors = _settled("a", "b", slots=64)
    before = {slot: c.name for c in collectors for slot in c.member.assigned("x")}
    collectors.append(world.join("c"))
    world.run(RECOVERY)
    after = {slot: c.name for c in collectors for slot in c.member.assigned("x")}
    moved = {slot for slot in before if before[slot] != after[slot]}
    new = {slot for slot in after if after[slot] == "c"}
    assert new <= moved
    assert len(moved - new) <= 4
    assert 15 <= len(new) <= 24, "expected about a third"


def test_who_leaves_hands_over_in_order() -> None:
    world, (a, b) = _settled("a", "b")
    a.member.leave()
    assert _longest_without(world, LEASE) < 2.0, "expected no lease to be waited for"
    assert a.member.has_left
    assert a.member.handed_over > 0
    assert b.member.taken_over == 0
    assert b.member.group is not None
    assert list(b.member.group.members) == ["b"]


def test_of_two_with_the_same_name_the_second_waits() -> None:
    world, (a,) = _settled("a")
    second = world.join("a")
    world.run(4 * LEASE)
    assert "another collector is called 'a'" in second.member.problem
    assert not second.member.joined
    assert a.member.lost == 0
    assert not world.nobody()


def test_all_divide_an_exchange_as_the_first_did() -> None:
    world, (a,) = _settled("a", slots=8)
    second = world.join("b", slots=32)
    world.run(RECOVERY)
    assert second.member.slots("x") == 8
    assert second.member.assigned("x")
    world.kill(a)
    world.kill(second)
    world.run(0.1)
    later = world.join("c", slots=32)
    world.run(3 * RECOVERY)
    assert later.member.slots("x") == 32, "expected who comes when nobody is left to divide anew"
    assert not world.nobody()


def test_only_who_collects_an_exchange_gets_its_slots() -> None:
    world = World(3)
    a, b = world.join("a", exchanges=("x",)), world.join("b", exchanges=("x", "y"))
    world.run(RECOVERY)
    assert b.member.assigned("y") == frozenset(range(8))
    assert a.member.assigned("x") | b.member.assigned("x") == frozenset(range(8))


def test_a_group_keeps_the_lease_that_it_agreed_on() -> None:
    world, (a,) = _settled("a")
    b = world.join("b", lease=50.0)
    world.run(RECOVERY)
    assert b.member.lease_seconds == LEASE
    assert b.member.assigned("x")
    world.kill(a)
    world.run(RECOVERY)
    assert not world.nobody(), "expected the lease of the group to decide"
    assert b.member.lease_seconds == 50.0, "expected who is alone to change it"
    c = world.join("c", lease=1.0)
    world.run(2.0)
    assert c.member.lease_seconds == 50.0
    assert not world.nobody()


def test_a_lease_shorter_than_configured_is_renewed_often_enough() -> None:
    world = World(5)
    world.join("a", lease=1.0, renew=0.3)
    world.run(RECOVERY)
    world.join("b", lease=50.0, renew=10.0)
    assert _longest_without(world, 30.0) < 1.0, "expected nothing but the hand-over"
