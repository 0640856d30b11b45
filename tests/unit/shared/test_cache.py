import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from services.shared.cache import Cache, Computed, MemoryStore
from services.shared.health import Health
from services.shared.telemetry import Metrics


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_cache(
    store: MemoryStore | None = None, version: str = "1", **options: int
) -> tuple[Cache, Metrics]:
    metrics = Metrics("storage")
    return Cache(
        store or MemoryStore(1 << 20), "history", version, metrics=metrics, **options
    ), metrics


def answers(*values: bytes, seconds: float = 60.0) -> Callable[[], Awaitable[Computed]]:
    rest = list(values)

    async def compute() -> Computed:
        return Computed(rest.pop(0), seconds)

    return compute


def value(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value(
        f"marketprism_{name}", {"cache": "history", "store": "memory"}
    )


async def test_store_forgets_what_is_too_old() -> None:
    clock = Clock()
    store = MemoryStore(10_000, now=clock)
    await store.write("a", b"1", 5)
    clock.now += 4.9
    assert await store.read(["a"]) == [b"1"]
    clock.now += 0.1
    assert await store.read(["a"]) == [None]
    assert store.bytes_kept() == store.entries_kept() == 0


async def test_store_stays_within_its_bytes_and_drops_what_was_used_least_lately() -> None:
    store = MemoryStore(4_000)
    for key in "abc":
        await store.write(key, bytes(900), 60)
    await store.read(["a"])
    await store.write("d", bytes(900), 60)
    assert [item is not None for item in await store.read(list("abcd"))] == [
        True,
        False,
        True,
        True,
    ]
    assert store.evictions == 1
    assert store.bytes_kept() <= 4_000


async def test_store_refuses_what_is_larger_than_all_of_it() -> None:
    store = MemoryStore(1_000)
    await store.write("small", b"1", 60)
    assert not await store.write("large", bytes(1_000), 60)
    assert await store.read(["small", "large"]) == [b"1", None]


async def test_store_counts_an_overwritten_value_once() -> None:
    store = MemoryStore(10_000)
    await store.write("a", bytes(10), 60)
    before = store.bytes_kept()
    await store.write("a", bytes(10), 60)
    assert store.bytes_kept() == before
    assert not await store.write("a", b"2", 60, only_if_absent=True)


async def test_a_kept_answer_is_given_again_and_counted() -> None:
    cache, metrics = make_cache()
    compute = answers(b"one")
    assert [await cache.get_or_compute("k", compute) for _ in range(4)] == [b"one"] * 4
    assert (value(metrics, "cache_hits_total"), value(metrics, "cache_misses_total")) == (3, 1)
    assert value(metrics, "cache_hit_ratio") == 0.75
    assert (value(metrics, "cache_bytes") or 0) > 3
    assert cache.status().status is Health.HEALTHY


async def test_an_answer_that_lives_no_time_is_not_kept() -> None:
    cache, _ = make_cache()
    compute = answers(b"one", b"two", seconds=0)
    assert [await cache.get_or_compute("k", compute) for _ in range(2)] == [b"one", b"two"]


async def test_an_answer_above_the_bound_is_given_and_not_kept() -> None:
    cache, _ = make_cache(max_entry_bytes=10)
    compute = answers(bytes(11), b"two")
    assert [await cache.get_or_compute("k", compute) for _ in range(2)] == [bytes(11), b"two"]


async def test_equal_calls_at_one_time_share_one_computation() -> None:
    cache, metrics = make_cache()
    begun, go = asyncio.Event(), asyncio.Event()

    async def compute() -> Computed:
        assert not begun.is_set()
        begun.set()
        await go.wait()
        return Computed(b"one", 60)

    calls = [asyncio.create_task(cache.get_or_compute("k", compute)) for _ in range(10)]
    await begun.wait()
    go.set()
    assert await asyncio.gather(*calls) == [b"one"] * 10
    assert value(metrics, "cache_shared_total") == 9


async def test_a_caller_who_leaves_does_not_take_the_answer_from_the_others() -> None:
    cache, _ = make_cache()
    begun, go = asyncio.Event(), asyncio.Event()

    async def compute() -> Computed:
        begun.set()
        await go.wait()
        return Computed(b"one", 60)

    first = asyncio.create_task(cache.get_or_compute("k", compute))
    await begun.wait()
    second = asyncio.create_task(cache.get_or_compute("k", compute))
    await asyncio.sleep(0)
    first.cancel()
    go.set()
    assert await second == b"one"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_work_that_nobody_waits_for_is_cancelled() -> None:
    cache, _ = make_cache()
    begun, ended = asyncio.Event(), asyncio.Event()

    async def compute() -> Computed:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    call = asyncio.create_task(cache.get_or_compute("k", compute))
    await begun.wait()
    call.cancel()
    await asyncio.wait_for(ended.wait(), 5)
    # And the next call is not given the cancelled one's fate.
    assert await cache.get_or_compute("k", answers(b"two")) == b"two"


async def test_all_who_wait_get_the_error_and_the_next_call_tries_again() -> None:
    cache, _ = make_cache()

    async def fail() -> Computed:
        await asyncio.sleep(0)
        raise ValueError("no")

    results = await asyncio.gather(
        *(cache.get_or_compute("k", fail) for _ in range(3)), return_exceptions=True
    )
    assert [str(result) for result in results] == ["no"] * 3
    assert await cache.get_or_compute("k", answers(b"one")) == b"one"


async def test_voiding_a_scope_leaves_other_scopes() -> None:
    cache, _ = make_cache()
    btc, eth = answers(b"btc 1", b"btc 2"), answers(b"eth 1")
    await cache.get_or_compute("btc", btc, scopes=["binance/BTC-USDT"])
    await cache.get_or_compute("eth", eth, scopes=["binance/ETH-USDT"])
    await cache.void("binance/BTC-USDT")
    assert await cache.get_or_compute("btc", btc, scopes=["binance/BTC-USDT"]) == b"btc 2"
    assert await cache.get_or_compute("eth", eth, scopes=["binance/ETH-USDT"]) == b"eth 1"


async def test_an_answer_begun_before_its_scope_was_voided_is_not_kept() -> None:
    cache, _ = make_cache()
    begun, go = asyncio.Event(), asyncio.Event()

    async def compute() -> Computed:
        begun.set()
        await go.wait()
        return Computed(b"old", 60)

    early = asyncio.create_task(cache.get_or_compute("k", compute, scopes=["s"]))
    await begun.wait()
    await cache.void("s")
    # Not even one who asks while it is still being made gets it.
    assert await cache.get_or_compute("k", answers(b"new"), scopes=["s"]) == b"new"
    go.set()
    assert await early == b"old"
    assert await cache.get_or_compute("k", answers(b"newest"), scopes=["s"]) in (b"new", b"newest")


async def test_a_lost_token_voids_and_does_not_revive() -> None:
    store = MemoryStore(1 << 20)
    cache, _ = make_cache(store)
    compute = answers(b"one", b"two")
    await cache.get_or_compute("k", compute, scopes=["s"])
    store._drop("marketprism:history:1:scope:s")
    assert await cache.get_or_compute("k", compute, scopes=["s"]) == b"two"


async def test_versions_do_not_see_each_other() -> None:
    store = MemoryStore(1 << 20)
    old, _ = make_cache(store, version="1")
    new, _ = make_cache(store, version="2")
    assert await old.get_or_compute("k", answers(b"old")) == b"old"
    assert await new.get_or_compute("k", answers(b"new")) == b"new"


class Away(MemoryStore):
    """A store that can be away, as Redis can."""

    away = False

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        return [None] * len(keys) if self.away else await super().read(keys)

    async def write(
        self, key: str, value: bytes, seconds: float, *, only_if_absent: bool = False
    ) -> bool:
        if self.away:
            return False
        return await super().write(key, value, seconds, only_if_absent=only_if_absent)


async def test_voiding_while_the_store_is_away_is_made_up_for() -> None:
    store = Away(1 << 20)
    cache, _ = make_cache(store)
    compute = answers(b"one", b"two", b"three")
    await cache.get_or_compute("k", compute, scopes=["s"])
    store.away = True
    await cache.void("s")
    assert await cache.get_or_compute("k", compute, scopes=["s"]) == b"two"
    store.away = False
    assert await cache.get_or_compute("k", compute, scopes=["s"]) == b"three"
    assert await cache.get_or_compute("k", compute, scopes=["s"]) == b"three"
