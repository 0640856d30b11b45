"""What a venue adapter turns frames into, and what the collector asks of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from google.protobuf.message import Message
from marketprism.market.v1 import common_pb2, instrument_pb2

__all__ = [
    "Acknowledgement",
    "BookChecksum",
    "BookDiff",
    "BookHeartbeat",
    "BookSnapshot",
    "ConnectionRules",
    "Goodbye",
    "Ignored",
    "InstrumentSpec",
    "InstrumentsChanged",
    "MalformedFrameError",
    "Observation",
    "Ping",
    "Poll",
    "RestPool",
    "RestRequest",
    "Selection",
    "Several",
    "SkippedTrade",
    "SnapshotSource",
    "Subscription",
    "TopOfBook",
    "TradePrint",
    "VenueAdapter",
    "VenueFault",
    "VenueMessage",
    "VenueRequest",
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
    """Venue's number of the trade, contiguous within the instrument (Deribit: `trade_seq`)."""
    exchange_time: int
    """When the venue matched, nanoseconds since 1970."""
    price: str
    """Canonical price."""
    quantity: str
    """Canonical quantity in base currency or contracts, as the venue counts."""
    buyer_is_maker: bool
    """True when the taker sold."""
    trade_count: int = 0
    """Trades that the venue folded into this one, the last of them `trade_id`; 0 when it does not
    fold."""
    liquidation: bool = False
    """Whether the venue marks it as a liquidation."""
    venue_id: str = ""
    """Venue's id where that is another than the number (Deribit: `trade_id`); else empty."""


@dataclass(frozen=True, slots=True)
class SkippedTrade:
    """Numbers of the trades' sequence that are no trades of the market (Binance `X` of ADL, NA)."""

    native_symbol: str
    """The venue's name of the instrument."""
    trade_id: int
    """The number used up; the last one where there are several."""
    count: int = 1
    """How many numbers in a row it stands for."""


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
class Observation:
    """What a venue tells beside books, trades and tops, already in the form of its message."""

    kind: "common_pb2.EventKind.ValueType"
    """Which kind of event."""
    message: Message
    """The market.v1 message of that kind with everything that the venue told, numbers canonical,
    except exchange, symbol and receive_time, which the collector sets."""
    native_symbol: str = ""
    """The venue's name of the instrument; empty when `symbol` names it."""
    symbol: str = ""
    """Canonical name of what is no instrument: an index ("BTC-USD", "BTC-USD-DVOL")."""
    contracts: tuple[str, ...] = ()
    """Fields of `message` that count contracts as the venue does: the collector multiplies them
    with the contract size, as it does with the quantities of books and trades."""
    key: str = ""
    """Tells apart what of one kind and instrument stands side by side: the interval of a candle,
    whose long/short ratio. The newest of each key counts."""
    event_id: str = ""
    """Venue's id of a single happening (a liquidation), each of which counts; else empty, and an
    observation that is not newer than the last of its key is a duplicate."""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The venue took a request, or part of it."""

    request_id: int | None
    """The id that the request carried; None when the venue names only topics."""
    topics: tuple[str, ...] | None = None
    """The topics that the venue names: all that it took where `complete`, else some of them. None
    when it names none: then it took all of the request."""
    complete: bool = True
    """Whether this is the whole answer: then a topic of the request that is not named is refused.
    False where every topic is answered by itself."""


@dataclass(frozen=True, slots=True)
class VenueFault:
    """The venue refused a request or reports a fault of its own."""

    request_id: int | None
    """The id of the request; None when it is not about one."""
    code: str
    """The venue's code."""
    message: str
    """The venue's words."""
    topic: str = ""
    """The topic refused, where the venue names one; else the whole request is refused."""
    rate_limited: bool = False
    """Whether it was refused for being too much: worth trying again later."""


@dataclass(frozen=True, slots=True)
class Ping:
    """The venue wants an answer, or it will end the connection."""

    reply: str
    """The frame to answer with."""


