"""The collector: venues on one side, the broker on the other."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import aiohttp
import grpc
from marketprism.collector.v1 import collector_service_pb2 as pb
from marketprism.collector.v1 import collector_service_pb2_grpc as pb_grpc
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import order_book_pb2 as book_pb

from services.collector.budget import BudgetPools
from services.collector.ledger import Ledger
from services.collector.metrics import VenueMetrics
from services.collector.recall import Recall
from services.collector.recording import Recorder
from services.collector.rest import RestClient
from services.collector.servicer import CollectorServicer
from services.collector.settings import CollectorSettings
from services.collector.sharing import Sharing
from services.collector.status import status_message
from services.collector.synchroniser import SnapshotPolicy
from services.collector.venue import Venue
from services.collector.venues.base import RestPool
from services.collector.venues.registry import adapter_for_exchange
from services.shared.errors import ConfigError, InvalidArgument
from services.shared.health import DependencyStatus
from services.shared.progress import Progress
from services.shared.publisher import OutboxLimits, Publisher, PublisherOptions
from services.shared.service import BaseService
from services.shared.settings import MeshSettings, load_settings

__all__ = ["CollectorService"]

_HEARTBEAT_SECONDS = 1.0
_DRAIN_SECONDS = 3.0
_STUCK_SECONDS = 5.0


class CollectorService(BaseService):
    """Collects every enabled venue of `config/collector.yaml`."""

    name = "collector"
    grpc_services = (pb.DESCRIPTOR.services_by_name["CollectorService"],)

    def __init__(self, mesh: MeshSettings, settings: CollectorSettings) -> None:
        super().__init__(mesh)
        self.settings = settings
        self.venues: list[Venue] = []
        self._start_time = time.time_ns()
        self._recorder: Recorder | None = None
        enabled = [name for name, each in settings.exchanges.items() if each.enabled]
        self._sharing = (
            Sharing(
                mesh.nats.url,
                settings.collector_id,
                enabled,
                settings.leases,
                self.venues,
                self.spawn,
            )
            if settings.leases.enabled
            else None
        )
        limits = OutboxLimits(
            messages=settings.buffer.messages, bytes=settings.buffer.megabytes * 1024 * 1024
        )
        self.publisher = Publisher(
            mesh.nats.url,
            name=f"collector {settings.collector_id}",
            # Nothing waits for the acknowledgement of the last few messages of a quiet market:
            # asking less often halves what an idle mesh costs.
            options=PublisherOptions(limits=limits, tail_check=0.5),
            on_connection=self._on_broker,
            on_dropped=self._on_dropped,
            on_rejected=self._on_rejected,
            may_send=self._sharing.may_publish if self._sharing is not None else None,
        )
        if self._sharing is not None:
            self._sharing.publisher = self.publisher
            self.metrics.registry.register(self._sharing.manager)
        self.metrics.registry.register(self.publisher)
        self._stored = Progress()
        self._ledger = Ledger(
            settings.collector_id,
            self.publisher.publish,
            self.metrics.counter(
                "integrity_events", "Entries of the gap ledger.", ["exchange", "kind"]
            ),
        )

    @classmethod
    def from_config(cls, mesh: MeshSettings, config_dir: Path | None = None) -> Self:
        """Make the service from `config/collector.yaml`."""
        settings = load_settings(CollectorSettings, "collector", config_dir=config_dir)
        for exchange in settings.exchanges:
            try:
                adapter_for_exchange(exchange)
            except InvalidArgument as error:
                raise ConfigError(f"collector.yaml: exchanges.{exchange}: {error}") from error
        return cls(mesh, settings)

    async def setup(self, stack: contextlib.AsyncExitStack) -> None:
        """Start everything; venues wait for the broker by themselves."""
        session = await stack.enter_async_context(
            aiohttp.ClientSession(headers={"User-Agent": f"marketprism/{self.version}"})
        )
        recording = self.settings.recording
        # Opened before all that it records, so that it is closed after the last of it.
        if recording.directory is not None:
            self._recorder = Recorder(
                recording.directory, f"{self.settings.collector_id}", recording
            )
            self.spawn(self._recorder.run(), "recorder")
        await self.publisher.start()
        stack.push_async_callback(self._close_publisher)
        books = self.settings.books
        policy = SnapshotPolicy(
            every_updates=books.snapshot_every_updates,
            every_seconds=books.snapshot_every_seconds,
            refresh_seconds=books.snapshot_refresh_seconds,
            max_buffered=books.max_buffered_diffs,
            max_levels=books.max_levels,
            min_levels=books.min_levels,
        )
        pools = BudgetPools()
        for exchange, settings in self.settings.exchanges.items():
            if not settings.enabled:
                continue
            adapter = adapter_for_exchange(exchange, settings.option_families)
            on_answer = self._record_answers(exchange)
            rest = RestClient(
                settings.rest_url or adapter.default_rest_url,
                session,
                pools.budget(
                    adapter.rest_pool, _limit(adapter.rest_pool, settings.weight_per_minute)
                ),
                settings.rest_seconds,
                on_answer,
                refusal=adapter.rest_refusal,
            )
            self.venues.append(
                Venue(
                    exchange,
                    adapter,
                    settings,
                    rest,
                    self.publisher,
                    self._ledger,
                    policy,
                    self.spawn,
                    self._recorder,
                    self._shares(exchange),
                    Recall(self.mesh.nats.url, exchange, settings.trade_history_hours),
                )
            )
        self.metrics.registry.register(VenueMetrics(self.venues, self._recorder))
        for venue in self.venues:
            venue.note_begin(
                self.settings.collector_id, self._start_time, first=venue is self.venues[0]
            )
            if self._sharing is not None:
                venue.note_shares(self.settings.leases.slots, (), self._start_time)
            venue.on_lifetime(integrity.INTEGRITY_KIND_COLLECTOR_STARTED, self._start_time)
            self.spawn(venue.run(), venue.exchange)
        if self._sharing is not None:
            self.spawn(self._sharing.manager.run(), "leases")
            stack.push_async_callback(self._sharing.leave)
        self.spawn(self._heartbeat(), "heartbeat")

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer."""
        pb_grpc.add_CollectorServiceServicer_to_server(
            CollectorServicer(
                self.settings.collector_id,
                self._start_time,
                self.venues,
                self.publisher,
                self._sharing,
            ),
            server,
        )

    def dependencies(self) -> Mapping[str, DependencyStatus]:
        """Tell the state of the broker and of each venue."""
        status = self.publisher.status
        facts: dict[str, Any] = {"in_flight": status.in_flight, "buffered": status.buffered}
        result = {
            "broker": DependencyStatus.healthy("", **facts)
            if status.connected
            else DependencyStatus.degraded(
                f"not connected: {status.last_error}; events are buffered", **facts
            )
        }
        stuck = self._stored.stuck_seconds(time.monotonic())
        if status.connected and stuck > _STUCK_SECONDS:
            result["broker"] = DependencyStatus.degraded(
                f"has stored nothing for {stuck:.0f} s; events are buffered", **facts
            )
        for venue in self.venues:
            result[venue.exchange] = _venue_health(venue)
        if self._sharing is not None:
            leases = self._sharing.manager.status()
            held: dict[str, Any] = {
                "members": list(leases.members),
                "held": leases.held,
                "total": leases.total,
            }
            problem = leases.problem or ("not renewed in time" if leases.suspended else "")
            result["leases"] = (
                DependencyStatus.degraded(problem, **held)
                if problem
                else DependencyStatus.healthy("", **held)
            )
        if self._recorder is not None:
            recorder = self._recorder
            recorded: dict[str, Any] = {"frames": recorder.frames, "dropped": recorder.dropped}
            result["recording"] = (
                DependencyStatus.degraded(recorder.last_error, **recorded)
                if recorder.last_error
                else DependencyStatus.healthy("", **recorded)
            )
        return result

    # Inside

    def _shares(self, exchange: str) -> Callable[[str], bool]:
        sharing = self._sharing
        if sharing is None:
            return lambda _: True
        return lambda symbol: sharing.shares(exchange, symbol)

    async def _close_publisher(self) -> None:
        now = time.time_ns()
        for venue in self.venues:
            venue.on_lifetime(integrity.INTEGRITY_KIND_COLLECTOR_STOPPED, now)
        if self.publisher.status.connected and not await self.publisher.drain(_DRAIN_SECONDS):
            self.log.warning("not everything could be stored", left=self.publisher.status.in_flight)
        await self.publisher.stop()

    async def _heartbeat(self) -> None:
        subject = f"collector.heartbeat.{self.settings.collector_id}"
        while True:
            message = status_message(
                self.settings.collector_id,
                self._start_time,
                self.venues,
                self.publisher,
                self._sharing,
            )
            publisher = message.publisher
            self._stored.observe(
                publisher.acknowledged,
                waiting=publisher.in_flight + publisher.buffered > 0,
                now=time.monotonic(),
            )
            self.publisher.tell(subject, message.SerializeToString())
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    def _record_answers(self, exchange: str) -> Callable[[str, bytes, int], None] | None:
        recorder = self._recorder
        if recorder is None:
            return None
        return lambda url, body, received: recorder.record(
            "http", url, f"{exchange}.http", body, received
        )

    def _on_broker(self, connected: bool, detail: str) -> None:
        if connected:
            self.log.info("broker connected", detail=detail)
        elif not self.stopping.is_set():
            self.log.warning("broker lost; events are buffered", detail=detail)
        now = time.time_ns()
        for venue in self.venues:
            venue.on_broker(connected, now)

    def _on_dropped(self, key: str, count: int) -> None:
        now = time.time_ns()
        any(venue.on_dropped(key, count, now) for venue in self.venues)

    def _on_rejected(self, subject: str, message_id: str, reason: str) -> None:
        if reason != "BUFFER_FULL":
            self.log.error("not publishable", subject=subject, message_id=message_id, reason=reason)
        now = time.time_ns()
        any(venue.on_rejected(subject, message_id, now) for venue in self.venues)


