"""The venue's limits: weight by the clock's minute, bans for who goes on, messages a second."""

from services.simulator.limits import MessageRate, WeightPool


class _Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_weight_runs_out_and_comes_back_with_the_next_minute() -> None:
    clock = _Clock()
    clock.now = 600.0
    pool = WeightPool(100, ban_after=5, ban_seconds=60, clock=clock)
    assert pool.take(60) is None
    assert pool.used == 60
    clock.now = 630.0
    refusal = pool.take(50)
    assert refusal is not None
    assert (refusal.status, refusal.retry_after) == (429, 30)
    assert pool.take(40) is None
    clock.now = 660.0
    assert pool.used == 0
    assert pool.take(100) is None


def test_who_goes_on_is_banned_and_the_next_ban_is_longer() -> None:
    clock = _Clock()
    clock.now = 600.0
    pool = WeightPool(10, ban_after=3, ban_seconds=120, clock=clock)

    def status(weight: int = 20) -> tuple[int, int] | None:
        refusal = pool.take(weight)
        return None if refusal is None else (refusal.status, refusal.retry_after)

    assert [status() for _ in range(4)] == [(429, 60)] * 3 + [(418, 120)]
    clock.now = 719.0
    assert status(1) == (418, 1)
    clock.now = 720.0
    assert status(1) is None
    assert [status() for _ in range(4)][-1] == (418, 240)
    assert pool.banned_until == 960.0


def test_a_window_holds_only_so_many_messages() -> None:
    clock = _Clock()
    rate = MessageRate(3, 1.0, clock)
    assert [rate.allow() for _ in range(4)] == [True, True, True, False]
    clock.now += 1.0
    assert rate.allow()
