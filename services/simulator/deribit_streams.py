"""Which Deribit channels an event of the market goes out on, and as which frames."""

from collections.abc import Sequence
from itertools import product
from typing import cast

from services.simulator import deribit_frames as frames
from services.simulator.deribit_channels import RESOLUTIONS, Channel, ChannelKind, parse_channel
from services.simulator.deribit_instruments import instrument
from services.simulator.deribit_numbers import dumps
from services.simulator.deribit_view import DeribitView, base_volume
from services.simulator.fixed import SCALE
from services.simulator.market import (
    BestPrices,
    BookState,
    Candle,
    DepthUpdate,
    Event,
    Market,
    RawFrame,
    Trade,
    UnknownSymbolError,
    UpdateIdUnavailableError,
)
from services.simulator.reference import (
    IndexPrice,
    InstrumentChange,
    InstrumentEvent,
    MarkPrice,
    OptionGreeks,
    VolatilityIndex,
)
from services.simulator.window import BookWindow

__all__ = ["DeribitStreams"]

_FAST_MS = 100
_DEPTHS = (1, 10, 20)
_STATES = {InstrumentEvent.LISTED: "started", InstrumentEvent.EXPIRED: "closed"}
_MINUTE_US = 60_000_000
_OPTION_MARKS_KEPT = 10_000


