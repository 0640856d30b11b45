"""What can be played of a capture, in no venue's own format; prices and sizes in units of 1e-8."""

from collections.abc import Callable
from dataclasses import dataclass

from services.shared.capture import CaptureRecord

__all__ = [
    "CaptureItem",
    "CaptureParser",
    "CapturedDepth",
    "CapturedFrame",
    "CapturedInfo",
    "CapturedSnapshot",
    "CapturedTrade",
]


@dataclass(frozen=True, slots=True)
class CapturedDepth:
    """The book changes that a frame tells."""

    first_id: int
    last_id: int
    bids: list[tuple[int, int]]
    asks: list[tuple[int, int]]
    previous_id: int | None = None
    """The id that this change continues, where the venue names it (`pu`, `prevSeqId`)."""


@dataclass(frozen=True, slots=True)
class CapturedTrade:
    """The trade that a frame tells."""

    trade_id: int
    time_us: int
    price: int
    quantity: int
    buyer_is_maker: bool


@dataclass(frozen=True, slots=True)
class CapturedSnapshot:
    """A whole book: a REST answer, or what a frame tells where the venue sends it on the stream."""

    time: float | None
    symbol: str
    update_id: int
    bids: dict[int, int]
    asks: dict[int, int]


@dataclass(frozen=True, slots=True)
class CapturedFrame:
    """A received WebSocket frame."""

    time: float | None
    """Receive time, Unix seconds."""
    symbol: str
    """The instrument; empty for what tells of several or of none."""
    stream: str
    """The protocol's name of the stream."""
    payload: bytes
    """The bare event."""
    wrapped: bytes | None
    """The whole text when the frame came on a combined stream."""
    event_id: int
    """Trade id, aggregate trade id or last update id; -1 where the stream has none."""
    depth: CapturedDepth | None
    trade: CapturedTrade | None
    snapshot: CapturedSnapshot | None = None
    """The whole book that the frame tells."""


@dataclass(frozen=True, slots=True)
class CapturedInfo:
    """A REST answer with the venue's listing, or part of it."""

    time: float | None
    body: bytes
    url: str = ""
    """As it was called."""


CaptureItem = CapturedFrame | CapturedSnapshot | CapturedInfo

CaptureParser = Callable[[CaptureRecord], CaptureItem | None]
"""Reads one line; None for what cannot be played. Raises what msgspec raises, ValueError or
LookupError for a line that is damaged. One parser reads one pass over a file, and may count."""
