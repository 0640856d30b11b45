"""The store that several processes share: Redis."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Self, TypeVar
from urllib.parse import urlsplit

import structlog
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from services.shared.errors import ConfigError
from services.shared.health import DependencyStatus

__all__ = ["RedisStore"]

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)
_MAX_CONNECTIONS = 8


class RedisStore:
    """Keeps bytes in Redis, and does without it while it is away.

    A call waits for Redis no longer than `timeout`. Once it did not answer, nobody waits any more:
    reads find nothing and writes do nothing until a task in the background has seen it answer
    again. Enter it as an asynchronous context manager; that task runs in between.
    """

    kind = "redis"

    def __init__(self, url: str, *, timeout: float = 0.1, retry: float = 1.0) -> None:
        """Name the server (`redis://…`, `rediss://…`, `unix://…`); raises `ConfigError`.

        `timeout` and `retry` are seconds. Nothing is connected before it is entered.
        """
        self.evictions = 0
        self.errors = 0
        self._address = _address(url)
        self._timeout = timeout
        self._retry = retry
        try:
            pool = ConnectionPool.from_url(
                url,
                max_connections=_MAX_CONNECTIONS + 1,  # one to look for it
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                # A connection that the server closed while it was idle is worth one more try.
                retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            )
        except ValueError as error:
            raise ConfigError(
                f"redis.url: expected redis://host:port/database, got one for {self._address}: "
                f"{error}",
                metadata={"key": "redis.url"},
            ) from error
        self._client = Redis.from_pool(pool)
        self._free = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._trouble = "not connected yet"
        self._refusal = ""
        self._away_since = time.monotonic()
        self._look: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()

    async def __aenter__(self) -> Self:
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self._ping()
        self._look = asyncio.create_task(self._look_for_it(), name="cache: look for Redis")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._look is not None:
            self._look.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._look
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._timeout):
                await self._client.aclose()

    async def read(self, keys: Sequence[str]) -> list[bytes | None]:
        """Give the value of each key in one round trip; nothing while Redis is away."""
        found = await self._ask(lambda: self._client.mget(list(keys)))
        if found is None:
            return [None] * len(keys)
        # The client decodes nothing unless told to, so there is no text among these.
        return [value if isinstance(value, bytes) else None for value in found]

    async def write(
        self, key: str, value: bytes, seconds: float, *, only_if_absent: bool = False
    ) -> bool:
        """Keep a value; False when it is kept already, or Redis is away."""
        milliseconds = round(seconds * 1000)
        if milliseconds <= 0:
            return False
        done = await self._ask(
            lambda: self._client.set(key, value, px=milliseconds, nx=only_if_absent)
        )
        return bool(done)

    def bytes_kept(self) -> int:
        """Give 0: nothing is kept in this process."""
        return 0

    def entries_kept(self) -> int:
        """Give 0: nothing is kept in this process."""
        return 0

    def status(self) -> DependencyStatus:
        """Tell whether Redis answers; the service does without it, only slower."""
        if self._refusal and not self._trouble:
            return DependencyStatus.degraded(
                f"Redis at {self._address} refuses: {self._refusal}; give it memory, or the "
                "maxmemory-policy allkeys-lru",
                address=self._address,
            )
        if not self._trouble:
            return DependencyStatus.healthy("", address=self._address)
        seconds = round(time.monotonic() - self._away_since, 1)
        return DependencyStatus.degraded(
            f"Redis at {self._address} does not answer: {self._trouble}; answers are made anew "
            f"each time, and it is looked for every {self._retry:g} s",
            address=self._address,
            seconds_away=seconds,
        )

    async def _ask(self, command: Callable[[], Awaitable[_T]]) -> _T | None:
        # Who waits for a connection waits for the calls ahead, and not for Redis: a burst is no
        # sign that it is away. If it is, those ahead find out within the timeout.
        async with self._free:
            return await self._ask_now(command)

    async def _ask_now(self, command: Callable[[], Awaitable[_T]]) -> _T | None:
        if self._trouble:
            return None
        try:
            async with asyncio.timeout(self._timeout):
                done = await command()
            self._refusal = ""
            return done
        except ResponseError as error:
            # It is there and says no, as when its memory is full and it may push nothing out.
            self.errors += 1
            if not self._refusal:
                _log.warning("cache refuses", address=self._address, error=str(error))
            self._refusal = str(error)
            return None
        except (RedisError, OSError, TimeoutError) as error:
            self.errors += 1
            if not self._trouble:
                self._trouble = _words(error, self._timeout)
                self._away_since = time.monotonic()
                self._lost.set()
                _log.warning("cache lost", address=self._address, error=self._trouble)
            return None

    async def _look_for_it(self) -> None:
        while True:
            while self._trouble:
                try:
                    await self._ping()
                except (RedisError, OSError, TimeoutError) as error:
                    self._trouble = _words(error, self._timeout)
                    await asyncio.sleep(self._retry)
            await self._lost.wait()
            self._lost.clear()

    async def _ping(self) -> None:
        async with asyncio.timeout(self._timeout * 2):
            await self._client.ping()
        self._trouble = ""
        self._lost.clear()
        _log.info("cache found", address=self._address)


def _words(error: BaseException, timeout: float) -> str:
    return str(error) or f"no answer within {timeout:g} s"


def _address(url: str) -> str:
    """Give the address without the password."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or parts.path or "?"
