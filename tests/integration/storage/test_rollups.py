"""Derived rows equal what the events held give, whatever comes when, and whatever is cut short."""

import asyncio
import sys
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marketprism.market.v1 import events_pb2

from services.shared.health import Health
from services.storage.engine import Engine
from services.storage.errors import StoreUnavailable
from services.storage.places import at, closed, cut, joined, not_at, without
from services.storage.rollup_sql import CANDLE_COLUMNS, LEVEL_TABLES, ROLLUP_TABLES
from services.storage.rollups import HOLES, Rollups
from services.storage.settings import RollupSettings
from tests.integration.storage.rollup_tools import (
    BEGIN,
    CREATED,
    DAY,
    NANOS,
    Stored,
    naive_candles,
    store,
    trade,
    trade_at,
)
from tests.integration.storage.store_tools import open_store

FRONT = Path(__file__).with_name("clickhouse_front.py")
PROCESS = "tests.integration.storage.rollup_process"
EVERYTHING = (*ROLLUP_TABLES, "trade", "best_bid_offer", "applied_rollup")


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with open_store(tmp_path) as engine:
        yield engine


async def empty(engine: Engine) -> None:
    for table in EVERYTHING:
        await engine.command(f"TRUNCATE TABLE {table}")


async def candles(engine: Engine, seconds: int) -> dict[tuple[str, str, int], dict[str, Any]]:
    columns = ", ".join(
        f"toUnixTimestamp64Nano({name})" if name.endswith("_time") else name
        for name in CANDLE_COLUMNS
    )
    rows = await engine.query(
        f"SELECT exchange, symbol, toUnixTimestamp(time), {columns} "
        f"FROM {LEVEL_TABLES[seconds]} FINAL"
    )
    return {
        (exchange, symbol, time): dict(zip(CANDLE_COLUMNS, values, strict=True))
        for exchange, symbol, time, *values in rows
    }


async def check(engine: Engine, inserted: list[events_pb2.Trade]) -> None:
    for seconds, table in LEVEL_TABLES.items():
        assert await candles(engine, seconds) == naive_candles(inserted, seconds), table


@st.composite
def plain(draw: st.DrawFn, whole: int) -> str:
    value = Decimal(draw(st.integers(1, 10**whole * 10**6))).scaleb(-6)
    if draw(st.booleans()):
        value += Decimal(draw(st.integers(0, 10**18 - 1))).scaleb(-18)
    return f"{value:f}".rstrip("0").rstrip(".") if "." in f"{value:f}" else f"{value:f}"


