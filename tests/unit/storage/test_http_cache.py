import time
from typing import Any

import pytest
from marketprism.history.v1 import history_service_pb2 as pb

from services.shared.cache import Cache, MemoryStore
from services.shared.errors import NotFound
from services.shared.telemetry import Metrics
from services.storage.http_cache import (
    NOT_MODIFIED_KEY,
    Answers,
    AnswerSettings,
    contract_version,
    mark_immutable,
)

DAY = 86400
NOW = 1_700_000_000


class Call:
    """What a handler gets beside the request."""

    def __init__(self, *, rest: bool = True, if_none_match: str = "") -> None:
        self._metadata: list[tuple[str, str]] = []
        if rest:
            self._metadata.append(("x-envoy-original-path", "/api/v1/history/trades/v/S"))
        if if_none_match:
            self._metadata.append(("if-none-match", if_none_match))
        self.headers: dict[str, str] = {}

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self._metadata

    async def send_initial_metadata(self, metadata: Any) -> None:
        assert not self.headers, "initial metadata goes once"
        self.headers = dict(metadata)


class Bench:
    """Answers over a clock that stands, and a store that counts what is asked of it."""

    def __init__(self, **settings: Any) -> None:
        self.now = float(NOW)
        self.stored_until = float("inf")
        self.asked = 0
        self.gaps = 0
        store = MemoryStore(1 << 20, now=lambda: self.now)
        self.answers = Answers(
            Cache(store, "history", "1", metrics=Metrics("storage")),
            AnswerSettings(**settings),
            now=lambda: round(self.now * 1e9),
            stored_until=lambda: round(min(self.stored_until, self.now) * 1e9),
        )

    async def trades(
        self, end: float | None, symbol: str = "S", call: Call | None = None, **options: Any
    ) -> tuple[int, Call]:
        """Ask for trades until `end`; gives how often the store had been asked when it was made."""
        call = call or Call()
        request = pb.ListTradesRequest(exchange="v", symbol=symbol)
        if end is not None:
            request.end_time.FromNanoseconds(round(end * 1e9))

        async def compute() -> pb.ListTradesResponse:
            self.asked += 1
            answer = pb.ListTradesResponse(next_page_token=str(self.asked))
            for _ in range(self.gaps):
                answer.gaps.add()
            return answer

        context: Any = call
        encoded = await self.answers.cached(context, request, compute, **options)
        token = pb.ListTradesResponse.FromString(encoded).next_page_token
        return int(token or 0), call


@pytest.mark.parametrize("end", [None, NOW + 5, NOW, NOW - 119])
async def test_a_range_that_changes_is_kept_for_a_second(end: float | None) -> None:
    bench = Bench()
    assert (await bench.trades(end))[0] == 1
    bench.now += 0.9
    number, call = await bench.trades(end)
    assert (number, call.headers) == (1, {})
    bench.now += 0.2
    number, call = await bench.trades(end if end is None else end + 1.1)
    assert (number, call.headers) == (2, {})


async def test_a_settled_range_is_kept_long() -> None:
    bench = Bench()
    assert (await bench.trades(NOW - 120))[0] == 1
    bench.now += 3599
    assert (await bench.trades(NOW - 120))[0] == 1
    bench.now += 2
    assert (await bench.trades(NOW - 120))[0] == 2


async def test_http_caches_are_told_by_age() -> None:
    bench = Bench()
    for age, expected in [
        (119, None),
        (120, "public, max-age=10"),
        (3599, "public, max-age=10"),
        (3600, "public, max-age=86400, immutable"),
    ]:
        _, call = await bench.trades(NOW - age)
        assert call.headers.get("cache-control") == expected, age
        assert ("etag" in call.headers) == (expected is not None), age


async def test_a_range_with_a_gap_may_still_be_filled() -> None:
    bench = Bench()
    bench.gaps = 1
    for age, expected in [
        (3600, "public, max-age=10"),
        (2 * DAY - 1, "public, max-age=10"),
        (2 * DAY, "public, max-age=86400, immutable"),
    ]:
        _, call = await bench.trades(NOW - age)
        assert call.headers["cache-control"] == expected, age


async def test_what_is_never_filled_is_immutable_in_spite_of_a_gap() -> None:
    bench = Bench()
    bench.gaps = 1
    _, call = await bench.trades(NOW - 3600, may_be_filled=False)
    assert call.headers["cache-control"] == "public, max-age=86400, immutable"


