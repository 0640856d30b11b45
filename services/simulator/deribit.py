"""Deribit v2, public part: JSON-RPC over WebSocket and HTTP, as the venue speaks it.

Follows the Deribit documentation ("JSON-RPC over WebSocket", "Subscriptions", "Rate limits"), and
where that is silent what the venue was seen to answer.
"""

import datetime
import math
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, cast

from aiohttp import web

from services.simulator.connection import Connection
from services.simulator.deribit_channels import Channel, ChannelKind, parse_channel
from services.simulator.deribit_credits import CreditPool
from services.simulator.deribit_instruments import default_names, instrument, listed, more_names
from services.simulator.deribit_methods import DeribitMethods
from services.simulator.deribit_numbers import dumps
from services.simulator.deribit_rest import DeribitRest
from services.simulator.deribit_rpc import (
    RAW_UNAUTHORIZED,
    TOO_MANY_REQUESTS,
    RpcError,
    RpcRequest,
    error_reply,
    invalid,
    parse_request,
    result_reply,
)
from services.simulator.deribit_session import DeribitSession
from services.simulator.deribit_streams import DeribitStreams
from services.simulator.deribit_view import DeribitView
from services.simulator.instrument import Listed
from services.simulator.market import Event
from services.simulator.protocol import Reply, VenueProtocol
from services.simulator.settings import AtLeastOne, Positive, VenueSettings

if TYPE_CHECKING:
    from services.simulator.server import SimulatedVenue

__all__ = ["Deribit", "DeribitSettings"]

_SLOW_MS = 1000
_TRADES_KEPT = 20_000
_PEERS_KEPT = 1000
_NO_ANSWER: tuple[bytes, ...] = ()
_VOLATILITY_INDICES = ("btc_usd", "eth_usd")
_LISTING = "public/get_instruments"
_SUBSCRIBE = "public/subscribe"


class DeribitSettings(VenueSettings):
    """Deribit's limits and timings."""

    ping_interval_seconds: Positive | None = None
    """The venue sends no ping frames."""
    connection_life_seconds: Positive = 3650 * 86_400.0
    """Connections have no fixed life."""
    shutdown_notice_seconds: float = 0.0
    """There is no notice."""
    max_streams: AtLeastOne = 10_000
    """Channels a connection may subscribe to."""
    inbound_per_second: AtLeastOne | None = None
    """Requests cost credits instead."""
    connects_per_five_minutes: AtLeastOne | None = None
    """Connections are limited by how many are open."""
    max_connections: AtLeastOne | None = 32
    """Connections that one address may have open."""
    heartbeat_least_seconds: Positive = 10.0
    """Shortest interval that `public/set_heartbeat` takes."""
    heartbeat_answer_seconds: Positive = 10.0
    """How long the venue waits for `public/test` after a `test_request`."""
    idle_seconds: Positive = 60.0
    """A connection that neither asked nor subscribed for so long is broken off."""
    request_cost: Positive = 500.0
    """Credits of most requests."""
    request_credits: Positive = 50_000.0
    """Credits that there are for most requests, by address."""
    subscribe_cost: Positive = 3000.0
    """Credits of `public/subscribe`."""
    subscribe_credits: Positive = 30_000.0
    """Credits that there are for `public/subscribe`, by address."""
    listing_cost: Positive = 10_000.0
    """Credits of `public/get_instruments`."""
    listing_credits: Positive = 500_000.0
    """Credits that there are for `public/get_instruments`, by address."""
    credits_per_second: Positive = 10_000.0
    """How fast each kind of credits is refilled."""


