"""How much a cache keeps, and how long it waits for Redis."""

from pydantic import Field

from services.shared.settings import SettingsModel

__all__ = ["CacheSettings"]


class CacheSettings(SettingsModel):
    """One cache of a service; where Redis is, is told by `redis.url` of services.yaml."""

    max_bytes: int = Field(default=64 * 1024 * 1024, ge=64 * 1024)
    """Most bytes kept in this process, with their keys; what was used least lately goes first.
    Redis has a bound of its own (`maxmemory`, with the policy `allkeys-lru`)."""

    max_entry_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    """A value with more bytes is not kept: a few such would push out everything else."""

    redis_timeout_seconds: float = Field(default=0.1, gt=0, le=5)
    """Longest wait for Redis, seconds; then the call goes on as if nothing had been kept."""

    redis_retry_seconds: float = Field(default=1.0, gt=0, le=60)
    """Redis that did not answer is left alone, and looked for again this often, seconds."""
