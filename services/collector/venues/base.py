"""What a venue adapter turns frames into, and what the collector asks of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

__all__ = [
    "Acknowledgement",
    "BookChecksum",
    "BookDiff",
    "BookHeartbeat",
    "BookSnapshot",
    "Goodbye",
    "Ignored",
    "InstrumentSpec",
    "MalformedFrameError",
    "RestRequest",
    "Several",
    "SnapshotSource",
    "TopOfBook",
    "TradePrint",
    "VenueAdapter",
    "VenueFault",
    "VenueMessage",
]


class MalformedFrameError(ValueError):
    """A frame or answer that is not what the venue's documentation says.

    `native_symbol` names the instrument when the frame at least told that much, else it is empty.
    `concerns_book` is False when the frame is known to hold no change of a book.
    """

    def __init__(
        self, message: str, native_symbol: str = "", *, concerns_book: bool = True
    ) -> None:
        super().__init__(message)
        self.native_symbol = native_symbol
        self.concerns_book = concerns_book


class SnapshotSource(Enum):
    """Where the snapshot comes from that a book is built on."""

    REQUEST = "request"
    """An answer to a request, beside the stream: it has to be fitted to the diffs by its id."""
    STREAM = "stream"
    """A message among the diffs, sent after a subscription: its place is where it comes."""


class BookDiff(Protocol):
    """Changes of a book, with the venue's ids; a venue that tells no ids gives 0 for all of them.

    Levels are (price, quantity) in the venue's spelling, quantity 0 deletes.
    """

    @property
    def native_symbol(self) -> str:
        """The venue's name of the instrument."""

    @property
    def first(self) -> int:
        """Id of the first change contained."""

    @property
    def last(self) -> int:
        """Id of the last change contained."""

    @property
    def previous(self) -> int:
        """Id that this diff continues."""

    @property
    def exchange_time(self) -> int:
        """Venue's time, nanoseconds since 1970; 0 when not told."""

    @property
    def checksum(self) -> int:
        """Venue's checksum of the book after these changes; 0 when not told."""

    @property
    def bids(self) -> Sequence[tuple[str, str]]:
        """Changed bid levels."""

    @property
    def asks(self) -> Sequence[tuple[str, str]]:
        """Changed ask levels."""


@dataclass(frozen=True, slots=True)
class BookSnapshot:
    """The venue's whole book (as deep as it was asked for) at one id."""

    last: int
    """Id of the last change contained."""
    bids: Sequence[tuple[str, str]]
    """Bid levels, best first, in the venue's spelling."""
    asks: Sequence[tuple[str, str]]
    """Ask levels, best first, in the venue's spelling."""
    limit: int = 0
    """Levels a side that were asked for, or that the venue keeps up in its stream; 0 when all."""
    exchange_time: int = 0
    """Venue's time, nanoseconds since 1970; 0 when not told."""
    checksum: int = 0
    """Venue's checksum of the book; 0 when not told."""
    native_symbol: str = ""
    """The venue's name of the instrument, of a snapshot that came in the stream; else empty."""


@dataclass(frozen=True, slots=True)
class BookHeartbeat:
    """The venue says that a book has not changed: it continues its own id."""

    native_symbol: str
    """The venue's name of the instrument."""
    last: int
    """Id of the last change of the book."""
    checksum: int = 0
    """Venue's checksum of the book; 0 when not told."""


@dataclass(frozen=True, slots=True)
class TradePrint:
    """One trade, numbers in canonical spelling."""

    native_symbol: str
    """The venue's name of the instrument."""
    trade_id: int
    """Venue's id; contiguous within the instrument where the venue numbers so."""
    exchange_time: int
    """When the venue matched, nanoseconds since 1970."""
    price: str
    """Canonical price."""
    quantity: str
    """Canonical quantity in base currency or contracts, as the venue counts."""
    buyer_is_maker: bool
    """True when the taker sold."""


@dataclass(frozen=True, slots=True)
class TopOfBook:
    """Best bid and offer, numbers in canonical spelling, empty text where a side is empty."""

    native_symbol: str
    """The venue's name of the instrument."""
    venue_sequence: int
    """Venue's book id at which this held."""
    exchange_time: int
    """Venue's time, nanoseconds since 1970; 0 when not told."""
    bid: tuple[str, str]
    """Price and quantity of the best bid."""
    ask: tuple[str, str]
    """Price and quantity of the best offer."""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The venue took a request."""

    request_id: int
    """The id that the request carried."""


@dataclass(frozen=True, slots=True)
class VenueFault:
    """The venue refused a request or reports a fault of its own."""

    request_id: int | None
    """The id of the request; None when it is not about one."""
    code: str
    """The venue's code."""
    message: str
    """The venue's words."""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The venue is going to end this connection."""

    message: str
    """The venue's words."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """A well-formed frame of a kind that nobody asked for."""

    what: str
    """Name of the kind."""


