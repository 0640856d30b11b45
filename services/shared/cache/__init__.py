"""Answers kept for a while: in this process, or in Redis where `REDIS_URL` names one.

`open_cache` gives a `Cache` of the kind that the mesh's settings ask for. What is kept can always
be made anew, so a cache never fails a call: one that is away costs a miss.
"""

from services.shared.cache.cache import EVERYTHING, Cache, Computed
from services.shared.cache.memory import MemoryStore
from services.shared.cache.opening import open_cache
from services.shared.cache.redis_store import RedisStore
from services.shared.cache.settings import CacheSettings
from services.shared.cache.store import Store

__all__ = [
    "EVERYTHING",
    "Cache",
    "CacheSettings",
    "Computed",
    "MemoryStore",
    "RedisStore",
    "Store",
    "open_cache",
]
