"""Makes the cache that the mesh's settings ask for."""

import contextlib

from services.shared.cache.cache import Cache
from services.shared.cache.memory import MemoryStore
from services.shared.cache.redis_store import RedisStore
from services.shared.cache.settings import CacheSettings
from services.shared.cache.store import Store
from services.shared.settings import RedisSettings
from services.shared.telemetry import Metrics

__all__ = ["open_cache"]


async def open_cache(
    stack: contextlib.AsyncExitStack,
    name: str,
    version: str,
    *,
    redis: RedisSettings,
    metrics: Metrics,
    settings: CacheSettings | None = None,
) -> Cache:
    """Open a cache on `stack`: in Redis when `redis.url` is set, else in this process.

    `name` tells caches of one Redis apart, and is a label of the metrics; `version` changes
    whenever the meaning of what is kept does. Redis need not be there. Raises `ConfigError` for a
    bad URL.
    """
    settings = settings or CacheSettings()
    store: Store
    if redis.url is None:
        store = MemoryStore(settings.max_bytes)
    else:
        store = await stack.enter_async_context(
            RedisStore(
                redis.url,
                timeout=settings.redis_timeout_seconds,
                retry=settings.redis_retry_seconds,
            )
        )
    return Cache(store, name, version, metrics=metrics, max_entry_bytes=settings.max_entry_bytes)