def _limit(pool: RestPool, weight_per_minute: int | None) -> int:
    """Give the weight allowed within the pool's window; 0 when the pool's own limit counts."""
    if weight_per_minute is None:
        return 0
    return max(1, int(weight_per_minute * pool.window_seconds / 60))


def _venue_health(venue: Venue) -> DependencyStatus:
    total = len(venue.feeds)
    in_step = sum(
        1 for feed in venue.feeds.values() if feed.book.state == book_pb.ORDER_BOOK_STATE_SYNCED
    )
    connected = sum(1 for each in venue.connections if each.state == pb.CONNECTION_STATE_CONNECTED)
    facts: dict[str, Any] = {
        "instruments": total,
        "books_in_step": in_step,
        "connections": len(venue.connections),
        "connected": connected,
    }
    if not venue.ready:
        return DependencyStatus.degraded(venue.detail, **facts)
    if not venue.feeds and not venue.roster.listed:
        return DependencyStatus.degraded(
            f"no instrument that trades matches {list(venue.settings.symbols)}", **facts
        )
    if not venue.feeds:
        return DependencyStatus.healthy("others collect all of its instruments", **facts)
    if connected == 0:
        error = next((each.last_error for each in venue.connections if each.last_error), "")
        return DependencyStatus.degraded(f"no connection: {error}", **facts)
    if venue.detail:
        return DependencyStatus.degraded(venue.detail, **facts)
    if in_step < total:
        told = [f"{total - in_step} books are not in step", venue.rest.budget.waits]
        return DependencyStatus.degraded("; ".join(filter(None, told)), **facts)
    return DependencyStatus.healthy("", **facts)