TRADES = st.builds(
    trade,
    # Few seconds, so that buckets meet, over two days.
    time=st.builds(
        lambda day, second, nanos: (BEGIN + day * DAY + second) * NANOS + nanos,
        st.integers(0, 1),
        st.sampled_from([0, 1, 2, 59, 60, 61, 299, 3599, 3600, 14400, DAY - 1]),
        st.sampled_from([0, 1, 500, NANOS - 1]),
    ),
    price=plain(5),
    quantity=plain(4),
    number=st.sampled_from([1, 2, 9, 10, "a", "b"]),
    side=st.integers(0, 2),
    symbol=st.sampled_from(["BTC-USDT", "BTC-USD-PERP"]),
    trade_count=st.integers(0, 3),
    liquidation=st.booleans(),
)
BATCHES = st.lists(
    st.tuples(
        st.lists(TRADES, max_size=8),
        st.sampled_from(["nothing", "fine", "all", "cut after a statement", "a new process"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


class Cut(Rollups):
    """A rollup whose process ends after so many statements."""

    def __init__(self, engine: Engine, statements: int) -> None:
        super().__init__(engine)
        command, insert = self._database.command, self._database.insert
        self.left = statements

        async def counted(run: Any, *arguments: Any) -> None:
            if self.left == 0:
                raise StoreUnavailable("killed")
            self.left -= 1
            await run(*arguments)

        self._database.command = lambda *a: counted(command, *a)  # type: ignore[method-assign]
        self._database.insert = lambda *a: counted(insert, *a)  # type: ignore[method-assign]


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(batches=BATCHES, cuts=st.lists(st.integers(0, 9), min_size=6, max_size=6))
async def test_candles_equal_the_trades_held(
    engine: Engine,
    batches: list[tuple[list[events_pb2.Trade], str, bool]],
    cuts: list[int],
) -> None:
    """Duplicates, late trades, and a kill after any statement change nothing."""
    await empty(engine)
    rollups = Rollups(engine, most_rows=3)
    inserted: list[events_pb2.Trade] = []
    place = 0
    for (trades, then, again), statements in zip(batches, cuts, strict=False):
        # A trade that was published a second time has a place of its own.
        published = [*trades, *(inserted[:2] if again else [])]
        await store(engine, "trade", enumerate(published, place + 1))
        place += len(published)
        inserted += published
        if then == "fine":
            await rollups.step_fine()
        elif then == "all":
            await rollups.catch_up()
            await check(engine, inserted)
        elif then == "cut after a statement":
            await rollups.close()
            killed = Cut(engine, statements)
            try:
                await killed.catch_up()
            except StoreUnavailable:
                pass
            finally:
                await killed.close()
            rollups = Rollups(engine, most_rows=3)
        elif then == "a new process":
            await rollups.close()
            rollups = Rollups(engine)
    await rollups.catch_up()
    await check(engine, inserted)
    assert not await rollups.step_fine(), "nothing is left to do"
    assert not await rollups.step_coarse(), "nothing is left to do"
    await rollups.close()


async def test_a_killed_process_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """`kill -9` while trades are stored and candles are made, again and again."""
    stored = 0
    for lives in (1, 12, 31):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", PROCESS, tmp_path, str(stored + 1), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(60):
                for _ in range(lives):
                    while not (line := await process.stdout.readline()).strip().isdigit():
                        assert line, "the process ended by itself"
        finally:
            process.kill()
            rest = await process.stdout.read()
            await process.wait()
        # What was inserted after the last word is not known, and is inserted again.
        stored = int((line + rest).split()[-1])
    async with open_store(tmp_path) as engine:
        rollups = Rollups(engine)
        await rollups.catch_up()
        await rollups.close()
        rows = await engine.query("SELECT stream_sequence FROM trade FINAL ORDER BY 1")
        assert len(rows) > 1000
        await check(engine, [trade_at(place) for (place,) in rows])


async def test_a_server_is_asked_the_same(tmp_path: Path) -> None:
    """Over HTTP, with marks that are too long for a URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, FRONT, tmp_path / "data", cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("listening on"), "the HTTP front did not start"
        async with open_store(tmp_path, url=f"http://127.0.0.1:{line.split()[-1]}") as engine:
            rollups = Rollups(engine)
            inserted: list[events_pb2.Trade] = []
            for batch in (range(1, 300), range(300, 310)):
                placed = [(3 * number, trade_at(number)) for number in batch]
                await store(engine, "trade", placed)
                await rollups.catch_up()
                inserted += [each for _, each in placed]
            await check(engine, inserted)
            await rollups.close()
    finally:
        process.kill()
        await process.wait()


async def test_rows_that_come_out_of_order_are_rolled_up(engine: Engine) -> None:
    """An insert of several days can be cut short after one: the rest comes later, below it."""
    late: list[Stored] = [(2, trade(BEGIN * NANOS, number=2)), (5, trade(BEGIN * NANOS, number=5))]
    first: list[Stored] = [
        (place, trade((BEGIN + DAY) * NANOS, number=place)) for place in (1, 3, 4, 6)
    ]
    rollups = Rollups(engine)
    await store(engine, "trade", first)
    await rollups.catch_up()
    await store(engine, "trade", late)
    await rollups.catch_up()
    await check(engine, [each for _, each in (*first, *late)])
    await rollups.close()


async def test_a_stream_made_anew_begins_at_one(engine: Engine) -> None:
    """Places are those of one stream: the same ones in another are other trades."""
    rollups = Rollups(engine)
    old = [trade(BEGIN * NANOS, number=number) for number in range(1, 5)]
    new = [trade((BEGIN + 60) * NANOS, number=number) for number in range(11, 13)]
    await store(engine, "trade", enumerate(old, 1))
    await rollups.catch_up()
    await store(engine, "trade", enumerate(new, 1), CREATED + 1)
    await rollups.catch_up()
    await check(engine, [*old, *new])
    await rollups.close()


async def test_candles_outlive_their_trades(engine: Engine) -> None:
    """What the retention drops stays in the candles, also when a late trade touches the bucket."""
    rollups = Rollups(engine)
    held = [trade(BEGIN * NANOS + number, number=number) for number in range(1, 4)]
    await store(engine, "trade", enumerate(held, 1))
    await rollups.catch_up()
    await engine.command("TRUNCATE TABLE trade")
    await store(engine, "trade", [(9, trade(BEGIN * NANOS + 9, number=9))])
    await rollups.catch_up()
    await check(engine, held)
    await rollups.close()


async def test_a_clock_gone_wrong_holds_up_nothing(engine: Engine) -> None:
    """A trade of a year that candles cannot have is left out of them."""
    rollups = Rollups(engine)
    right = trade(BEGIN * NANOS)
    beyond = trade((BEGIN + 2**32) * NANOS, number=2)
    await store(engine, "trade", [(1, right), (2, beyond)])
    await rollups.catch_up()
    await check(engine, [right])
    await rollups.close()


async def test_spreads_equal_the_quotes_held(engine: Engine) -> None:
    """A minute's spreads are those of its quotes; what is one-sided has none and counts no time."""
    quotes = [
        # Nanoseconds in the minute, bid, ask.
        (1_000_000_000, "100", "101"),
        (3_000_000_000, "100", "104"),
        (3_500_000_000, "", "104"),
        (9_000_000_000, "100.5", "101"),
        (10_000_000_000, "100", "103"),
        (61_000_000_000, "100", "100.000000000000000001"),
    ]
    placed = []
    for place, (nanos, bid, ask) in enumerate(quotes, 1):
        quote = events_pb2.BestBidOffer(
            exchange="binance", symbol="BTC-USDT", bid_price=bid, ask_price=ask
        )
        quote.receive_time.FromNanoseconds(BEGIN * NANOS + nanos)
        placed.append((place, quote))
    rollups = Rollups(engine, most_rows=2)
    # The third comes late.
    await store(engine, "best_bid_offer", [*placed[:2], *placed[3:]])
    await rollups.catch_up()
    await store(engine, "best_bid_offer", placed[2:3])
    await rollups.catch_up()
    rows = await engine.query(
        "SELECT toUnixTimestamp(time), quotes, two_sided_quotes, min_spread, max_spread, "
        "average_spread, weighted_nanoseconds, time_weighted_spread, last_spread "
        "FROM spread_1m FINAL ORDER BY time"
    )
    least = Decimal("0.000000000000000001")
    assert rows == [
        # (1 * 2 s + 4 * 0.5 s + 0.5 * 1 s) over 3.5 s, cut after 18 digits.
        (BEGIN, 5, 4, Decimal("0.5"), Decimal(4), Decimal("2.125"), 3_500_000_000,
         Decimal("1.285714285714285714"), Decimal(3)),
        (BEGIN + 60, 1, 1, least, least, least, 0, None, least),
    ]  # fmt: skip
    await rollups.close()


async def test_the_task_keeps_up_and_tells_its_state(engine: Engine) -> None:
    """New trades are in the candles soon, without being asked; the state is told."""
    rollups = Rollups(engine, RollupSettings(fine_seconds=0.05, coarse_seconds=0.05))
    stop = asyncio.Event()
    task = asyncio.create_task(rollups.run(stop))
    inserted = []
    try:
        async with asyncio.timeout(20):
            for number in range(1, 4):
                inserted.append(trade(BEGIN * NANOS, number=number))
                await store(engine, "trade", [(number, inserted[-1])])
                while await candles(engine, DAY) != naive_candles(inserted, DAY):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await check(engine, inserted)
        assert rollups.status().status is Health.HEALTHY
    finally:
        stop.set()
        await task


async def test_trouble_is_told_and_got_over(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database refuses, health says what the candles may lack; then all is made up."""
    clock = [1000.0]
    rollups = Rollups(engine, RollupSettings(fine_seconds=0.02), clock=lambda: clock[0])
    await store(engine, "trade", [(1, trade(BEGIN * NANOS))])
    await engine.command("RENAME TABLE candle_1m TO hidden")
    stop = asyncio.Event()
    task = asyncio.create_task(rollups.run(stop))
    try:
        async with asyncio.timeout(20):
            while not rollups._trouble:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            clock[0] += 200
            assert rollups.status().status is Health.DEGRADED
            assert "candle_1m" in rollups.status().detail
            await engine.command("RENAME TABLE hidden TO candle_1m")
            while rollups.status().status is not Health.HEALTHY:
                clock[0] += 1
                await asyncio.sleep(0.01)
        await check(engine, [trade(BEGIN * NANOS)])
    finally:
        stop.set()
        await task


RANGES = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 6)).map(lambda pair: (pair[0], sum(pair))),
    max_size=6,
).map(joined)


def members(ranges: Any) -> set[int]:
    return {place for first, last in ranges for place in range(first, last + 1)}


@given(one=RANGES, other=RANGES, most=st.integers(0, 20))
def test_sets_of_places(one: Any, other: Any, most: int) -> None:
    """Ranges are joined, taken away and cut as the sets that they stand for."""
    assert members(joined((*one, *other))) == members(one) | members(other)
    assert members(without(one, other)) == members(one) - members(other)
    assert members(cut(one, most)) == set(sorted(members(one))[:most])
    kept = closed(one, most or 1)
    assert members(kept) >= members(one)
    assert len(kept) <= (most or 1) + 1, "no more holes than asked for"


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(places=st.dictionaries(st.sampled_from([0, 1, 5, 2**64 - 1]), RANGES, max_size=3))
async def test_conditions_on_places(engine: Engine, places: Any) -> None:
    """A row is at the places or not at them, never both and never neither."""
    every = [
        (stream, place)
        for stream in (0, 1, 2, 5, 6, 2**64 - 1)
        for place in (*range(48), 2**64 - 1)
    ]
    listed = ", ".join(f"({stream}, {place})" for stream, place in every)
    source = f"values('stream_created UInt64, stream_sequence UInt64', {listed})"
    expected = {(s, p) for s, ranges in places.items() for p in members(ranges)} & set(every)
    for make, wanted in ((at, expected), (not_at, set(every) - expected)):
        condition, parameters = make(places)
        rows = await engine.query(f"SELECT * FROM {source} WHERE {condition}", parameters)
        assert set(rows) == wanted, condition


async def test_holes_are_bounded(engine: Engine) -> None:
    """Rows that never come do not make the marks grow without end."""
    rollups = Rollups(engine)
    held = [(2 * n, trade((BEGIN + n) * NANOS, number=n)) for n in range(1, 2 * HOLES)]
    await store(engine, "trade", held)
    await rollups.catch_up()
    await rollups.close()
    rows = await engine.query(
        "SELECT rollup, length(first_sequences), arrayMax(last_sequences) "
        "FROM applied_rollup FINAL ORDER BY rollup"
    )
    assert rows == [("candles", HOLES + 1, held[-1][0]), ("candles_coarse", HOLES + 1, held[-1][0])]
    await check(engine, [each for _, each in held])
