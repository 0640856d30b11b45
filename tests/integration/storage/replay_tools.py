"""A market for tests of replays: what the broker carried, and what live subscribers got of it."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from google.protobuf.message import Message
from marketprism.collector.v1 import integrity_event_pb2
from marketprism.history.v1 import history_service_pb2 as history
from marketprism.market.v1 import common_pb2, events_pb2, order_book_pb2
from marketprism.market.v1.market_event_pb2 import MarketEvent

from services.marketdata.live_book import BookLimits, LiveBook
from services.marketdata.tally import Tally
from services.storage.engine import Engine
from services.storage.tables import TABLES, frame
from tests.integration.storage.store_tools import STREAM_CREATED

__all__ = ["BEGIN", "MILLI", "SECOND", "Market", "Published", "live_events", "split"]

SECOND = 1_000_000_000
MILLI = 1_000_000
BEGIN = 1_795_529_000 * SECOND
_NAMES = {table.message: name for name, table in TABLES.items()}
_P = order_book_pb2


@dataclass(frozen=True, slots=True)
class Published:
    """One message on the broker."""

    table: str
    sequence: int
    payload: bytes
    created: int = STREAM_CREATED


@dataclass
class Market:
    """Publishes events as a collector does; `seed` makes another market."""

    seed: int = 1
    published: list[Published] = field(default_factory=list)
    created: int = STREAM_CREATED

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._sequences: dict[tuple[str, int], int] = {}
        self._books: dict[tuple[str, str], tuple[int, int]] = {}
        self._bids: dict[tuple[str, str], dict[int, str]] = {}
        self._trades = 0

    def publish(self, message: Message) -> None:
        table = TABLES[_NAMES[type(message)]]
        place = (table.stream, self.created)
        sequence = self._sequences[place] = self._sequences.get(place, 0) + 1
        payload = message.SerializeToString()
        self.published.append(Published(table.name, sequence, payload, self.created))

    def trade(self, key: tuple[str, str], time: int, **fields: object) -> None:
        self._trades += 1
        trade = events_pb2.Trade(
            exchange=key[0], symbol=key[1], trade_id=str(self._trades), price="100.5",
            quantity="0.25", **fields,
        )  # fmt: skip
        trade.receive_time.FromNanoseconds(time)
        trade.exchange_time.FromNanoseconds(time - self.random.randrange(50) * MILLI)
        self.publish(trade)

    def ticker(self, key: tuple[str, str], time: int, price: str = "100.5") -> None:
        ticker = events_pb2.Ticker(exchange=key[0], symbol=key[1], last_price=price)
        ticker.receive_time.FromNanoseconds(time)
        self.publish(ticker)

    def begin_book(self, key: tuple[str, str], time: int) -> None:
        epoch = self._books.get(key, (0, 0))[0] + 1
        self._books[key] = (epoch, 0)
        self._bids[key] = {100 - price: "1" for price in range(5)}
        self.snapshot(key, time, _P.SNAPSHOT_REASON_EPOCH_START)

    def snapshot(self, key: tuple[str, str], time: int, reason: int) -> None:
        epoch, sequence = self._books[key]
        snapshot = _P.OrderBookSnapshot(
            exchange=key[0], symbol=key[1], epoch=epoch, sequence=sequence, reason=reason
        )
        snapshot.receive_time.FromNanoseconds(time)
        for price, quantity in sorted(self._bids[key].items(), reverse=True):
            snapshot.bids.add(price=str(price), quantity=quantity)
        for price in range(5):
            snapshot.asks.add(price=str(101 + price), quantity="1")
        self.publish(snapshot)

    def periodic(self, key: tuple[str, str], time: int) -> None:
        self.snapshot(key, time, _P.SNAPSHOT_REASON_PERIODIC)

    def update(self, key: tuple[str, str], time: int, *, lost: bool = False) -> None:
        epoch, sequence = self._books[key]
        self._books[key] = (epoch, sequence + 1)
        update = _P.OrderBookUpdate(
            exchange=key[0], symbol=key[1], epoch=epoch, sequence=sequence + 1,
            venue_sequence=1000 + sequence,
        )  # fmt: skip
        update.receive_time.FromNanoseconds(time)
        price, quantity = self.random.randrange(90, 101), self.random.choice("023")
        update.bids.add(price=str(price), quantity=quantity)
        self._bids[key][price] = quantity
        if quantity == "0":
            del self._bids[key][price]
        if not lost:
            self.publish(update)

    def status(self, key: tuple[str, str], time: int, state: str, reason: str) -> None:
        epoch, sequence = self._books.get(key, (0, 0))
        status = _P.OrderBookStatus(
            exchange=key[0], symbol=key[1], epoch=epoch, sequence=sequence,
            state=f"ORDER_BOOK_STATE_{state}", reason=f"ORDER_BOOK_REASON_{reason}",
            detail="of the test",
        )  # fmt: skip
        status.time.FromNanoseconds(time)
        self.publish(status)

    def gap(
        self, key: tuple[str, str], time: int, kind: str, *, begin: int = 0, end: int = 0,
        event_kind: int = 0, previous: str = "",
    ) -> str:  # fmt: skip
        entry = integrity_event_pb2.IntegrityEvent(
            exchange=key[0], symbol=key[1], event_id=f"gap-{len(self.published)}",
            kind=f"INTEGRITY_KIND_{kind}", event_kind=event_kind, collector_id="c",
            previous_event_id=previous,
        )  # fmt: skip
        entry.receive_time.FromNanoseconds(time)
        if begin:
            entry.begin_time.FromNanoseconds(begin)
        if end:
            entry.end_time.FromNanoseconds(end)
        self.publish(entry)
        return entry.event_id

    def run(self, keys: Iterable[tuple[str, str]], events: int) -> int:
        """Publish so many events of a market as it is; gives when it ended."""
        keys = list(keys)
        time = BEGIN
        last = dict.fromkeys(keys, BEGIN)
        for key in keys:
            self.begin_book(key, time)
            self.status(key, time + MILLI, "SYNCED", "SYNCHRONISED")
        for number in range(events):
            time += self.random.randrange(20 * MILLI)
            key = self.random.choice(keys)
            # Connections are read side by side: their events reach the broker out of order, those
            # of one connection do not.
            received = max(last[key], time - self.random.randrange(5 * MILLI))
            last[key] = received
            choice = self.random.random()
            if number % 97 == 96:
                self.status(key, received, "RESYNCING", "VENUE_GAP")
                self.gap(key, received, "GAP", event_kind=common_pb2.EVENT_KIND_ORDER_BOOK)
                self.begin_book(key, received + 4 * MILLI)
                # Diffs that waited for the venue's snapshot were received before it.
                self.update(key, received)
                self.status(key, received + 4 * MILLI, "SYNCED", "SYNCHRONISED")
                last[key] = received + 4 * MILLI
            elif choice < 0.4:
                self.trade(key, received)
            elif choice < 0.45:
                self.ticker(key, received, str(number))
            elif choice < 0.5:
                self.periodic(key, received)
            else:
                self.update(key, received, lost=number % 61 == 60)
        return time

    async def store(self, engine: Engine) -> None:
        """Insert everything, as ingestion does."""
        rows: dict[str, list[bytes]] = {}
        for each in self.published:
            row = frame(each.payload, each.sequence, each.created)
            rows.setdefault(each.table, []).append(row)
        for name, blocks in rows.items():
            await engine.insert(TABLES[name], b"".join(blocks))


def live_events(published: Iterable[Published]) -> dict[tuple[str, str, str], list[bytes]]:
    """Give what live subscribers got of it from the first event on: bytes, by kind and instrument.

    Of statuses that the serving side makes itself, the times are those of its clock: left out.
    """
    responses = []
    books: dict[tuple[str, str], LiveBook] = {}
    for each in published:
        event = TABLES[each.table].message.FromString(each.payload)
        key = (event.exchange, event.symbol)  # type: ignore[attr-defined]
        if each.table.startswith("order_book"):
            book = books.get(key)
            if book is None:
                book = books[key] = LiveBook(
                    *key, limits=BookLimits(10**6, 10**9), tally=Tally(), clock=lambda: BEGIN
                )
            getattr(book, f"on_{each.table.removeprefix('order_book_')}")(each.payload)
        else:
            responses.append(MarketEvent(**{each.table: event}))  # type: ignore[arg-type]
    for book in books.values():
        for item in book.log.items(0):
            responses += history.ReplayMarketDataResponse.FromString(item).events
    return split(responses, published)


def split(
    events: Iterable[MarketEvent], published: Iterable[Published]
) -> dict[tuple[str, str, str], list[bytes]]:
    """Give a stream's events as `live_events` does, those about the stream itself left out."""
    said = {each.payload for each in published}
    found: dict[tuple[str, str, str], list[bytes]] = {}
    for event in events:
        kind = event.WhichOneof("event")
        assert kind is not None
        if kind == "stream_status":
            continue
        told = getattr(event, kind)
        payload = told.SerializeToString()
        if kind == "order_book_status" and payload not in said:
            told.ClearField("time")
            told.ClearField("outage_ms")
            payload = told.SerializeToString()
        place = "order_book" if kind.startswith("order_book") else kind
        found.setdefault((place, told.exchange, told.symbol), []).append(payload)
    return found
