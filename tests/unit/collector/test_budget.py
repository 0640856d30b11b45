"""A pool's weight goes to the most urgent first, and the system's clock gives none of it back."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.collector.budget import BudgetPools, Priority, RequestBudget
from services.collector.venues.base import RestPool

SNAPSHOT, HISTORY, POLL = Priority.SNAPSHOT, Priority.HISTORY, Priority.POLL


class Clocks:
    """The system's clock and a monotonic one; `pass_time` moves both, `step` only the system's."""

    def __init__(self) -> None:
        self.wall = 1_700_000_040.0
        self.monotonic = 5.0

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    def step(self, seconds: float) -> None:
        self.wall += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def budget(clocks: Clocks) -> RequestBudget:
    return RequestBudget(100, lambda: clocks.wall, monotonic=lambda: clocks.monotonic, name="pool")


class Order:
    """Tasks that take weight, and the order in which they were served."""

    def __init__(self, budget: RequestBudget) -> None:
        self.budget = budget
        self.served: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def take(self, name: str, weight: int, priority: Priority) -> None:
        async def run() -> None:
            await self.budget.take(weight, priority)
            self.served.append(name)

        self.tasks[name] = asyncio.create_task(run())
        await asyncio.sleep(0)

    async def serve(self) -> list[str]:
        """Let the budget look at its clocks, as its timer would; give who was served by that."""
        before = len(self.served)
        self.budget._serve()
        for _ in range(3):
            await asyncio.sleep(0)
        return self.served[before:]

    async def end(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


@pytest.fixture
async def order(budget: RequestBudget) -> AsyncIterator[Order]:
    order = Order(budget)
    yield order
    await order.end()
    assert budget.waiting == 0


async def test_the_most_urgent_is_served_first_and_equals_in_their_order(
    clocks: Clocks, budget: RequestBudget, order: Order
) -> None:
    await budget.take(100)
    for name, priority in (
        ("poll 1", POLL), ("history 1", HISTORY), ("snapshot 1", SNAPSHOT),
        ("poll 2", POLL), ("snapshot 2", SNAPSHOT), ("history 2", HISTORY),
    ):  # fmt: skip
        await order.take(name, 10, priority)
    assert await order.serve() == []
    clocks.pass_time(60)
    assert await order.serve() == [
        "snapshot 1", "snapshot 2", "history 1", "history 2", "poll 1", "poll 2",
    ]  # fmt: skip


async def test_nobody_passes_somebody_more_urgent_however_cheap(
    clocks: Clocks, budget: RequestBudget, order: Order
) -> None:
    await budget.take(60)
    await order.take("dear", 50, SNAPSHOT)
    await order.take("cheap snapshot", 1, SNAPSHOT)
    await order.take("cheap poll", 1, POLL)
    assert await order.serve() == []
    clocks.pass_time(60)
    assert await order.serve() == ["dear", "cheap snapshot", "cheap poll"]


async def test_polls_leave_the_rest_to_snapshots(
    clocks: Clocks, budget: RequestBudget, order: Order
) -> None:
    for index in range(8):
        await order.take(f"poll {index}", 10, POLL)
    assert await order.serve() == []
    assert order.served == [f"poll {index}" for index in range(5)], "expected half of the limit"
    await order.take("snapshot", 50, SNAPSHOT)
    assert order.served[-1] == "snapshot", "expected it to pass polls that wait for their share"
    assert budget.waits == "", "expected polls that keep their share not to be a trouble"
    clocks.pass_time(60)
    assert await order.serve() == ["poll 5", "poll 6", "poll 7"]


async def test_missed_trades_leave_the_rest_to_snapshots(
    clocks: Clocks, budget: RequestBudget, order: Order
) -> None:
    await budget.take(20, POLL)
    for index in range(8):
        await order.take(f"history {index}", 10, HISTORY)
    assert order.served == [f"history {index}" for index in range(5)], "70 with the polls"
    await order.take("snapshot", 30, SNAPSHOT)
    assert order.served[-1] == "snapshot", "expected books to be served while trades wait"
    assert "100 of 100 are used" in budget.waits
    clocks.pass_time(60)
    assert await order.serve() == ["history 5", "history 6", "history 7"]


async def test_polls_use_no_more_than_is_left(budget: RequestBudget) -> None:
    await budget.take(95)
    assert budget.wait_seconds(10, POLL) == pytest.approx(60.0)
    assert budget.wait_seconds(5, POLL) == 0.0


async def test_a_poll_dearer_than_its_share_goes_alone(budget: RequestBudget) -> None:
    await budget.take(70, POLL)
    assert budget.wait_seconds(1, POLL) > 0
    assert budget.wait_seconds(30) == 0.0


async def test_who_stops_waiting_makes_way(
    clocks: Clocks, budget: RequestBudget, order: Order
) -> None:
    await budget.take(60)
    await order.take("dear", 50, SNAPSHOT)
    await order.take("cheap", 10, HISTORY)
    assert order.served == []
    order.tasks["dear"].cancel()
    await asyncio.gather(order.tasks["dear"], return_exceptions=True)
    await asyncio.sleep(0)
    assert order.served == ["cheap"]
    assert budget.used == 70


@pytest.mark.parametrize(("priority", "weight"), [(POLL, 50), (HISTORY, 70), (SNAPSHOT, 100)])
async def test_who_is_cancelled_after_being_served_gives_the_weight_back(
    clocks: Clocks, budget: RequestBudget, order: Order, priority: Priority, weight: int
) -> None:
    await budget.take(100)
    await order.take("late", weight, priority)
    clocks.pass_time(60)
    budget._serve()
    assert budget.used == weight
    order.tasks["late"].cancel()
    await asyncio.gather(order.tasks["late"], return_exceptions=True)
    assert order.served == []
    assert (budget.used, budget.requests) == (0, 1)
    assert budget.wait_seconds(weight, priority) == 0.0


async def test_a_refusal_lasts_as_long_as_it_says_whatever_the_clock_does(
    clocks: Clocks, budget: RequestBudget
) -> None:
    budget.block(120)
    assert budget.blocked_until == pytest.approx(clocks.wall + 120)
    clocks.step(-3600)
    assert budget.wait_seconds(1) == pytest.approx(120)
    assert budget.blocked_until == pytest.approx(clocks.wall + 120)
    clocks.step(7200)
    assert budget.wait_seconds(1) == pytest.approx(120)
    clocks.pass_time(120)
    assert budget.wait_seconds(1) == 0.0
    assert budget.blocked_until == 0.0


@pytest.mark.parametrize("step", [-3600.0, -60.0, -30.0, -2.0, 2.0, 30.0, 60.0, 3600.0])
@pytest.mark.parametrize("after", [0.5, 20.0, 59.0])
async def test_a_step_of_the_clock_gives_no_weight_back_within_a_window(
    clocks: Clocks, budget: RequestBudget, step: float, after: float
) -> None:
    await budget.take(100)
    clocks.pass_time(after)
    clocks.step(step)
    passed = after
    while budget.wait_seconds(1) > 0:
        seconds = min(budget.wait_seconds(1), 1.0)
        assert seconds > 0
        clocks.pass_time(seconds)
        passed += seconds
    assert 60 <= passed <= 180, f"expected the weight back after a window or two, got {passed} s"
    clocks.pass_time(budget.window_seconds)
    await budget.take(100)
    clocks.pass_time(60)
    assert budget.used == 0, "expected the usual windows again"


async def test_a_clock_that_is_put_right_slowly_is_no_step(
    clocks: Clocks, budget: RequestBudget
) -> None:
    for _ in range(50):
        await budget.take(100)
        clocks.pass_time(59.98)
        clocks.step(0.02)
        assert budget.used == 0


async def test_a_window_may_have_another_length(clocks: Clocks) -> None:
    budget = RequestBudget(
        10, lambda: clocks.wall, window_seconds=2.0, monotonic=lambda: clocks.monotonic
    )
    await budget.take(10)
    assert budget.wait_seconds(1) == pytest.approx(2.0)
    waiting = asyncio.create_task(budget.take(1))
    await asyncio.sleep(0)
    assert "for the next 2 s's request weight" in budget.waits
    waiting.cancel()
    clocks.pass_time(2)
    assert budget.used == 0


async def test_the_timer_serves_who_waits() -> None:
    budget = RequestBudget(10, window_seconds=0.05)
    budget.share = 1.0
    async with asyncio.timeout(5):
        await asyncio.gather(*[budget.take(5, priority) for priority in Priority for _ in range(3)])
    assert budget.requests == 9


def test_venues_that_name_the_same_pool_share_it() -> None:
    pools = BudgetPools()
    usd = pools.budget(RestPool("binance-futures", 2000, 60.0))
    assert pools.budget(RestPool("binance-futures", 2000, 60.0), limit=1500) is usd
    assert (usd.name, usd.limit, usd.window_seconds) == ("binance-futures", 1500, 60.0)
    other = pools.budget(RestPool("okx", 10, 2.0), limit=20)
    assert (other.limit, other.window_seconds) == (20, 2.0)
    assert pools.budgets == {"binance-futures": usd, "okx": other}
