"""How much a replay, or a stream of stored events, may ask for at a time."""

from pydantic import Field

from services.shared.settings import SettingsModel

__all__ = ["ReplaySettings"]


class ReplaySettings(SettingsModel):
    """Streams of the past: `ReplayMarketData` and `StreamEvents`."""

    max_streams: int = Field(default=64, ge=1)
    """Streams of the two at work at a time; further ones are refused."""

    max_patterns: int = Field(default=2000, ge=1)
    """Instruments and patterns in a request."""

    max_wildcards: int = Field(default=100, ge=1)
    """Those of them with a `*`."""

    max_message_bytes: int = Field(default=256 * 1024, ge=1)
    """A message carries events up to so many bytes, and one event at least."""

    piece_bytes: int = Field(default=2 * 1024 * 1024, ge=1)
    """Events of one table are read in pieces of about so many bytes; a stream holds two of them
    for each table that it reads."""

    piece_rows: int = Field(default=16_384, ge=1)
    """Most events in such a piece."""

    heartbeat_seconds: float = Field(default=15.0, gt=0)
    """Longest silence of a replay unless its request says otherwise, seconds."""
