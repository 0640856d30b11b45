"""Settings of the collector: `config/collector.yaml`."""

import socket
from pathlib import Path
from typing import Annotated

from pydantic import Field

from services.shared.settings import SettingsModel

__all__ = [
    "BookSettings",
    "BufferSettings",
    "CollectorSettings",
    "ExchangeSettings",
    "RecordingSettings",
]

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class ExchangeSettings(SettingsModel):
    """One venue: where it is, what is collected, and how gently."""

    enabled: bool = True
    """Whether it is collected."""

    rest_url: str = Field(pattern=r"^https?://")
    """Base of the REST interface."""

    ws_url: str = Field(pattern=r"^wss?://")
    """WebSocket address; subscriptions are sent after connecting."""

    symbols: tuple[str, ...] = Field(min_length=1)
    """Canonical symbols; `*` matches any run of characters, as in `*-USDT`. Only instruments that
    trade are taken."""

    snapshot_depth: int = Field(default=1000, ge=5, le=5000)
    """Levels a side asked for in a REST snapshot: the horizon of the book. More cost more of the
    venue's request weight (Binance: 50 for 1000, 250 for 5000)."""

    weight_per_minute: int = Field(default=3000, ge=50)
    """Request weight spent in a minute at the most; Binance allows 6000 to an IP address."""

    snapshots_at_once: int = Field(default=4, ge=1, le=32)
    """Snapshot requests in flight at the same time."""

    instruments_per_connection: int = Field(default=100, ge=1, le=300)
    """Instruments that share a WebSocket connection; each takes three streams."""

    subscribe_interval_seconds: Seconds = 0.3
    """Time between two requests on a connection; Binance closes above 5 a second."""

    acknowledge_seconds: Seconds = 10.0
    """Time in which the venue has to acknowledge a subscription."""

    silence_seconds: Seconds = 10.0
    """Time without any frame on a connection after which its books are STALE; after twice that
    the connection is opened anew."""

    lag_seconds: Seconds = 5.0
    """Time after which a book is STALE that is behind the best bid and offer of its own venue."""

    open_seconds: Seconds = 10.0
    """Time in which a connection has to open."""

    rest_seconds: Seconds = 10.0
    """Time in which a REST request has to be answered."""

    backoff_seconds: Seconds = 0.25
    """Wait before the second attempt of anything; doubled with each further one, with jitter."""

    backoff_limit_seconds: Seconds = 30.0
    """Longest such wait."""


class BookSettings(SettingsModel):
    """What is published of a book beside its updates, and what is kept."""

    snapshot_every_updates: int = Field(default=2000, ge=10)
    """A periodic snapshot after so many updates."""

    snapshot_every_seconds: Seconds = 30.0
    """A periodic snapshot after so long, if anything changed."""

    snapshot_refresh_seconds: Seconds = 240.0
    """A periodic snapshot after so long even if nothing did; must stay well below the retention
    of the MARKET_ORDER_BOOK stream."""

    max_buffered_diffs: int = Field(default=5000, ge=10)
    """Diffs kept while a snapshot is awaited."""

    max_levels: int = Field(default=20_000, ge=100)
    """Levels a side kept at the most; the worst go first and the horizon moves."""

    min_levels: int = Field(default=20, ge=1)
    """Levels a side within the horizon below which the book is rebuilt."""


class BufferSettings(SettingsModel):
    """What waits while the broker is away."""

    messages: int = Field(default=200_000, ge=1000)
    """Messages at the most."""

    megabytes: int = Field(default=256, ge=8)
    """Memory at the most, MiB."""


class RecordingSettings(SettingsModel):
    """Raw frames and REST answers written to files while collecting."""

    directory: Path | None = None
    """Where the files go; absent means that nothing is recorded."""

    rotate_megabytes: int = Field(default=256, ge=1)
    """A new file after so much raw data, MiB."""

    buffer_megabytes: int = Field(default=64, ge=1)
    """Raw data waiting for the disk at the most, MiB; more is dropped and counted."""


class CollectorSettings(SettingsModel):
    """Everything in `config/collector.yaml`."""

    collector_id: str = Field(
        default_factory=lambda: socket.gethostname().split(".")[0], pattern=r"^[A-Za-z0-9_-]{1,64}$"
    )
    """Name of this collector; unique among those of one mesh."""

    exchanges: dict[str, ExchangeSettings] = Field(min_length=1)
    """Venues by id."""

    books: BookSettings = BookSettings()
    """Order books."""

    buffer: BufferSettings = BufferSettings()
    """The way to the broker."""

    recording: RecordingSettings = RecordingSettings()
    """Recording."""
