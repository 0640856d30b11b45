"""Binance USD-M and COIN-M futures: one protocol, two hosts.

Follows Binance's "USDⓈ-M Futures" and "COIN-M Futures" documents as of 2026: diff depth with `U`,
`u` and `pu`, the rules under "How to manage a local order book correctly", and USD-M's addresses
`/public` and `/market`, of which the wrong one acknowledges a stream and never sends it. Quantities
of COIN-M are contracts, as the venue sends them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import msgspec
from marketprism.market.v1 import common_pb2, instrument_pb2

from services.collector.venues.base import (
    BookDiff,
    ConnectionRules,
    InstrumentSpec,
    MalformedFrameError,
    Observation,
    Poll,
    RestPool,
    RestRequest,
    Selection,
    Subscription,
    TradePrint,
    VenueMessage,
)
from services.collector.venues.binance_adapter import KLINE_CHANNELS, BinanceAdapter
from services.collector.venues.binance_common import INTERVALS
from services.collector.venues.binance_futures_rest import (
    RATIOS,
    Contracts,
    OpenInterest,
    decode_contracts,
    decode_interest_rates,
    decode_intervals,
    decode_open_interest,
    decode_ratios,
    open_interest,
)
from services.collector.venues.binance_futures_streams import (
    ContractInfo,
    ForceOrder,
    FuturesDepthUpdate,
    FuturesTrade,
    IndexPrice,
    MarkPrice,
    contract_info,
    futures_trade,
    index_price,
    liquidation,
    mark_price,
)
from services.collector.venues.binance_streams import (
    AggregateTrade,
    BookTicker,
    Kline,
    Ticker,
    aggregate_trade,
    candle,
    ticker,
    top_of_book,
)

__all__ = ["COINM", "USDM", "BinanceFutures", "FuturesMarket"]

_BOOK = common_pb2.EVENT_KIND_ORDER_BOOK
_TRADE = common_pb2.EVENT_KIND_TRADE
_TOP = common_pb2.EVENT_KIND_BEST_BID_OFFER
_TICKER = common_pb2.EVENT_KIND_TICKER
_CANDLE = common_pb2.EVENT_KIND_CANDLE
_FUNDING = common_pb2.EVENT_KIND_FUNDING_RATE
_MARK = common_pb2.EVENT_KIND_MARK_PRICE
_INDEX = common_pb2.EVENT_KIND_INDEX_PRICE
_INTEREST = common_pb2.EVENT_KIND_OPEN_INTEREST
_LIQUIDATION = common_pb2.EVENT_KIND_LIQUIDATION
_RATIO = common_pb2.EVENT_KIND_LONG_SHORT_RATIO
_PERPETUAL = instrument_pb2.INSTRUMENT_KIND_PERPETUAL
# -1 before an instrument's first change.
_PreviousId: TypeAlias = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
_PUBLIC = "public"
_MARKET = "market"
# Stream, kind, USD-M's route, and how long it may be silent: depth, top and ticker are sent when
# they change, and of the least traded instruments the top stays what it is for minutes.
_STREAMS = (
    ("depth@100ms", _BOOK, _PUBLIC, 120.0),
    ("trade", _TRADE, _PUBLIC, 0.0),
    ("bookTicker", _TOP, _PUBLIC, 300.0),
    ("ticker", _TICKER, _MARKET, 120.0),
    ("forceOrder", _LIQUIDATION, _MARKET, 0.0),
)
_QUIET_CANDLE = 300.0
_QUIET_EVERY_SECOND = 15.0
_DEPTH_LIMITS = ((50, 2), (100, 5), (500, 10), (1000, 20))
_TRADES_WEIGHT = 5
_AGGREGATES_WEIGHT = 20
_USUAL_FUNDING_HOURS = 8
# Requests for open interest in a minute, and for ratios in five, at the most. The venue allows
# 1000 requests for its statistics in five minutes, beside the weight.
_INTERESTS_PER_MINUTE = 600
_RATIOS_PER_PERIOD = 800
_PERIOD_SECONDS = 300.0
# Not trades of the market, but the venue settling its own affairs.
_NOT_OF_THE_MARKET = frozenset(("INSURANCE_FUND", "ADL", "NA"))
_SIDES = {"BUY": common_pb2.SIDE_BUY, "SELL": common_pb2.SIDE_SELL}


@dataclass(frozen=True, slots=True)
class FuturesMarket:
    """What is different between the two markets."""

    exchange: str
    """Venue id."""
    rest_url: str
    """Base of the REST interface."""
    ws_url: str
    """WebSocket address, or what its routes have in common."""
    prefix: str
    """Path of the REST interface's own part."""
    own: int
    """The market's number in the field `st` of payloads."""
    routed: bool
    """Whether streams are served by routes."""
    inverse: bool
    """Whether quantities are contracts of so many units of the quote currency."""


