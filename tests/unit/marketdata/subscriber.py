"""A subscriber of any kinds, as the contract describes one, and a market to subscribe to."""

from collections import defaultdict
from collections.abc import Iterable

from marketprism.market.v1 import common_pb2, events_pb2, market_event_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb

from services.marketdata.book_views import MarketBookViews
from services.marketdata.catalog import Key
from services.marketdata.market import Market
from services.marketdata.sessions import Session, Sessions
from services.marketdata.settings import (
    LogBounds,
    MarketDataSettings,
    StreamSettings,
    SubscriptionLimits,
)
from services.marketdata.sources import MarketSources
from services.marketdata.subscriptions import read_subscription
from tests.unit.marketdata.test_market import Stored, begin
from tests.unit.marketdata.truth import ClientBook, Collected

__all__ = ["BOOK", "TICKER", "TRADE", "Exchange", "Subscriber", "add", "subscription"]

E = market_event_pb2
TRADE = int(common_pb2.EVENT_KIND_TRADE)
BOOK = int(common_pb2.EVENT_KIND_ORDER_BOOK)
TICKER = int(common_pb2.EVENT_KIND_TICKER)


class Exchange:
    """Feeds a market. Trades of an instrument are numbered from 0, and so are its tickers."""

    def __init__(
        self, stream: StreamSettings | None = None, limits: SubscriptionLimits | None = None
    ) -> None:
        bounds = LogBounds(max_events=16)
        self.settings = MarketDataSettings(
            order_book_log=bounds,
            trade_log=bounds,
            event_log=bounds,
            stream=stream or StreamSettings(slow_reader_losses=10_000),
            subscriptions=limits or SubscriptionLimits(),
        )
        self.market = Market(self.settings)
        self.market.catalog.ready = True
        self.books: dict[Key, Collected] = {}
        self.trades: dict[Key, int] = defaultdict(int)
        self.tickers: dict[Key, int] = defaultdict(int)
        self.sessions = Sessions(
            MarketSources(self.market, MarketBookViews(self.market, self.settings.order_book_log)),
            self.settings.subscriptions,
            self.settings.stream,
            self.market.tally,
        )

    def open(self, heartbeat: float = 15.0) -> Session:
        return self.sessions.open(heartbeat)

    def put(self, kind: int, key: Key) -> None:
        """Let one event of a kind come."""
        {TRADE: self.trade, TICKER: self.ticker, BOOK: self.update}[kind](key)

    def trade(self, key: Key) -> None:
        number = self.trades[key]
        self.trades[key] += 1
        event = events_pb2.Trade(exchange=key[0], symbol=key[1], trade_id=str(number))
        self.market.on_trade([Stored(f"market.trade.{'.'.join(key)}", event.SerializeToString())])

    def ticker(self, key: Key) -> None:
        number = self.tickers[key]
        self.tickers[key] += 1
        event = events_pb2.Ticker(exchange=key[0], symbol=key[1], last_price=str(number))
        subject = f"market.ticker.{'.'.join(key)}"
        self.market.on_reference([Stored(subject, event.SerializeToString())])

    def update(self, key: Key) -> None:
        """Let the next update of a book come, or its first snapshot."""
        book = self.books.get(key)
        if book is None:
            book = self.books[key] = Collected(*key, levels=5)
            begin(self.market, book)
        else:
            subject = book.subject("order_book_update")
            self.market.on_order_book([Stored(subject, book.update())])

    def rebuild(self, key: Key) -> None:
        begin(self.market, self.books[key])


class Subscriber:
    """Reads a session's messages, and asserts what is promised of each event."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.statuses: list[market_event_pb2.StreamStatus] = []
        self.books: dict[Key, ClientBook] = defaultdict(ClientBook)
        self.trades: dict[Key, list[int]] = defaultdict(list)
        self.tickers: dict[Key, list[int]] = defaultdict(list)
        self.dropped: dict[tuple[int, Key], int] = defaultdict(int)
        self.events: list[tuple[int, Key]] = []
        self.sizes: list[tuple[int, int]] = []

    def read(self, messages: int = 1_000_000) -> "Subscriber":
        """Read some messages, or all that there is."""
        empty = 0
        while messages and empty < 2 and self.session.error is None:
            message = self.session.take()
            # Nothing may come of a turn although others wait for theirs.
            empty = 0 if message or not self.session.is_idle else empty + 1
            messages -= 1
            if message:
                events = pb.SubscribeResponse.FromString(message).events
                self.sizes.append((len(message), len(events)))
                self.take(events)
        return self

    def take(self, events: Iterable[market_event_pb2.MarketEvent]) -> None:
        for event in events:
            kind = event.WhichOneof("event")
            assert kind is not None, "expected an event in every item"
            payload = getattr(event, kind)
            if kind == "stream_status":
                self.statuses.append(payload)
                if payload.state == E.STREAM_STATE_LAGGING:
                    key = (payload.exchange, payload.symbol)
                    kind_name = payload.message.partition("(")[2].partition(")")[0]
                    lost = common_pb2.EventKind.Value(f"EVENT_KIND_{kind_name}")
                    self.dropped[int(lost), key] += payload.dropped_events
                continue
            key = (payload.exchange, payload.symbol)
            if kind == "trade":
                self.events.append((TRADE, key))
                self.trades[key].append(int(payload.trade_id))
            elif kind == "ticker":
                self.events.append((TICKER, key))
                self.tickers[key].append(int(payload.last_price))
            else:
                self.events.append((BOOK, key))
                self.books[key].take([event])

    def told(self, reason: str) -> list[market_event_pb2.StreamStatus]:
        """Give the statuses of a reason."""
        return [status for status in self.statuses if status.reason == reason]

    @property
    def reasons(self) -> list[str]:
        return [status.reason for status in self.statuses]


def subscription(
    identity: str, instruments: Iterable[str], kinds: Iterable[int], **options: object
) -> pb.Subscription:
    return pb.Subscription(
        subscription_id=identity,
        instruments=instruments,
        kinds=kinds,  # type: ignore[arg-type]  # the enum's values are ints
        **options,  # type: ignore[arg-type]  # whatever a test wants
    )


async def add(session: Session, *arguments: object, **options: object) -> None:
    """Add what `subscription` makes of the arguments."""
    request = subscription(*arguments, **options)  # type: ignore[arg-type]
    await session.add(read_subscription(request, SubscriptionLimits()))
