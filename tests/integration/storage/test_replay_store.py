"""A replay gives what live subscribers got: the same events, byte for byte, in the same order."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from marketprism.client import OrderBook
from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.market.v1.market_event_pb2 import StreamState
from marketprism.market.v1.order_book_pb2 import SNAPSHOT_REASON_SUBSCRIBED, OrderBookSnapshot

from services.shared.errors import (
    InvalidArgument,
    MarketPrismError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from services.storage.engine import Engine
from services.storage.errors import StoreUnavailable
from services.storage.known import KnownInstruments
from services.storage.replay import MarketReplay, OpenStreams
from services.storage.replay_pace import Clock
from services.storage.replay_settings import ReplaySettings
from services.storage.tables import TABLES
from tests.integration.storage.replay_tools import (
    BEGIN,
    MILLI,
    SECOND,
    Market,
    Published,
    live_events,
    split,
)
from tests.integration.storage.store_tools import no_context, open_store, timestamp

A, B, C = ("binance", "BTC-USDT"), ("binance", "ETH-USDT"), ("okx", "BTC-USDT")
ALL = ["*/*"]
KINDS = ["EVENT_KIND_TRADE", "EVENT_KIND_ORDER_BOOK", "EVENT_KIND_TICKER"]
BOOKS = ["EVENT_KIND_ORDER_BOOK"]
NOW = BEGIN + 10_000 * SECOND
State = StreamState


@pytest.fixture(scope="module")
def market() -> Market:
    made = Market()
    made.run([A, B, C], 1500)
    return made


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, market: Market) -> Path:
    folder = tmp_path_factory.mktemp("replay")

    async def fill() -> None:
        async with open_store(folder) as engine:
            await market.store(engine)

    asyncio.run(fill())
    return folder


@pytest.fixture
async def engine(filled: Path) -> AsyncIterator[Engine]:
    async with open_store(filled) as engine:
        yield engine


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[Engine]:
    async with open_store(tmp_path) as engine:
        yield engine


def request(
    instruments: list[str] = ALL, kinds: list[str] = KINDS, *, start: int = BEGIN - SECOND,
    end: int = NOW, pace: str = "UNPACED", **fields: Any,
) -> pb.ReplayMarketDataRequest:  # fmt: skip
    return pb.ReplayMarketDataRequest(
        instruments=instruments, kinds=kinds, start_time=timestamp(start), end_time=timestamp(end),
        pace=f"REPLAY_PACE_{pace}", **fields,
    )  # fmt: skip


def service(engine: Engine, clock: Clock | None = None, **settings: Any) -> MarketReplay:
    wanted = ReplaySettings(**settings)
    return MarketReplay(
        engine, KnownInstruments(engine), wanted, OpenStreams(wanted.max_streams),
        now=lambda: NOW, clock=clock,
    )  # fmt: skip


async def replay(
    engine: Engine, asked: pb.ReplayMarketDataRequest, clock: Clock | None = None, **settings: Any
) -> list[pb.ReplayMarketDataResponse]:
    stream = service(engine, clock, **settings).ReplayMarketData(asked, no_context())
    return [pb.ReplayMarketDataResponse.FromString(each) async for each in stream]


def events(messages: list[pb.ReplayMarketDataResponse]) -> list[Any]:
    return [event for message in messages for event in message.events]


def statuses(messages: list[pb.ReplayMarketDataResponse]) -> list[tuple[str, str]]:
    return [
        (State.Name(e.stream_status.state).removeprefix("STREAM_STATE_"), e.stream_status.reason)
        for e in events(messages)
        if e.WhichOneof("event") == "stream_status"
    ]


def without_ledger(published: list[Published]) -> list[Published]:
    return [each for each in published if each.table != "integrity"]


async def test_a_replay_gives_what_live_subscribers_got_byte_for_byte(
    engine: Engine, market: Market
) -> None:
    messages = await replay(engine, request())
    expected = live_events(without_ledger(market.published))
    got = split(events(messages), market.published)
    assert got.keys() == expected.keys()
    for source, payloads in expected.items():
        assert got[source] == payloads, f"events of {source} differ from the live ones"
    assert statuses(messages) == [
        ("OPEN", "SUBSCRIBED"), ("SUBSCRIPTION", "ADDED"), ("ENDED", "RANGE_COMPLETE"),
    ]  # fmt: skip


async def test_events_of_one_stream_keep_its_order_across_instruments(
    engine: Engine, market: Market
) -> None:
    messages = await replay(engine, request(kinds=["EVENT_KIND_TRADE"]))
    trades = [e.trade.SerializeToString() for e in events(messages) if e.HasField("trade")]
    assert trades == [each.payload for each in market.published if each.table == "trade"]


async def test_the_ledgers_entries_lie_at_their_place(engine: Engine, market: Market) -> None:
    messages = await replay(engine, request())
    gaps = [m.gap.SerializeToString() for m in messages if m.HasField("gap")]
    assert gaps == [each.payload for each in market.published if each.table == "integrity"]
    assert not any(m.events for m in messages if m.HasField("gap"))
    last = BEGIN
    for message in messages:
        for event in message.events:
            if event.HasField("trade"):
                last = max(last, event.trade.receive_time.ToNanoseconds())
        if message.HasField("gap"):
            noticed = message.gap.receive_time.ToNanoseconds()
            assert last <= noticed + 6 * MILLI, "an event far behind the gap came before it"


async def test_runs_and_sizes_of_pieces_do_not_change_a_single_byte(engine: Engine) -> None:
    whole = [m.SerializeToString() for m in await replay(engine, request())]
    assert [m.SerializeToString() for m in await replay(engine, request())] == whole
    merged = b"".join(events_and_gaps(await replay(engine, request())))
    for rows in (50, 400):
        some = await replay(engine, request(), piece_rows=rows, max_message_bytes=1024)
        assert b"".join(events_and_gaps(some)) == merged, f"pieces of {rows} rows"


def events_and_gaps(messages: list[pb.ReplayMarketDataResponse]) -> list[bytes]:
    return [
        m.gap.SerializeToString() if m.HasField("gap") else each
        for m in messages
        for each in ([e.SerializeToString() for e in m.events] or [b""])
    ]


@pytest.mark.parametrize("after", range(0, 15_000, 2_777))
async def test_a_replay_can_begin_anywhere_as_a_subscriber_can(
    engine: Engine, market: Market, after: int
) -> None:
    middle = BEGIN + after * MILLI
    published = without_ledger(market.published)
    expected = live_events(published)
    got = split(events(await replay(engine, request(end=middle))), published)
    second = split(events(await replay(engine, request(start=middle))), published)
    assert second.keys() == expected.keys()
    for source, payloads in second.items():
        opening = opening_length(source, payloads, middle)
        got[source] = got.get(source, []) + payloads[opening:]
        assert got[source] == expected[source], f"{source}, begun {after} ms later"


def opening_length(source: tuple[str, str, str], payloads: list[bytes], middle: int) -> int:
    """Give how many events tell what was before the begin."""
    if source[0] == "order_book":
        try:
            snapshot = OrderBookSnapshot.FromString(payloads[0])
        except DecodeError:
            # A status alone: the book was out of step.
            return 1
        return 2 if snapshot.reason == SNAPSHOT_REASON_SUBSCRIBED else 0
    time = TABLES[source[0]].message.FromString(payloads[0]).receive_time.ToNanoseconds()  # type: ignore[attr-defined]
    return int(source[0] == "ticker" and time < middle)


async def test_a_book_in_the_middle_is_the_book_of_that_instant(engine: Engine) -> None:
    compared = 0
    for key in (A, B, C):
        for middle in (BEGIN + 5 * SECOND, BEGIN + 11 * SECOND):
            name = "/".join(key)
            whole, opened = OrderBook(*key), OrderBook(*key)
            for event in events(await replay(engine, request([name], BOOKS, end=middle))):
                whole.apply(event)
            asked = request([name], BOOKS, start=middle, end=middle + 1)
            for event in events(await replay(engine, asked)):
                opened.apply(event)
            assert opened.state == whole.state
            if opened.epoch:
                compared += 1
                place = (opened.epoch, opened.sequence)
                assert place == (whole.epoch, whole.sequence)
                assert opened.bids() == whole.bids()
                assert opened.asks() == whole.asks()
    assert compared > 2, "most books were in step"


async def test_only_what_is_asked_for_comes(engine: Engine, market: Market) -> None:
    asked = request(["binance/*", "okx/BTC-USDT"], ["EVENT_KIND_TRADE"])
    everyone = split(events(await replay(engine, asked)), market.published)
    assert everyone.keys() == {("trade", *key) for key in (A, B, C)}
    asked = request(["*/E*T"], ["EVENT_KIND_ORDER_BOOK"])
    assert split(events(await replay(engine, asked)), market.published).keys() == {
        ("order_book", *B)
    }


async def test_a_stream_that_was_made_anew_goes_on_behind_the_old_one(empty: Engine) -> None:
    market = Market()
    for number in range(5):
        market.trade(A, BEGIN + number)
    market.created += SECOND
    for number in range(5, 9):
        market.trade(A, BEGIN + number)
    await market.store(empty)
    got = split(events(await replay(empty, request(start=BEGIN))), market.published)
    assert got["trade", *A] == [each.payload for each in market.published]


async def test_an_event_far_out_of_order_is_sent_in_the_order_of_its_stream(empty: Engine) -> None:
    market = Market()
    for late in (0, 5, 1, 2, 7, 3):
        market.trade(A, BEGIN + late * SECOND)
    market.ticker(A, BEGIN + 4 * SECOND)
    await market.store(empty)
    messages = await replay(empty, request(start=BEGIN), max_message_bytes=1024)
    got = split(events(messages), market.published)
    assert got["trade", *A] == [e.payload for e in market.published if e.table == "trade"]


async def test_the_position_never_promises_what_was_not_sent(empty: Engine) -> None:
    market = Market(3)
    for number in range(400):
        late = market.random.randrange(0, 500) * MILLI
        market.trade(A, BEGIN + number * 100 * MILLI + late)
        if number % 3 == 0:
            market.ticker(B, BEGIN + number * 100 * MILLI + late)
    await market.store(empty)
    messages = await replay(empty, request(start=BEGIN), max_message_bytes=1024, piece_rows=100)
    left = [
        (number, getattr(e, e.WhichOneof("event")).receive_time.ToNanoseconds())
        for number, m in enumerate(messages)
        for e in m.events
        if not e.HasField("stream_status")
    ]
    before = 0
    for number, message in enumerate(messages):
        position = message.position.ToNanoseconds()
        later = [time for place, time in left if place > number]
        assert before <= position <= min(later, default=NOW)
        before = position
    assert messages[-1].position.ToNanoseconds() == NOW


async def test_what_was_missing_at_the_begin_is_told_first(empty: Engine) -> None:
    market = Market()
    market.trade(A, BEGIN)
    over = market.gap(A, BEGIN + 1, "DISCONNECTED", begin=BEGIN)
    market.gap(A, BEGIN + 2, "CONNECTED", begin=BEGIN, end=BEGIN + 2, previous=over)
    lasting = market.gap(A, BEGIN + 3, "DISCONNECTED", begin=BEGIN)
    elsewhere = market.gap(("kraken", "X-Y"), BEGIN + 3, "DISCONNECTED", begin=BEGIN)
    market.trade(A, BEGIN + SECOND)
    await market.store(empty)
    messages = await replay(empty, request(["binance/*"], start=BEGIN + MILLI))
    told = [m.gap.event_id for m in messages if m.HasField("gap")]
    assert told == [lasting]
    assert elsewhere not in told


class FakeClock:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.time = 100.0
        self.clock = Clock(lambda: self.time, self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await asyncio.sleep(0)


async def paced(
    engine: Engine, asked: pb.ReplayMarketDataRequest, *, slow_after: int = -1
) -> list[tuple[float, Any]]:
    """Give a replay's events with the seconds that had passed when each came."""
    clock = FakeClock()
    stream = service(engine, clock.clock).ReplayMarketData(asked, no_context())
    came = []
    count = 0
    async for encoded in stream:
        message = pb.ReplayMarketDataResponse.FromString(encoded)
        came += [(clock.time - 100.0, event) for event in message.events]
        count += 1
        if count == slow_after:
            clock.time += 7.0
    return came