USDM = FuturesMarket(
    exchange="binance_usdm",
    rest_url="https://fapi.binance.com",
    ws_url="wss://fstream.binance.com",
    prefix="/fapi/v1",
    own=1,
    routed=True,
    inverse=False,
)
COINM = FuturesMarket(
    exchange="binance_coinm",
    rest_url="https://dapi.binance.com",
    ws_url="wss://dstream.binance.com/stream",
    prefix="/dapi/v1",
    own=2,
    routed=False,
    inverse=True,
)


class BinanceFutures(BinanceAdapter):
    """Adapter of one of the two markets; see `VenueAdapter`.

    Hours between fundings and the interest part of the funding rate are told by REST only; what was
    last polled of them completes the funding rates of the stream.
    """

    history_skips = True

    kinds = frozenset(
        (_BOOK, _TRADE, _TOP, _TICKER, _CANDLE, _FUNDING, _MARK, _INDEX, _INTEREST, _LIQUIDATION,
         _RATIO)
    )  # fmt: skip
    # Ten messages a second are allowed, our answers to pings among them.
    connection_rules = ConnectionRules(
        topics=200,
        request_seconds=0.15,
        connects=250,
        connect_seconds=300.0,
        life_seconds=86_400.0,
    )
    rest_pool = RestPool("binance_futures", 1920, 60.0)

    def __init__(self, market: FuturesMarket = USDM) -> None:
        super().__init__(market.exchange, market.own)
        self._market = market
        self.default_rest_url = market.rest_url
        self.default_ws_url = market.ws_url
        self._contracts = Contracts(market.exchange, inverse=market.inverse)
        self._funding_hours: dict[str, int] | None = None
        self._interest_rates: dict[str, str] = {}
        inverse = market.inverse
        self._on_diff(FuturesDepthUpdate)
        self._on("trade", ("trade",), FuturesTrade, futures_trade)
        self._on("aggTrade", ("aggTrade",), AggregateTrade, aggregate_trade)
        self._on("bookTicker", ("bookTicker",), BookTicker, top_of_book)
        self._on("24hrTicker", ("ticker",), Ticker, lambda data: ticker(data, inverse=inverse))
        self._on("kline", KLINE_CHANNELS, Kline, lambda data: candle(data, inverse=inverse))
        self._on("markPriceUpdate", ("markPrice@1s", "markPrice"), MarkPrice, self._mark_price)
        self._on(
            "indexPriceUpdate",
            ("indexPrice@1s", "indexPrice"),
            IndexPrice,
            lambda data: index_price(data, self._contracts.index(data.pair)),
        )
        self._on(
            "forceOrder",
            ("forceOrder",),
            ForceOrder,
            lambda data: liquidation(data, inverse=inverse),
        )
        self._on("contractInfo", (), ContractInfo, contract_info)

    # Frames

    def _mark_price(self, data: MarkPrice) -> VenueMessage:
        native = data.native_symbol
        hours = None
        if self._funding_hours is not None:
            hours = self._funding_hours.get(native, _USUAL_FUNDING_HOURS)
        # COIN-M has a stream of the index itself.
        index = "" if self._market.inverse else self._contracts.index(native)
        return mark_price(data, index, hours, self._interest_rates.get(native, ""))

    def _decode_unnamed(
        self, message: dict[str, object], native_symbol: str, channel: str, data: bytes
    ) -> VenueMessage:
        # An answer to a request for open interest that a recorder put among the frames.
        if "openInterest" in message:
            interest = msgspec.convert(message, OpenInterest)
            return open_interest(interest, inverse=self._market.inverse)
        return super()._decode_unnamed(message, native_symbol, channel, data)

    def route_url(self, ws_url: str, route: str) -> str:
        """Put the route in front of `/stream`: wss://fstream.binance.com/public/stream."""
        if not route:
            return ws_url
        return f"{ws_url.rstrip('/').removesuffix('/stream')}/{route}/stream"

    def subscriptions(self, spec: InstrumentSpec, selection: Selection) -> list[Subscription]:
        """Streams of one instrument, one a kind and one a length of candles."""
        found = [
            self._subscription(spec, stream, (kind,), route, quiet)
            for stream, kind, route, quiet in _STREAMS
            if kind in selection.kinds
        ]
        marks = [_MARK]
        if spec.kind == _PERPETUAL:
            marks += [_FUNDING] if self._market.inverse else [_INDEX, _FUNDING]
        if not selection.kinds.isdisjoint(marks):
            found.append(
                self._subscription(spec, "markPrice@1s", tuple(marks), _MARKET, _QUIET_EVERY_SECOND)
            )
        if _CANDLE in selection.kinds:
            found += [
                self._subscription(
                    spec, f"kline_{INTERVALS[seconds]}", (_CANDLE,), _MARKET, _QUIET_CANDLE
                )
                for seconds in selection.candle_intervals
                if seconds in INTERVALS and seconds >= 60
            ]
        return found

    def _subscription(
        self,
        spec: InstrumentSpec,
        stream: str,
        kinds: tuple["common_pb2.EventKind.ValueType", ...],
        route: str,
        quiet: float,
    ) -> Subscription:
        native = spec.native_symbol
        route = route if self._market.routed else ""
        return Subscription(f"{native.lower()}@{stream}", kinds, native, route, quiet)

    def shared_subscriptions(
        self, specs: Sequence[InstrumentSpec], selection: Selection
    ) -> list[Subscription]:
        """Streams of changes to the list of contracts, and of COIN-M's indices."""
        if not specs:
            return []
        found = [Subscription("!contractInfo", (), route=_MARKET if self._market.routed else "")]
        if self._market.inverse and _INDEX in selection.kinds:
            found += [
                Subscription(
                    f"{pair.lower()}@indexPrice@1s", (_INDEX,), quiet_seconds=_QUIET_EVERY_SECOND
                )
                for pair in sorted({spec.family for spec in specs})
            ]
        return found

    # REST

    def instrument_requests(self) -> list[RestRequest]:
        """GET exchangeInfo, weight 1."""
        return [RestRequest(f"{self._market.prefix}/exchangeInfo", 1)]

    def decode_instruments(self, body: bytes) -> list[InstrumentSpec]:
        """Decode exchangeInfo; a symbol whose filters are malformed keeps empty steps."""
        specs = decode_contracts(self._contracts, self.exchange, body, inverse=self._market.inverse)
        self._contracts.learn(specs)
        return specs

    def snapshot_request(self, native_symbol: str, depth: int) -> RestRequest:
        """GET depth; only limits 5, 10, 20, 50, 100, 500 and 1000 exist."""
        limit, weight = next(
            ((limit, weight) for limit, weight in _DEPTH_LIMITS if depth <= limit),
            _DEPTH_LIMITS[-1],
        )
        return RestRequest(
            f"{self._market.prefix}/depth", weight, {"symbol": native_symbol, "limit": str(limit)}
        )

    def trades_request(self, native_symbol: str, first_id: int, count: int) -> RestRequest:
        """GET trades: the latest 1000."""
        return RestRequest(
            f"{self._market.prefix}/trades",
            _TRADES_WEIGHT,
            {"symbol": native_symbol, "limit": "1000"},
        )

    def older_trades_request(
        self, native_symbol: str, first_id: int, last_id: int
    ) -> RestRequest | None:
        """None: historicalTrades wants an API key; see `later_trades_request`."""
        return None

    def later_trades_request(
        self, native_symbol: str, since: int, after: TradePrint | None
    ) -> RestRequest | None:
        """GET aggTrades: by time, then by the ids of the aggregates, which are not those of trades.

        An aggregate is what one order took at one price.
        """
        where = (
            {"startTime": str(since // 1_000_000)}
            if after is None
            else {"fromId": str(int(after.venue_id) + 1)}
        )
        return RestRequest(
            f"{self._market.prefix}/aggTrades",
            _AGGREGATES_WEIGHT,
            {"symbol": native_symbol, **where, "limit": "1000"},
        )

    def polls(self, specs: Sequence[InstrumentSpec], selection: Selection) -> list[Poll]:
        """Open interest, ratios, and what completes the stream's funding rates.

        The more instruments there are, the more seldom each is asked for.
        """
        found: list[Poll] = []
        if not specs:
            return found
        prefix = self._market.prefix
        if _FUNDING in selection.kinds:
            found += [
                Poll(_FUNDING, RestRequest(f"{prefix}/fundingInfo", 1), 3600.0),
                Poll(_FUNDING, RestRequest(f"{prefix}/premiumIndex", 10), 600.0),
            ]
        if _INTEREST in selection.kinds:
            every = max(15.0, len(specs) * 60.0 / _INTERESTS_PER_MINUTE)
            found += [
                Poll(
                    _INTEREST,
                    RestRequest(f"{prefix}/openInterest", 1, {"symbol": spec.native_symbol}),
                    every,
                    spec.native_symbol,
                )
                for spec in specs
            ]
        if _RATIO in selection.kinds:
            found += self._ratio_polls(specs)
        return found

    def _ratio_polls(self, specs: Sequence[InstrumentSpec]) -> list[Poll]:
        if self._market.inverse:
            whose = [("", {"pair": pair}) for pair in sorted({spec.family for spec in specs})]
        else:
            whose = [
                (spec.native_symbol, {"symbol": spec.native_symbol})
                for spec in specs
                if spec.kind == _PERPETUAL
            ]
        every = max(1.0, len(whose) * len(RATIOS) / _RATIOS_PER_PERIOD) * _PERIOD_SECONDS
        return [
            Poll(
                _RATIO,
                RestRequest(f"/futures/data/{path}", 1, {**query, "period": "5m", "limit": "1"}),
                every,
                native,
            )
            for native, query in whose
            for path in RATIOS
        ]

    def decode_poll(self, body: bytes, poll: Poll) -> list[Observation]:
        """Decode the answer to a poll. Raises MalformedFrameError.

        What is told about funding is kept, and gives nothing by itself.
        """
        path = poll.request.path.rpartition("/")[2]
        if path == "openInterest":
            return decode_open_interest(
                self.exchange, body, poll.native_symbol, inverse=self._market.inverse
            )
        if path in RATIOS:
            pair = poll.request.query.get("pair", "")
            symbol = self._contracts.index(pair) if pair else ""
            return decode_ratios(self.exchange, body, RATIOS[path], poll.native_symbol, symbol)
        if path == "fundingInfo":
            self._funding_hours = decode_intervals(self.exchange, body)
        elif path == "premiumIndex":
            self._interest_rates = decode_interest_rates(self.exchange, body)
        else:
            raise MalformedFrameError(f"{self.exchange}: no poll of {path!r} is known")
        return []

    # Synchronisation

    def covered(self, diff: BookDiff, snapshot_id: int) -> bool:
        """Drop any event where `u` is below the snapshot's lastUpdateId."""
        return diff.last < snapshot_id

    def bridges(self, diff: BookDiff, snapshot_id: int) -> bool:
        """Require U <= lastUpdateId <= u of the first event that is kept, or pu == lastUpdateId."""
        return diff.first <= snapshot_id <= diff.last or diff.previous == snapshot_id

    # Names

    def infer_instrument(self, native_symbol: str) -> InstrumentSpec:
        """Split a name at a known quote currency, and read its term from what follows."""
        return self._contracts.infer(native_symbol)