@dataclass(frozen=True, slots=True)
class InstrumentsChanged:
    """The venue says that its list of instruments is not what it was."""

    what: str
    """What changed, for the log."""


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
    | SkippedTrade
    | TopOfBook
    | Observation
    | Acknowledgement
    | VenueFault
    | Ping
    | InstrumentsChanged
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
    kind: "instrument_pb2.InstrumentKind.ValueType" = instrument_pb2.INSTRUMENT_KIND_SPOT
    """What it is."""
    settlement: str = ""
    """Currency that a derivative settles in; empty for spot."""
    contract_size: str = "1"
    """What one of the venue's units of quantity stands for, in `quantity_unit`, canonical; every
    quantity that the venue sends is multiplied with it. "1" where the venue counts in that unit."""
    quantity_unit: "instrument_pb2.QuantityUnit.ValueType" = instrument_pb2.QUANTITY_UNIT_BASE
    """The unit of quantities after the conversion: BASE, or QUOTE for inverse contracts."""
    expiry_time: int = 0
    """When a future or option expires, nanoseconds since 1970; 0 otherwise."""
    strike: str = ""
    """Strike price of an option, canonical; empty otherwise."""
    option_right: "instrument_pb2.OptionRight.ValueType" = instrument_pb2.OPTION_RIGHT_UNSPECIFIED
    """Right of an option."""
    underlying: str = ""
    """Underlying index or pair of a derivative as the venue names it; empty for spot."""
    family: str = ""
    """Group under which the venue publishes for several instruments at once (OKX instFamily,
    Binance pair, Deribit currency); empty when there is none."""


@dataclass(frozen=True, slots=True)
class RestRequest:
    """A GET request to the venue's REST interface."""

    path: str
    """Path below the REST base URL."""
    weight: int
    """What it costs of the venue's limit."""
    query: dict[str, str] = field(default_factory=dict)
    """Query parameters."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is to be collected of each instrument."""

    kinds: frozenset["common_pb2.EventKind.ValueType"]
    """Kinds of event."""
    candle_intervals: tuple[int, ...] = (60,)
    """Lengths of candles, seconds; one that the venue has not is left out."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One stream of a venue, subscribed to and acknowledged by itself."""

    topic: str
    """Name of the stream, unique within the adapter, from which it can make the request: the
    venue's own where there is one ("btcusdt@depth@100ms"), else made up ("books:BTC-USDT")."""
    kinds: tuple["common_pb2.EventKind.ValueType", ...]
    """Kinds that it brings."""
    native_symbol: str = ""
    """The instrument; empty when it tells of several, or of an index."""
    route: str = ""
    """Which of the venue's WebSocket addresses serves it; empty where there is but one."""
    quiet_seconds: float = 0.0
    """Longest silence of the stream that is normal while the instrument trades; when it is over,
    the stream is subscribed to anew. 0 when it may be silent for ever (trades, liquidations)."""


@dataclass(frozen=True, slots=True)
class VenueRequest:
    """A frame to send, and the topics that it is about (none for requests of another sort)."""

    request_id: int
    """The id that it carries."""
    topics: tuple[str, ...]
    """What it subscribes to or unsubscribes from."""
    frame: str
    """The frame."""


@dataclass(frozen=True, slots=True)
class ConnectionRules:
    """What the venue asks of those who connect; settings may be stricter."""

    topics: int
    """Topics that a connection is given at the most."""
    request_seconds: float
    """Least time between two requests on a connection."""
    requests_per_hour: int = 0
    """Requests that a connection may make in an hour; 0 without such a limit."""
    connects: int = 60
    """Connections that may be opened within `connect_seconds`, from one address."""
    connect_seconds: float = 60.0
    """See `connects`."""
    life_seconds: float = 0.0
    """Age at which the venue ends a connection; 0 when it does not."""
    keepalive_frame: str = ""
    """Frame to send while there is nothing else; empty where WebSocket pings are enough."""
    keepalive_seconds: float = 0.0
    """Time between two of them."""


@dataclass(frozen=True, slots=True)
class RestPool:
    """The limit that a venue puts on REST requests from one address."""

    name: str
    """Venues that name the same pool share it (Binance USD-M and COIN-M)."""
    limit: int
    """Weight allowed within a window; what we allow ourselves by default is less than the venue."""
    window_seconds: float
    """Length of the window."""


@dataclass(frozen=True, slots=True)
class Poll:
    """What a venue offers by REST only, asked for again and again."""

    kind: "common_pb2.EventKind.ValueType"
    """Kind of event that the answer tells."""
    request: RestRequest
    """The request."""
    every_seconds: float
    """Time between two requests that makes sense for the venue's own pace of change."""
    native_symbol: str = ""
    """The instrument; empty when the answer tells of several."""