@pytest.fixture
async def three(empty: Engine) -> Engine:
    market = Market()
    for seconds in (1, 2, 10):
        market.trade(A, BEGIN + seconds * SECOND)
    await market.store(empty)
    return empty


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pace": "REAL_TIME"}, [1, 2, 10, 12]),
        ({"pace": "UNSPECIFIED"}, [1, 2, 10, 12]),
        ({"pace": "SCALED", "speed": "4"}, [0.25, 0.5, 2.5, 3.0]),
        ({"pace": "SCALED", "speed": "0.5"}, [2, 4, 20, 24]),
        ({"pace": "REAL_TIME", "longest_pause": 3}, [1, 2, 5, 7]),
        ({"pace": "SCALED", "speed": "2", "longest_pause": 1}, [0.5, 1, 2, 3]),
        ({"pace": "UNPACED"}, [0, 0, 0, 0]),
    ],
)
async def test_an_event_leaves_when_its_time_comes(
    three: Engine, fields: dict[str, Any], expected: list[float]
) -> None:
    if "longest_pause" in fields:
        fields = {**fields, "longest_pause": Duration(seconds=fields["longest_pause"])}
    came = await paced(three, request(start=BEGIN, end=BEGIN + 12 * SECOND, **fields))
    times = [at for at, event in came if event.HasField("trade")]
    times.append(next(at for at, event in came if event.stream_status.reason == "RANGE_COMPLETE"))
    assert times == pytest.approx(expected)


