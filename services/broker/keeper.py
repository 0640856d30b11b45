"""Keeps a connection to the broker and the streams in their configured form."""

import asyncio
import random
import time
from collections.abc import Callable

from services.broker.settings import BrokerSettings
from services.broker.streams import StreamConflict, ensure_streams
from services.shared.errors import MarketPrismError
from services.shared.jetstream import Connection, ConnectionLost
from services.shared.jetstream.api import api_request
from services.shared.log import get_logger

__all__ = ["StreamKeeper"]

_CHECK_SECONDS = 2.0
_BACKOFF = 0.1
_BACKOFF_LIMIT = 2.0


class StreamKeeper:
    """Connects, ensures the streams, and does both again after each loss of the connection.

    A stream that cannot be given its form stops the start; later it is told by `problem` and
    tried again, because the rest of the mesh goes on working.
    """

    def __init__(self, url: Callable[[], str], settings: BrokerSettings) -> None:
        self._url = url
        self._settings = settings
        self._log = get_logger()
        self._connection: Connection | None = None
        self.problem = "not connected yet"
        """What is wrong now, empty when all streams are as configured."""
        self.since = time.monotonic()
        """When the present state began, on the monotonic clock, seconds."""

    @property
    def connection(self) -> Connection:
        """The live connection; raises `ConnectionLost` when there is none."""
        if self._connection is None or self._connection.is_closed:
            raise ConnectionLost(f"the broker cannot be reached: {self.problem}", retry_after=1.0)
        return self._connection

    async def connect(self) -> None:
        """Connect and ensure the streams, once; raises what is wrong."""
        if self._connection is None or self._connection.is_closed:
            self._connection = await Connection.open(
                self._url().split(","), name="marketprism broker"
            )
        done = await ensure_streams(self._connection, self._settings)
        changed = {name: what for name, what in done.items() if what != "unchanged"}
        self._log.info("streams ready", streams=len(done), **changed)
        self._tell("")

    async def run(self) -> None:
        """Keep it so, until cancelled."""
        failures = 0
        try:
            while True:
                try:
                    if self._connection is not None and not self.problem:
                        await self._watch(self._connection)
                    await self.connect()
                    failures = 0
                except (MarketPrismError, TimeoutError) as error:
                    failures += 1
                    problem = str(error) or "JetStream does not answer in time"
                    if problem != self.problem:
                        self._log.warning("streams not ready", error=problem)
                    self._tell(problem)
                    longest = min(_BACKOFF * 2.0 ** min(failures, 10), _BACKOFF_LIMIT)
                    if isinstance(error, StreamConflict):
                        longest = 10 * _BACKOFF_LIMIT
                    await asyncio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311
        finally:
            self.close()

    async def _watch(self, connection: Connection) -> None:
        """Return when the connection is gone or JetStream stops answering on it."""
        while not connection.is_closed:
            await asyncio.wait({connection.closed}, timeout=_CHECK_SECONDS)
            try:
                if not connection.is_closed:
                    await api_request(connection, "INFO", timeout=_CHECK_SECONDS)
            except (MarketPrismError, TimeoutError) as error:
                connection.close(f"JetStream does not answer: {error}".rstrip(": "))
        self._tell(connection.closed.result())
        self._log.warning("connection lost", reason=self.problem)

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close("stopped")

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self.since = time.monotonic()
