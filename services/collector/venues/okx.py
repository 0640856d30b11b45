"""OKX v5: spot, perpetual swaps, futures and options.

Follows OKX's v5 documents as of 2026. A book's snapshot comes in the stream, and each change names
in `prevSeqId` the one before. Recordings of 2021 and 2022 have no such ids; there the checksum
alone tells that nothing is missing. Quantities of derivatives are contracts, as the venue sends
them; `InstrumentSpec.contract_size` says what one is worth.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from marketprism.market.v1 import common_pb2

from services.collector.venues import okx_channels, okx_rest
from services.collector.venues.base import (
    BookChecksum,
    BookDiff,
    BookSnapshot,
    ConnectionRules,
    Ignored,
    InstrumentSpec,
    MalformedFrameError,
    Observation,
    Poll,
    RestRequest,
    Selection,
    SnapshotSource,
    Subscription,
    TradePrint,
    VenueMessage,
    VenueRequest,
)
from services.collector.venues.okx_checksum import OkxChecksum
from services.collector.venues.okx_common import DECODE_ERRORS
from services.collector.venues.okx_instruments import infer_spec
from services.collector.venues.okx_market import BOOK_CHANNELS, OkxBookUpdate, market_decoders
from services.collector.venues.okx_observations import observation_decoders
from services.collector.venues.okx_v3 import decode_table

__all__ = ["Okx", "OkxBookUpdate"]

_PREFIX = b'{"arg":{"channel":"'
_CHANNEL = len(_PREFIX)
_INSTRUMENT = re.compile(rb'"inst(?:Id|rument_id)":"([^"]*)"')
_KINDS = frozenset(
    (
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
        common_pb2.EVENT_KIND_LONG_SHORT_RATIO,
        common_pb2.EVENT_KIND_OPTION_GREEKS,
    )
)
_RULES = ConnectionRules(
    topics=240,
    request_seconds=0.25,
    requests_per_hour=480,
    connects=3,
    connect_seconds=1.0,
    keepalive_frame="ping",
    keepalive_seconds=20.0,
)
_ROUTE = "/ws/v5/"

_decode_any = msgspec.json.Decoder().decode


class Okx:
    """Adapter of OKX v5, and of recordings of v3; see `VenueAdapter`.

    `option_families` are the families whose options are listed: OKX lists them by family only.
    """

    snapshot_source = SnapshotSource.STREAM
    ordered_ids = False
    closes_candles = True
    history_skips = False
    history_page = okx_rest.PAST_TRADES
    kinds = _KINDS
    default_rest_url = "https://www.okx.com"
    default_ws_url = "wss://ws.okx.com:8443"
    connection_rules = _RULES
    rest_pool = okx_rest.POOL

    def __init__(
        self, exchange: str = "okx", option_families: Iterable[str] = okx_rest.OPTION_FAMILIES
    ) -> None:
        self.exchange = exchange
        self._option_families = tuple(option_families)
        decoders = {**market_decoders(), **observation_decoders()}
        self._decoders = {channel.encode(): decoder for channel, decoder in decoders.items()}

    # Frames

    def decode(self, frame: bytes | str) -> VenueMessage:
        """Decode a push, the answer to a request, or the text `pong`."""
        data = frame.encode("utf-8", "surrogatepass") if isinstance(frame, str) else frame
        if data == b"pong":
            return Ignored("pong")
        channel = b""
        try:
            if data.startswith(_PREFIX):
                # The channel's name tells the type before any JSON is read:
                # {"arg":{"channel":"books","instId":"BTC-USDT"},"action":"update","data":[...]}
                channel = data[_CHANNEL : data.find(b'"', _CHANNEL)]
                decoder = self._decoders.get(channel)
                if decoder is not None:
                    return decoder(data)
            message = _decode_any(data)
            if isinstance(message, dict):
                argument = message.get("arg")
                if isinstance(argument, dict) and "data" in message:
                    name = str(argument.get("channel"))
                    channel = name.encode("utf-8", "surrogatepass")
                    decoder = self._decoders.get(channel)
                    return Ignored(name[:80]) if decoder is None else decoder(data)
                return self._decode_other(message, data)
        except DECODE_ERRORS as error:
            raise MalformedFrameError(
                f"{self.exchange}: {error} in frame {data[:160]!r}",
                self._instrument_of(data),
                concerns_book=channel not in self._decoders or channel.decode() in BOOK_CHANNELS,
            ) from error
        raise MalformedFrameError(f"{self.exchange}: expected a JSON object, got {data[:160]!r}")

    def _decode_other(self, message: dict[Any, Any], data: bytes) -> VenueMessage:
        answer = okx_channels.response(message)
        if answer is not None:
            return answer
        if "table" in message:
            return decode_table(str(message["table"]), data)
        wrapped = message.get("message")
        if "localTimestamp" in message and isinstance(wrapped, dict) and "arg" in wrapped:
            # Recordings of Tardis put the frame beside their own time.
            return self.decode(msgspec.json.encode(wrapped))
        raise MalformedFrameError(f"{self.exchange}: a frame of no known kind: {data[:160]!r}")

    @staticmethod
    def _instrument_of(data: bytes) -> str:
        """Give the instrument, as far as a damaged frame tells it."""
        found = _INSTRUMENT.search(data, 0, 200)
        return "" if found is None else found[1].decode(errors="ignore")

    def route_url(self, ws_url: str, route: str) -> str:
        """Give the address of the public route (""), or of the one named "business".

        `ws_url` may be the base or end in a route, which is replaced.
        """
        base, path, _ = ws_url.partition(_ROUTE)
        return f"{base if path else ws_url.rstrip('/')}{_ROUTE}{route or 'public'}"

    def opening_requests(self, first_request_id: int) -> list[VenueRequest]:
        """None: public channels ask for no login."""
        return []

    def subscriptions(self, spec: InstrumentSpec, selection: Selection) -> list[Subscription]:
        """Streams of one instrument that bring what is selected."""
        return okx_channels.subscriptions(spec, selection)

    def shared_subscriptions(
        self, specs: Sequence[InstrumentSpec], selection: Selection
    ) -> list[Subscription]:
        """Option summaries by family, liquidations by type, indices, and changes of the lists."""
        return okx_channels.shared_subscriptions(specs, selection)

    def subscribe(self, topics: Sequence[str], first_request_id: int) -> list[VenueRequest]:
        """Make the requests that subscribe to these topics. Raises ValueError on a bad topic."""
        return okx_channels.requests("subscribe", topics, first_request_id, exchange=self.exchange)

    def unsubscribe(self, topics: Sequence[str], first_request_id: int) -> list[VenueRequest]:
        """Make the requests that end these subscriptions. Raises ValueError on a bad topic."""
        return okx_channels.requests(
            "unsubscribe", topics, first_request_id, exchange=self.exchange
        )

    # REST

    def instrument_requests(self) -> list[RestRequest]:
        """GET /api/v5/public/instruments of each type, and of each family of options."""
        return okx_rest.instrument_requests(self._option_families)

    def decode_instruments(self, body: bytes) -> list[InstrumentSpec]:
        """Decode a list of instruments of any type; a malformed step is left empty."""
        return okx_rest.decode_instruments(body, self.exchange)

    def snapshot_request(self, native_symbol: str, depth: int) -> RestRequest:
        """GET /api/v5/market/books: for a look; books are built on the stream's snapshot."""
        return okx_rest.snapshot_request(native_symbol, depth)

    def decode_snapshot(self, body: bytes, request: RestRequest) -> BookSnapshot:
        """Decode a book."""
        return okx_rest.decode_snapshot(body, request, self.exchange)

    def trades_request(self, native_symbol: str, first_id: int, count: int) -> RestRequest:
        """GET /api/v5/market/trades: the latest, which reach back past a hole that is fresh."""
        return okx_rest.trades_request(native_symbol, first_id, count)

    def decode_trades(self, body: bytes, native_symbol: str) -> list[TradePrint]:
        """Decode past trades, oldest first."""
        return okx_rest.decode_trades(body, native_symbol, self.exchange)

    def older_trades_request(
        self, native_symbol: str, first_id: int, last_id: int
    ) -> RestRequest | None:
        """GET /api/v5/market/history-trades, by trade id."""
        return okx_rest.older_trades_request(native_symbol, first_id, last_id)

    def later_trades_request(
        self, native_symbol: str, since: int, after: TradePrint | None
    ) -> RestRequest | None:
        """None: it is asked by number."""
        return None

    def decode_later_trades(self, body: bytes, native_symbol: str) -> list[TradePrint]:
        """Decode as any past trades: nothing is asked by time."""
        return self.decode_trades(body, native_symbol)

    def polls(self, specs: Sequence[InstrumentSpec], selection: Selection) -> list[Poll]:
        """Long/short ratios of swaps and futures, and the open interest of options."""
        return okx_rest.polls(specs, selection)

    def decode_poll(self, body: bytes, poll: Poll) -> list[Observation]:
        """Decode the answer to a poll, oldest first."""
        return okx_rest.decode_poll(body, poll, self.exchange)

    def rest_refusal(self, status: int, body: bytes) -> float | None:
        """Tell whether an answer says that we ask too much: HTTP 429, code 50011 and its like."""
        return okx_rest.rest_refusal(status, body)

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
        return infer_spec(self.exchange, native_symbol)
