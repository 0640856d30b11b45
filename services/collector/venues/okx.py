"""OKX v5: spot, perpetual swaps, futures and options.

Follows OKX's "WebSocket API v5" documents as of 2026: channels `books`, `books-l2-tbt`, `bbo-tbt`
and `trades`. A book's snapshot comes in the stream, and each change names in `prevSeqId` the one
before. Recordings of 2021 and 2022 have no such ids; there the checksum alone tells that nothing is
missing. Quantities of derivatives are contracts, as the venue sends them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import msgspec

from services.collector.venues.base import (
    Acknowledgement,
    BookChecksum,
    BookDiff,
    BookHeartbeat,
    BookSnapshot,
    Goodbye,
    Ignored,
    InstrumentSpec,
    MalformedFrameError,
    RestRequest,
    Several,
    SnapshotSource,
    TopOfBook,
    TradePrint,
    VenueFault,
    VenueMessage,
)
from services.collector.venues.okx_checksum import OkxChecksum
from services.shared.decimals import InvalidDecimalError, canonical_decimal

__all__ = ["Okx", "OkxBookUpdate"]

# [price, size, deprecated, orders]
_Levels = list[Annotated[list[str], msgspec.Meta(min_length=2)]]
_Id: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_PreviousId: TypeAlias = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]  # -1: a snapshot
_Number: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,18}\Z")]
_Time: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,14}\Z")]
_PREFIX = b'{"arg":{"channel":"'
_INSTRUMENT = b'"instId":"'
_BOOK_LEVELS = {"books": 400, "books-l2-tbt": 400, "books50-l2-tbt": 50}
_CHANNELS = ("books", "trades", "bbo-tbt")
_INSTRUMENTS_PER_FRAME = 50
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeError, RecursionError, InvalidDecimalError)


@dataclass(frozen=True, slots=True)
class OkxBookUpdate:
    """An `update` of a book channel; see `BookDiff`."""

    native_symbol: str
    """Instrument."""
    previous: int
    """`prevSeqId`; 0 when the recording is older than it."""
    last: int
    """`seqId`; 0 when the recording is older than it."""
    bids: Sequence[tuple[str, str]]
    """Changed bids."""
    asks: Sequence[tuple[str, str]]
    """Changed asks."""
    exchange_time: int
    """`ts` in nanoseconds."""
    checksum: int
    """CRC32 of the book after this; 0 when not told."""

    @property
    def first(self) -> int:
        """OKX names only the last change."""
        return self.last


class _Argument(msgspec.Struct, gc=False, frozen=True):
    channel: str
    native_symbol: str = msgspec.field(name="instId")


class _Book(msgspec.Struct, gc=False, frozen=True):
    bids: _Levels
    asks: _Levels
    time: _Time = msgspec.field(name="ts")
    checksum: int = 0
    last: _Id | None = msgspec.field(name="seqId", default=None)
    previous: _PreviousId | None = msgspec.field(name="prevSeqId", default=None)


class _BookFrame(msgspec.Struct, gc=False, frozen=True):
    arg: _Argument
    action: str
    data: Annotated[list[_Book], msgspec.Meta(min_length=1)]


class _Top(msgspec.Struct, gc=False, frozen=True):
    bids: _Levels
    asks: _Levels
    time: _Time = msgspec.field(name="ts")
    sequence: _Id = msgspec.field(name="seqId", default=0)


class _TopFrame(msgspec.Struct, gc=False, frozen=True):
    arg: _Argument
    data: Annotated[list[_Top], msgspec.Meta(min_length=1)]


class _Trade(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="instId")
    trade_id: _Number = msgspec.field(name="tradeId")
    price: str = msgspec.field(name="px")
    quantity: str = msgspec.field(name="sz")
    side: str
    time: _Time = msgspec.field(name="ts")


class _TradeFrame(msgspec.Struct, gc=False, frozen=True):
    data: Annotated[list[_Trade], msgspec.Meta(min_length=1)]


class _Instrument(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="instId")
    state: str = ""
    tick: str = msgspec.field(name="tickSz", default="")
    lot: str = msgspec.field(name="lotSz", default="")
    minimum: str = msgspec.field(name="minSz", default="")


class _Instruments(msgspec.Struct, gc=False, frozen=True):
    data: list[_Instrument]


class _RestBooks(msgspec.Struct, gc=False, frozen=True):
    data: Annotated[list[_Book], msgspec.Meta(min_length=1)]


_decode_any = msgspec.json.Decoder().decode
_decode_instruments = msgspec.json.Decoder(_Instruments).decode
_decode_rest_books = msgspec.json.Decoder(_RestBooks).decode
_decode_rest_trades = msgspec.json.Decoder(_TradeFrame).decode


def _pairs(levels: list[list[str]]) -> list[tuple[str, str]]:
    return [(level[0], level[1]) for level in levels]


def _nanoseconds(time: str) -> int:
    return int(time) * 1_000_000


def _one_or_several(messages: list[VenueMessage]) -> VenueMessage:
    return messages[0] if len(messages) == 1 else Several(tuple(messages))


def _books(frame: _BookFrame) -> VenueMessage:
    return _one_or_several([_book(frame.arg, frame.action, book) for book in frame.data])


def _book(arg: _Argument, action: str, book: _Book) -> VenueMessage:
    name = arg.native_symbol
    if action == "snapshot":
        return _snapshot(book, name, _BOOK_LEVELS.get(arg.channel, 0))
    if action != "update":
        raise msgspec.ValidationError(f"expected action snapshot or update, got {action[:40]!r}")
    if book.previous == -1 or (book.last is None) != (book.previous is None):
        raise msgspec.ValidationError(
            f"expected seqId and prevSeqId of an update, got {book.last} and {book.previous}"
        )
    if book.last is not None and book.last == book.previous and not book.bids and not book.asks:
        return BookHeartbeat(name, book.last, book.checksum)
    return OkxBookUpdate(
        name,
        book.previous or 0,
        book.last or 0,
        _pairs(book.bids),
        _pairs(book.asks),
        _nanoseconds(book.time),
        book.checksum,
    )


def _snapshot(book: _Book, native_symbol: str, limit: int) -> BookSnapshot:
    return BookSnapshot(
        book.last or 0,
        _pairs(book.bids),
        _pairs(book.asks),
        limit,
        _nanoseconds(book.time),
        book.checksum,
        native_symbol,
    )


def _tops(frame: _TopFrame) -> VenueMessage:
    def best(levels: list[list[str]]) -> tuple[str, str]:
        if not levels:
            return "", ""
        return canonical_decimal(levels[0][0]), canonical_decimal(levels[0][1])

    name = frame.arg.native_symbol
    return _one_or_several(
        [
            TopOfBook(name, top.sequence, _nanoseconds(top.time), best(top.bids), best(top.asks))
            for top in frame.data
        ]
    )


def _trade(trade: _Trade) -> TradePrint:
    if trade.side not in ("buy", "sell"):
        raise msgspec.ValidationError(f"expected side buy or sell, got {trade.side[:40]!r}")
    return TradePrint(
        trade.native_symbol,
        int(trade.trade_id),
        _nanoseconds(trade.time),
        canonical_decimal(trade.price),
        canonical_decimal(trade.quantity),
        trade.side == "sell",
    )


def _decoders() -> dict[str, Callable[[bytes], VenueMessage]]:
    book = msgspec.json.Decoder(_BookFrame).decode
    top = msgspec.json.Decoder(_TopFrame).decode
    trade = msgspec.json.Decoder(_TradeFrame).decode
    decoders: dict[str, Callable[[bytes], VenueMessage]] = {
        "bbo-tbt": lambda frame: _tops(top(frame)),
        "trades": lambda frame: _one_or_several([_trade(each) for each in trade(frame).data]),
    }
    for channel in _BOOK_LEVELS:
        decoders[channel] = lambda frame: _books(book(frame))
    return decoders


class Okx:
    """Adapter of OKX v5; see `VenueAdapter`."""

    snapshot_source = SnapshotSource.STREAM
    ordered_ids = False

    def __init__(self, exchange: str = "okx") -> None:
        self.exchange = exchange
        self._decoders = _decoders()

    # Frames

    def decode(self, frame: bytes | str) -> VenueMessage:
        """Decode a push, the answer to a request, or the text `pong`."""
        data = frame.encode("utf-8", "surrogatepass") if isinstance(frame, str) else frame
        if data == b"pong":
            return Ignored("pong")
        channel = ""
        try:
            if data.startswith(_PREFIX):
                # The channel's name tells the type before any JSON is read:
                # {"arg":{"channel":"books","instId":"BTC-USDT"},"action":"update","data":[...]}
                end = data.find(b'"', len(_PREFIX))
                channel = data[len(_PREFIX) : end].decode()
                decoder = self._decoders.get(channel)
                if decoder is not None:
                    return decoder(data)
            message = _decode_any(data)
            if isinstance(message, dict):
                argument = message.get("arg")
                if isinstance(argument, dict) and "data" in message and not channel:
                    channel = str(argument.get("channel"))
                    decoder = self._decoders.get(channel)
                    if decoder is not None:
                        return decoder(data)
                return self._decode_other(message, data)
        except _DECODE_ERRORS as error:
            raise MalformedFrameError(
                f"{self.exchange}: {error} in frame {data[:160]!r}",
                self._instrument_of(data),
                concerns_book=channel in _BOOK_LEVELS or channel not in self._decoders,
            ) from error
        raise MalformedFrameError(f"{self.exchange}: expected a JSON object, got {data[:160]!r}")

    def _decode_other(self, message: dict[Any, Any], data: bytes) -> VenueMessage:
        event = message.get("event")
        number = message.get("id")
        request_id = (
            int(number)
            if isinstance(number, str)
            and number.isascii()
            and number.isdigit()
            and len(number) < 19
            else None
        )
        if event == "subscribe" and request_id is not None:
            return Acknowledgement(request_id)
        if event == "error":
            return VenueFault(request_id, str(message.get("code", "")), str(message.get("msg", "")))
        if event == "notice":
            return Goodbye(str(message.get("msg", "")))
        if event is not None:
            return Ignored(str(event)[:80])
        argument = message.get("arg")
        if isinstance(argument, dict) and "data" in message:
            return Ignored(str(argument.get("channel"))[:80])
        if "table" in message:
            return Ignored(f"v3 {message['table']}"[:80])
        raise MalformedFrameError(f"{self.exchange}: a frame of no known kind: {data[:160]!r}")

    @staticmethod
    def _instrument_of(data: bytes) -> str:
        """Give the instrument, as far as a damaged frame tells it."""
        head = data[:200]
        begin = head.find(_INSTRUMENT)
        end = head.find(b'"', begin + len(_INSTRUMENT))
        if begin < 0 or end < 0:
            return ""
        return head[begin + len(_INSTRUMENT) : end].decode(errors="ignore")

    def subscribe_frames(
        self, native_symbols: Iterable[str], first_request_id: int
    ) -> list[tuple[int, Sequence[str], str]]:
        """Subscriptions to `books`, `trades` and `bbo-tbt`, 50 instruments in each."""
        symbols = list(native_symbols)
        frames: list[tuple[int, Sequence[str], str]] = []
        for start in range(0, len(symbols), _INSTRUMENTS_PER_FRAME):
            part = symbols[start : start + _INSTRUMENTS_PER_FRAME]
            request_id = first_request_id + len(frames)
            request = {
                "id": str(request_id),
                "op": "subscribe",
                "args": [
                    {"channel": channel, "instId": symbol}
                    for symbol in part
                    for channel in _CHANNELS
                ],
            }
            frames.append((request_id, part, msgspec.json.encode(request).decode()))
        return frames

    # REST

    def instruments_request(self) -> RestRequest:
        """GET /api/v5/public/instruments of spot; the other types answer in the same form."""
        return RestRequest("/api/v5/public/instruments", 1, {"instType": "SPOT"})

    def decode_instruments(self, body: bytes) -> list[InstrumentSpec]:
        """Decode a list of instruments of any type; a malformed step is left empty."""
        try:
            answer = _decode_instruments(body)
        except _DECODE_ERRORS as error:
            raise MalformedFrameError(f"{self.exchange}: instruments: {error}") from error

        def step(text: str) -> str:
            try:
                number = canonical_decimal(text) if text else ""
            except InvalidDecimalError:
                return ""
            return "" if number == "0" else number

        specs = []
        for item in answer.data:
            name = self.infer_instrument(item.native_symbol)
            specs.append(
                InstrumentSpec(
                    exchange=self.exchange,
                    symbol=name.symbol,
                    native_symbol=item.native_symbol,
                    base=name.base,
                    quote=name.quote,
                    tick_size=step(item.tick),
                    lot_size=step(item.lot),
                    min_quantity=step(item.minimum),
                    trading=item.state == "live",
                )
            )
        return specs

    def snapshot_request(self, native_symbol: str, depth: int) -> RestRequest:
        """GET /api/v5/market/books: for a look; books are built on the stream's snapshot."""
        size = str(min(depth, 400))
        return RestRequest("/api/v5/market/books", 1, {"instId": native_symbol, "sz": size})

    def decode_snapshot(self, body: bytes, request: RestRequest) -> BookSnapshot:
        """Decode a book."""
        native_symbol = request.query.get("instId", "")
        try:
            book = _decode_rest_books(body).data[0]
        except _DECODE_ERRORS as error:
            raise MalformedFrameError(
                f"{self.exchange}: books: {error} in {body[:160]!r}", native_symbol
            ) from error
        return _snapshot(book, native_symbol, int(request.query.get("sz", "0")))

    def trades_request(self, native_symbol: str, first_id: int, count: int) -> RestRequest:
        """GET /api/v5/market/trades: the latest 500."""
        return RestRequest("/api/v5/market/trades", 1, {"instId": native_symbol, "limit": "500"})

    def decode_trades(self, body: bytes, native_symbol: str) -> list[TradePrint]:
        """Decode past trades, oldest first."""
        try:
            trades = [_trade(each) for each in _decode_rest_trades(body).data]
        except _DECODE_ERRORS as error:
            raise MalformedFrameError(
                f"{self.exchange}: trades: {error} in {body[:160]!r}", native_symbol
            ) from error
        return sorted(trades, key=lambda trade: trade.trade_id)

    # Synchronisation

    def covered(self, diff: BookDiff, snapshot_id: int) -> bool:
        """Only the very change that the snapshot ends with: ids jump, identity alone counts."""
        return diff.last == snapshot_id

    def bridges(self, diff: BookDiff, snapshot_id: int) -> bool:
        """Require prevSeqId to be the snapshot's seqId."""
        return diff.previous == snapshot_id

    def repeats(self, diff: BookDiff, book_id: int) -> bool:
        """Take only the last change for a duplicate: ids begin anew after maintenance."""
        return diff.last == book_id

    def book_checksum(self) -> BookChecksum | None:
        """CRC32, where the venue sends one."""
        return OkxChecksum()

    # Names

    def infer_instrument(self, native_symbol: str) -> InstrumentSpec:
        """Read BTC-USDT, BTC-USDT-SWAP, BTC-USD-261225 and BTC-USD-261225-66000-C."""
        base, _, rest = native_symbol.partition("-")
        quote, _, term = rest.partition("-")
        date, dash, option = term.partition("-")
        if date == "SWAP":
            date = "PERP"
        elif len(date) == 6 and date.isdigit():
            date = f"20{date}"
        symbol = "-".join(part for part in (base, quote, f"{date}{dash}{option}") if part)
        return InstrumentSpec(self.exchange, symbol, native_symbol, base, quote)
