"""The storage service: the database, ingestion from the broker, and history over gRPC."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final, Self

import grpc
from marketprism.history.v1 import history_service_pb2

from services.shared.cache import open_cache
from services.shared.errors import MarketPrismError, StartupError
from services.shared.health import DependencyStatus
from services.shared.parts import PartsServicer
from services.shared.service import BaseService
from services.shared.settings import MeshSettings, load_settings
from services.storage.backups.calls import SERVICE as ARCHIVE_SERVICE
from services.storage.backups.calls import BackupCalls
from services.storage.backups.restore import tidy
from services.storage.engine import Engine
from services.storage.errors import StoreRefused
from services.storage.freshness import Freshness
from services.storage.http_cache import Answers, contract_version
from services.storage.ingest import Ingest
from services.storage.ingest_calls import IngestCalls
from services.storage.migrate import apply_ttl, known_migrations, migrate
from services.storage.parts import make_parts
from services.storage.rollups import Rollups
from services.storage.settings import StorageSettings

__all__ = ["SERVICE", "StorageService"]

SERVICE: Final = history_service_pb2.DESCRIPTOR.services_by_name["HistoryService"]
"""Descriptor of HistoryService."""

_PING_SECONDS = 2.0
_RETRY_SECONDS = 1.0


class StorageService(BaseService):
    """Keeps what the broker carries, and answers about the past.

    It starts without its database and without the broker, says so in `/health`, and begins to work
    when they come.
    """

    name = "storage"
    grpc_services = (SERVICE, ARCHIVE_SERVICE)

    def __init__(self, mesh: MeshSettings, settings: StorageSettings | None = None) -> None:
        super().__init__(mesh)
        self.settings = settings or StorageSettings()
        engine = self.settings.engine
        self.engine = Engine(engine, mesh.data_dir / engine.folder, mesh.clickhouse.url)
        """The database."""
        self.store_ready = asyncio.Event()
        """Set when the schema is there."""
        self.answers: Answers | None = None
        """Answers that are kept; there from the start."""
        self.rollups = Rollups(self.engine, self.settings.rollups, self.metrics)
        """What makes candles and spreads of new events."""
        self.ingest: Ingest | None = None
        """What stores events of the broker; None where this process only answers."""
        self._trouble = "not opened yet"
        self._rollups_end = asyncio.Event()
        self._rolling: asyncio.Task[None] | None = None

    @classmethod
    def from_config(cls, mesh: MeshSettings, config_dir: Path | None = None) -> Self:
        """Make the service with `storage.yaml`; raises `ConfigError`."""
        return cls(mesh, load_settings(StorageSettings, "storage", config_dir=config_dir))

    async def setup(self, stack: contextlib.AsyncExitStack) -> None:
        """Open the store; a server that is away is waited for."""
        cache = await open_cache(
            stack,
            "history",
            contract_version("".join(each.digest for each in known_migrations())),
            redis=self.mesh.redis,
            metrics=self.metrics,
            settings=self.settings.answers,
        )
        fresh = Freshness(self.settings.answers.settling_seconds)
        self.answers = Answers(cache, self.settings.answers, stored_until=fresh.stored_until)
        await self.answers.begin()
        stack.push_async_callback(self.engine.close)
        if self.engine.is_embedded:
            await self._prepare()
        else:
            self.spawn(self._prepare_when_there(), "store")
        self.spawn(self._watch(), "store watch")
        if self.settings.rollups.enabled:
            self._rolling = self.spawn(self._roll_up(), "rollups")
        if self.settings.ingest.enabled:
            self.ingest = Ingest(
                self.mesh.nats.url,
                self.engine,
                self.settings.ingest,
                self.metrics,
                on_stored=fresh.on_stored,
            )
            fresh.watch(self.ingest)
            self.spawn(fresh.run(self.answers), "late rows")
            self.spawn(self.ingest.run(self.store_ready, self.stopping), "ingest")

    def register(self, server: grpc.aio.Server) -> None:
        """Add HistoryService, and ArchiveService for its backups."""
        assert self.answers is not None, "the service is not set up"
        parts = make_parts(self.engine, self.settings, self.answers, self.stopping)
        parts.append(IngestCalls(self.ingest))
        PartsServicer(SERVICE, parts).add_to(server)
        backups = BackupCalls(
            self.engine,
            self.settings.backups,
            self.mesh.data_dir,
            self.spawn,
            self.stopping,
            around_restore=self._restoring,
        )
        PartsServicer(ARCHIVE_SERVICE, [backups]).add_to(server)

    def dependencies(self) -> Mapping[str, DependencyStatus]:
        """Tell the state of the database, and of the cache of answers."""
        found = {"database": self._database_health()}
        if self.settings.rollups.enabled:
            found["rollups"] = self.rollups.status()
        if self.answers is not None:
            found["cache"] = self.answers.status()
        if self.ingest is not None:
            found.update(self.ingest.dependencies())
        return found

    def _database_health(self) -> DependencyStatus:
        if not self.store_ready.is_set():
            return DependencyStatus.unhealthy(f"{self.engine.where}: {self._trouble}")
        if self._trouble:
            return DependencyStatus.degraded(f"{self.engine.where}: {self._trouble}")
        return DependencyStatus.healthy(where=self.engine.where)

    async def _prepare(self) -> None:
        await self.engine.open()
        await migrate(self.engine)
        await tidy(self.engine)
        changed = await apply_ttl(self.engine, dict(self.settings.keep_days))
        if changed:
            self.log.info("retention changed", tables=changed)
        self._trouble = ""
        self.store_ready.set()

    async def _prepare_when_there(self) -> None:
        while not self.store_ready.is_set():
            try:
                await self._prepare()
            except (StartupError, StoreRefused):
                raise
            except MarketPrismError as error:
                if self._trouble != error.message:
                    self.log.warning("the database is away", reason=error.message)
                self._trouble = error.message
                await self.engine.close()
                await asyncio.sleep(_RETRY_SECONDS)

    async def _roll_up(self) -> None:
        await self.store_ready.wait()
        await self.rollups.run(self._rollups_end)

    @contextlib.asynccontextmanager
    async def _restoring(self) -> AsyncIterator[None]:
        """Make nothing of rows that are being replaced, and forget what was answered of them.

        Nothing is stored meanwhile; afterwards what the broker still holds is stored again.
        """
        self._rollups_end.set()
        if self._rolling is not None:
            await asyncio.wait({self._rolling})
        try:
            async with self.ingest.paused() if self.ingest else contextlib.nullcontext():
                yield
        finally:
            if self.answers is not None:
                await self.answers.begin()
            self._rollups_end.clear()
            if self.settings.rollups.enabled and not self.stopping.is_set():
                self._rolling = self.spawn(self._roll_up(), "rollups")

    async def _watch(self) -> None:
        await self.store_ready.wait()
        while True:
            await asyncio.sleep(_PING_SECONDS)
            try:
                await self.engine.ping()
            except MarketPrismError as error:
                self._trouble = error.message
            else:
                self._trouble = ""
