"""What the adapters of Binance's markets share: decoding by stream, requests, answers."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from services.collector.venues.base import (
    BookChecksum,
    BookDiff,
    BookSnapshot,
    Goodbye,
    Ignored,
    MalformedFrameError,
    RestRequest,
    Several,
    SnapshotSource,
    TradePrint,
    VenueMessage,
    VenueRequest,
)
from services.collector.venues.binance_common import (
    COMBINED,
    DECODE_ERRORS,
    INTERVALS,
    Snapshot,
    decode_aggregates,
    decode_answer,
    decode_depth,
    decode_trades,
    nanoseconds,
    rest_refusal,
    stream_of,
    stream_requests,
)

__all__ = ["DIFF_CHANNELS", "KLINE_CHANNELS", "BinanceAdapter"]

DIFF_CHANNELS = ("depth", "depth@0ms", "depth@100ms", "depth@250ms", "depth@500ms", "depth@1000ms")
KLINE_CHANNELS = tuple(f"kline_{name}" for name in (*INTERVALS.values(), "1M"))
_DIFFS = frozenset(DIFF_CHANNELS)
_LONGEST_NAME = 80
_Data = TypeVar("_Data")

_decode_any = msgspec.json.Decoder().decode


class _Frame(msgspec.Struct, Generic[_Data], gc=False, frozen=True):
    data: _Data


class BinanceAdapter:
    """Decodes what a subclass declared with `_on`, and makes the requests; see `VenueAdapter`.

    `own` is the market's number in the field `st` of payloads; those of others are left out. 0
    where there is no such field.
    """

    snapshot_source = SnapshotSource.REQUEST
    ordered_ids = True
    closes_candles = True
    history_skips = False
    history_page = 1000

    def __init__(self, exchange: str, own: int = 0) -> None:
        self.exchange = exchange
        self._own = own
        self._channels: dict[bytes, Callable[[bytes], VenueMessage]] = {}
        self._events: dict[str, Callable[[dict[str, Any]], VenueMessage]] = {}

    def _on(
        self,
        event: str,
        channels: Iterable[str],
        payload: type[_Data],
        make: Callable[[_Data], VenueMessage],
    ) -> None:
        """Decode events of this kind, and the streams of these names, which bring nothing else."""
        decode = msgspec.json.Decoder(_Frame[payload]).decode  # type: ignore[valid-type]

        for channel in channels:
            self._channels[channel.encode()] = lambda frame: make(decode(frame).data)
        self._events[event] = lambda data: make(msgspec.convert(data, payload))

    def _on_diff(self, payload: type[BookDiff]) -> None:
        """Decode changes of books, which are messages as they come."""
        decode = msgspec.json.Decoder(_Frame[payload]).decode  # type: ignore[valid-type]

        for channel in DIFF_CHANNELS:
            self._channels[channel.encode()] = lambda frame: decode(frame).data
        self._events["depthUpdate"] = lambda data: msgspec.convert(data, payload)

    # Frames

    def decode(self, frame: bytes | str) -> VenueMessage:
        """Decode a combined or raw stream frame, or the answer to a request."""
        data = frame.encode("utf-8", "surrogatepass") if isinstance(frame, str) else frame
        try:
            if data.startswith(COMBINED):
                # The stream's name tells the type before any JSON is read:
                # {"stream":"btcusdt@depth@100ms","data":{...}}
                end = data.find(b'"', len(COMBINED))
                decoder = self._channels.get(data[data.find(b"@", 11, end) + 1 : end])
                if decoder is not None:
                    return decoder(data)
            return self._decode_slow(data)
        except DECODE_ERRORS as error:
            symbol, channel = stream_of(data)
            raise MalformedFrameError(
                f"{self.exchange}: {error} in frame {data[:160]!r}",
                symbol,
                concerns_book=channel in _DIFFS or channel.encode() not in self._channels,
            ) from error

    def _decode_slow(self, data: bytes) -> VenueMessage:
        message = _decode_any(data)
        stream = ""
        if isinstance(message, dict) and "data" in message:
            name = message.get("stream")
            if isinstance(name, str):
                stream, message = name, message["data"]
        if isinstance(message, list) and (stream or message):
            return self._decode_array(message, stream, data)
        if not isinstance(message, dict):
            raise MalformedFrameError(
                f"{self.exchange}: expected a JSON object, got {data[:160]!r}"
            )
        return self._decode_payload(message, stream, data)

    def _decode_array(self, payloads: list[Any], stream: str, data: bytes) -> VenueMessage:
        messages: list[VenueMessage] = []
        for payload in payloads:
            if not isinstance(payload, dict):
                raise MalformedFrameError(
                    f"{self.exchange}: expected an array of JSON objects, got {data[:160]!r}"
                )
            message = self._decode_payload(payload, stream, data)
            if isinstance(message, Several):
                messages += message.messages
            elif not isinstance(message, Ignored):
                messages.append(message)
        if len(messages) == 1:
            return messages[0]
        return Several(tuple(messages)) if messages else Ignored(stream[:_LONGEST_NAME] or "array")

    def _decode_payload(self, message: dict[str, Any], stream: str, data: bytes) -> VenueMessage:
        if self._own and message.get("st", self._own) != self._own:
            return Ignored("of another market")
        kind = message.get("e")
        native_symbol, _, channel = stream.partition("@")
        if kind is None and {"u", "b", "B", "a", "A"} <= message.keys():
            kind = "bookTicker"  # which spot does not say
        if not isinstance(kind, str):
            if kind is None:
                return self._decode_unnamed(message, native_symbol.upper(), channel, data)
            raise MalformedFrameError(f"{self.exchange}: expected text as `e`, got {data[:160]!r}")
        if kind == "depthUpdate" and channel and channel not in _DIFFS:
            # `depth5` carries the best levels, `rpiDepth` levels not for all, both in the shape of
            # a change.
            return Ignored(stream[:_LONGEST_NAME])
        decoder = self._events.get(kind)
        if decoder is None:
            if kind == "serverShutdown":
                return Goodbye(kind)
            return Ignored(kind[:_LONGEST_NAME])
        try:
            return decoder(message)
        except DECODE_ERRORS as error:
            native = message.get("s")
            raise MalformedFrameError(
                f"{self.exchange}: {error} in frame {data[:160]!r}",
                native if isinstance(native, str) else native_symbol.upper(),
                concerns_book=kind == "depthUpdate",
            ) from error

    def _decode_unnamed(
        self, message: dict[str, Any], native_symbol: str, channel: str, data: bytes
    ) -> VenueMessage:
        if "lastUpdateId" in message:
            return self._snapshot(message, native_symbol, channel)
        return decode_answer(self.exchange, message, data)

    def _snapshot(self, message: dict[str, Any], native_symbol: str, channel: str) -> VenueMessage:
        """Take an answer to a depth request that a recorder put among the frames.

        It calls the stream `depthSnapshot`. What comes on `depth5` is no whole book.
        """
        snapshot = msgspec.convert(message, Snapshot)
        native = snapshot.symbol or (native_symbol if channel == "depthSnapshot" else "")
        if not native:
            return Ignored(channel[:_LONGEST_NAME] or "depth")
        return BookSnapshot(
            snapshot.last,
            snapshot.bids,
            snapshot.asks,
            exchange_time=nanoseconds(snapshot.event_time),
            native_symbol=native,
        )

    def opening_requests(self, first_request_id: int) -> list[VenueRequest]:
        """Nothing comes before the subscriptions."""
        return []

    def subscribe(self, topics: Sequence[str], first_request_id: int) -> list[VenueRequest]:
        """SUBSCRIBE requests; a topic is the name of a stream."""
        return stream_requests("SUBSCRIBE", topics, first_request_id)

    def unsubscribe(self, topics: Sequence[str], first_request_id: int) -> list[VenueRequest]:
        """UNSUBSCRIBE requests."""
        return stream_requests("UNSUBSCRIBE", topics, first_request_id)

    # REST

    def decode_snapshot(self, body: bytes, request: RestRequest) -> BookSnapshot:
        """Decode a depth answer."""
        return decode_depth(self.exchange, body, request)

    def decode_trades(self, body: bytes, native_symbol: str) -> list[TradePrint]:
        """Decode past trades, oldest first."""
        return decode_trades(self.exchange, body, native_symbol)

    def later_trades_request(
        self, native_symbol: str, since: int, after: TradePrint | None
    ) -> RestRequest | None:
        """None: spot is asked by number."""
        return None

    def decode_later_trades(self, body: bytes, native_symbol: str) -> list[TradePrint]:
        """Decode aggregate trades, oldest first."""
        return decode_aggregates(self.exchange, body, native_symbol)

    def rest_refusal(self, status: int, body: bytes) -> float | None:
        """Tell of 429, 418 and error -1003; the time to wait is in the header `Retry-After`."""
        return rest_refusal(status, body)

    # Synchronisation

    def repeats(self, diff: BookDiff, book_id: int) -> bool:
        """Ids only grow: what ends at or below the book's id is in it."""
        return diff.last <= book_id

    def book_checksum(self) -> BookChecksum | None:
        """No checksums on Binance."""
        return None
