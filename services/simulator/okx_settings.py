"""Limits and timings of OKX, as its API v5 documentation tells them."""

from services.simulator.settings import AtLeastOne, Positive, VenueSettings

__all__ = ["OkxSettings"]


class OkxSettings(VenueSettings):
    """What is OKX's own beside what every venue has."""

    ping_interval_seconds: Positive | None = None
    """OKX sends no pings: the client does, as text."""
    client_silence_seconds: Positive | None = 30.0
    """Without any message from the client for so long, the connection is ended."""
    connection_life_seconds: Positive = 30 * 86_400.0
    """A connection lives until the next upgrade of the service."""
    shutdown_notice_seconds: float = 30.0
    """The notice of an upgrade comes this long before."""
    max_streams: AtLeastOne = 20_000
    """Streams a connection may subscribe to."""
    inbound_per_second: AtLeastOne | None = None
    """OKX counts requests by the hour instead."""
    operations_per_hour: AtLeastOne | None = 480
    """Subscribe and unsubscribe requests that a connection may make an hour."""
    connects_per_second: AtLeastOne | None = 3
    """Connections an address may open a second."""
    connects_per_five_minutes: AtLeastOne | None = None
    """OKX counts by the second only."""
    checksum: bool = False
    """Whether book frames carry the CRC32 of the book; OKX sends 0 these days."""
    keepalive_seconds: Positive = 60.0
    """A book without changes for so long is told again, with `prevSeqId` equal to `seqId`."""
    rest_limits: bool = True
    """Whether REST requests are limited, each path by its own number in two seconds."""
