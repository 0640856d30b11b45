import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from services.shared.cache import Cache, CacheSettings, Computed, RedisStore, open_cache
from services.shared.errors import ConfigError
from services.shared.health import Health
from services.shared.ports import free_port
from services.shared.settings import RedisSettings
from services.shared.telemetry import Metrics
from tests.integration.redis_tools import RedisServer, redis_server

_SETTINGS = CacheSettings(redis_timeout_seconds=0.1, redis_retry_seconds=0.05)


@pytest_asyncio.fixture(name="server")
async def server_fixture(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with redis_server(tmp_path) as server:
        yield server


@contextlib.asynccontextmanager
async def cache_at(
    url: str, settings: CacheSettings = _SETTINGS
) -> AsyncIterator[tuple[Cache, Metrics]]:
    metrics = Metrics("storage")
    async with contextlib.AsyncExitStack() as stack:
        cache = await open_cache(
            stack,
            "history",
            "1",
            redis=RedisSettings(url=url),
            metrics=metrics,
            settings=settings,
        )
        yield cache, metrics


def answer(value: bytes, seconds: float = 60.0) -> Callable[[], Awaitable[Computed]]:
    async def compute() -> Computed:
        return Computed(value, seconds)

    return compute


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"expected within 10 s: {what}"
        await asyncio.sleep(0.01)


async def test_processes_share_answers_and_their_end(server: RedisServer) -> None:
    async with cache_at(server.url) as (one, _), cache_at(server.url) as (other, metrics):
        assert await one.get_or_compute("k", answer(b"\x00first"), scopes=["s"]) == b"\x00first"
        assert await other.get_or_compute("k", answer(b"second"), scopes=["s"]) == b"\x00first"
        hits = metrics.registry.get_sample_value(
            "marketprism_cache_hits_total", {"cache": "history", "store": "redis"}
        )
        assert hits == 1
        await one.void("s")
        assert await other.get_or_compute("k", answer(b"second"), scopes=["s"]) == b"second"
        assert await one.get_or_compute("k", answer(b"third"), scopes=["s"]) == b"second"


async def test_an_answer_ends_in_time(server: RedisServer) -> None:
    async with cache_at(server.url) as (cache, _):
        await cache.get_or_compute("k", answer(b"first", 0.05))
        deadline = time.monotonic() + 5
        while await cache.get_or_compute("k", answer(b"second", 0)) == b"first":
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)


async def test_redis_that_dies_costs_a_miss_and_is_found_again(server: RedisServer) -> None:
    async with cache_at(server.url) as (cache, _):
        await cache.get_or_compute("k", answer(b"first"))
        server.kill()
        assert await cache.get_or_compute("k", answer(b"second")) == b"second"
        status = cache.status()
        assert status.status is Health.DEGRADED
        assert str(server.port) in status.detail
        await server.start()
        await until(lambda: cache.status().status is Health.HEALTHY, "Redis found again")
        await cache.get_or_compute("k", answer(b"third"))
        assert await cache.get_or_compute("k", answer(b"fourth")) == b"third"


async def test_redis_that_hangs_holds_nobody_up(server: RedisServer) -> None:
    async with cache_at(server.url) as (cache, _):
        await cache.get_or_compute("k", answer(b"first"))
        server.freeze()
        try:
            began = time.monotonic()
            assert await cache.get_or_compute("k", answer(b"second")) == b"second"
            first = time.monotonic() - began
            began = time.monotonic()
            for index in range(100):
                await cache.get_or_compute(f"other {index}", answer(b"x"))
            later = time.monotonic() - began
        finally:
            server.thaw()
        assert first < 0.5, f"expected one wait of 0.1 s, took {first:.3f} s"
        assert later < 0.5, f"expected no wait while it is away, took {later:.3f} s"
        await until(lambda: cache.status().status is Health.HEALTHY, "Redis found again")
        # What was kept before it hung is given again, and right.
        assert await cache.get_or_compute("k", answer(b"third")) == b"first"


async def test_a_scope_voided_while_redis_is_away_is_void_afterwards(server: RedisServer) -> None:
    async with cache_at(server.url) as (cache, _):
        await cache.get_or_compute("k", answer(b"first"), scopes=["s"])
        server.freeze()
        try:
            await cache.void("s")
        finally:
            server.thaw()
        await until(lambda: cache.status().status is Health.HEALTHY, "Redis found again")
        assert await cache.get_or_compute("k", answer(b"second"), scopes=["s"]) == b"second"


async def test_redis_need_not_be_there_at_the_start(tmp_path: Path) -> None:
    port = free_port()
    async with cache_at(f"redis://user:hunter2@127.0.0.1:{port}/0") as (cache, _):
        assert await cache.get_or_compute("k", answer(b"first")) == b"first"
        status = cache.status()
        assert status.status is Health.DEGRADED
        assert "hunter2" not in status.detail + str(status.facts)


async def test_redis_that_is_full_is_told_and_costs_a_miss(server: RedisServer) -> None:
    async with Redis.from_url(server.url) as client, cache_at(server.url) as (cache, _):
        await cache.get_or_compute("k", answer(b"first"))
        await client.config_set("maxmemory-policy", "noeviction")
        await client.config_set("maxmemory", "1")
        assert await cache.get_or_compute("full", answer(b"x")) == b"x"
        status = cache.status()
        assert status.status is Health.DEGRADED
        assert "allkeys-lru" in status.detail
        await client.config_set("maxmemory", "0")
        assert await cache.get_or_compute("k", answer(b"second")) == b"first"
        assert cache.status().status is Health.HEALTHY


def test_a_bad_url_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"redis\.url: expected redis://"):
        RedisStore("http://127.0.0.1:6379")


async def test_many_at_once_get_along_with_few_connections(server: RedisServer) -> None:
    async with cache_at(server.url, CacheSettings(redis_timeout_seconds=2)) as (cache, metrics):
        await asyncio.gather(
            *(cache.get_or_compute(str(n), answer(bytes(1000))) for n in range(500))
        )
        assert cache.status().status is Health.HEALTHY
        errors = metrics.registry.get_sample_value(
            "marketprism_cache_errors", {"cache": "history", "store": "redis"}
        )
        assert errors == 0
        assert await cache.get_or_compute("7", answer(b"made anew")) == bytes(1000)
