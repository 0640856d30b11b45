"""Settings of the collector: `config/collector.yaml`."""

import socket
from pathlib import Path
from typing import Annotated, Literal

from marketprism.market.v1 import common_pb2
from pydantic import Field

from services.collector.leases import LeaseSettings
from services.collector.venues.base import Selection
from services.shared.settings import SettingsModel

__all__ = [
    "BookSettings",
    "BufferSettings",
    "CollectorSettings",
    "ExchangeSettings",
    "RecordingSettings",
]

Seconds = Annotated[float, Field(gt=0, le=604_800)]
CandleInterval = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}[smhdw]$")]
KindName = Literal[
    "order_book",
    "trade",
    "best_bid_offer",
    "ticker",
    "candle",
    "funding_rate",
    "mark_price",
    "index_price",
    "open_interest",
    "liquidation",
    "long_short_ratio",
    "volatility_index",
    "option_greeks",
]
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class ExchangeSettings(SettingsModel):
    """One venue: where it is, what is collected, and how gently."""

    enabled: bool = True
    """Whether it is collected."""

    rest_url: str = Field(default="", pattern=r"^(https?://.*)?$")
    """Base of the REST interface; empty means the live venue's."""

    ws_url: str = Field(default="", pattern=r"^(wss?://.*)?$")
    """WebSocket address, or what the addresses of the venue's routes have in common; empty means
    the live venue's."""

    symbols: tuple[str, ...] = Field(min_length=1)
    """Canonical symbols; `*` matches any run of characters, as in `*-USDT`, and `!` before one
    excludes what it matches. Only instruments that trade are taken."""

    kinds: tuple[KindName, ...] = ()
    """Kinds of event to collect; empty means every kind that the venue has."""

    candle_intervals: tuple[CandleInterval, ...] = ("1m",)
    """Lengths of the venue's candles; those that it has not are left out."""

    option_families: tuple[str, ...] = ()
    """Families whose options are listed, as the venue names them (OKX: BTC-USD, ETH-USD); empty
    means the usual ones. Venues that list all options at once take no notice."""

    snapshot_depth: int = Field(default=1000, ge=5, le=5000)
    """Levels a side asked for in a REST snapshot: the horizon of the book. More cost more of the
    venue's request weight (Binance: 50 for 1000, 250 for 5000)."""

    weight_per_minute: int | None = Field(default=None, ge=50)
    """Request weight spent in a minute at the most; absent means the usual share of what the venue
    allows (Binance spot allows 6000 to an IP address). Venues that share a limit share this too."""

    snapshots_at_once: int = Field(default=4, ge=1, le=32)
    """Snapshot requests in flight at the same time."""

    topics_per_connection: int | None = Field(default=None, ge=1, le=1024)
    """Subscriptions that share a WebSocket connection; absent means what suits the venue."""

    redundancy: int = Field(default=1, ge=1, le=2)
    """Connections for the same subscriptions all the time; with two the first to tell wins, and
    the loss of one of them loses nothing."""

    rollover_seconds: Seconds | None = None
    """Age at which a connection is replaced by a new one without a gap; absent means a little
    before the venue would end it."""

    overlap_seconds: Seconds = 60.0
    """Longest time for which the old connection waits for the books to go on from the new one."""

    subscribe_interval_seconds: Seconds | None = None
    """Time between two requests on a connection; absent means what the venue allows."""

    instrument_refresh_seconds: Seconds = 300.0
    """Time between two readings of the venue's list of instruments; announcements of the venue and
    expiries that are due cause one at once."""

    quiet_seconds: Seconds | None = None
    """Silence of a subscription after which it is looked into; absent means what suits the
    stream. A silent book is compared with the venue's by REST, others are subscribed to anew."""

    acknowledge_seconds: Seconds = 10.0
    """Time in which the venue has to acknowledge a subscription."""

    silence_seconds: Seconds = 10.0
    """Time without any frame on a connection after which its books are STALE; after twice that
    the connection is opened anew."""

    trade_wait_seconds: Seconds = 10.0
    """Longest time for which trades are held while those missed before them are fetched. When it
    is over they are published, and what was missed follows as it comes, marked as backfilled."""

    trade_history_pages: int = Field(default=200, ge=0, le=100_000)
    """Requests made for one hole in the trades at the most; 0 means that none is filled. A page is
    1,000 trades, on OKX 100."""

    trade_history_hours: float = Field(default=24.0, gt=0, le=87_600)
    """Trades made longer ago are not fetched, and what an earlier process still owed is not
    looked for any more."""

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

    def selection(self, has: frozenset["common_pb2.EventKind.ValueType"]) -> Selection:
        """Give what is to be collected of each instrument of a venue that has these kinds."""
        wanted = {
            common_pb2.EventKind.Value(f"EVENT_KIND_{name.upper()}") for name in self.kinds
        } or has
        return Selection(
            frozenset(wanted & has),
            tuple(int(each[:-1]) * _SECONDS[each[-1]] for each in self.candle_intervals),
        )


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

    leases: LeaseSettings = LeaseSettings()
    """Sharing instruments with other collectors."""
