"""Every fault of the simulated venue does what it says, as often and where it was asked to."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
import websockets

from services.simulator.faults import FaultError
from services.simulator.generated import GeneratedMarket, GeneratedSettings
from services.simulator.server import SimulatedVenue, VenueSettings

_DEADLINE = 20.0
_DEPTH = "btcusdt@depth@100ms"


@contextlib.asynccontextmanager
async def _venue(**settings: Any) -> AsyncIterator[tuple[SimulatedVenue, aiohttp.ClientSession]]:
    market = GeneratedMarket(
        GeneratedSettings(symbols=("BTCUSDT", "ETHUSDT"), depth_rate=60, trade_rate=5, levels=200)
    )
    async with (
        asyncio.timeout(100),
        SimulatedVenue(market, settings=VenueSettings(**settings)) as venue,
        aiohttp.ClientSession(venue.rest_url) as session,
    ):
        yield venue, session


def _connect(venue: SimulatedVenue, *streams: str) -> websockets.connect:
    # An unbounded queue: a client that has stopped reading could not see the close frame.
    return websockets.connect(f"{venue.ws_url}/ws/{'/'.join(streams)}", max_queue=None)


async def _recv(client: websockets.ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(_DEADLINE):
        return json.loads(await client.recv())


async def _frames(client: websockets.ClientConnection, count: int) -> list[tuple[int, int]]:
    """(U, u) of the next diff frames."""
    return [(event["U"], event["u"]) for event in [await _recv(client) for _ in range(count)]]


async def _eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_DEADLINE):
        while not condition():  # noqa: ASYNC110 - there is nothing that could be awaited
            await asyncio.sleep(0.01)


async def _drain(client: websockets.ClientConnection) -> None:
    while True:
        async with asyncio.timeout(_DEADLINE):
            await client.recv()


def _gaps(frames: list[tuple[int, int]]) -> int:
    return sum(later[0] > earlier[1] + 1 for earlier, later in pairwise(frames))


async def test_a_dropped_frame_is_a_gap_on_every_connection_and_is_not_counted_as_sent() -> None:
    async with (
        _venue() as (venue, _),
        _connect(venue, _DEPTH) as one,
        _connect(venue, _DEPTH) as other,
    ):
        await _frames(one, 1)
        fault = venue.fault("drop", symbol="BTCUSDT", skip=2)
        assert _gaps(await _frames(one, 30)) == 1
        assert _gaps(await _frames(other, 30)) == 1
        assert (fault.hits, fault.exhausted) == (1, True)


async def test_a_dropped_trade_is_not_among_those_sent() -> None:
    async with _venue() as (venue, _), _connect(venue, "btcusdt@trade") as client:
        first = (await _recv(client))["t"]
        venue.fault("drop", stream="btcusdt@trade")
        second = (await _recv(client))["t"]
        assert second == first + 2
        sent = venue.hub.sent["btcusdt@trade"]
        assert list(sent.ids)[:2] == [first, second]


async def test_a_fault_of_one_connection_leaves_the_others_alone() -> None:
    async with (
        _venue() as (venue, session),
        _connect(venue, _DEPTH) as one,
        _connect(venue, _DEPTH) as other,
    ):
        frames = await _frames(one, 1)
        async with session.get("/sim/connections") as answer:
            names = [c["connection"] for c in (await answer.json())["connections"]]
        venue.fault("drop", connection=names[0])
        assert _gaps(frames + await _frames(one, 30)) == 1
        assert _gaps(await _frames(other, 30)) == 0


async def test_a_fault_of_one_symbol_or_kind_of_stream_leaves_the_others_alone() -> None:
    async with _venue() as (venue, _), _connect(venue, _DEPTH, "ethusdt@depth@100ms") as client:
        venue.fault("drop", symbol="ETHUSDT", count=None)
        await _eventually(lambda: venue.faults.totals["drop"] >= 3)
        venue.faults.clear()
        venue.fault("drop", stream="@trade", count=None)
        events = [await _recv(client) for _ in range(40)]
        mine = [(e["U"], e["u"]) for e in events if e["s"] == "BTCUSDT"]
        assert _gaps(mine) == 0
        assert len(mine) >= 5


async def test_a_duplicate_comes_twice_in_a_row() -> None:
    async with _venue() as (venue, _), _connect(venue, _DEPTH) as client:
        venue.fault("duplicate")
        frames = await _frames(client, 30)
        assert sum(a == b for a, b in pairwise(frames)) == 1


async def test_a_reordered_frame_comes_after_the_next_one() -> None:
    async with _venue() as (venue, _), _connect(venue, _DEPTH) as client:
        await _frames(client, 1)
        venue.fault("reorder")
        frames = await _frames(client, 30)
        swapped = [i for i in range(29) if frames[i][0] > frames[i + 1][0]]
        assert len(swapped) == 1
        assert _gaps(sorted(frames)) == 0, "both came"


@pytest.mark.parametrize("mode", ["json", "truncate", "types", "binary", "empty"])
async def test_a_damaged_frame_comes_in_place_of_the_good_one(mode: str) -> None:
    async with _venue() as (venue, _), _connect(venue, _DEPTH) as client:
        await _frames(client, 1)
        venue.fault("corrupt", mode=mode)
        damaged = 0
        good = []
        while len(good) < 5 or not damaged:
            async with asyncio.timeout(_DEADLINE):
                text = await client.recv()
            try:
                event = json.loads(text)
                good.append((event["U"], event["u"] + 0))
            except (ValueError, TypeError):
                damaged += 1
                assert isinstance(text, bytes) is (mode == "binary")
        assert damaged == 1


async def test_bytes_that_are_not_utf8_reach_a_client_as_such() -> None:
    async with _venue() as (venue, _), _connect(venue, _DEPTH) as client:
        venue.fault("corrupt", mode="utf8")
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await _drain(client)
        assert closed.value.sent is not None
        assert closed.value.sent.code == 1007


async def test_a_delay_holds_the_connection_back_and_loses_nothing() -> None:
    async with _venue() as (venue, _), _connect(venue, _DEPTH) as client:
        frames = await _frames(client, 2)
        venue.fault("delay", seconds=0.5)
        await _eventually(lambda: venue.faults.totals["delay"] == 1)
        begun = time.monotonic()
        frames += await _frames(client, 12)
        assert time.monotonic() - begun > 0.3
        assert _gaps(frames) == 0


@pytest.mark.parametrize("when", ["now", "frame"])
async def test_a_cut_closes_with_its_code(when: str) -> None:
    async with _venue() as (venue, _), _connect(venue, _DEPTH) as client:
        fault = venue.fault("cut", code=1012, when=when)
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await _drain(client)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        assert fault.hits == 1
        async with _connect(venue, _DEPTH) as again:
            await _frames(again, 1)


async def test_an_abort_breaks_the_connection_without_a_close_frame() -> None:
    async with _venue() as (venue, _), _connect(venue, _DEPTH) as client:
        await _frames(client, 1)
        venue.fault("cut", abort=True)
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await _drain(client)
        assert closed.value.rcvd is None


async def test_a_cut_in_scope_of_a_symbol_spares_who_did_not_subscribe_to_it() -> None:
    async with (
        _venue() as (venue, _),
        _connect(venue, _DEPTH) as one,
        _connect(venue, "ethusdt@depth") as other,
    ):
        await _frames(one, 1)
        fault = venue.fault("cut", symbol="ETHUSDT", count=None)
        with pytest.raises(websockets.ConnectionClosed):
            await _drain(other)
        await _frames(one, 2)
        assert fault.hits == 1


async def test_silence_acknowledges_and_sends_nothing() -> None:
    async with _venue() as (venue, session), websockets.connect(f"{venue.ws_url}/ws") as client:
        venue.fault("silence", symbol="BTCUSDT")
        names = [_DEPTH, "ethusdt@depth@100ms"]
        await client.send(json.dumps({"method": "SUBSCRIBE", "params": names, "id": 1}))
        assert await _recv(client) == {"result": None, "id": 1}
        assert {(await _recv(client))["s"] for _ in range(10)} == {"ETHUSDT"}
        async with session.get("/sim/connections") as answer:
            assert (await answer.json())["connections"][0]["silenced"] == [_DEPTH]
        async with _connect(venue, _DEPTH) as another:
            await _frames(another, 1)


@pytest.mark.parametrize("subscribed", [True, False])
async def test_a_stale_snapshot_overlaps_with_no_diff_and_the_next_one_does(
    subscribed: bool,
) -> None:
    async with _venue() as (venue, session), _connect(venue, _DEPTH) as client:
        first = (await _frames(client, 1))[0] if subscribed else None
        venue.fault("stale_snapshot", symbol="BTCUSDT")
        bodies = []
        for _ in range(2):
            async with session.get("/api/v3/depth?symbol=BTCUSDT&limit=5000") as answer:
                bodies.append(await answer.json())
        first = first or (await _frames(client, 1))[0]
        stale, good = bodies
        assert stale["lastUpdateId"] + 1 < first[0]
        assert good["lastUpdateId"] + 1 >= first[0]
        truth = venue.market.book_at("BTCUSDT", stale["lastUpdateId"])
        assert len(truth.bids) == len(stale["bids"]), "old, but true"


async def test_a_stale_snapshot_can_be_so_many_ids_behind() -> None:
    async with _venue() as (venue, session):
        venue.fault("stale_snapshot", behind=40)
        before = venue.market.update_id("ETHUSDT")
        async with session.get("/api/v3/depth?symbol=ETHUSDT") as answer:
            told = (await answer.json())["lastUpdateId"]
        assert before <= told + 40 <= venue.market.update_id("ETHUSDT")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"kind": "rest_429", "retry_after": 7}, 429),
        ({"kind": "rest_418", "retry_after": 7}, 418),
        ({"kind": "rest_5xx", "status": 500}, 500),
        ({"kind": "rest_5xx", "status": 503}, 503),
        ({"kind": "rest_5xx", "status": 502}, 502),
    ],
)
async def test_rest_faults_happen_as_often_as_asked(request_: dict[str, Any], status: int) -> None:
    async with _venue() as (venue, session):
        body = {**request_, "symbol": "BTCUSDT", "path": "/api/v3/depth", "count": 2}
        async with session.post("/sim/faults", json=body) as answer:
            assert answer.status == 201
        statuses = []
        for query in (
            "trades?symbol=BTCUSDT",
            "depth?symbol=ETHUSDT",
            *["depth?symbol=BTCUSDT"] * 3,
        ):
            async with session.get(f"/api/v3/{query}") as answer:
                statuses.append(answer.status)
                assert "X-MBX-USED-WEIGHT-1M" in answer.headers
                if answer.status in (418, 429):
                    assert answer.headers["Retry-After"] == "7"
        assert statuses == [200, 200, status, status, 200]
        assert venue.faults.totals[request_["kind"]] == 2


async def test_a_slow_answer_is_slow_and_right() -> None:
    async with _venue() as (venue, session):
        venue.fault("rest_slow", seconds=0.4)
        begun = time.monotonic()
        async with session.get("/api/v3/depth?symbol=BTCUSDT") as answer:
            assert answer.status == 200
        assert time.monotonic() - begun >= 0.4


async def test_connections_can_be_refused_by_status_or_by_breaking_tcp() -> None:
    async with _venue() as (venue, _):
        venue.fault("refuse_connections", status=503)
        with pytest.raises(websockets.InvalidStatus) as refused:
            await _connect(venue, _DEPTH)
        assert refused.value.response.status_code == 503
        venue.fault("refuse_connections", abort=True)
        with pytest.raises((OSError, websockets.InvalidMessage)):
            await _connect(venue, _DEPTH)
        async with _connect(venue, _DEPTH) as client:
            await _frames(client, 1)


async def test_a_shutdown_is_announced_and_then_happens() -> None:
    async with _venue() as (venue, _), _connect(venue, _DEPTH) as client:
        await _frames(client, 1)
        venue.fault("server_shutdown", seconds=0.3)
        async with asyncio.timeout(_DEADLINE):
            told = [json.loads(text)["e"] async for text in client]
        assert told.count("serverShutdown") == 1
        assert "depthUpdate" in told[told.index("serverShutdown") :], "it goes on until then"


async def test_faults_are_set_listed_and_removed_over_http() -> None:
    async with _venue() as (_, session):
        async with session.post("/sim/faults", json={"kind": "drop", "count": None}) as answer:
            fault = await answer.json()
        assert (fault["kind"], fault["count"], fault["hits"]) == ("drop", None, 0)
        async with session.get("/sim/faults") as answer:
            assert [f["id"] for f in (await answer.json())["faults"]] == [fault["id"]]
        async with session.delete(f"/sim/faults/{fault['id']}") as answer:
            assert answer.status == 200
        async with session.delete(f"/sim/faults/{fault['id']}") as answer:
            assert answer.status == 404
        async with session.delete("/sim/faults") as answer:
            assert await answer.json() == {"removed": 0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"kind":"drop","symbol":"NOPE"}',
        '{"kind":"cut","connection":"c9"}',
        '{"kind": "boom"}',
        '{"kind":"drop","mode":"json"}',
    ],
)
async def test_a_bad_fault_request_is_a_clear_400(text: str) -> None:
    async with _venue() as (venue, session):
        async with session.post("/sim/faults", data=text) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]
        assert venue.faults.all() == []
        with pytest.raises(FaultError, match="does not apply"):
            venue.fault("drop", mode="json")
