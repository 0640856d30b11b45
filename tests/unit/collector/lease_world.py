"""A world of collectors that share instruments: their clocks, their network, the KV they use.

Time is simulated. Clocks run at different rates, processes freeze and die, requests and answers are
late or lost, the record is wiped. After each event it is checked that no instrument has two who
believe that they may publish it, the frozen ones included.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from services.collector.leases_group import Group, decode_group, encode_group, slot_of
from services.collector.leases_plan import LeaseMember, Write

LEASE = 5.0
RENEW = 1.0
TIMEOUT = 1.0
SYMBOLS = tuple(f"S{number}-USDT" for number in range(10))

_LOST = object()
_CHANGED = object()


@dataclass
class Store:
    """The KV: one record, changed by compare-and-set."""

    payload: bytes | None = None
    revision: int = 0
    writes: int = 0
    past: list[tuple[bytes | None, int]] = field(default_factory=list)

    def write(self, payload: bytes, expected: int) -> int | object:
        if expected != self.revision:
            return _CHANGED
        self.past.append((self.payload, self.revision))
        self.writes += 1
        self.payload, self.revision = payload, self.revision + 1
        return self.revision

    def delete(self) -> None:
        self.payload, self.revision = None, self.revision + 1

    def recreate(self) -> None:
        self.payload, self.revision = None, 0

    def forget(self, writes: int) -> None:
        """Go back, as a disk does that lost power before it synced."""
        if self.past:
            self.payload, self.revision = self.past[max(0, len(self.past) - writes)]

    @property
    def group(self) -> Group | None:
        return decode_group(self.payload) if self.payload is not None else None


class Collector:
    """One process: a `LeaseMember` and the loop around it, as `LeaseManager` has it."""

    def __init__(
        self,
        world: "World",
        name: str,
        exchanges: dict[str, int],
        *,
        rate: float,
        lease: float,
        renew: float,
    ) -> None:
        self.world = world
        self.name = name
        self.rate = rate
        self.offset = world.random.uniform(-1e6, 1e6)
        self.alive = True
        self.frozen_until = 0.0
        self.waiting: list[Callable[[], None]] = []
        self.process = f"{name}-{next(world.numbers)}"
        self.member = LeaseMember(
            name,
            exchanges,
            lease_seconds=lease,
            renew_seconds=renew,
            new_id=lambda: f"{name}#{next(world.numbers)}",
            process=self.process,
            is_gone=world.is_gone,
            first_version=lambda: round(world.now * 1000),
        )
        self._life = self._live()
        self._turn = 0
        self._told: set[tuple[str, int]] = set()
        world.after(0.0, lambda: self._resume(None, 0))

    def clock(self) -> float:
        return self.offset + self.rate * self.world.now

    @property
    def frozen(self) -> bool:
        return self.world.now < self.frozen_until

    def may_publish(self, exchange: str, symbol: str) -> bool:
        member = self.member
        return (
            self.alive
            and exchange in member._exchanges
            and member.is_valid(self.clock())
            and slot_of(symbol, member.slots(exchange)) in member.unreleased(exchange)
        )

    def when_awake(self, action: Callable[[], None]) -> None:
        if self.frozen:
            self.waiting.append(action)
        elif self.alive:
            action()

    def _live(self) -> Generator[tuple[Any, ...], Any, None]:
        member = self.member
        while not member.has_left:
            asked = self.clock()
            answer = yield ("read",)
            if answer is _LOST:
                member.on_refused()
                yield ("sleep", 0.1)
                continue
            payload, revision = answer
            group = decode_group(payload) if payload is not None else None
            member.on_read(group, revision, asked=asked, now=self.clock())
            self._stop_what_is_handed_over()
            while (write := member.next_write(self.clock())) is not None:
                answer = yield ("write", write)
                if answer is _LOST or answer is _CHANGED:
                    member.on_refused()
                    if answer is _LOST:
                        yield ("sleep", 0.1)
                    break
                member.on_stored(write, answer, now=self.clock())
                self._stop_what_is_handed_over()
            if not member.needs_read:
                yield ("sleep", max(member.wake_at(self.clock()) - self.clock(), 0.01))

    def _stop_what_is_handed_over(self) -> None:
        for exchange in self.member._exchanges:
            going = self.member.unreleased(exchange) - self.member.assigned(exchange)
            for slot in going:
                if (exchange, slot) not in self._told:
                    self._told.add((exchange, slot))
                    self.world.after(
                        self.world.random.choice([0.0, 0.05, 0.7]),
                        lambda exchange=exchange, slot=slot: self.when_awake(
                            lambda: self._stopped(exchange, slot)
                        ),
                    )

    def _stopped(self, exchange: str, slot: int) -> None:
        self._told.discard((exchange, slot))
        self.member.release_done(exchange, {slot})

    def _resume(self, answer: Any, turn: int) -> None:
        if not self.alive or turn != self._turn:
            return
        self._turn += 1
        turn = self._turn
        try:
            request = self._life.send(answer)
        except StopIteration:
            return
        wake = lambda answer: self.when_awake(lambda: self._resume(answer, turn))  # noqa: E731
        if request[0] == "sleep":
            self.world.after(request[1] / self.rate, lambda: wake(None))
        else:
            self.world.ask(request, wake)
            self.world.after(TIMEOUT / self.rate, lambda: wake(_LOST))


class World:
    """Everything, driven by one source of randomness."""

    def __init__(self, seed: int, *, slots: int = 8) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.numbers = itertools.count()
        self.store = Store()
        self.slots = slots
        self.collectors: list[Collector] = []
        self.loss = 0.0
        self.slow = 0.0
        self.reachable = True
        self.overlap = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._generation = 0
        self._overlap_since: float | None = None
        self._ended: set[str] = set()
        self._fences: dict[tuple[str, str], tuple[int, Collector]] = {}
        self.sees_deaths = False

    # What happens by itself.

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self.numbers), action))

    def ask(self, request: tuple[Any, ...], answer: Callable[[Any], None]) -> None:
        generation = self._generation

        def serve() -> None:
            if not self.reachable or generation != self._generation:
                return
            result: Any
            if request[0] == "read":
                result = (self.store.payload, self.store.revision)
            else:
                write: Write = request[1]
                result = self.store.write(encode_group(write.group), write.expected)
            if self.random.random() >= self.loss:
                self.after(self._delay(), lambda: answer(result))

        if self.random.random() >= self.loss:
            self.after(self._delay(), serve)

    def _delay(self) -> float:
        if self.random.random() < self.slow:
            return self.random.expovariate(1 / 2.0)
        return self.random.uniform(0.0005, 0.01)

    def run(self, seconds: float) -> None:
        """Let time pass, checking after each event."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heapq.heappop(self._events)
            action()
            self.check()
        self.now = end
        self.check()

    # What somebody does.

    def join(
        self,
        name: str,
        *,
        slots: int | None = None,
        exchanges: tuple[str, ...] = ("x",),
        lease: float = LEASE,
        renew: float = RENEW,
    ) -> Collector:
        collector = Collector(
            self,
            name,
            dict.fromkeys(exchanges, slots or self.slots),
            rate=self.random.uniform(0.8, 1.25),
            lease=lease,
            renew=renew,
        )
        self.collectors.append(collector)
        return collector

    def kill(self, collector: Collector) -> None:
        collector.alive = False
        self._ended.add(collector.process)
        self.collectors.remove(collector)

    def freeze(self, collector: Collector, seconds: float) -> None:
        collector.frozen_until = max(collector.frozen_until, self.now + seconds)
        self.after(collector.frozen_until - self.now, lambda: self._thaw(collector))

    def _thaw(self, collector: Collector) -> None:
        if collector.frozen or not collector.alive:
            return
        waiting, collector.waiting = collector.waiting, []
        self.random.shuffle(waiting)
        for action in waiting:
            collector.when_awake(action)

    def restart_broker(self) -> None:
        """Break every request that is under way."""
        self._generation += 1

    def is_gone(self, process: str) -> bool:
        return self.sees_deaths and process in self._ended

    # What must be true.

    def publishers(self, exchange: str, symbol: str) -> list[Collector]:
        return [c for c in self.collectors if c.may_publish(exchange, symbol)]

    def check(self) -> None:
        twice = None
        for exchange in ("x", "y"):
            for symbol in SYMBOLS:
                who = self.publishers(exchange, symbol)
                if len(who) > 1:
                    names = [collector.name for collector in who]
                    twice = f"{exchange} {symbol} is published by {names} at {self.now:.3f}"
                for collector in who:
                    self._check_fence(exchange, symbol, collector)
        if twice is None:
            if self._overlap_since is not None:
                self.overlap = max(self.overlap, self.now - self._overlap_since)
            self._overlap_since = None
            return
        if self._overlap_since is None:
            self._overlap_since = self.now
        self.on_twice(twice)

    def _check_fence(self, exchange: str, symbol: str, collector: Collector) -> None:
        slot = slot_of(symbol, collector.member.slots(exchange))
        fence = collector.member.fence(exchange, slot)
        before, who = self._fences.get((exchange, symbol), (0, collector))
        assert fence >= before, f"expected the fence of {exchange} {symbol} never to go back"
        assert fence > before or who is collector, "expected each change of holder to raise it"
        self._fences[exchange, symbol] = fence, collector

    def on_twice(self, what: str) -> None:
        raise AssertionError(f"expected one publisher of each instrument: {what}")

    def nobody(self, exchange: str = "x") -> list[str]:
        return [symbol for symbol in SYMBOLS if not self.publishers(exchange, symbol)]

    def heal(self) -> None:
        self.loss = self.slow = 0.0
        self.reachable = True
        for collector in self.collectors:
            collector.frozen_until = 0.0
            self._thaw(collector)
