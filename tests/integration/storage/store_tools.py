"""Stores for tests: opened, filled with events, asked.

The embedded engine takes one folder a process at a time: a second one is refused while the first is
open, and works when it is closed. So a test opens a store and closes it (70 ms, the schema of a new
one 250 ms); what is costly to fill is filled once a module into a folder that each test opens
again:

    @pytest.fixture(scope="module")
    def filled(tmp_path_factory):
        folder = tmp_path_factory.mktemp("store")
        fill_folder(folder, {"trade": trades})
        return folder

    @pytest.fixture
    async def engine(filled):
        async with open_store(filled) as engine:
            yield engine

Two stores at one time have one folder and two databases (`database=`).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.market.v1 import common_pb2

from services.collector.encoding import BestBidOfferEncoder, TradeEncoder
from services.collector.replay import replay
from services.collector.venues.base import (
    Several,
    TopOfBook,
    TradePrint,
    VenueAdapter,
    VenueMessage,
)
from services.collector.venues.registry import adapter_for_exchange, exchange_for_url
from services.shared.cache import Cache, MemoryStore
from services.shared.capture import read_capture
from services.shared.telemetry import Metrics
from services.storage.engine import Engine
from services.storage.http_cache import Answers, AnswerSettings
from services.storage.migrate import migrate
from services.storage.settings import EngineSettings
from services.storage.tables import TABLES, frame

__all__ = [
    "STREAM_CREATED",
    "captured_events",
    "fill",
    "fill_folder",
    "make_answers",
    "no_context",
    "open_store",
    "timestamp",
    "venue_events",
]

STREAM_CREATED = 1_795_000_000_000_000_000
"""When the stream of the events here was made, nanoseconds."""

Events = Mapping[str, Sequence[Message | bytes]]


@contextlib.asynccontextmanager
async def open_store(
    folder: Path, *, database: str = "marketprism", readers: int = 2, url: str | None = None
) -> AsyncIterator[Engine]:
    """Give an open store with the schema, new or as it was left in the folder."""
    engine = Engine(EngineSettings(database=database, readers=readers), folder / "clickhouse", url)
    await engine.open()
    try:
        await migrate(engine)
        yield engine
    finally:
        await engine.close()


async def fill(engine: Engine, events: Events, *, first_sequence: int = 1) -> None:
    """Insert events by the name of their table, as ingestion does: one block a table."""
    for name, messages in events.items():
        rows = [
            frame(
                message if isinstance(message, bytes) else message.SerializeToString(),
                place,
                STREAM_CREATED,
            )
            for place, message in enumerate(messages, start=first_sequence)
        ]
        if rows:
            await engine.insert(TABLES[name], b"".join(rows))


def fill_folder(folder: Path, *parts: Events) -> None:
    """Make a store in a folder, fill it, and close it; each part is a block of its own."""

    async def work() -> None:
        async with open_store(folder) as engine:
            sequence = 1
            for events in parts:
                await fill(engine, events, first_sequence=sequence)
                sequence += max((len(each) for each in events.values()), default=0)

    asyncio.run(work())


def captured_events(paths: Iterable[Path]) -> dict[str, list[bytes]]:
    """Give a recording's events as the collector published them, by the name of their table."""
    found: dict[str, list[bytes]] = {}
    for event in replay(paths):
        found.setdefault(event.subject.split(".")[1], []).append(event.payload)
    return found


def venue_events(path: Path) -> dict[str, list[bytes]]:
    """Give the trades and best offers of a capture of a venue's frames, as a collector has them."""
    found: dict[str, list[bytes]] = {"trade": [], "best_bid_offer": []}
    adapters: dict[str, VenueAdapter] = {}

    def take(adapter: VenueAdapter, message: VenueMessage, now: int) -> None:
        if isinstance(message, Several):
            for each in message.messages:
                take(adapter, each, now)
        elif isinstance(message, TradePrint):
            symbol = adapter.infer_instrument(message.native_symbol).symbol
            side = common_pb2.SIDE_SELL if message.buyer_is_maker else common_pb2.SIDE_BUY
            found["trade"].append(
                TradeEncoder(adapter.exchange, symbol).trade(
                    str(message.trade_id), message.exchange_time, now,
                    message.price, message.quantity, side,
                )
            )  # fmt: skip
        elif isinstance(message, TopOfBook):
            symbol = adapter.infer_instrument(message.native_symbol).symbol
            found["best_bid_offer"].append(
                BestBidOfferEncoder(adapter.exchange, symbol).best_bid_offer(
                    message.venue_sequence, message.exchange_time, now, message.bid, message.ask
                )
            )

    for record in read_capture(path):
        exchange = exchange_for_url(record.url)
        if record.kind == "ws" and exchange is not None:
            if exchange not in adapters:
                adapters[exchange] = adapter_for_exchange(exchange)
            adapter = adapters[exchange]
            take(adapter, adapter.decode(record.payload()), record.receive_time)
    return found


def make_answers(**settings: Any) -> Answers:
    """Give a cache of answers in this process; of `settings` see `AnswerSettings`."""
    wanted = AnswerSettings(**settings)
    cache = Cache(MemoryStore(wanted.max_bytes), "history", "test", metrics=Metrics("storage"))
    return Answers(cache, wanted)


def no_context() -> Any:
    """Give what a handler gets beside the request when nobody calls over the network."""
    return SimpleNamespace(invocation_metadata=lambda: ())


def timestamp(nanoseconds: int) -> Timestamp:
    """Give an instant, nanoseconds since 1970."""
    time = Timestamp()
    time.FromNanoseconds(nanoseconds)
    return time