class DeribitStreams:
    """The frames of all channels; what one channel was told last is kept here."""

    def __init__(self, view: DeribitView, slow_interval_ms: int) -> None:
        """`slow_interval_ms` is that of the market's slower diff stream: the channels `agg2`."""
        self._view = view
        self._market: Market = view.market
        self._slow_ms = slow_interval_ms
        self._windows: dict[str, BookWindow] = {}
        self._pending_trades: dict[str, list[tuple[int, bytes]]] = {}
        self._sent_trades: dict[str, list[int]] = {}
        self._marks: dict[str, list[OptionGreeks]] = {}
        self._grouped: dict[tuple[str, str], list[str]] = {}
        self._names: dict[tuple[str, str], tuple[str, ...]] = {}
        self._now_us = 0

    def streams_of(self, event: Event) -> Sequence[str]:
        """Return the channels on which the event is told, or which it lets tell something."""
        kind = type(event)
        if kind is BestPrices:
            return (f"quote.{event.symbol}",)
        if kind is Trade:
            return self._trade_streams(event.symbol)
        if kind is DepthUpdate:
            update = cast("DepthUpdate", event)
            self._now_us = max(self._now_us, update.time_us)
            return self._timed_streams(update.symbol, update.interval_ms)
        if kind is Candle:
            return [f"chart.trades.{event.symbol}.{name}" for name in RESOLUTIONS]
        if kind is MarkPrice:
            return [f"perpetual.{event.symbol}.{interval}" for interval in ("100ms", "agg2")]
        if kind is IndexPrice:
            return (f"deribit_price_index.{event.symbol}", f"markprice.options.{event.symbol}")
        if kind is OptionGreeks:
            return (f"markprice.options.{instrument(event.symbol).index}",)
        if kind is VolatilityIndex:
            return (f"deribit_volatility_index.{event.symbol}",)
        if kind is RawFrame:
            return (cast("RawFrame", event).stream,)
        if kind is InstrumentChange:
            if cast("InstrumentChange", event).change in _STATES:
                self._forget(event.symbol)
            listed = instrument(event.symbol)
            return [
                f"instrument.state.{each}.{currency}"
                for each, currency in product((listed.kind, "any"), (listed.settlement, "any"))
            ]
        return ()

    def _forget(self, symbol: str) -> None:
        # What is kept of an instrument that ended or begins again.
        self._view.trades.forget(symbol)
        for kept in (self._windows, self._pending_trades, self._sent_trades):
            for name in [name for name in kept if f".{symbol}." in name]:
                del kept[name]
        for key in [key for key in self._names if key[0] == symbol]:
            del self._names[key]

    def _timed_streams(self, symbol: str, interval_ms: int) -> tuple[str, ...]:
        interval = "100ms" if interval_ms == _FAST_MS else "agg2"
        names = self._names.get((symbol, interval))
        if names is None:
            names = self._names[symbol, interval] = (
                f"book.{symbol}.{interval}",
                *(f"book.{symbol}.none.{depth}.{interval}" for depth in _DEPTHS),
                *self._grouped.get((symbol, interval), ()),
                f"ticker.{symbol}.{interval}",
                *(name for name in self._trade_streams(symbol) if name.endswith(interval)),
            )
        return names

    def _trade_streams(self, symbol: str) -> tuple[str, ...]:
        names = self._names.get((symbol, "trades"))
        if names is None:
            listed = instrument(symbol)
            names = self._names[symbol, "trades"] = tuple(
                f"trades.{what}.{interval}"
                for interval in ("100ms", "agg2")
                for what in (
                    symbol,
                    *(
                        f"{kind}.{currency}"
                        for kind, currency in product(
                            (listed.kind, "any"), (listed.settlement, "any")
                        )
                    ),
                )
            )
        return names

    def encode(self, event: Event, stream: str) -> bytes | None:
        """Return the frame that the event makes on the channel; None when there is nothing yet."""
        if isinstance(event, RawFrame):
            return event.payload
        channel = parse_channel(stream)
        if channel is None:
            return None
        try:
            return self._encode(event, channel)
        except UnknownSymbolError:
            # An instrument ends between two frames: nothing of it is told any more.
            return None

    def _encode(self, event: Event, channel: Channel) -> bytes | None:
        if isinstance(event, DepthUpdate):
            return self._timed(event, channel)
        if isinstance(event, Trade):
            told = self._view.trades.one(event.symbol, event.trade_id)
            if told is not None:
                pending = self._pending_trades.setdefault(channel.name, [])
                pending.append((told.trade_seq, frames.trade_object(told)))
            return None
        if isinstance(event, BestPrices):
            return self._quote(channel.name, event)
        if isinstance(event, Candle):
            return self._chart(channel, event)
        if isinstance(event, MarkPrice):
            return self._perpetual(channel)
        if isinstance(event, OptionGreeks):
            rows = self._marks.setdefault(channel.name, [])
            if len(rows) < _OPTION_MARKS_KEPT:
                rows.append(event)
            return None
        if isinstance(event, IndexPrice):
            if channel.kind is ChannelKind.OPTION_MARKS:
                return self._option_marks(channel.name)
            return self._price_index(channel)
        if isinstance(event, VolatilityIndex):
            return self._volatility_index(channel)
        if isinstance(event, InstrumentChange) and event.change in _STATES:
            time_ms = event.time_us // 1000
            return frames.instrument_state(
                channel.name, event.symbol, _STATES[event.change], time_ms
            )
        return None

    def sent_ids(self, stream: str) -> Sequence[int]:
        """Return the sequences of the trades in the frame that the channel was given last."""
        return self._sent_trades.get(stream, ())

    def begins(self, channel: Channel) -> None:
        """Take note that a channel gets its first subscriber."""
        self._pending_trades.pop(channel.name, None)
        self._marks.pop(channel.name, None)
        if channel.kind is ChannelKind.BOOK_LEVELS and channel.group and channel.instrument:
            key = (channel.instrument, channel.interval)
            names = self._grouped.setdefault(key, [])
            if channel.name not in names:
                names.append(channel.name)
                self._names.pop(key, None)

    def first(self, channel: Channel, stale: BookState | None) -> bytes | None:
        """Return what a new subscriber is sent at once; None for channels that wait for news.

        `stale` takes the place of a book's snapshot.
        """
        kind, symbol = channel.kind, channel.instrument or ""
        if self._market.raw:
            return self._captured_book(channel, symbol, stale)
        if kind is ChannelKind.BOOK:
            interval_ms = _FAST_MS if channel.interval != "agg2" else self._slow_ms
            window = self._window(channel)
            book = window.snapshot(self._market, self._market.frame_id(symbol, interval_ms))
            book = stale or book
            return frames.book_snapshot(
                channel.name,
                symbol,
                self._time_ms(symbol),
                book.update_id,
                book.bids,
                book.asks,
                whole_amounts=instrument(symbol).whole_amounts,
            )
        if kind is ChannelKind.BOOK_LEVELS:
            book = self._market.book(symbol)
            return self._levels(channel, self._time_ms(symbol), book.update_id, book)
        if kind is ChannelKind.TICKER:
            return self._ticker(channel.name, symbol)
        if kind is ChannelKind.QUOTE:
            book = self._market.book(symbol, 1)
            bid = book.bids[0] if book.bids else None
            ask = book.asks[0] if book.asks else None
            return frames.quote(channel.name, symbol, self._time_ms(symbol), bid, ask)
        if kind is ChannelKind.PERPETUAL:
            return self._perpetual(channel)
        if kind is ChannelKind.PRICE_INDEX:
            return self._price_index(channel)
        if kind is ChannelKind.VOLATILITY_INDEX:
            return self._volatility_index(channel)
        return None

    def _captured_book(
        self, channel: Channel, symbol: str, stale: BookState | None
    ) -> bytes | None:
        # A capture tells everything else by itself, and a book once its own snapshot was played.
        if channel.kind is not ChannelKind.BOOK:
            return None
        book = stale or self._market.stream_book(symbol)
        if book is None:
            return None
        return frames.book_snapshot(
            channel.name,
            symbol,
            self._market.time_us // 1000,
            book.update_id,
            book.bids,
            book.asks,
            whole_amounts=instrument(symbol).whole_amounts,
        )

    def _window(self, channel: Channel) -> BookWindow:
        window = self._windows.get(channel.name)
        if window is None:
            depth = None if channel.kind is ChannelKind.BOOK else channel.depth
            window = self._windows[channel.name] = BookWindow(channel.instrument or "", depth)
        return window

    def _time_ms(self, symbol: str) -> int:
        return max(self._now_us, self._market.ticker(symbol).time_us) // 1000

    def _timed(self, event: DepthUpdate, channel: Channel) -> bytes | None:
        if channel.kind is ChannelKind.TICKER:
            return self._ticker(channel.name, event.symbol)
        if channel.kind in (ChannelKind.TRADES, ChannelKind.TRADES_OF_KIND):
            pending = self._pending_trades.pop(channel.name, None)
            if not pending:
                return None
            self._sent_trades[channel.name] = [trade_seq for trade_seq, _ in pending]
            return frames.trades(channel.name, [text for _, text in pending])
        time_ms = event.time_us // 1000
        try:
            if channel.group:
                book = self._market.book_at(event.symbol, event.last_id)
                return self._levels(channel, time_ms, event.last_id, book)
            window = self._window(channel)
            change = window.follow(self._market, event)
        except UpdateIdUnavailableError:
            # The market no longer knows the book before this frame: the chain breaks here, and
            # the channel begins a new one with the next frame.
            self._windows.pop(channel.name, None)
            return None
        if channel.kind is ChannelKind.BOOK_LEVELS:
            bids, asks = window.best(channel.depth or 1)
            return frames.book_levels(
                channel.name, event.symbol, time_ms, event.last_id, bids, asks
            )
        if change.empty:
            return None
        return frames.book_change(
            channel.name,
            event.symbol,
            time_ms,
            change.last_id,
            change.previous_id,
            change.bids,
            change.asks,
        )

    def _levels(self, channel: Channel, time_ms: int, change_id: int, book: BookState) -> bytes:
        depth = channel.depth or 1
        bids, asks = list(book.bids), list(book.asks)
        if channel.group:
            step = channel.group * SCALE
            if instrument(book.symbol).base != "BTC":
                step //= 100
            bids = _grouped(bids, step, up=False)
            asks = _grouped(asks, step, up=True)
        return frames.book_levels(
            channel.name, book.symbol, time_ms, change_id, bids[:depth], asks[:depth]
        )

    def _ticker(self, stream: str, symbol: str) -> bytes:
        return frames.notification(stream, dumps(self._view.ticker(symbol)).encode())

    def _quote(self, stream: str, event: BestPrices) -> bytes:
        time_ms = self._time_ms(event.symbol)
        bid, ask = (event.bid, event.bid_quantity), (event.ask, event.ask_quantity)
        return frames.quote(stream, event.symbol, time_ms, bid, ask)

    def _perpetual(self, channel: Channel) -> bytes:
        symbol = channel.instrument or ""
        funding = self._market.funding_rate(symbol)
        index = self._view.trade_marks(symbol)[0]
        return frames.perpetual(channel.name, funding.time_us // 1000, index, funding.rate)

    def _price_index(self, channel: Channel) -> bytes:
        name = channel.index or ""
        time_ms = self._market.index_price(name).time_us // 1000
        return frames.price_index(channel.name, name, time_ms, self._view.index_of(name))

    def _volatility_index(self, channel: Channel) -> bytes:
        name = channel.index or ""
        told = self._market.volatility_index(name)
        return frames.volatility_index(channel.name, name, told.time_us // 1000, told.value)

    def _option_marks(self, stream: str) -> bytes | None:
        rows = self._marks.pop(stream, None)
        if not rows:
            return None
        return frames.markprice_options(stream, [self._view.option_mark(row) for row in rows])

    def _chart(self, channel: Channel, event: Candle) -> bytes:
        minutes = RESOLUTIONS[channel.resolution or "1"]
        length_us = minutes * _MINUTE_US
        begin_us = event.open_us // length_us * length_us
        bars = [event]
        if minutes > 1:
            # One more, for the minute after a closed one may have begun already.
            earlier = self._market.candles(event.symbol, minutes + 1)
            bars = [bar for bar in earlier if begin_us <= bar.open_us < event.open_us] + bars
        listed = instrument(event.symbol)
        quantity = sum(bar.volume for bar in bars)
        value = sum(bar.quote_volume for bar in bars)
        return frames.chart_trades(
            channel.name,
            begin_us // 1000,
            (
                bars[0].open,
                max(bar.high for bar in bars),
                min(bar.low for bar in bars),
                bars[-1].close,
            ),
            base_volume(listed, quantity, value),
            quantity if listed.whole_amounts else value,
        )


def _grouped(levels: Sequence[tuple[int, int]], step: int, *, up: bool) -> list[tuple[int, int]]:
    amounts: dict[int, int] = {}
    for price, amount in levels:
        rounded = -(-price // step) * step if up else price // step * step
        amounts[rounded] = amounts.get(rounded, 0) + amount
    return list(amounts.items())
