"""What the commands about backups work on: the configuration, the target, and who has the store."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.shared.errors import ConfigError, FailedPrecondition, StartupError
from services.shared.log import configure_logging
from services.shared.registration import LocalRegistrar
from services.shared.settings import ENV_PREFIX, MeshSettings, load_mesh, load_settings
from services.storage.backups.catalog import Catalog
from services.storage.backups.errors import BackupNotFound
from services.storage.backups.keys import Keyring
from services.storage.backups.settings import BackupSettings
from services.storage.backups.store import Store
from services.storage.backups.targets import Target, open_target
from services.storage.engine import Engine
from services.storage.migrate import migrate
from services.storage.settings import EngineSettings, StorageSettings

__all__ = ["Setup", "load_setup"]

LATEST = "latest"


@dataclass(frozen=True, slots=True)
class Setup:
    """What one command works on."""

    mesh: MeshSettings
    """`services.yaml`."""

    engine: EngineSettings
    """Where the database is."""

    backups: BackupSettings
    """Where backups are, options of the command line applied."""

    overridden: tuple[str, ...]
    """Options of the command line that the service storage does not know of."""

    @property
    def target(self) -> Target:
        """The target; raises `KeyMissing` and `KeyUnsafe`."""
        return open_target(self.backups, self.mesh.data_dir)

    @property
    def keyring(self) -> Keyring:
        """The keys at hand; raises `KeyMissing` and `KeyUnsafe`."""
        return Keyring.load(self.backups.encryption)

    def resolve(self, backup_id: str) -> str:
        """Give the id that was meant: `latest` is that of the newest whole backup."""
        if backup_id != LATEST:
            return backup_id
        for found in Catalog(self.target).find():
            if found.manifest is not None:
                return found.backup_id
        raise BackupNotFound(f"there is no whole backup in {self.target.name}")

    async def storage_address(self) -> str | None:
        """Give where storage of this data directory answers; None where it does not run."""
        for each in await LocalRegistrar.below(self.mesh.data_dir).list("storage"):
            return f"{each.host}:{each.grpc_port}"
        return None

    def refuse_options(self) -> None:
        """Raise `ConfigError` for options that the service cannot be told."""
        if self.overridden:
            raise ConfigError(
                f"{', '.join(self.overridden)}: storage is running, and it makes and restores "
                "backups as config/storage.yaml says: set it there, or stop storage first"
            )

    @contextlib.asynccontextmanager
    async def store(self, *, make: bool) -> AsyncIterator[Store]:
        """Open the database directly; `make` brings it to this version's schema first.

        Raises `StartupError` where it cannot be opened.
        """
        folder = self.mesh.data_dir / self.engine.folder
        engine = Engine(self.engine, folder, self.mesh.clickhouse.url)
        if engine.is_embedded and not make and not folder.is_dir():
            raise StartupError(
                f"there is no store in {folder}: name its data directory with --data-dir, or a "
                "server with CLICKHOUSE_URL"
            )
        async with _opened(engine, self.backups.concurrency, make=make) as store:
            yield store

    @contextlib.asynccontextmanager
    async def scratch_store(self, folder: Path) -> AsyncIterator[Store]:
        """Open a temporary store of its own in an empty folder."""
        engine = Engine(EngineSettings(readers=1), folder)
        async with _opened(engine, self.backups.concurrency, make=False) as store:
            yield store


def load_setup(
    config_dir: Path | None,
    data_dir: Path | None,
    *,
    target: str | None = None,
    identity: Path | None = None,
    recipients: tuple[str, ...] = (),
    unencrypted: bool = False,
    database: str | None = None,
) -> Setup:
    """Read the configuration and apply the options; raises `ConfigError`."""
    environ = dict(os.environ)
    if data_dir is not None:
        environ[f"{ENV_PREFIX}SERVICES__DATA_DIR"] = str(data_dir.expanduser().absolute())
    overridden = []
    if target is not None:
        overridden.append("--target")
        if "://" not in target:
            target = str(Path(target).expanduser().absolute())
        _override(environ, "TARGET", target)
    if identity is not None:
        overridden.append("--identity")
        _override(environ, "ENCRYPTION__IDENTITY_FILE", str(identity.expanduser().absolute()))
    if recipients:
        overridden.append("--recipient")
        if not all(each.isalnum() for each in recipients):
            raise ConfigError("--recipient: expected public keys of age, age1...")
        _override(environ, "ENCRYPTION__RECIPIENTS", f"[{', '.join(recipients)}]")
    if unencrypted:
        overridden.append("--unencrypted")
        _override(environ, "ENCRYPTION__ENABLED", "false")
    if database is not None:
        overridden.append("--database")
        environ[f"{ENV_PREFIX}STORAGE__ENGINE__DATABASE"] = database
    mesh = load_mesh(config_dir=config_dir, environ=environ)
    # Stdout is for what was asked for.
    configure_logging(mesh.log.model_copy(update={"level": "warning"}))
    storage = load_settings(StorageSettings, "storage", config_dir=config_dir, environ=environ)
    return Setup(mesh, storage.engine, storage.backups, tuple(overridden))


def _override(environ: dict[str, Any], key: str, value: str) -> None:
    environ[f"{ENV_PREFIX}STORAGE__BACKUPS__{key}"] = value


@contextlib.asynccontextmanager
async def _opened(engine: Engine, threads: int, *, make: bool) -> AsyncIterator[Store]:
    try:
        try:
            await engine.open()
        except FailedPrecondition:
            raise
        except Exception as error:
            why = getattr(error, "message", None) or str(error)
            hint = "; does a service of another mesh have it open?" if engine.is_embedded else ""
            raise StartupError(f"cannot open {engine.where}{hint} ({why})") from None
        if make:
            await migrate(engine)
        async with Store.opened(engine, threads) as store:
            yield store
    finally:
        await asyncio.shield(engine.close())
