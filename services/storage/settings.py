"""`config/storage.yaml`: the database, what is kept for how long, and how much may be asked."""

from collections.abc import Mapping

from pydantic import Field, field_validator

from services.shared.settings import SettingsModel
from services.storage.backups.settings import BackupSettings
from services.storage.http_cache import AnswerSettings
from services.storage.ingest_settings import IngestSettings
from services.storage.replay_settings import ReplaySettings
from services.storage.rollup_sql import ROLLUP_TABLES
from services.storage.sql_settings import SqlSettings
from services.storage.tables import TABLES

__all__ = ["EngineSettings", "RollupSettings", "StorageSettings"]


class EngineSettings(SettingsModel):
    """Where the database is, and how it is used.

    Without a URL (here or `CLICKHOUSE_URL`) it is the embedded engine, below `data_dir`.
    """

    write_url: str | None = None
    """`http://user:password@host:8123` that inserts go to; absent means `CLICKHOUSE_URL`."""

    read_url: str | None = None
    """The same for queries, when replicas answer them; absent means `write_url`."""

    database: str = Field(default="marketprism", pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")
    """Name of the database; made when it is not there."""

    cluster: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]{0,64}$")
    """Cluster of the servers: tables are then ReplicatedReplacingMergeTree on each of them, under a
    Distributed table that spreads instruments over the shards. Empty means one server."""

    folder: str = "clickhouse"
    """Folder of the embedded engine below `data_dir`."""

    readers: int = Field(default=4, ge=1, le=64)
    """Queries at work at a time; further ones wait."""

    query_seconds: float = Field(default=30.0, gt=0, le=3600)
    """Longest time of one query, seconds."""

    query_bytes: int = Field(default=2 * 1024**3, ge=64 * 1024**2)
    """Most memory of one query, bytes."""

    connect_seconds: float = Field(default=5.0, gt=0)
    """Time to connect to a server, seconds."""

    request_seconds: float = Field(default=120.0, gt=0)
    """Time for a server's answer, seconds."""


class RollupSettings(SettingsModel):
    """How often candles and spreads are made of new events."""

    enabled: bool = True
    """Whether this process makes them: of several on one database one is enough, more do the same
    work again."""

    fine_seconds: float = Field(default=2.0, gt=0, le=60)
    """Between two looks for new trades, seconds: candles of a second and of a minute. Answers have
    newer trades all the same; this bounds how many of them are counted at each question."""

    coarse_seconds: float = Field(default=10.0, gt=0, le=600)
    """The same for longer candles and for spreads."""

    behind_seconds: float = Field(default=120.0, gt=0)
    """Health says degraded when they lack events for longer, seconds."""


class StorageSettings(SettingsModel):
    """`config/storage.yaml`."""

    engine: EngineSettings = EngineSettings()
    """The database."""

    answers: AnswerSettings = AnswerSettings()
    """How long answers are kept, here and by HTTP caches."""

    backups: BackupSettings = BackupSettings()
    """Where backups go, and who can open them."""

    replay: ReplaySettings = ReplaySettings()
    """Streams of the past."""

    rollups: RollupSettings = RollupSettings()
    """Candles and spreads."""

    ingest: IngestSettings = IngestSettings()
    """How events come in from the broker."""

    sql: SqlSettings = SqlSettings()
    """SQL for administrators."""

    keep_days: Mapping[str, float] = Field(default_factory=dict)
    """How long each table keeps its rows, days by `time`; a table that is not named keeps them
    without end. Tables are named like the kinds in subjects: trade, order_book_update, ...; derived
    ones are candle_1s to candle_1d and spread_1m."""

    @field_validator("keep_days")
    @classmethod
    def _known_tables(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        known = (*TABLES, *ROLLUP_TABLES)
        unknown = sorted(set(value) - set(known))
        if unknown:
            raise ValueError(f"no table {', '.join(unknown)}; there are {', '.join(known)}")
        short = sorted(name for name, days in value.items() if not days > 0)
        if short:
            raise ValueError(f"expected more than 0 days for {', '.join(short)}")
        return value
