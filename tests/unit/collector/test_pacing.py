"""A gate lets through what is allowed within any span of time, in order, and no more."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.collector.pacing import CombinedGate, Gate, RateGate
from tests.unit.collector.fake_time import FakeTime


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


class Crowd:
    """Tasks that pass a gate; `passed` has when and who."""

    def __init__(self, time: FakeTime) -> None:
        self.time = time
        self.passed: list[tuple[float, int]] = []
        self.tasks: list[asyncio.Task[None]] = []

    def join(self, gate: Gate, count: int = 1) -> None:
        async def run(number: int) -> None:
            await gate.pass_()
            self.passed.append((self.time.now - 1000.0, number))

        for _ in range(count):
            self.tasks.append(asyncio.create_task(run(len(self.tasks))))

    @property
    def times(self) -> list[object]:
        return [pytest.approx(when, abs=0.01) for when, _ in self.passed]

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_three_connects_a_second(time: FakeTime) -> None:
    gate = RateGate(3, 1.0, time, time.sleep)
    crowd = Crowd(time)
    crowd.join(gate, 8)
    await time.advance(10)
    assert crowd.times == [0, 0, 0, 1, 1, 1, 2, 2]
    assert [number for _, number in crowd.passed] == list(range(8)), "expected them in their order"
    assert gate.passes == 8


async def test_what_was_used_long_ago_is_free_again(time: FakeTime) -> None:
    gate = RateGate(2, 10.0, time, time.sleep)
    await gate.pass_()
    await time.advance(6)
    await gate.pass_()
    assert gate.wait_seconds() == pytest.approx(4.0)
    await time.advance(4)
    assert gate.wait_seconds() == 0.0
    await gate.pass_()
    assert gate.wait_seconds() == pytest.approx(6.0), "expected the window to slide"


async def test_requests_are_spaced_and_counted_by_the_hour(time: FakeTime) -> None:
    spacing, hour = RateGate(1, 0.5, time), RateGate(4, 3600.0, time)
    gate = CombinedGate(spacing, hour, sleep=time.sleep)
    crowd = Crowd(time)
    crowd.join(gate, 6)
    await time.advance(3599)
    assert crowd.times == [0, 0.5, 1.0, 1.5]
    assert gate.wait_seconds() == pytest.approx(1.0)
    await time.advance(10)
    assert crowd.times == [0, 0.5, 1.0, 1.5, 3600, 3600.5]


async def test_a_gate_that_others_pass_too_is_still_kept(time: FakeTime) -> None:
    shared = RateGate(2, 1.0, time, time.sleep)
    own = CombinedGate(shared, RateGate(1, 0.1, time), sleep=time.sleep)
    crowd = Crowd(time)
    crowd.join(own, 5)
    crowd.join(shared, 5)
    await time.advance(20)
    assert len(crowd.passed) == 10
    times = [when for when, _ in crowd.passed]
    assert all(b - a >= 0.999 for a, b in zip(times, times[2:], strict=False)), times


async def test_who_stops_waiting_takes_nothing_away(time: FakeTime) -> None:
    gate = RateGate(1, 1.0, time, time.sleep)
    crowd = Crowd(time)
    crowd.join(gate, 5)
    await time.advance(0.5)
    crowd.tasks[1].cancel()
    crowd.tasks[3].cancel()
    await time.advance(10)
    assert [number for _, number in crowd.passed] == [0, 2, 4]
    assert crowd.times == [0, 1, 2]


@pytest.mark.parametrize(("count", "seconds"), [(0, 3600.0), (1, 0.0), (0, 0.0)])
async def test_no_limit_is_no_wait(time: FakeTime, count: int, seconds: float) -> None:
    gate = RateGate(count, seconds, time, time.sleep)
    combined = CombinedGate(gate, sleep=time.sleep)
    for _ in range(1000):
        await gate.pass_()
        await combined.pass_()
    assert gate.passes == 2000
    await CombinedGate().pass_()


@pytest.mark.parametrize(("count", "seconds"), [(-1, 1.0), (1, -1.0), (1, float("nan"))])
def test_a_limit_that_makes_no_sense_is_refused(count: int, seconds: float) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        RateGate(count, seconds)


async def test_it_works_by_the_real_clock() -> None:
    gate = RateGate(2, 0.02)
    loop = asyncio.get_running_loop()
    start = loop.time()
    for _ in range(5):
        await gate.pass_()
    assert loop.time() - start >= 0.039


@settings(max_examples=50)
@given(
    count=st.integers(1, 4),
    pauses=st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, 3.0]), min_size=1, max_size=25),
)
def test_no_span_of_time_ever_holds_more_than_is_allowed(count: int, pauses: list[float]) -> None:
    async def run() -> None:
        time = FakeTime()
        gate = RateGate(count, 1.0, time, time.sleep)
        crowd = Crowd(time)
        for pause in pauses:
            crowd.join(gate)
            await time.advance(pause)
        await time.advance(len(pauses) + 1)
        times = [when for when, _ in crowd.passed]
        assert len(times) == len(pauses), "expected everyone to pass in the end"
        assert all(b - a >= 0.999999 for a, b in zip(times, times[count:], strict=False)), times

    asyncio.run(run())
