"""Every fault of the simulated Deribit does what it says, as often and where it was asked to."""

import asyncio

import pytest
import websockets

from services.collector.venues import base
from services.collector.venues.deribit import Deribit as DeribitAdapter
from tests.integration.deribit_tools import (
    BOOK,
    DEADLINE,
    TRADES,
    NaiveBook,
    client_of,
    equals_truth,
    eventually,
    simulated,
)


async def test_a_dropped_frame_breaks_the_chain_until_a_new_snapshot() -> None:
    async with simulated() as (venue, session), client_of(venue) as client:
        await client.subscribe(BOOK)
        book = NaiveBook()
        book.take(await client.next(BOOK))
        venue.fault("drop", symbol="BTC-PERPETUAL", stream=BOOK)
        async with asyncio.timeout(DEADLINE):
            while book.take(await client.next(BOOK)):
                pass
        await client.ask("public/unsubscribe", channels=[BOOK])
        while not client.notifications.empty():
            client.notifications.get_nowait()
        await client.subscribe(BOOK)
        assert book.take(await client.next(BOOK))
        assert book.take(await client.next(BOOK))
        await equals_truth(session, "BTC-PERPETUAL", book)


async def test_a_dropped_frame_of_trades_is_not_among_those_sent() -> None:
    async with simulated() as (venue, _), client_of(venue) as client:
        await client.subscribe(TRADES)
        fault = venue.fault("drop", stream=TRADES, skip=1)
        told: list[int] = []
        while not fault.exhausted or len(told) < 10:
            told += [trade["trade_seq"] for trade in await client.next(TRADES)]
        sent = list(venue.hub.sent[TRADES].ids)
        assert sent[: len(told)] == told
        assert told != list(range(told[0], told[0] + len(told))), "a hole where the frame was"


@pytest.mark.parametrize("kind", ["duplicate", "reorder"])
async def test_a_repeated_or_swapped_frame_does_not_continue_the_chain(kind: str) -> None:
    async with simulated() as (venue, _), client_of(venue) as client:
        await client.subscribe(BOOK)
        book = NaiveBook()
        book.take(await client.next(BOOK))
        fault = venue.fault(kind, stream=BOOK)
        continued = [book.take(await client.next(BOOK)) for _ in range(30)]
        assert fault.hits == 1
        assert continued.count(False) >= 1


@pytest.mark.parametrize("mode", ["json", "truncate", "types", "empty"])
async def test_a_corrupt_frame_is_one_that_the_adapter_refuses(mode: str) -> None:
    adapter = DeribitAdapter()
    async with (
        simulated() as (venue, _),
        websockets.connect(f"{venue.ws_url}/ws/api/v2", max_queue=None) as socket,
    ):
        await socket.send(adapter.subscribe([BOOK], 1)[0].frame)
        venue.fault("corrupt", stream=BOOK, mode=mode, skip=1)
        refused = 0
        for _ in range(12):
            async with asyncio.timeout(DEADLINE):
                frame = await socket.recv()
            try:
                adapter.decode(frame)
            except base.MalformedFrameError:
                refused += 1
        assert refused == 1


async def test_a_silent_subscription_is_acknowledged_and_then_nothing_comes() -> None:
    async with simulated() as (venue, _), client_of(venue) as client:
        venue.fault("silence", stream=BOOK)
        assert BOOK in await client.subscribe(BOOK, "quote.BTC-PERPETUAL")
        for _ in range(50):
            async with asyncio.timeout(DEADLINE):
                params = await client.notifications.get()
            assert params["channel"] != BOOK


async def test_a_refused_subscription_is_left_out_of_the_result() -> None:
    async with simulated() as (venue, _), client_of(venue) as client:
        venue.fault("refuse_subscription", stream=BOOK)
        assert await client.subscribe(BOOK, TRADES) == [TRADES]
        assert await client.subscribe(BOOK) == [BOOK]


async def test_a_reset_of_the_sequence_is_a_lower_change_id_and_no_snapshot() -> None:
    async with simulated() as (venue, session), client_of(venue) as client:
        await client.subscribe(BOOK)
        book = NaiveBook()
        book.take(await client.next(BOOK))
        venue.fault("sequence_reset", symbol="BTC-PERPETUAL")
        async with asyncio.timeout(DEADLINE):
            while book.take(data := await client.next(BOOK)):
                pass
        assert data["type"] == "change"
        assert data["change_id"] < book.change_id
        await client.ask("public/unsubscribe", channels=[BOOK])
        while not client.notifications.empty():
            client.notifications.get_nowait()
        await client.subscribe(BOOK)
        for _ in range(5):
            assert book.take(await client.next(BOOK))
        await equals_truth(session, "BTC-PERPETUAL", book)


