"""`config/marketdata.yaml`: what marketdata holds in memory, and how it treats its subscribers."""

from pydantic import Field

from services.shared.settings import SettingsModel

__all__ = ["LogBounds", "MarketDataSettings", "StreamNames", "StreamSettings", "SubscriptionLimits"]


class LogBounds(SettingsModel):
    """How much of one instrument is held for subscribers who are behind or come back.

    A subscriber who falls behind by more has missed events, and is told.
    """

    max_events: int = Field(default=8192, ge=16, le=10_000_000)
    """Most events held an instrument."""

    max_bytes: int = Field(default=16 * 1024 * 1024, ge=64 * 1024)
    """Most bytes held an instrument."""

    max_age_seconds: float = Field(default=60.0, ge=1)
    """Events older than this go, so that quiet instruments hold little, seconds."""


class StreamSettings(SettingsModel):
    """How streams are served."""

    max_message_bytes: int = Field(default=256 * 1024, ge=1024, le=3 * 1024 * 1024)
    """Most bytes of several events in one message; one event may be larger. gRPC clients accept
    4 MiB unless told otherwise."""

    heartbeat_seconds: float = Field(default=15.0, ge=0.1, le=60)
    """Silence after which a heartbeat is sent, when the subscriber names none, seconds."""

    slow_reader_losses: int = Field(default=3, ge=1)
    """A trade stream that lost events this many times within `slow_reader_seconds` is ended."""

    slow_reader_seconds: float = Field(default=60.0, gt=0)
    """See `slow_reader_losses`, seconds."""


class SubscriptionLimits(SettingsModel):
    """How much subscribers may ask for. A stream is one call of Subscribe or StreamMarketData."""

    max_streams: int = Field(default=10_000, ge=1)
    """Most such streams at a time; another one is refused with TOO_MANY_STREAMS."""

    max_subscriptions: int = Field(default=1000, ge=1)
    """Most subscriptions of one stream."""

    max_patterns: int = Field(default=2000, ge=1)
    """Most instruments and patterns named by all subscriptions of one stream."""

    max_wildcards: int = Field(default=100, ge=1)
    """Most patterns with a `*` among them: each is held against every instrument there is."""

    max_sources: int = Field(default=20_000, ge=1)
    """Most pairs of instrument and kind that one stream gets events of."""


class StreamNames(SettingsModel):
    """Names of the JetStream streams, as the broker makes them."""

    order_book: str = "MARKET_ORDER_BOOK"
    """Snapshots, updates and statuses of order books, in one order."""

    trade: str = "MARKET_TRADE"
    """Trades."""

    best_bid_offer: str = "MARKET_BEST_BID_OFFER"
    """Best bids and offers."""

    reference: str = "MARKET_REFERENCE"
    """Tickers, candles, funding and every other kind that is told less often."""

    instrument: str = "MARKET_INSTRUMENT"
    """Instruments."""

    integrity: str = "MARKET_INTEGRITY"
    """The gap ledger's entries."""


class MarketDataSettings(SettingsModel):
    """`config/marketdata.yaml`."""

    order_book_log: LogBounds = LogBounds()
    """What is held of each book's events."""

    trade_log: LogBounds = LogBounds(max_events=16_384, max_bytes=4 * 1024 * 1024)
    """What is held of each instrument's trades for subscribers."""

    event_log: LogBounds = LogBounds(max_events=1024, max_bytes=1024 * 1024)
    """What is held of each instrument's events of any other kind, while somebody listens."""

    recent_trades: int = Field(default=1000, ge=1, le=100_000)
    """Trades an instrument that ListRecentTrades can give."""

    preload_trades: int = Field(default=20_000, ge=0, le=10_000_000)
    """Newest trades of all instruments together that are read from the broker at start."""

    preload_ratios_seconds: float = Field(default=660, ge=0)
    """How far back long/short ratios are read at start, seconds. Venues tell one every five
    minutes, and each kind of ratio is needed once."""

    preload_candles_seconds: float = Field(default=30, ge=0)
    """How far back candles are read at start, seconds; each interval is needed once."""

    levels_idle_seconds: float = Field(default=60.0, ge=1)
    """A book's levels are let go after this long without being asked for, seconds."""

    collector_silence_seconds: float = Field(default=5.0, ge=0.2)
    """A collector silent for this long counts as gone, seconds; it speaks each second."""

    consolidated_max_age_seconds: float = Field(default=60.0, gt=0)
    """A book whose last change is older is left out of consolidated books, seconds."""

    max_instruments: int = Field(default=20_000, ge=1)
    """Instruments kept at most; what comes of further ones is counted and ignored."""

    stream: StreamSettings = StreamSettings()
    """How streams are served."""

    subscriptions: SubscriptionLimits = SubscriptionLimits()
    """How much subscribers may ask for."""

    streams: StreamNames = StreamNames()
    """Where the data comes from."""

    heartbeat_subject: str = "collector.heartbeat.>"
    """NATS subjects on which collectors say that they are alive."""
