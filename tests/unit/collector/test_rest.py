"""Requests stay within the venue's weight, and wait as long as the venue says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.collector.rest import (
    Priority,
    RateLimitedError,
    RequestBudget,
    RestClient,
    RestError,
)
from services.collector.venues.base import RestRequest

REQUEST = RestRequest("/api/v3/depth", 50, {"symbol": "BTCUSDT"})


class Clock:
    """Seconds since 1970, set by the test."""

    def __init__(self, now: float = 1_700_000_040.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_weight_is_used_up_and_comes_back_with_the_minute(clock: Clock) -> None:
    budget = RequestBudget(100, clock)
    assert clock.now % 60 == 0
    clock.now += 20
    await budget.take(60)
    assert (budget.used, budget.wait_seconds(40)) == (60, 0.0)
    assert budget.wait_seconds(41) == pytest.approx(40.0)
    clock.now += 40
    assert (budget.used, budget.wait_seconds(41)) == (0, 0.0)


async def test_a_request_dearer_than_the_limit_goes_alone(clock: Clock) -> None:
    budget = RequestBudget(100, clock)
    assert budget.wait_seconds(250) == 0.0
    await budget.take(250)
    assert budget.wait_seconds(1) > 0


def test_the_venues_own_count_is_taken_over_when_it_is_higher(clock: Clock) -> None:
    budget = RequestBudget(100, clock)
    budget.note_used(90)
    budget.note_used(30)
    assert budget.used == 90
    assert budget.wait_seconds(20) > 0


def test_a_block_is_obeyed_to_its_end_and_never_shortened(clock: Clock) -> None:
    budget = RequestBudget(100, clock)
    budget.block(30)
    budget.block(1)
    assert budget.wait_seconds(1) == pytest.approx(30.0)
    clock.now += 29.5
    assert budget.wait_seconds(1) == pytest.approx(0.5)
    clock.now += 0.5
    assert budget.wait_seconds(1) == 0.0
    assert budget.rate_limited == 2


async def test_those_who_wait_share_the_weight_of_the_next_minute(clock: Clock) -> None:
    budget = RequestBudget(100, clock)
    await budget.take(100)
    clock.now += 59.99
    waiting = [asyncio.create_task(budget.take(60)) for _ in range(3)]

    async def done(count: int) -> None:
        async with asyncio.timeout(5):
            while sum(task.done() for task in waiting) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    clock.now += 0.02
    await done(1)
    assert sum(task.done() for task in waiting) == 1
    assert budget.used == 60
    for task in waiting:
        task.cancel()


async def test_it_tells_why_requests_wait_and_for_how_long(clock: Clock) -> None:
    budget = RequestBudget(100, clock)
    clock.now += 20
    await budget.take(100)
    assert budget.waits == "", "expected nothing while nobody waits"
    waiting = asyncio.create_task(budget.take(50))
    await asyncio.sleep(0)
    assert "wait 40 s" in budget.waits
    assert "100 of 100" in budget.waits
    budget.block(90)
    assert "wait 90 s more, as the venue demanded" in budget.waits
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert budget.waits == ""


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Venue:
    """A REST server that answers as the test says."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[str] = []
        self.handler: Handler | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path_qs)
        assert self.handler is not None
        return await self.handler(request)

    def answer(self, status: int, body: bytes = b"{}", **headers: str) -> None:
        async def handler(_: web.Request) -> web.Response:
            return web.Response(
                status=status,
                body=body,
                headers={name.replace("_", "-"): value for name, value in headers.items()},
            )

        self.handler = handler


@pytest.fixture
async def venue() -> AsyncIterator[Venue]:
    answers = Venue()
    app = web.Application()
    app.add_routes([web.get("/{path:.*}", answers.handle)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    answers.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield answers
    await runner.cleanup()


@pytest.fixture
async def make_client(venue: Venue) -> AsyncIterator[Callable[..., RestClient]]:
    async with aiohttp.ClientSession() as session:

        def make(clock: Clock | None = None, seconds: float = 5.0, **more: Any) -> RestClient:
            budget = RequestBudget(6000, clock or Clock())
            return RestClient(venue.url, session, budget, seconds, **more)

        yield make


async def test_an_answer_is_given_and_its_weight_noted(
    venue: Venue, make_client: Callable[..., RestClient]
) -> None:
    seen: list[tuple[str, bytes, int]] = []
    client = make_client(on_answer=lambda *answer: seen.append(answer))
    venue.answer(200, b'{"a":1}', X_MBX_USED_WEIGHT_1M="777")
    body, received = await client.get(REQUEST)
    assert body == b'{"a":1}'
    assert received > 10**18
    assert client.budget.used == 777
    assert seen == [(f"{venue.url}/api/v3/depth?symbol=BTCUSDT", body, received)]
    assert venue.requests == ["/api/v3/depth?symbol=BTCUSDT"]


@pytest.mark.parametrize("status", [429, 418])
@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), (None, 5.0), ("soon", 5.0), ("nan", 5.0), ("0", 0.1), ("-3", 0.1),
     ("inf", 3 * 86_400.0)],
)  # fmt: skip
async def test_a_refusal_blocks_every_request_for_as_long_as_it_says(
    venue: Venue,
    make_client: Callable[..., RestClient],
    clock: Clock,
    status: int,
    header: str | None,
    seconds: float,
) -> None:
    client = make_client(clock)
    venue.answer(status, **({"Retry_After": header} if header is not None else {}))
    with pytest.raises(RateLimitedError) as caught:
        await client.get(REQUEST)
    assert caught.value.retry_after == seconds
    assert client.budget.wait_seconds(1) == pytest.approx(seconds)
    waiting = asyncio.create_task(client.get(REQUEST))
    await asyncio.sleep(0)
    assert len(venue.requests) == 1
    waiting.cancel()


