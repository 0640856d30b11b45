"""The store keeps events exactly, embedded and over HTTP, by the same code."""

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from marketprism.market.v1 import events_pb2, order_book_pb2

from services.shared.errors import StartupError
from services.storage.engine import Engine
from services.storage.errors import StoreRefused, StoreUnavailable
from services.storage.migrate import Migration, apply_ttl, known_migrations, migrate
from services.storage.settings import EngineSettings
from services.storage.tables import TABLES, Table, create_statement, frame
from tests.integration.storage.event_tools import EVENTS, message_time

FRONT = Path(__file__).with_name("clickhouse_front.py")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("clickhouse")
    process = subprocess.Popen(
        [sys.executable, FRONT, folder / "data"], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on"), "the HTTP front did not start"
        yield f"http://127.0.0.1:{line.split()[-1]}"
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


@pytest.fixture(params=["embedded", "server"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    url = None if request.param == "embedded" else request.getfixturevalue("server")
    name = "".join(c if c.isalnum() else "_" for c in request.node.name)[-60:]
    made = Engine(EngineSettings(database=f"t_{name}", readers=2), tmp_path / "clickhouse", url)
    await made.open()
    try:
        await migrate(made)
        yield made
    finally:
        await made.close()


def rows_of(messages: list[Message]) -> bytes:
    return b"".join(
        frame(message.SerializeToString(), place, 1_795_529_124_000_000_000)
        for place, message in enumerate(messages, start=1)
    )


async def stored(engine: Engine, table: Table) -> dict[int, bytes]:
    rows = await engine.query(
        f"SELECT stream_sequence, {table.event_sql()} AS event FROM {table.name}", events_of=table
    )
    return {int(place): bytes(event) for place, event in rows}


@pytest.mark.parametrize("name", [name for name in TABLES if name != "instrument"])
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=EVENTS)
async def test_every_event_comes_out_byte_for_byte(engine: Engine, name: str, data: object) -> None:
    table = TABLES[name]
    messages = data(table)  # type: ignore[operator]
    await engine.command(f"TRUNCATE TABLE {name}")
    await engine.insert(table, rows_of(messages))
    expected = {place: m.SerializeToString() for place, m in enumerate(messages, start=1)}
    assert await stored(engine, table) == expected


async def test_of_an_instrument_the_newest_description_is_kept(engine: Engine) -> None:
    table = TABLES["instrument"]
    for tick in ("0.1", "0.01"):
        item = table.message(exchange="okx", symbol="BTC-USDT", tick_size=tick)
        await engine.insert(table, rows_of([item]))
    rows = await engine.query("SELECT toString(tick_size) FROM instrument FINAL")
    assert rows == [("0.01",)]


@pytest.mark.parametrize(
    ("price", "why"),
    [
        ("0.1234567890123456789", "more digits than the column holds"),
        ("123456789012345678901", "too large"),
        ("abc", "not a number"),
        ("1e-5", "an exponent"),
        ("0.10", "a trailing zero"),
        ("", "no price"),
        (" 1", "a space"),
        ("NaN", "not a number"),
    ],
)
async def test_what_a_column_cannot_give_back_is_refused(
    engine: Engine, price: str, why: str
) -> None:
    trade = events_pb2.Trade(exchange="x", symbol="A-B", trade_id="1", price=price, quantity="1")
    with pytest.raises(StoreRefused, match="price"):
        await engine.insert(TABLES["trade"], rows_of([trade]))
    assert await stored(engine, TABLES["trade"]) == {}, why


async def test_a_level_that_a_column_cannot_give_back_is_refused(engine: Engine) -> None:
    update = order_book_pb2.OrderBookUpdate(exchange="x", symbol="A-B", epoch=1, sequence=1)
    update.bids.add(price="1.00", quantity="1")
    with pytest.raises(StoreRefused, match=r"bids\.price"):
        await engine.insert(TABLES["order_book_update"], rows_of([update]))


async def test_bytes_that_are_no_event_are_refused_with_the_whole_block(engine: Engine) -> None:
    good = events_pb2.Trade(exchange="x", symbol="A-B", trade_id="1", price="1", quantity="1")
    block = rows_of([good]) + frame(b"\xff\xff\xff\xff", 2, 1)
    with pytest.raises(StoreRefused):
        await engine.insert(TABLES["trade"], block)
    assert await stored(engine, TABLES["trade"]) == {}


async def test_times_keep_their_nanoseconds(engine: Engine) -> None:
    table = TABLES["trade"]
    trade = events_pb2.Trade(exchange="x", symbol="A-B", trade_id="1", price="1", quantity="1")
    trade.receive_time.FromNanoseconds(1_795_529_124_123_456_789)
    await engine.insert(table, rows_of([trade]))
    rows = await engine.query("SELECT toUnixTimestamp64Nano(time) FROM trade")
    assert rows == [(1_795_529_124_123_456_789,)], "time is receive_time when none is told"


async def test_rows_come_block_by_block_and_a_reader_is_free_afterwards(engine: Engine) -> None:
    for _ in range(3):
        numbers = []
        async for block in engine.stream(
            "SELECT number FROM numbers(10000)", settings={"max_block_size": 1000}
        ):
            numbers += [row[0] for row in block]
        assert numbers == list(range(10_000))


async def test_parameters_are_never_part_of_the_statement(engine: Engine) -> None:
    text = "x' OR 1 = 1 --"
    rows = await engine.query("SELECT {text:String}", {"text": text})
    assert rows == [(text,)]


async def test_a_statement_that_is_wrong_is_refused_and_one_that_takes_too_long(
    engine: Engine,
) -> None:
    with pytest.raises(StoreRefused) as refusal:
        await engine.query("SELECT nothing FROM trade")
    assert refusal.value.code == 47
    with pytest.raises(StoreRefused) as refusal:
        await engine.query(
            "SELECT sum(cityHash64(number)) FROM numbers(100000000000)",
            settings={"max_execution_time": 0.2},
        )
    assert refusal.value.code == 159
    assert await engine.query("SELECT 1") == [(1,)]


async def test_a_migration_is_applied_once_and_must_not_change(engine: Engine) -> None:
    assert await migrate(engine) == 0
    known = known_migrations()
    changed = [*known[:-1], Migration(known[-1].number, known[-1].name, "SELECT 2;")]
    with pytest.raises(StartupError, match="with other text"):
        await migrate(engine, changed)
    with pytest.raises(StartupError, match="start the newer version"):
        await migrate(engine, known[:-1])
    more = [*known, Migration(len(known) + 1, "more", "CREATE TABLE {{ stored('more') }} (a UInt8) "
            "ENGINE = {{ merge_tree }} ORDER BY a;\n-- a comment; with a semicolon\n")]  # fmt: skip
    assert await migrate(engine, more) == 1
    assert await engine.query("SELECT count() FROM more") == [(0,)]


async def test_the_tables_are_those_that_the_contracts_want(engine: Engine) -> None:
    for table in TABLES.values():
        wanted = f"wanted_{table.name}"
        text = create_statement(table).replace(f"'{table.name}'", f"'{wanted}'")
        for statement in Migration(1, "wanted", text).statements(""):
            await engine.command(statement)
        columns = "SELECT name, type, default_kind, default_expression, compression_codec"
        of = "FROM system.columns WHERE database = currentDatabase() AND table = {table:String}"
        have = await engine.query(f"{columns} {of} ORDER BY position", {"table": table.name})
        want = await engine.query(f"{columns} {of} ORDER BY position", {"table": wanted})
        assert have == want, f"a migration must bring {table.name} to its contract"


async def test_retention_follows_the_settings_and_nothing_is_done_twice(engine: Engine) -> None:
    table = TABLES["trade"]
    old = events_pb2.Trade(exchange="x", symbol="A-B", trade_id="1", price="1", quantity="1")
    old.receive_time.seconds = 1_700_000_000
    await engine.insert(table, rows_of([old]))
    assert await apply_ttl(engine, {"trade": 1.5}) == ["trade"]
    assert await apply_ttl(engine, {"trade": 1.5}) == []
    await engine.command("ALTER TABLE trade MATERIALIZE TTL", settings={"mutations_sync": 2})
    assert await stored(engine, table) == {}
    assert await apply_ttl(engine, {}) == ["trade"]
    assert await apply_ttl(engine, {}) == []


async def test_a_server_that_is_away_is_an_outage_and_what_comes_back_is_used(
    server: str, tmp_path: Path
) -> None:
    nobody = Engine(EngineSettings(), tmp_path, "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable):
        await nobody.open()
    await nobody.close()
    split = Engine(
        EngineSettings(database="split", write_url=server, read_url="http://127.0.0.1:9"), tmp_path
    )
    await split.open()
    try:
        with pytest.raises(StoreUnavailable):
            await split.query("SELECT 1")
    finally:
        await split.close()


def test_a_cluster_has_replicated_tables_under_distributed_ones() -> None:
    for migration in known_migrations():
        for statement in migration.statements("main"):
            assert "{{" not in statement
    events = "\n".join(known_migrations()[0].statements("main"))
    assert "CREATE TABLE IF NOT EXISTS trade_local ON CLUSTER main" in events
    assert "ENGINE = ReplicatedReplacingMergeTree\nPARTITION BY toDate(time)" in events
    assert (
        "CREATE TABLE IF NOT EXISTS trade ON CLUSTER main AS trade_local ENGINE = "
        "Distributed(main, currentDatabase(), trade_local, cityHash64(exchange, symbol))"
    ) in events


def test_the_time_of_a_message_is_where_its_table_says() -> None:
    for table in TABLES.values():
        assert message_time(table, table.message()) == 0
