"""StreamEvents gives everything that is stored once, in the order of time, and resumes anywhere."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from marketprism.history.v1 import history_service_pb2 as pb

from services.shared.errors import InvalidArgument
from services.storage.engine import Engine
from services.storage.known import KnownInstruments
from services.storage.paging import write_token
from services.storage.replay import OpenStreams
from services.storage.replay_settings import ReplaySettings
from services.storage.stream_events import EventStreams
from services.storage.tables import TABLES
from tests.integration.storage.event_tools import message_time
from tests.integration.storage.replay_tools import BEGIN, SECOND, Market
from tests.integration.storage.store_tools import no_context, open_store, timestamp

NOW = BEGIN + 1000 * SECOND
KINDS = ["EVENT_KIND_TRADE", "EVENT_KIND_ORDER_BOOK", "EVENT_KIND_TICKER"]


@pytest.fixture(scope="module")
def market() -> Market:
    made = Market(5)
    end = made.run([("binance", "BTC-USDT"), ("okx", "BTC-USDT")], 400)
    # Of one instant there may be many, of all kinds.
    for number in range(30):
        made.trade(("okx", "BTC-USDT"), end)
        made.ticker(("binance", "BTC-USDT"), end, str(number))
    return made


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, market: Market) -> Path:
    folder = tmp_path_factory.mktemp("stream")

    async def fill() -> None:
        async with open_store(folder) as engine:
            await market.store(engine)

    asyncio.run(fill())
    return folder


@pytest.fixture
async def engine(filled: Path) -> AsyncIterator[Engine]:
    async with open_store(filled) as engine:
        yield engine


def request(**fields: Any) -> pb.StreamEventsRequest:
    return pb.StreamEventsRequest(**{"instruments": ["*/*"], "kinds": KINDS, **fields})


async def read(
    engine: Engine, asked: pb.StreamEventsRequest, *, now: int = NOW, **settings: Any
) -> list[pb.StreamEventsResponse]:
    wanted = ReplaySettings(**settings)
    made = EventStreams(
        engine, KnownInstruments(engine), wanted, OpenStreams(1), now=lambda: now
    )  # fmt: skip
    stream = made.StreamEvents(asked, no_context())
    return [pb.StreamEventsResponse.FromString(each) async for each in stream]


def told(messages: list[pb.StreamEventsResponse]) -> list[tuple[str, int, bytes]]:
    """Give table, time and bytes of everything that was sent."""
    found = []
    for message in messages:
        if message.HasField("gap"):
            entry = message.gap
            found.append(("integrity", message_time(TABLES["integrity"], entry), entry))
        for event in message.events:
            kind = event.WhichOneof("event")
            if kind != "stream_status":
                inner = getattr(event, str(kind))
                found.append((str(kind), message_time(TABLES[str(kind)], inner), inner))
    return [(kind, time, event.SerializeToString()) for kind, time, event in found]


async def test_everything_comes_once_in_the_order_of_time(engine: Engine, market: Market) -> None:
    messages = await read(engine, request())
    came = told(messages)
    expected = [(each.table, each.payload) for each in market.published]
    assert sorted((kind, payload) for kind, _, payload in came) == sorted(expected)
    times = [time for _, time, _ in came]
    assert times == sorted(times)
    assert messages[0].events[0].stream_status.reason == "SUBSCRIBED"
    assert messages[-1].events[-1].stream_status.reason == "RANGE_COMPLETE"


async def test_pieces_and_messages_change_no_event(engine: Engine) -> None:
    whole = told(await read(engine, request()))
    for rows in (40, 300):
        assert told(await read(engine, request(), piece_rows=rows, max_message_bytes=1024)) == whole


async def test_a_range_begins_and_ends_where_it_says(engine: Engine) -> None:
    whole = told(await read(engine, request()))
    times = [time for _, time, _ in whole]
    start, end = times[100], times[-10]
    asked = request(start_time=timestamp(start), end_time=timestamp(end))
    assert told(await read(engine, asked)) == [e for e in whole if start <= e[1] < end]


async def test_a_stream_resumes_at_every_place_without_loss_or_repetition(engine: Engine) -> None:
    messages = await read(engine, request(), max_message_bytes=1024)
    whole = told(messages)
    assert len(messages) > 20
    for cut in (*range(1, len(messages), 9), len(messages)):
        asked = request(resume_token=messages[cut - 1].resume_token)
        # Later than the first time: a range without end stays that of the first request.
        rest = await read(engine, asked, now=NOW + SECOND)
        assert told(messages[:cut]) + told(rest) == whole, f"resumed after message {cut}"


async def test_every_single_event_is_a_place_to_resume_at(engine: Engine, market: Market) -> None:
    whole = told(await read(engine, request()))
    # The end: sixty events of one instant, and some before.
    start = timestamp(whole[-70][1])
    messages = await read(engine, request(start_time=start), max_message_bytes=1)
    assert told(messages) == whole[-len(messages) + 2 :]
    for cut in range(2, len(messages), 3):
        asked = request(start_time=start, resume_token=messages[cut - 1].resume_token)
        assert told(messages[:cut]) + told(await read(engine, asked)) == told(messages)


@pytest.mark.parametrize("token", ["x", "AAAA", "====", "é"])
async def test_a_token_that_is_none_is_refused(engine: Engine, token: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        await read(engine, request(resume_token=token))
    assert refusal.value.reason == "PAGE_TOKEN_INVALID"
    assert refusal.value.metadata["field"] == "resume_token"


@pytest.mark.parametrize(
    "place",
    [[], ["x"], [-1, 0, 0], [NOW, "x", 1], [NOW, 1, 99], [NOW, BEGIN, 2, "a"],
     [NOW, BEGIN, 2, "a", "b", -1, "c"], [NOW, BEGIN, 2, 1, "b", 1, "c"]],
)  # fmt: skip
async def test_a_place_that_is_none_is_refused(engine: Engine, place: list[int | str]) -> None:
    asked = request()
    asked.resume_token = write_token(asked, place)
    with pytest.raises(InvalidArgument) as refusal:
        await read(engine, asked)
    assert refusal.value.reason == "PAGE_TOKEN_INVALID"


async def test_a_token_of_another_request_is_refused(engine: Engine) -> None:
    messages = await read(engine, request())
    asked = request(kinds=["EVENT_KIND_TRADE"], resume_token=messages[0].resume_token)
    if not messages[0].resume_token:
        asked.resume_token = messages[1].resume_token
    with pytest.raises(InvalidArgument) as refusal:
        await read(engine, asked)
    assert refusal.value.reason == "PAGE_TOKEN_INVALID"