@pytest.mark.parametrize("status", [500, 502, 503, 404, 301, 302])
async def test_anything_but_200_is_an_error_that_quotes_the_answer(
    venue: Venue, make_client: Callable[..., RestClient], status: int
) -> None:
    venue.answer(status, b'{"code":-1121,"msg":"Invalid symbol."}', Location="http://127.0.0.1:1/")
    with pytest.raises(RestError, match=rf"expected HTTP 200, got {status}.*Invalid symbol"):
        await make_client().get(REQUEST)
    assert len(venue.requests) == 1


async def test_no_answer_in_time_is_an_error(
    venue: Venue, make_client: Callable[..., RestClient]
) -> None:
    async def handler(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    venue.handler = handler
    with pytest.raises(RestError, match="TimeoutError"):
        await make_client(seconds=0.05).get(REQUEST)


async def test_a_body_that_breaks_off_is_an_error(
    venue: Venue, make_client: Callable[..., RestClient]
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.abort()
        return response

    venue.handler = handler
    with pytest.raises(RestError):
        await make_client().get(REQUEST)


OKX_REFUSAL = b'{"code":"50011","msg":"Too Many Requests","data":[]}'


def okx_refusal(status: int, body: bytes) -> float | None:
    """Tells a refusal by its code, as OKX does, and for how long when the test says so."""
    if b'"code":"50011"' not in body:
        return None
    return 30.0 if b"half a minute" in body else 0.0


@pytest.mark.parametrize("status", [200, 400, 429])
@pytest.mark.parametrize(
    ("body", "header", "seconds"),
    [
        (OKX_REFUSAL, None, 5.0),
        (OKX_REFUSAL, "12", 12.0),
        (OKX_REFUSAL + b" half a minute", None, 30.0),
        (OKX_REFUSAL + b" half a minute", "12", 30.0),
        (OKX_REFUSAL + b" half a minute", "45", 45.0),
    ],
)
async def test_a_refusal_that_only_the_adapter_can_read_blocks_as_well(
    venue: Venue,
    make_client: Callable[..., RestClient],
    clock: Clock,
    status: int,
    body: bytes,
    header: str | None,
    seconds: float,
) -> None:
    client = make_client(clock, refusal=okx_refusal, on_answer=lambda *_: pytest.fail("no answer"))
    headers: dict[str, Any] = {} if header is None else {"Retry_After": header}
    venue.answer(status, body, **headers)
    with pytest.raises(RateLimitedError, match="Too Many Requests") as caught:
        await client.get(REQUEST)
    assert caught.value.retry_after == seconds
    assert client.budget.wait_seconds(1) == pytest.approx(seconds)
    assert client.budget.rate_limited == 1


async def test_http_429_is_a_refusal_whatever_the_adapter_says(
    venue: Venue, make_client: Callable[..., RestClient]
) -> None:
    venue.answer(429, b"<html>")
    with pytest.raises(RateLimitedError):
        await make_client(refusal=okx_refusal).get(REQUEST)


async def test_a_good_answer_is_no_refusal(
    venue: Venue, make_client: Callable[..., RestClient]
) -> None:
    client = make_client(refusal=okx_refusal)
    venue.answer(200, b'{"code":"0","data":[]}')
    await client.get(REQUEST)
    venue.answer(200, b'{"code":"0","data":["' + b"x" * 5000 + b'"code":"50011"]}')
    await client.get(REQUEST)
    assert client.budget.blocked_seconds == 0


async def test_a_request_waits_by_its_priority(
    venue: Venue, make_client: Callable[..., RestClient]
) -> None:
    client = make_client()
    client.budget.share = 0.0
    venue.answer(200)
    await client.get(REQUEST, Priority.POLL)
    waiting = asyncio.create_task(client.get(REQUEST, Priority.POLL))
    await client.get(REQUEST)
    assert not waiting.done()
    waiting.cancel()


async def test_nobody_who_listens_is_an_error() -> None:
    async with aiohttp.ClientSession() as session:
        client = RestClient("http://127.0.0.1:1", session, RequestBudget(6000), 5.0)
        with pytest.raises(RestError, match="/api/v3/depth"):
            await client.get(REQUEST)