class VenueAdapter(Protocol):
    """The protocol of one venue. Pure: it neither opens sockets nor reads clocks."""

    @property
    def exchange(self) -> str:
        """Venue id that the adapter was made for."""

    @property
    def snapshot_source(self) -> SnapshotSource:
        """Where the snapshots of this venue come from."""

    @property
    def ordered_ids(self) -> bool:
        """Whether a higher book id is always the later one.

        Levels are absolute, so that a diff that begins before the book's id and ends behind it may
        be applied then (Binance). False where ids only identify (OKX, Deribit).
        """

    @property
    def kinds(self) -> frozenset["common_pb2.EventKind.ValueType"]:
        """Kinds of event that this venue has at all, by stream or by REST."""

    @property
    def closes_candles(self) -> bool:
        """Whether the venue says when a candle is final; else the next one says it."""

    @property
    def history_skips(self) -> bool:
        """Whether the history of trades leaves out numbers that are no trades of the market."""

    @property
    def history_page(self) -> int:
        """Numbers that `older_trades_request` may ask for at once; at least 1."""

    @property
    def default_rest_url(self) -> str:
        """Base of the live venue's REST interface."""

    @property
    def default_ws_url(self) -> str:
        """WebSocket address of the live venue, or what its routes have in common."""

    @property
    def connection_rules(self) -> ConnectionRules:
        """The venue's rules for connections."""

    @property
    def rest_pool(self) -> RestPool:
        """The venue's limit of REST requests."""

    # Frames

    def decode(self, frame: bytes | str) -> VenueMessage:
        """Decode one WebSocket frame. Raises MalformedFrameError, never anything else."""

    def route_url(self, ws_url: str, route: str) -> str:
        """Give the address of a route; `ws_url` is the configured one."""

    def opening_requests(self, first_request_id: int) -> list[VenueRequest]:
        """Make the requests that come before any subscription on a new connection."""

    def subscriptions(self, spec: InstrumentSpec, selection: Selection) -> list[Subscription]:
        """Streams of one instrument that bring what is selected."""

    def shared_subscriptions(
        self, specs: Sequence[InstrumentSpec], selection: Selection
    ) -> list[Subscription]:
        """Streams that concern several of these instruments at once, or an index of theirs."""

    def subscribe(self, topics: Sequence[str], first_request_id: int) -> list[VenueRequest]:
        """Make the requests that subscribe to these topics, as few as the venue allows."""

    def unsubscribe(self, topics: Sequence[str], first_request_id: int) -> list[VenueRequest]:
        """Make the requests that end these subscriptions; acknowledged like the others."""

    # REST

    def instrument_requests(self) -> list[RestRequest]:
        """Make the requests that together give the venue's whole list of instruments."""

    def decode_instruments(self, body: bytes) -> list[InstrumentSpec]:
        """Decode the answer to one of `instrument_requests`. Raises MalformedFrameError."""

    def snapshot_request(self, native_symbol: str, depth: int) -> RestRequest:
        """Request of a book of at least `depth` levels a side, or the most that the venue gives.

        Where snapshots come in the stream it only tells at which id the venue's book stands.
        """

    def decode_snapshot(self, body: bytes, request: RestRequest) -> BookSnapshot:
        """Decode the answer to `snapshot_request`. Raises MalformedFrameError."""

    def trades_request(self, native_symbol: str, first_id: int, count: int) -> RestRequest:
        """Request of past trades that begins at `first_id` or includes it where it can."""

    def decode_trades(self, body: bytes, native_symbol: str) -> list[TradePrint]:
        """Decode the answer to `trades_request` or `older_trades_request`, oldest first.

        Raises MalformedFrameError.
        """

    def older_trades_request(
        self, native_symbol: str, first_id: int, last_id: int
    ) -> RestRequest | None:
        """Request of exactly these past trades, `history_page` numbers at the most.

        None where the venue's history cannot be asked by number.
        """

    def later_trades_request(
        self, native_symbol: str, since: int, after: TradePrint | None
    ) -> RestRequest | None:
        """Request of the past trades made at `since` (nanoseconds) or later, oldest first.

        `after` is the last one of the page before, None for the first page. None where the venue's
        history cannot be asked by time, or need not be because it can be by number.
        """

    def decode_later_trades(self, body: bytes, native_symbol: str) -> list[TradePrint]:
        """Decode the answer to `later_trades_request`, oldest first; trades may stand for several.

        Raises MalformedFrameError.
        """

    def polls(self, specs: Sequence[InstrumentSpec], selection: Selection) -> list[Poll]:
        """Give what has to be asked for by REST to have what is selected of these instruments."""

    def decode_poll(self, body: bytes, poll: Poll) -> list[Observation]:
        """Decode the answer to a poll. Raises MalformedFrameError."""

    def rest_refusal(self, status: int, body: bytes) -> float | None:
        """Tell whether an answer says that we ask too much, by its status or in its body.

        Gives the seconds to wait, 0 when it does not say for how long, None when it is no refusal
        of that sort.
        """

    # Synchronisation

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

    # Names

    def infer_instrument(self, native_symbol: str) -> InstrumentSpec:
        """Best guess from a name alone, for captures that hold no list of instruments."""