async def test_silence_has_heartbeats(three: Engine) -> None:
    asked = request(
        start=BEGIN, end=BEGIN + 12 * SECOND, pace="REAL_TIME",
        heartbeat_interval=Duration(seconds=3),
    )  # fmt: skip
    beats = [at for at, e in await paced(three, asked) if e.stream_status.reason == "IDLE"]
    assert beats == pytest.approx([5, 8])


async def test_who_falls_behind_catches_up_and_misses_nothing(three: Engine) -> None:
    asked = request(start=BEGIN, end=BEGIN + 12 * SECOND, pace="REAL_TIME")
    came = await paced(three, asked, slow_after=2)
    assert [at for at, e in came if e.HasField("trade")] == pytest.approx([1, 8, 10])


async def test_the_range_ends_now_when_it_reaches_into_the_future(three: Engine) -> None:
    messages = await replay(three, request(end=NOW + 1000 * SECOND))
    assert messages[-1].position.ToNanoseconds() == NOW
    assert statuses(messages)[-1] == ("ENDED", "RANGE_COMPLETE")
    assert statuses(await replay(three, request(start=NOW + SECOND, end=NOW + 9 * SECOND))) == [
        ("OPEN", "SUBSCRIBED"), ("SUBSCRIPTION", "ADDED"), ("ENDED", "RANGE_COMPLETE"),
    ]  # fmt: skip


