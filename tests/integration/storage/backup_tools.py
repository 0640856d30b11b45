"""A store with events of two days, and what of it must be equal after a restore."""

import contextlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from google.protobuf.message import Message
from marketprism.market.v1 import events_pb2, instrument_pb2, order_book_pb2

from services.storage.backups.keys import Keyring, generate_identity
from services.storage.backups.settings import BackupSettings, EncryptionSettings
from services.storage.backups.store import Store
from services.storage.backups.targets import FolderTarget
from services.storage.engine import Engine
from services.storage.migrate import migrate
from services.storage.settings import EngineSettings
from services.storage.tables import TABLES, frame

DAY_ONE = 1_795_392_000
"""2026-11-23 00:00 UTC, seconds."""
CREATED = 1_795_000_000_000_000_000
PRIVATE, PUBLIC = generate_identity()
PARTITIONS = {"trade 20261123", "trade 20261124", "order_book_update 20261123", "instrument all"}


def trade(number: int, day: int = 0, symbol: str = "BTC-USDT") -> events_pb2.Trade:
    made = events_pb2.Trade(
        exchange="binance",
        symbol=symbol,
        trade_id=str(1000 + number),
        price=f"{64_000 + number}.05",
        quantity="0.5",
        side=events_pb2.Trade.DESCRIPTOR.fields_by_name["side"]
        .enum_type.values[1 + number % 2]
        .number,
    )
    seconds = DAY_ONE + day * 86_400 + number * 7
    made.exchange_time.FromNanoseconds(seconds * 10**9 + number)
    made.receive_time.FromNanoseconds(seconds * 10**9 + 1_000_000 + number)
    return made


def update(number: int) -> order_book_pb2.OrderBookUpdate:
    made = order_book_pb2.OrderBookUpdate(
        exchange="okx", symbol="ETH-USDT", epoch=5, sequence=number + 1
    )
    made.receive_time.FromNanoseconds((DAY_ONE + number) * 10**9 + 17)
    for level in range(number % 4):
        made.bids.add(price=f"{3000 - level}.1", quantity="1.000000000000000001")
        made.asks.add(price=f"{3001 + level}", quantity="0")
    return made


def instrument(symbol: str) -> instrument_pb2.Instrument:
    made = instrument_pb2.Instrument(exchange="binance", symbol=symbol)
    made.update_time.FromSeconds(DAY_ONE)
    return made


async def put(engine: Engine, table: str, messages: Iterable[Message], first: int = 1) -> None:
    block = b"".join(
        frame(message.SerializeToString(), place, CREATED)
        for place, message in enumerate(messages, start=first)
    )
    await engine.insert(TABLES[table], block)


async def fill(engine: Engine, trades: int = 500) -> None:
    """Insert events of two days; some trades came twice, so that the table has rows to merge."""
    await put(engine, "trade", [trade(n, 0) for n in range(trades)])
    await put(engine, "trade", [trade(n, 1) for n in range(trades)], first=trades + 1)
    await put(engine, "trade", [trade(n, 0) for n in range(20)], first=2 * trades + 1)
    await put(engine, "order_book_update", [update(n) for n in range(300)])
    await put(engine, "instrument", [instrument("BTC-USDT"), instrument("ETH-USDT")])


@contextlib.asynccontextmanager
async def open_engine(
    folder: Path, url: str | None = None, database: str = "marketprism"
) -> AsyncIterator[Engine]:
    engine = Engine(EngineSettings(database=database, readers=2), folder, url)
    await engine.open()
    try:
        await migrate(engine)
        yield engine
    finally:
        await engine.close()


@contextlib.asynccontextmanager
async def open_store(
    folder: Path, url: str | None = None, database: str = "marketprism"
) -> AsyncIterator[Store]:
    async with open_engine(folder, url, database) as engine, Store.opened(engine) as store:
        yield store


async def events(store: Store) -> dict[str, list[bytes]]:
    """Give the bytes of every event, by table, in order."""
    found = {}
    for table in TABLES.values():
        rows = await store.engine.query(
            f"SELECT {table.event_sql()} AS event FROM {store.database}.{table.name} FINAL "
            f"ORDER BY {table.order_by}",
            events_of=table,
        )
        found[table.name] = [bytes(event) for (event,) in rows]
    return found


def make_settings(**changes: object) -> BackupSettings:
    encryption = EncryptionSettings(recipients=(PUBLIC,))
    return BackupSettings(encryption=encryption, chunk_bytes=64 * 1024).model_copy(update=changes)


def make_keyring(
    *, private: str = PRIVATE, passphrase: str = "", recipients: bool = True
) -> Keyring:
    environ = {"MARKETPRISM_BACKUP_IDENTITY": private} if private else {}
    if passphrase:
        environ["MARKETPRISM_BACKUP_PASSPHRASE"] = passphrase
    settings = EncryptionSettings(recipients=(PUBLIC,) if recipients else ())
    return Keyring.load(settings, environ)


def target_below(folder: Path) -> FolderTarget:
    return FolderTarget(folder / "backups")


async def scratch_databases(store: Store) -> list[str]:
    rows = await store.query(
        "SELECT name FROM system.databases WHERE startsWith(name, {p:String}) ORDER BY name",
        {"p": f"{store.database}_"},
    )
    return [str(name) for (name,) in rows]
