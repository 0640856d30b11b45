"""The marketdata service: the feed, the live state, the gRPC server, and their health."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import grpc

from services.marketdata.collectors import Rivals
from services.marketdata.feed import Feed
from services.marketdata.figures import Figures
from services.marketdata.market import Market
from services.marketdata.parts import make_parts
from services.marketdata.servicer import SERVICE
from services.marketdata.settings import MarketDataSettings
from services.shared.health import DependencyStatus
from services.shared.parts import PartsServicer
from services.shared.service import BaseService
from services.shared.settings import MeshSettings, load_settings

__all__ = ["MarketDataService"]

_TICK_SECONDS = 1.0
_WATCH_SECONDS = 0.5


class MarketDataService(BaseService):
    """Serves live books, trades, offers and instruments from the broker's streams.

    It is ready when it has read what the broker held at its start, and stays ready while the broker
    is away: what it holds is then served as STALE.
    """

    name = "marketdata"
    grpc_services = (SERVICE,)

    def __init__(self, mesh: MeshSettings, settings: MarketDataSettings | None = None) -> None:
        super().__init__(mesh)
        self.settings = settings or MarketDataSettings()
        self._figures = Figures(self.metrics)
        self.market = Market(
            self.settings, tally=self._figures.tally, observe_lag=self._figures.observe_lag
        )
        """The live state."""
        self._figures.watch(self.market)
        self._feed: Feed | None = None
        self._rivals = Rivals()

    @classmethod
    def from_config(cls, mesh: MeshSettings, config_dir: Path | None = None) -> Self:
        """Make the service with `marketdata.yaml`; raises `ConfigError`."""
        return cls(mesh, load_settings(MarketDataSettings, "marketdata", config_dir=config_dir))

    async def setup(self, stack: contextlib.AsyncExitStack) -> None:
        """Begin to read the broker's streams; a broker that is away is waited for."""
        feed = self._feed = Feed(self.mesh.nats.url, self.market, self.settings)
        for name, work in feed.tasks():
            self.spawn(work, name)
        self.spawn(self._watch_collectors(feed), "collectors")
        self.spawn(self._tick(), "upkeep")
        self.spawn(self._end_streams(), "end of streams")

    def register(self, server: grpc.aio.Server) -> None:
        """Add MarketDataService."""
        PartsServicer(SERVICE, make_parts(self.market, self.settings)).add_to(server)

    def dependencies(self) -> Mapping[str, DependencyStatus]:
        """Tell the state of the broker's streams and of the collectors."""
        feed = self._feed
        if feed is None:
            return {"broker": DependencyStatus.unhealthy("not connected yet")}
        troubles = {s.stream: s.trouble for s in feed.sources if s.trouble}
        if not feed.caught_up:
            waiting = [s.stream for s in feed.sources if not s.caught_up.is_set()]
            detail = next(iter(troubles.values()), "") or f"reading {', '.join(waiting)}"
            broker = DependencyStatus.unhealthy(detail, streams_not_read=waiting)
        elif troubles:
            detail = next(iter(troubles.values()))
            broker = DependencyStatus.degraded(
                f"{detail}; what is held is served as STALE", streams_interrupted=list(troubles)
            )
        else:
            broker = DependencyStatus.healthy()
        return {"broker": broker, "collector": self._collector_health(feed)}

    def _collector_health(self, feed: Feed) -> DependencyStatus:
        ages = {name: round(age, 1) for name, age in feed.collectors.known.items()}
        silent = feed.collectors.silence("", "")
        silent = silent or feed.collectors.missing()
        if silent:
            return DependencyStatus.degraded(silent, seconds_since_heard=ages)
        if self._rivals.are_at_work:
            last = self.market.tally.old_epoch_book
            who = ", ".join(sorted(feed.collectors.collecting(last.partition("/")[0])))
            return DependencyStatus.degraded(
                f"two collectors publish the same books ({who or 'neither is heard'}), the last of "
                f"them {last}: expected one; stop the other, give it other symbols, or let them "
                "share with leases.enabled in collector.yaml",
                seconds_since_heard=ages,
            )
        return DependencyStatus.healthy(seconds_since_heard=ages)

    async def _watch_collectors(self, feed: Feed) -> None:
        while True:
            now = time.monotonic()
            feed.collectors.refresh(now)
            self._rivals.observe(self.market.tally.old_epoch, now)
            self.market.on_collectors(feed.collectors.silence)
            await asyncio.sleep(_WATCH_SECONDS)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self.market.tick(time.monotonic())
            self._figures.flush()

    async def _end_streams(self) -> None:
        await self.stopping.wait()
        self.market.close()