async def test_left_out_ids_are_a_gap() -> None:
    async with simulated() as (venue, _), client_of(venue) as client:
        await client.subscribe(BOOK)
        book = NaiveBook()
        book.take(await client.next(BOOK))
        venue.fault("gap", symbol="BTC-PERPETUAL", ids=5)
        assert not all([book.take(await client.next(BOOK)) for _ in range(10)])


async def test_a_stale_snapshot_is_true_but_not_continued() -> None:
    async with simulated() as (venue, session), client_of(venue) as client:
        venue.fault("stale_snapshot", symbol="BTC-PERPETUAL", behind=30)
        await client.subscribe(BOOK)
        book = NaiveBook()
        assert book.take(await client.next(BOOK))
        await equals_truth(session, "BTC-PERPETUAL", book)
        assert not book.take(await client.next(BOOK))


async def test_a_stale_snapshot_over_http_is_an_old_true_book() -> None:
    async with simulated() as (venue, session):
        venue.fault("stale_snapshot", symbol="BTC-PERPETUAL", behind=50)
        path = "/api/v2/public/get_order_book?instrument_name=BTC-PERPETUAL&depth=10"
        async with session.get(path) as answer:
            old = (await answer.json())["result"]
        assert old["change_id"] <= venue.market.update_id("BTC-PERPETUAL") - 50


async def test_a_refused_heartbeat_is_a_burst_and_a_close() -> None:
    timings = {"heartbeat_least_seconds": 0.05, "heartbeat_answer_seconds": 0.3}
    async with simulated(**timings) as (venue, _), client_of(venue) as client:
        await client.ask("public/set_heartbeat", interval=0.1)
        await eventually(lambda: len(client.heartbeats) >= 4)
        seen = len(client.heartbeats)
        fault = venue.fault("heartbeat_refusal")
        assert await client.closed() == (4000, "heartbeat close")
        assert fault.hits == 1
        assert client.heartbeats[seen:].count("test_request") >= 5
        async with client_of(venue) as again:
            await again.ask("public/set_heartbeat", interval=0.1)
            await eventually(lambda: again.heartbeats.count("test_request") >= 6)


@pytest.mark.parametrize(("abort", "code"), [(False, 1001), (True, 1006)])
async def test_a_cut_ends_the_connection(abort: bool, code: int) -> None:
    async with simulated() as (venue, _), client_of(venue) as client:
        await client.subscribe(BOOK)
        venue.fault("cut", symbol="BTC-PERPETUAL", abort=abort)
        assert (await client.closed())[0] == code


async def test_delayed_frames_keep_their_order() -> None:
    async with simulated() as (venue, _), client_of(venue) as client:
        await client.subscribe(BOOK)
        book = NaiveBook()
        book.take(await client.next(BOOK))
        fault = venue.fault("delay", stream=BOOK, seconds=0.2)
        assert all([book.take(await client.next(BOOK)) for _ in range(20)])
        assert fault.hits == 1


async def test_a_maintenance_closes_and_refuses_everything_for_its_time() -> None:
    async with simulated() as (venue, session), client_of(venue) as client:
        venue.fault("maintenance", seconds=60)
        assert (await client.closed())[0] == 1001
        with pytest.raises(websockets.InvalidStatus, match="503"):
            async with client_of(venue):
                pass
        async with session.get("/api/v2/public/get_time") as answer:
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == 11051
            assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize(
    ("kind", "status", "code"), [("rest_429", 429, 10028), ("rest_418", 418, 10028)]
)
async def test_http_limits_are_told_with_a_time_to_wait(kind: str, status: int, code: int) -> None:
    async with simulated() as (venue, session):
        venue.fault(kind, path="/api/v2/public/get_time", retry_after=3)
        async with session.get("/api/v2/public/get_time") as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (status, "3")
            assert (await answer.json())["error"]["code"] == code
        async with session.get("/api/v2/public/get_time") as answer:
            assert answer.status == 200


async def test_http_errors_and_slowness_do_what_they_say() -> None:
    async with simulated() as (venue, session):
        venue.fault("rest_5xx", status=502)
        async with session.get("/api/v2/public/get_time") as answer:
            assert answer.status == 502
        venue.fault("rest_slow", seconds=0.2)
        begun = asyncio.get_running_loop().time()
        async with session.get("/api/v2/public/get_time") as answer:
            assert answer.status == 200
        assert asyncio.get_running_loop().time() - begun >= 0.2