async def test_a_backlog_keeps_ranges_changing() -> None:
    bench = Bench()
    bench.stored_until = NOW - 2 * DAY
    _, call = await bench.trades(NOW - DAY)
    assert call.headers == {}
    bench.now += 1.1
    assert (await bench.trades(NOW - DAY))[0] == 2
    assert "etag" in (await bench.trades(NOW - 3 * DAY))[1].headers


async def test_late_rows_make_answers_about_their_instrument_void() -> None:
    bench = Bench()
    for symbol in ("S", "OTHER"):
        await bench.trades(NOW - DAY, symbol)
    await bench.answers.rows_inserted("v", "S", (NOW - DAY) * 10**9)
    assert (await bench.trades(NOW - DAY, "S"))[0] == 3
    assert (await bench.trades(NOW - DAY, "OTHER"))[0] == 2


async def test_rows_of_the_present_make_nothing_void() -> None:
    bench = Bench()
    await bench.trades(NOW - DAY)
    await bench.answers.rows_inserted("v", "S", (NOW - 5) * 10**9)
    assert (await bench.trades(NOW - DAY))[0] == 1


async def test_a_start_makes_everything_void() -> None:
    bench = Bench()
    await bench.trades(NOW - DAY)
    await bench.answers.begin()
    assert (await bench.trades(NOW - DAY))[0] == 2


async def test_the_tag_is_that_of_the_data_and_known_again() -> None:
    bench = Bench()
    _, first = await bench.trades(NOW - DAY)
    tag = first.headers["etag"]
    number, again = await bench.trades(NOW - DAY, call=Call(if_none_match=f'"x", {tag}'))
    assert (number, again.headers[NOT_MODIFIED_KEY], again.headers["etag"]) == (0, "1", tag)
    number, other = await bench.trades(NOW - DAY, call=Call(if_none_match='W/"x"'))
    assert number == 1
    assert NOT_MODIFIED_KEY not in other.headers


async def test_grpc_calls_get_no_headers_and_always_the_answer() -> None:
    bench = Bench()
    number, call = await bench.trades(NOW - DAY, call=Call(rest=False, if_none_match="*"))
    assert (number, call.headers) == (1, {})


async def test_refusals_are_not_kept() -> None:
    bench = Bench()
    context: Any = Call()
    request = pb.ListTradesRequest(exchange="v", symbol="S")
    request.end_time.FromNanoseconds(1)

    async def refuse() -> pb.ListTradesResponse:
        raise NotFound("no such instrument")

    for _ in range(2):
        with pytest.raises(NotFound):
            await bench.answers.cached(context, request, refuse)
    assert context.headers == {}


async def test_different_requests_have_different_answers() -> None:
    bench = Bench()
    numbers = [(await bench.trades(NOW - DAY - age))[0] for age in (0, 1, 0)]
    assert numbers == [1, 2, 1]


async def test_equal_fields_of_two_rpcs_are_two_answers() -> None:
    bench = Bench()
    await bench.trades(NOW - DAY)
    request = pb.ListTickersRequest(exchange="v", symbol="S")
    request.end_time.FromNanoseconds((NOW - DAY) * 10**9)
    context: Any = Call()

    async def compute() -> pb.ListTickersResponse:
        return pb.ListTickersResponse(next_page_token="tickers")

    encoded = await bench.answers.cached(context, request, compute)
    assert pb.ListTickersResponse.FromString(encoded).next_page_token == "tickers"


async def test_the_book_at_an_instant_goes_by_that_instant() -> None:
    bench = Bench()
    request = pb.GetOrderBookAtRequest(exchange="v", symbol="S")
    request.time.FromNanoseconds((NOW - DAY) * 10**9)
    call: Any = Call()

    async def compute() -> pb.GetOrderBookAtResponse:
        return pb.GetOrderBookAtResponse()

    await bench.answers.cached(call, request, compute, may_be_filled=False)
    assert "immutable" in call.headers["cache-control"]


async def test_marking_says_for_how_long() -> None:
    call: Any = Call()
    assert not await mark_immutable(call, b"data", 5, forever=False)
    assert call.headers["cache-control"] == "public, max-age=5"


def test_the_version_changes_with_the_schema() -> None:
    assert contract_version("1") == contract_version("1") != contract_version("2")


async def test_now_is_the_real_time_by_default() -> None:
    answers = Answers(
        Cache(MemoryStore(1 << 20), "history", "1", metrics=Metrics("storage")), AnswerSettings()
    )
    assert answers._age(time.time_ns()) < 60