@pytest.mark.parametrize("after", [1, 3, 10])
async def test_a_client_that_goes_leaves_nothing_behind(engine: Engine, after: int) -> None:
    wanted = ReplaySettings(max_message_bytes=1024, piece_rows=50)
    streams = OpenStreams(1)
    made = MarketReplay(engine, KnownInstruments(engine), wanted, streams, now=lambda: NOW)
    tasks = asyncio.all_tasks()
    stream = made.ReplayMarketData(request(), no_context())
    for _ in range(after):
        await anext(stream)
    assert streams.count == 1
    with pytest.raises(ResourceExhausted, match="limit of this server"):
        await anext(made.ReplayMarketData(request(), no_context()))
    await stream.aclose()  # type: ignore[attr-defined]
    assert streams.count == 0
    assert asyncio.all_tasks() == tasks
    assert await engine.query("SELECT 1") == [(1,)]


async def test_a_failure_in_the_middle_is_told_in_the_stream(engine: Engine) -> None:
    stream = service(engine, piece_rows=50).ReplayMarketData(request(), no_context())
    got: list[pb.ReplayMarketDataResponse] = []
    query, calls = engine.query, 0

    async def fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 40:
            raise StoreUnavailable("the database went away")
        return await query(*args, **kwargs)

    async def read() -> None:
        async for each in stream:
            got.append(pb.ReplayMarketDataResponse.FromString(each))  # noqa: PERF401 - until it fails

    engine.query = fail  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await read()
    assert statuses(got)[-1] == ("ENDED", "STORE_UNAVAILABLE")
    assert len(got) > 3