class Deribit(VenueProtocol):
    """Deribit v2 for clients that have not logged in."""

    name = "deribit"
    title = "Deribit"
    websocket_paths = ("/ws/api/v2", "/ws/api/v2/")
    settings_type: ClassVar[type[VenueSettings]] = DeribitSettings
    market_defaults: ClassVar[Mapping[str, object]] = {
        "levels": 400,
        "changes_per_side": 5,
        "slow_interval_ms": _SLOW_MS,
    }

    def __init__(self) -> None:
        self._today = datetime.datetime.now(datetime.UTC).date()
        self.default_symbols: Sequence[str] = default_names(self._today)
        self._streams: DeribitStreams | None = None
        self._methods: DeribitMethods | None = None
        self._pools: dict[tuple[str, str], CreditPool] = {}

    def listed(self, symbol: str) -> Listed:
        """Return the instrument of that name."""
        return listed(symbol)

    def more_symbols(self, count: int, have: Iterable[str]) -> tuple[str, ...]:
        """Return `have`, continued to `count` names."""
        return more_names(count, have, self._today)

    def addresses(self, venue: "SimulatedVenue") -> list[tuple[str, str]]:
        """HTTP and WebSocket."""
        return [
            ("REST", f"{venue.rest_url}/api/v2/public"),
            ("WebSocket", f"{venue.ws_url}/ws/api/v2"),
        ]

    def open(self, request: web.Request) -> tuple[Hashable, list[str]]:
        """All connections want the same frames, and the URL names no channels."""
        return "json-rpc", []

    def opened(self, venue: "SimulatedVenue", connection: Connection) -> Iterable[bytes | Reply]:
        """Begin the session; the venue says nothing by itself."""
        settings = _settings(venue)
        connection.state = DeribitSession(
            time.monotonic(), settings.heartbeat_answer_seconds, settings.idle_seconds
        )
        return ()

    def streams_of(self, event: Event) -> Sequence[str]:
        """Return the channels on which the event is told, or which it lets tell something."""
        return () if self._streams is None else self._streams.streams_of(event)

    def symbol_of(self, stream: str) -> str | None:
        """Return the instrument that a channel is about; None for those of many or of an index."""
        channel = parse_channel(stream)
        return None if channel is None else channel.instrument

    def is_depth(self, stream: str) -> bool:
        """Whether it is a book with changes."""
        channel = parse_channel(stream)
        return channel is not None and channel.kind is ChannelKind.BOOK

    def is_reference(self, stream: str) -> bool:
        """Whether it tells of indices, funding, marks or the list of instruments."""
        channel = parse_channel(stream)
        return channel is not None and channel.kind in (
            ChannelKind.PERPETUAL,
            ChannelKind.PRICE_INDEX,
            ChannelKind.VOLATILITY_INDEX,
            ChannelKind.OPTION_MARKS,
            ChannelKind.INSTRUMENT_STATE,
        )

    def encode(self, event: Event, stream: str) -> bytes | None:
        """Return the notification of the event on the channel."""
        return None if self._streams is None else self._streams.encode(event, stream)

    def event_ids(self, event: Event, stream: str) -> Sequence[int]:
        """Return the sequences of the trades in the frame that the channel was given last."""
        if self._streams is None or not stream.startswith("trades."):
            return ()
        return self._streams.sent_ids(stream)

    def shutdown_event(self, time_us: int) -> bytes | None:
        """None: the venue ends a connection without notice."""
        return None

    def rest_routes(self, venue: "SimulatedVenue") -> list[web.RouteDef]:
        """`/api/v2`; and from here on the protocol knows its venue."""
        view = DeribitView(venue.market, _TRADES_KEPT)
        self._streams = DeribitStreams(view, _SLOW_MS)
        self._methods = DeribitMethods(
            view,
            partial(venue.rest_book, path="/api/v2/public/get_order_book"),
            lambda: time.time_ns() // 1000,
        )
        return DeribitRest(venue, self._methods, partial(self._affordable, venue)).routes()

    def keep(self, venue: "SimulatedVenue", connection: Connection, now: float) -> float:
        """Ask for signs of life, and end connections that give none."""
        session = _session(connection)
        refuse = session.asks(now) and venue.heartbeat_refused(connection)
        for frame in session.due(connection, now, refuse=refuse):
            venue.send(connection, frame)
        return math.inf if connection.closing.done() else session.next_at(connection)

    def request(
        self, venue: "SimulatedVenue", connection: Connection, text: str
    ) -> Iterable[bytes | Reply]:
        """Perform a JSON-RPC request."""
        arrived_us = time.time_ns() // 1000
        try:
            read = parse_request(text)
        except RpcError as error:
            return (error_reply(None, error, arrived_us),)
        try:
            if not self._affordable(venue, connection.peer, read.method):
                raise RpcError(TOO_MANY_REQUESTS, "too_many_requests")
            frames = self._perform(venue, connection, read, arrived_us)
        except RpcError as error:
            if error.code == TOO_MANY_REQUESTS:
                venue.counters["sessions out of credits"] += 1
                _session(connection).too_many_requests()
            frames = (error_reply(read.number, error, arrived_us),)
        # Requests change when the connection would be idle, and heartbeats when something is due.
        connection.wake()
        return frames

    def _perform(
        self,
        venue: "SimulatedVenue",
        connection: Connection,
        read: RpcRequest,
        arrived_us: int,
    ) -> Iterable[bytes | Reply]:
        session = _session(connection)
        first: list[Reply] = []
        if read.method == _SUBSCRIBE:
            channels, first = self._subscribe(venue, connection, _channels(read.params))
            result = dumps(channels)
        elif read.method == "public/unsubscribe":
            names = _channels(read.params)
            result = dumps([name for name in names if venue.unsubscribe(connection, name)])
        elif read.method == "public/unsubscribe_all":
            for name in list(connection.streams):
                venue.unsubscribe(connection, name)
            result = '"ok"'
        elif read.method == "public/set_heartbeat":
            session.set_heartbeat(_interval(venue, read.params), time.monotonic())
            result = '"ok"'
        elif read.method == "public/disable_heartbeat":
            session.disable_heartbeat()
            result = '"ok"'
        else:
            if read.method == "public/test" and not session.tested():
                return _NO_ANSWER
            if self._methods is None:
                raise RuntimeError("the protocol was not started with a venue")
            result = self._methods.call(read.method, read.params).decode()
        return [result_reply(read.number, result.encode(), arrived_us), *first]

    def _subscribe(
        self, venue: "SimulatedVenue", connection: Connection, names: Sequence[str]
    ) -> tuple[list[str], list[Reply]]:
        channels = [channel for name in names if (channel := parse_channel(name)) is not None]
        raw = venue.market.raw
        if not raw and any(channel.needs_authentication for channel in channels):
            raise RpcError(RAW_UNAUTHORIZED, "raw_subscriptions_not_available_for_unauthorized")
        known = [channel for channel in channels if _available(venue, channel)]
        most = venue.settings.max_streams
        if len(connection.streams.keys() | {channel.name for channel in known}) > most:
            invalid(f"more than {most} channels on one connection", "channels")
        accepted: list[str] = []
        first: list[Reply] = []
        for channel in known:
            if channel.name in connection.streams:
                accepted.append(channel.name)
            elif not venue.subscription_refused(connection, channel.name):
                accepted.append(channel.name)
                first += self._begin(venue, connection, channel)
        # The venue lists what it took in an order of its own.
        return sorted(accepted, key=lambda name: name[::-1]), first

    def _begin(
        self, venue: "SimulatedVenue", connection: Connection, channel: Channel
    ) -> list[Reply]:
        streams = self._streams
        if streams is None:
            raise RuntimeError("the protocol was not started with a venue")
        if not venue.hub.subscribed(channel.name):
            streams.begins(channel)
        if not venue.subscribe(connection, channel.name):
            return []
        symbol = channel.instrument or channel.index or ""
        stale = venue.stale_snapshot(symbol) if channel.kind is ChannelKind.BOOK else None
        text = streams.first(channel, stale)
        return [] if text is None else [Reply(text, channel.name, symbol)]

    def _affordable(self, venue: "SimulatedVenue", peer: str, method: str) -> bool:
        settings = _settings(venue)
        kind, cost, most = "request", settings.request_cost, settings.request_credits
        if method == _SUBSCRIBE:
            kind, cost, most = "subscribe", settings.subscribe_cost, settings.subscribe_credits
        elif method == _LISTING:
            kind, cost, most = "listing", settings.listing_cost, settings.listing_credits
        pool = self._pools.get((peer, kind))
        if pool is None:
            while len(self._pools) >= _PEERS_KEPT:
                del self._pools[next(iter(self._pools))]
            pool = self._pools[peer, kind] = CreditPool(most, settings.credits_per_second)
        return pool.take(cost)


