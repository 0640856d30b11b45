"""Deribit v2: perpetuals, futures, options and spot, JSON-RPC over WebSocket.

Follows Deribit's "JSON-RPC", "Notifications", "Connection Management" and "Rate Limits" documents
as of 2026. A book's snapshot comes first in the stream, and each change names in `prev_change_id`
the one before. Numbers are JSON numbers and are read from their text.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec
from marketprism.market.v1 import common_pb2

from services.collector.venues import deribit_rest, deribit_streams
from services.collector.venues.base import (
    Acknowledgement,
    BookChecksum,
    BookDiff,
    BookSnapshot,
    ConnectionRules,
    Ignored,
    InstrumentsChanged,
    InstrumentSpec,
    MalformedFrameError,
    Observation,
    Ping,
    Poll,
    RestPool,
    RestRequest,
    Selection,
    SnapshotSource,
    Subscription,
    TradePrint,
    VenueFault,
    VenueMessage,
    VenueRequest,
)
from services.collector.venues.deribit_book import DeribitBookUpdate, decode_book_frame
from services.collector.venues.deribit_events import EVENT_DECODERS
from services.collector.venues.deribit_names import spec_of_name
from services.collector.venues.deribit_numbers import NULL
from services.shared.decimals import InvalidDecimalError

__all__ = ["Deribit", "DeribitBookUpdate"]

_BOOK_PREFIX = b'{"jsonrpc":"2.0","method":"subscription","params":{"channel":"book.'
_CHANNEL = re.compile(rb'"channel"\s*:\s*"([a-z_]+)\.([^"]*)"')
_INSTRUMENT = re.compile(rb'"instrument_name"\s*:\s*"([^"]*)"')
_IS_BOOK = b'"change_id"'
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeError, RecursionError, InvalidDecimalError)

# No request of the collector has this number: its own begin at 1 and grow by one.
_TEST_ID = 2**53 - 1
_TEST_FRAME = f'{{"jsonrpc":"2.0","id":{_TEST_ID},"method":"public/test","params":{{}}}}'


_ABSENT = msgspec.Raw()


class _Params(msgspec.Struct, gc=False, frozen=True):
    channel: str = ""
    data: msgspec.Raw = NULL
    type: str = ""


class _Error(msgspec.Struct, gc=False, frozen=True):
    code: int
    message: str = ""
    data: Any = None


class _Message(msgspec.Struct, gc=False, frozen=True):
    method: str | None = None
    params: _Params | None = None
    id: int | str | None = None
    result: msgspec.Raw = _ABSENT
    error: _Error | None = None


class _State(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="instrument_name")
    state: str = "created"


_decode_message = msgspec.json.Decoder(_Message).decode
_decode_channels = msgspec.json.Decoder(tuple[str, ...]).decode
_decode_state = msgspec.json.Decoder(_State).decode


class Deribit:
    """Adapter of Deribit v2; see `VenueAdapter`."""

    snapshot_source = SnapshotSource.STREAM
    ordered_ids = False
    closes_candles = False
    history_skips = False
    history_page = deribit_rest.MOST_TRADES
    kinds = frozenset(
        {
            common_pb2.EVENT_KIND_TRADE,
            common_pb2.EVENT_KIND_ORDER_BOOK,
            common_pb2.EVENT_KIND_BEST_BID_OFFER,
            common_pb2.EVENT_KIND_TICKER,
            common_pb2.EVENT_KIND_CANDLE,
            common_pb2.EVENT_KIND_FUNDING_RATE,
            common_pb2.EVENT_KIND_MARK_PRICE,
            common_pb2.EVENT_KIND_INDEX_PRICE,
            common_pb2.EVENT_KIND_OPEN_INTEREST,
            common_pb2.EVENT_KIND_LIQUIDATION,
            common_pb2.EVENT_KIND_VOLATILITY_INDEX,
            common_pb2.EVENT_KIND_OPTION_GREEKS,
        }
    )
    default_rest_url = "https://www.deribit.com"
    default_ws_url = "wss://streams.deribit.com/ws/api/v2"
    connection_rules = ConnectionRules(
        topics=deribit_streams.MOST_CHANNELS,
        # A subscribe costs 3000 credits of 30,000, and 10,000 come back in a second.
        request_seconds=0.3,
        # 32 connections may be open from one address, REST included; none has to end.
        connects=16,
        connect_seconds=60.0,
    )
    # A request costs 500 credits of 50,000, and 10,000 come back in a second: half of that.
    rest_pool = RestPool("deribit", limit=50, window_seconds=5.0)

    def __init__(self, exchange: str = "deribit") -> None:
        self.exchange = exchange

    # Frames

    def decode(self, frame: bytes | str) -> VenueMessage:
        """Decode a notification or the answer to a request."""
        data = frame.encode("utf-8", "surrogatepass") if isinstance(frame, str) else frame
        try:
            if data.startswith(_BOOK_PREFIX):
                # By far the most frequent frame, in the order in which Deribit writes its keys.
                return decode_book_frame(data)
            message = _decode_message(data)
            if message.method == "subscription" and message.params is not None:
                return self._notification(message.params, data)
            if message.method == "heartbeat":
                return self._heartbeat(message.params)
            if message.error is not None:
                return self._fault(message.id, message.error)
            if message.result is not _ABSENT:
                return self._answer(message.id, message.result)
        except _DECODE_ERRORS as error:
            raise self._malformed(str(error), data) from error
        raise self._malformed("a frame of no known kind", data)

    def _notification(self, params: _Params, data: bytes) -> VenueMessage:
        word = params.channel.partition(".")[0]
        if word == "book":
            return decode_book_frame(data)
        decoder = EVENT_DECODERS.get(word)
        if decoder is not None:
            return decoder(params.channel, params.data)
        if word == "instrument":
            state = _decode_state(params.data)
            return InstrumentsChanged(f"{state.native_symbol} is {state.state}"[:160])
        if not word or _IS_BOOK in data:
            # Nothing but books has change ids: the channel's name is damaged.
            raise msgspec.ValidationError(f"expected a channel, got {params.channel[:80]!r}")
        return Ignored(params.channel[:80])

    @staticmethod
    def _heartbeat(params: _Params | None) -> VenueMessage:
        if params is not None and params.type == "test_request":
            return Ping(_TEST_FRAME)
        return Ignored("heartbeat")

    @staticmethod
    def _fault(request_id: int | str | None, error: _Error) -> VenueFault:
        words = error.message
        if error.data is not None:
            words = f"{words}: {msgspec.json.encode(error.data).decode()}"
        return VenueFault(
            request_id if isinstance(request_id, int) and request_id != _TEST_ID else None,
            str(error.code),
            words[:400],
            rate_limited=error.code in deribit_rest.RETRY_CODES,
        )

    @staticmethod
    def _answer(request_id: int | str | None, result: msgspec.Raw) -> VenueMessage:
        """Read the answer to a request; that to public/subscribe lists the channels taken."""
        if request_id == _TEST_ID:
            return Ignored("public/test")
        number = request_id if isinstance(request_id, int) else None
        if bytes(result).startswith(b"["):
            try:
                return Acknowledgement(number, _decode_channels(result))
            except msgspec.ValidationError:
                return Ignored("answer")  # a list of something else, which was not subscribed to
        return Ignored("answer") if number is None else Acknowledgement(number)

    def _malformed(self, what: str, data: bytes) -> MalformedFrameError:
        """Name the instrument, as far as a damaged frame tells it."""
        channel = _CHANNEL.search(data[:200])
        word = channel[1].decode() if channel is not None else ""
        instrument = _INSTRUMENT.search(data[:2000])
        native = b""
        if channel is not None and word == "book":
            native = channel[2].partition(b".")[0]
        elif instrument is not None:
            native = instrument[1]
        return MalformedFrameError(
            f"{self.exchange}: {what} in frame {data[:160]!r}",
            native[:80].decode(errors="ignore"),
            concerns_book=word not in EVENT_DECODERS or _IS_BOOK in data,
        )

    def route_url(self, ws_url: str, route: str) -> str:
        """Give the one address there is."""
        return ws_url

    def opening_requests(self, first_request_id: int) -> list[VenueRequest]:
        """Ask for heartbeats: without them a connection that is dead looks like a quiet one."""
        request = {
            "jsonrpc": "2.0",
            "id": first_request_id,
            "method": "public/set_heartbeat",
            "params": {"interval": deribit_streams.HEARTBEAT_SECONDS},
        }
        return [VenueRequest(first_request_id, (), msgspec.json.encode(request).decode())]

    def subscriptions(self, spec: InstrumentSpec, selection: Selection) -> list[Subscription]:
        """Give the channels of one instrument."""
        return deribit_streams.subscriptions(spec, selection)

    def shared_subscriptions(
        self, specs: Sequence[InstrumentSpec], selection: Selection
    ) -> list[Subscription]:
        """Give the channels of indexes and of the state of instruments."""
        return deribit_streams.shared_subscriptions(specs, selection)

    def subscribe(self, topics: Sequence[str], first_request_id: int) -> list[VenueRequest]:
        """Make public/subscribe requests; the answer lists the channels taken."""
        return deribit_streams.requests("public/subscribe", topics, first_request_id)

    def unsubscribe(self, topics: Sequence[str], first_request_id: int) -> list[VenueRequest]:
        """Make public/unsubscribe requests; the answer lists the channels ended."""
        return deribit_streams.requests("public/unsubscribe", topics, first_request_id)

    # REST

    def instrument_requests(self) -> list[RestRequest]:
        """GET public/get_instruments of all currencies, one request a kind."""
        return deribit_rest.instrument_requests()

    def decode_instruments(self, body: bytes) -> list[InstrumentSpec]:
        """Decode a list of instruments; combinations are left out."""
        try:
            return deribit_rest.decode_instruments(self.exchange, body)
        except _DECODE_ERRORS as error:
            raise MalformedFrameError(
                f"{self.exchange}: instruments: {error} in {body[:160]!r}"
            ) from error

    def snapshot_request(self, native_symbol: str, depth: int) -> RestRequest:
        """GET public/get_order_book: for a look; books are built on the stream's snapshot."""
        return deribit_rest.order_book_request(native_symbol, depth)

    def decode_snapshot(self, body: bytes, request: RestRequest) -> BookSnapshot:
        """Decode a book."""
        try:
            return deribit_rest.decode_order_book(body, request)
        except _DECODE_ERRORS as error:
            raise MalformedFrameError(
                f"{self.exchange}: order book: {error} in {body[:160]!r}",
                request.query.get("instrument_name", ""),
            ) from error

    def trades_request(self, native_symbol: str, first_id: int, count: int) -> RestRequest:
        """GET public/get_last_trades_by_instrument from a `trade_seq` on, at most 1000."""
        return deribit_rest.trades_request(native_symbol, first_id, count)

    def older_trades_request(
        self, native_symbol: str, first_id: int, last_id: int
    ) -> RestRequest | None:
        """GET public/get_last_trades_by_instrument, by `trade_seq`; the venue keeps a day of it."""
        return deribit_rest.trades_request(native_symbol, first_id, last_id - first_id + 1)

    def later_trades_request(
        self, native_symbol: str, since: int, after: TradePrint | None
    ) -> RestRequest | None:
        """None: it is asked by number."""
        return None

    def decode_later_trades(self, body: bytes, native_symbol: str) -> list[TradePrint]:
        """Decode as any past trades: nothing is asked by time."""
        return self.decode_trades(body, native_symbol)

    def decode_trades(self, body: bytes, native_symbol: str) -> list[TradePrint]:
        """Decode past trades, oldest first."""
        try:
            return deribit_rest.decode_trades(body)
        except _DECODE_ERRORS as error:
            raise MalformedFrameError(
                f"{self.exchange}: trades: {error} in {body[:160]!r}", native_symbol
            ) from error

    def polls(self, specs: Sequence[InstrumentSpec], selection: Selection) -> list[Poll]:
        """Give none: everything that Deribit has is pushed."""
        return []

    def decode_poll(self, body: bytes, poll: Poll) -> list[Observation]:
        """Refuse: there are no polls."""
        raise MalformedFrameError(
            f"{self.exchange}: expected no answer to {poll.request.path}, got {body[:160]!r}"
        )

    def rest_refusal(self, status: int, body: bytes) -> float | None:
        """Tell whether an answer says to come again later; the venue does not say when."""
        return deribit_rest.refusal(status, body)

    # Synchronisation

    def covered(self, diff: BookDiff, snapshot_id: int) -> bool:
        """Only the very change that the snapshot ends with: ids jump, identity alone counts."""
        return diff.last == snapshot_id

    def bridges(self, diff: BookDiff, snapshot_id: int) -> bool:
        """Require prev_change_id to be the snapshot's change_id."""
        return diff.previous == snapshot_id

    def repeats(self, diff: BookDiff, book_id: int) -> bool:
        """Take only the last change for a duplicate: a lower id may be a book that began anew."""
        return diff.last == book_id

    def book_checksum(self) -> BookChecksum | None:
        """Deribit sends no checksums."""
        return None

    # Names

    def infer_instrument(self, native_symbol: str) -> InstrumentSpec:
        """Read BTC-PERPETUAL, BTC-26DEC25, BTC_USDC, XRP_USDC-26DEC25-1d02-C and the like."""
        return spec_of_name(self.exchange, native_symbol)