@pytest.mark.parametrize("pace", ["UNPACED", "REAL_TIME"])
async def test_a_server_that_stops_tells_so_at_once(engine: Engine, pace: str) -> None:
    stopping = asyncio.Event()
    streams = OpenStreams(1, stopping)
    wanted = ReplaySettings(max_message_bytes=1024)
    made = MarketReplay(engine, KnownInstruments(engine), wanted, streams, now=lambda: NOW)
    tasks = asyncio.all_tasks()
    # The first event is an hour away when it is paced.
    asked = request(start=BEGIN - 3600 * SECOND, pace=pace)
    stream = made.ReplayMarketData(asked, no_context())
    got = [pb.ReplayMarketDataResponse.FromString(await anext(stream))]
    asyncio.get_running_loop().call_later(0.1, stopping.set)

    async def read() -> None:
        async for each in stream:
            got.append(pb.ReplayMarketDataResponse.FromString(each))
            await asyncio.sleep(0.02)

    with pytest.raises(Unavailable) as ended:
        async with asyncio.timeout(20):
            await read()
    assert ended.value.reason == "SERVER_STOPPING"
    assert statuses(got)[-1] == ("ENDED", "SERVER_STOPPING")
    assert asyncio.all_tasks() == tasks
    assert streams.count == 0


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"instruments": ["binance"]}, "instruments[0]", "INVALID_PATTERN"),
    ({"instruments": ["*/*", "a/b/c"]}, "instruments[1]", "INVALID_PATTERN"),
    ({"kinds": [99]}, "kinds[0]", "INVALID_ARGUMENT"),
    ({"start": NOW, "end": BEGIN}, "start_time", "INVALID_ARGUMENT"),
    ({"pace": "SCALED"}, "speed", "INVALID_ARGUMENT"),
    ({"pace": "SCALED", "speed": "0.001"}, "speed", "INVALID_ARGUMENT"),
    ({"pace": "SCALED", "speed": "1e999"}, "speed", "INVALID_ARGUMENT"),
    ({"pace": "SCALED", "speed": "NaN"}, "speed", "INVALID_ARGUMENT"),
    ({"pace": "SCALED", "speed": "fast"}, "speed", "INVALID_ARGUMENT"),
    ({"speed": "2"}, "speed", "INVALID_ARGUMENT"),
    ({"longest_pause": Duration(seconds=-1)}, "longest_pause", "INVALID_ARGUMENT"),
    ({"heartbeat_interval": Duration(nanos=1)}, "heartbeat_interval", "INVALID_ARGUMENT"),
]


@pytest.mark.parametrize(("fields", "path", "reason"), BAD)
async def test_a_bad_request_names_the_field(
    empty: Engine, fields: dict[str, Any], path: str, reason: str
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        await replay(empty, request(**fields))
    assert refusal.value.reason == reason
    assert refusal.value.metadata["field"] == path


async def test_a_pace_that_is_none_and_too_many_patterns_are_refused(empty: Engine) -> None:
    asked = request()
    asked.pace = 9  # type: ignore[assignment]
    with pytest.raises(InvalidArgument, match="pace"):
        await replay(empty, asked)
    with pytest.raises(ResourceExhausted, match="at most 3"):
        await replay(empty, request([f"a/S{number}" for number in range(4)]), max_patterns=3)
    with pytest.raises(ResourceExhausted, match="at most 1"):
        await replay(empty, request(["a/*", "b/*"]), max_wildcards=1)


async def test_an_instrument_that_nobody_knows_is_not_an_empty_history(engine: Engine) -> None:
    with pytest.raises(NotFound) as refusal:
        await replay(engine, request(["binance/BTC-USDT", "binance/NO-SUCH"]))
    assert refusal.value.reason == "INSTRUMENT_NOT_FOUND"
    with pytest.raises(MarketPrismError) as other:
        await replay(engine, request(["nowhere/BTC-USDT"]))
    assert other.value.reason == "EXCHANGE_NOT_FOUND"