def _available(venue: "SimulatedVenue", channel: Channel) -> bool:
    market, kind = venue.market, channel.kind
    if market.raw:
        return channel.instrument is None or channel.instrument in market.symbols
    if channel.instrument is not None:
        if channel.instrument not in market.symbols:
            return False
        if kind is ChannelKind.BOOK_LEVELS and channel.group:
            return instrument(channel.instrument).base in ("BTC", "ETH")
        return kind is not ChannelKind.PERPETUAL or instrument(channel.instrument).perpetual
    if kind is ChannelKind.VOLATILITY_INDEX and channel.index not in _VOLATILITY_INDICES:
        return False
    return channel.index is None or channel.index in market.indices


def _channels(params: Mapping[str, object]) -> list[str]:
    channels = params.get("channels")
    if channels is None:
        invalid("value is required", "channels")
    if not isinstance(channels, list):
        invalid("value must be a list", "channels")
    if not all(isinstance(name, str) for name in channels):
        invalid("value must be a list of strings", "channels")
    return list(dict.fromkeys(cast("list[str]", channels)))


def _interval(venue: "SimulatedVenue", params: Mapping[str, object]) -> float:
    interval = params.get("interval")
    least = _settings(venue).heartbeat_least_seconds
    if interval is None:
        invalid("value is required", "interval")
    if not isinstance(interval, int | float) or isinstance(interval, bool):
        invalid("value must be a number", "interval")
    if not least <= interval <= 86_400:
        invalid(f"value must be at least {least:g}", "interval")
    return float(interval)


def _session(connection: Connection) -> DeribitSession:
    return cast("DeribitSession", connection.state)


def _settings(venue: "SimulatedVenue") -> DeribitSettings:
    return cast("DeribitSettings", venue.settings)