@dataclass(frozen=True, slots=True)
class Several:
    """One frame that carries more than one message, in the venue's order."""

    messages: "tuple[VenueMessage, ...]"
    """The messages, none of them `Several`."""


VenueMessage = (
    BookDiff
    | BookSnapshot
    | BookHeartbeat
    | TradePrint
    | TopOfBook
    | Acknowledgement
    | VenueFault
    | Goodbye
    | Ignored
    | Several
)


class BookChecksum(Protocol):
    """What a venue's checksum is computed of: the best levels in the venue's own spelling.

    It is given the very levels that the book is given, after the book found them well-formed.
    """

    def replace(self, bids: Sequence[tuple[str, str]], asks: Sequence[tuple[str, str]]) -> None:
        """Take a snapshot in place of everything."""

    def apply(self, bids: Sequence[tuple[str, str]], asks: Sequence[tuple[str, str]]) -> None:
        """Take changed levels; quantity 0 deletes."""

    def value(self) -> int:
        """Compute the checksum of the book as it stands."""


@dataclass(frozen=True, slots=True)
class InstrumentSpec:
    """An instrument as its venue describes it; the wire message is market.v1.Instrument."""

    exchange: str
    """Venue id."""
    symbol: str
    """Canonical symbol."""
    native_symbol: str
    """The venue's name."""
    base: str
    """Base currency."""
    quote: str
    """Quote currency."""
    tick_size: str = ""
    """Smallest price step; empty when unknown."""
    lot_size: str = ""
    """Smallest quantity step; empty when unknown."""
    min_quantity: str = ""
    """Smallest order; empty when unknown."""
    min_notional: str = ""
    """Smallest order value in quote currency; empty when unknown."""
    trading: bool = True
    """Whether orders match."""


@dataclass(frozen=True, slots=True)
class RestRequest:
    """A GET request to the venue's REST interface."""

    path: str
    """Path below the REST base URL."""
    weight: int
    """What it costs of the venue's limit."""
    query: dict[str, str] = field(default_factory=dict)
    """Query parameters."""


class VenueAdapter(Protocol):
    """The protocol of one venue. Pure: it neither opens sockets nor reads clocks."""

    @property
    def exchange(self) -> str:
        """Venue id that the adapter was made for."""

    @property
    def snapshot_source(self) -> SnapshotSource:
        """Where the snapshots of this venue come from."""

    def decode(self, frame: bytes | str) -> VenueMessage:
        """Decode one WebSocket frame. Raises MalformedFrameError, never anything else."""

    def subscribe_frames(
        self, native_symbols: Iterable[str], first_request_id: int
    ) -> list[tuple[int, Sequence[str], str]]:
        """Frames that subscribe to everything collected of these instruments.

        Returns (request id, native symbols, frame) in the order to send them.
        """

    def instruments_request(self) -> RestRequest:
        """Request of the venue's list of instruments."""

    def decode_instruments(self, body: bytes) -> list[InstrumentSpec]:
        """Decode the answer to `instruments_request`. Raises MalformedFrameError."""

    def snapshot_request(self, native_symbol: str, depth: int) -> RestRequest:
        """Request of a book of at least `depth` levels a side, or the most that the venue gives."""

    def decode_snapshot(self, body: bytes, request: RestRequest) -> BookSnapshot:
        """Decode the answer to `snapshot_request`. Raises MalformedFrameError."""

    def trades_request(self, native_symbol: str, first_id: int, count: int) -> RestRequest:
        """Request of past trades that begins at `first_id` or includes it where it can."""

    def decode_trades(self, body: bytes, native_symbol: str) -> list[TradePrint]:
        """Decode the answer to `trades_request`, oldest first. Raises MalformedFrameError."""

    def covered(self, diff: BookDiff, snapshot_id: int) -> bool:
        """Tell whether the snapshot at this id already contains the whole diff: drop it."""

    def bridges(self, diff: BookDiff, snapshot_id: int) -> bool:
        """Tell whether the diff continues the snapshot at this id without a hole."""

    def repeats(self, diff: BookDiff, book_id: int) -> bool:
        """Tell of a diff that does not continue the book at this id whether the book has had it.

        Such a diff is a duplicate and is dropped; any other is a gap.
        """

    def book_checksum(self) -> BookChecksum | None:
        """Give what verifies the checksums of one book; None when the venue sends none."""

    def infer_instrument(self, native_symbol: str) -> InstrumentSpec:
        """Best guess from a name alone, for captures that hold no list of instruments."""
