"""Limits and timings of a simulated venue; each protocol has its own defaults."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["AtLeastOne", "Positive", "VenueSettings"]

Positive = Annotated[float, Field(gt=0)]
"""A number above 0."""
AtLeastOne = Annotated[int, Field(ge=1)]
"""A whole number of at least 1."""


class VenueSettings(BaseModel):
    """The venue's limits and timings; the defaults are Binance spot's own.

    A protocol with other limits has a subclass of this with its own defaults and further fields.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ping_interval_seconds: Positive | None = 20.0
    """Between the server's ping frames; None for a venue that sends none."""
    pong_timeout_seconds: Positive = 60.0
    """Without a pong this long after a ping, the connection is ended."""
    client_silence_seconds: Positive | None = None
    """A connection on which the client sent nothing for so long is ended; None never ends one."""
    connection_life_seconds: Positive = 86_400.0
    """A connection's longest life."""
    shutdown_notice_seconds: Annotated[float, Field(ge=0)] = 600.0
    """The shutdown event comes this long before the end of life."""
    max_streams: AtLeastOne = 1024
    """Streams a connection may subscribe to."""
    inbound_per_second: AtLeastOne | None = 5
    """Messages, pings and pongs that a client may send a second; one more ends the connection.
    None for no limit."""
    operations_per_hour: AtLeastOne | None = None
    """Subscribe and unsubscribe requests that a connection may make an hour; None for no limit."""
    connects_per_second: AtLeastOne | None = None
    """WebSocket connections that may be opened a second; None for no limit."""
    connects_per_five_minutes: AtLeastOne | None = 300
    """WebSocket connections that may be opened in five minutes; None for no limit."""
    max_connections: AtLeastOne | None = None
    """WebSocket connections that may be open at once; None for no limit."""
    weight_limit: AtLeastOne = 6000
    """REST request weight a minute, where the venue counts weights."""
    ban_after: AtLeastOne = 20
    """Requests refused with 429 within a minute that are put up with before the ban."""
    ban_seconds: Positive = 120.0
    """Length of the first ban; each further one is twice as long."""
    max_send_buffer_bytes: AtLeastOne = 8 * 1024 * 1024
    """Unsent bytes at which a slow client is disconnected."""
    backpressure_bytes: AtLeastOne = 256 * 1024
    """Unsent bytes at which a capture played as fast as possible waits for the client."""
    sent_ids_kept: AtLeastOne = 200_000
    """Newest trade ids kept a stream, of those that were sent."""
    fault_seed: int = 0
    """Seed of the chance in faults with a probability."""
