"""Polls are spread over time, never pile up, make way for refusals, and are never given up."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from marketprism.market.v1 import common_pb2

from services.collector.polling import Poller
from services.collector.rest import RateLimitedError, RestError
from services.collector.venues.base import MalformedFrameError, Poll, RestRequest
from tests.unit.collector.fake_time import FakeTime

OPEN_INTEREST = common_pb2.EVENT_KIND_OPEN_INTEREST
FUNDING = common_pb2.EVENT_KIND_FUNDING_RATE


def make_poll(symbol: str, every: float = 60.0, path: str = "/openInterest") -> Poll:
    return Poll(OPEN_INTEREST, RestRequest(path, 1, {"symbol": symbol}), every, symbol)


class Venue:
    """Answers as the test says, and remembers when it was asked what."""

    def __init__(self, time: FakeTime) -> None:
        self.time = time
        self.asked: list[tuple[float, str]] = []
        self.answers: list[str] = []
        self.errors: list[tuple[str, str]] = []
        self.answer: Callable[[str], bytes] = lambda _: b"{}"
        self.on_answer: Callable[[Poll], None] = lambda _: None
        self.seconds = 0.0
        self.in_flight: dict[str, int] = {}
        self.most_in_flight = 0
        self.poller = Poller(
            self._fetch, self._on_answer, self._on_error, clock=time, sleep=time.sleep
        )

    async def _fetch(self, request: RestRequest) -> tuple[bytes, int]:
        symbol = request.query["symbol"]
        self.asked.append((self.time.now, symbol))
        self.in_flight[symbol] = self.in_flight.get(symbol, 0) + 1
        self.most_in_flight = max(self.most_in_flight, sum(self.in_flight.values()))
        assert self.in_flight[symbol] == 1, "expected one request of a poll at a time"
        try:
            if self.seconds:
                await self.time.sleep(self.seconds)
            return self.answer(symbol), 17
        finally:
            self.in_flight[symbol] -= 1

    def _on_answer(self, poll: Poll, body: bytes, receive_time: int) -> None:
        assert receive_time == 17
        self.on_answer(poll)
        self.answers.append(poll.native_symbol)

    def _on_error(self, poll: Poll, error: Exception) -> None:
        self.errors.append((poll.native_symbol, str(error)))

    def times(self, symbol: str) -> list[float]:
        return [when for when, asked in self.asked if asked == symbol]


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
async def venue(time: FakeTime) -> AsyncIterator[Venue]:
    venue = Venue(time)
    task = asyncio.create_task(venue.poller.run())
    yield venue
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(venue.in_flight.values()), "expected no request left behind"


def raising(error: Exception) -> Callable[[str], bytes]:
    def answer(_: str) -> bytes:
        raise error

    return answer


async def test_polls_are_spread_over_their_interval(time: FakeTime, venue: Venue) -> None:
    names = [f"S{index}" for index in range(240)]
    venue.poller.set_polls([make_poll(name) for name in names])
    await time.advance(180)
    venue.asked.clear()
    await time.advance(60)
    assert sorted(symbol for _, symbol in venue.asked) == sorted(names)
    for second in range(0, 60, 5):
        count = sum(1180 + second <= when < 1185 + second for when, _ in venue.asked)
        assert 5 <= count <= 40, f"expected about 20 of 240 requests in five seconds, got {count}"


async def test_each_keeps_its_own_time_for_ever(time: FakeTime, venue: Venue) -> None:
    venue.poller.set_polls([make_poll(f"S{index}") for index in range(50)])
    await time.advance(1000)
    for index in range(50):
        asked = venue.times(f"S{index}")[1:]
        assert len(asked) >= 15
        assert {round((when - asked[0]) % 60) % 60 for when in asked} == {0}


async def test_a_few_polls_begin_soon(time: FakeTime, venue: Venue) -> None:
    venue.poller.set_polls([make_poll("A", 3600), make_poll("B", 3600), make_poll("C", 3600)])
    await time.advance(5)
    assert sorted(symbol for _, symbol in venue.asked) == ["A", "B", "C"]
    await time.advance(7195)
    for symbol in "ABC":
        first, second, *_ = venue.times(symbol)
        assert 1800 <= second - first <= 5400


async def test_the_times_are_the_same_in_every_process() -> None:
    asked = []
    for start in (1000.0, 1013.0):
        time = FakeTime(start)
        venue = Venue(time)
        task = asyncio.create_task(venue.poller.run())
        venue.poller.set_polls([make_poll("A"), make_poll("B")])
        await time.advance(300)
        asked.append([round(venue.times(symbol)[-1] % 60, 6) for symbol in "AB"])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert asked[0] == asked[1]
    assert asked[0][0] != asked[0][1]


async def test_those_that_stay_keep_their_times(time: FakeTime, venue: Venue) -> None:
    venue.poller.set_polls([make_poll("A"), make_poll("B")])
    await time.advance(150)
    venue.poller.set_polls([make_poll("C"), make_poll("A")])
    before, count = venue.times("A")[-1], len(venue.times("B"))
    await time.advance(150)
    after = [round(when - before) for when in venue.times("A") if when > before]
    assert after[:2] == [60, 120]
    assert len(venue.times("B")) == count
    assert venue.times("C")[0] < 1151


async def test_a_slow_answer_is_waited_for(time: FakeTime, venue: Venue) -> None:
    venue.seconds = 100.0
    venue.poller.set_polls([make_poll("A", 30)])
    await time.advance(1000)
    assert 6 <= len(venue.asked) <= 10


async def test_only_so_many_run_at_once(time: FakeTime, venue: Venue) -> None:
    venue.seconds = 50.0
    venue.poller.set_polls([make_poll(f"S{index}", 60) for index in range(20)])
    await time.advance(600)
    assert venue.most_in_flight == 4
    counts = [len(venue.times(f"S{index}")) for index in range(20)]
    assert min(counts) >= 2, f"expected everyone to get a turn, got {counts}"
    assert venue.poller.status().late > 0


@pytest.mark.parametrize(
    "error", [RestError("HTTP 500"), ValueError("anything"), MalformedFrameError("no JSON")]
)
async def test_what_fails_waits_longer_and_longer_and_comes_back(
    time: FakeTime, venue: Venue, error: Exception
) -> None:
    venue.poller.set_polls([make_poll("A", 10)])
    venue.answer = raising(error)
    await time.advance(600)
    gaps = [round(b - a) for (a, _), (b, _) in zip(venue.asked, venue.asked[1:], strict=False)]
    assert gaps[1:] == sorted(gaps[1:])
    assert gaps[-1] == 100, f"expected ten intervals at the longest, got {gaps}"
    assert len(venue.errors) == len(venue.asked)
    (status,) = venue.poller.polls()
    assert status.failures == status.failures_in_a_row == len(venue.asked)
    assert status.last_error == str(error)
    venue.answer = lambda _: b"{}"
    await time.advance(120)
    venue.asked.clear()
    await time.advance(100)
    assert len(venue.asked) == 10
    assert venue.poller.polls()[0].last_error == ""


async def test_an_answer_that_cannot_be_read_is_a_failure(time: FakeTime, venue: Venue) -> None:
    def unreadable(_: Poll) -> None:
        raise MalformedFrameError("expected a number")

    venue.on_answer = unreadable
    venue.poller.set_polls([make_poll("A", 10)])
    await time.advance(50)
    assert venue.errors[0] == ("A", "expected a number")
    assert venue.poller.failures == {"open_interest": len(venue.asked)}


async def test_a_listener_that_breaks_does_not_end_the_polling(
    time: FakeTime, venue: Venue
) -> None:
    venue.poller._on_error = raising(RuntimeError("bug"))  # type: ignore[assignment]
    venue.answer = raising(RestError("no"))
    venue.poller.set_polls([make_poll("A", 10)])
    await time.advance(100)
    assert len(venue.asked) > 3


async def test_one_that_fails_does_not_hold_up_the_others(time: FakeTime, venue: Venue) -> None:
    def answer(symbol: str) -> bytes:
        if symbol == "bad":
            raise RestError("HTTP 400")
        return b"{}"

    venue.answer = answer
    venue.poller.set_polls([make_poll("bad", 10), make_poll("good", 10)])
    await time.advance(1000)
    assert len(venue.times("good")) >= 99


async def test_a_refusal_stops_all_for_as_long_as_the_venue_says(
    time: FakeTime, venue: Venue
) -> None:
    venue.poller.set_polls([make_poll(f"S{index}", 10) for index in range(10)])
    await time.advance(20)
    venue.answer = raising(RateLimitedError("HTTP 429", 40.0))
    venue.asked.clear()
    while not venue.errors:
        await time.advance(0.1)
    refused = time.now
    assert 39 < venue.poller.status().paused_seconds <= 40
    venue.answer = lambda _: b"{}"
    count = len(venue.asked)
    await time.advance(39.5)
    assert len(venue.asked) == count, "expected no request until the venue allows them again"
    await time.advance(1.5)
    after = [when - refused for when, _ in venue.asked[count:]]
    assert after, "expected the polling to go on"
    assert len(after) <= 4, "expected what is due not to be asked for all at once"
    await time.advance(10)
    assert {symbol for _, symbol in venue.asked[count:]} == {f"S{index}" for index in range(10)}
    assert venue.poller.status().failing == 0, "expected a refusal not to count as a failure"


async def test_a_venue_that_goes_on_refusing_is_asked_less_and_less(
    time: FakeTime, venue: Venue
) -> None:
    venue.answer = raising(RateLimitedError("HTTP 429", 1.0))
    venue.poller.set_polls([make_poll(f"S{index}", 1) for index in range(10)])
    await time.advance(3600)
    assert len(venue.asked) < 40
    assert venue.poller.status().refusals == len(venue.asked)
    venue.answer = lambda _: b"{}"
    await time.advance(301)
    venue.asked.clear()
    await time.advance(10)
    assert len(venue.asked) >= 90, "expected the usual pace after an answer"


async def test_what_is_no_longer_wanted_is_cancelled_and_its_answer_dropped(
    time: FakeTime, venue: Venue
) -> None:
    venue.seconds = 100.0
    venue.poller.set_polls([make_poll("A"), make_poll("B")])
    await time.advance(5)
    assert venue.poller.status().in_flight == 2
    venue.poller.set_polls([make_poll("B")])
    await time.advance(0)
    assert venue.poller.status().in_flight == 1
    await time.advance(1000)
    assert "A" not in venue.answers
    assert len(venue.times("A")) == 1
    venue.poller.set_polls([])
    await time.advance(1000)
    assert venue.poller.status().in_flight == 0
    assert venue.poller.polls() == []


async def test_a_shorter_interval_counts_at_once(time: FakeTime, venue: Venue) -> None:
    venue.poller.set_polls([make_poll("A", 3600)])
    await time.advance(10)
    venue.poller.set_polls([make_poll("A", 10)])
    venue.asked.clear()
    await time.advance(100)
    assert len(venue.asked) == 10


async def test_one_request_may_bring_several_kinds(time: FakeTime, venue: Venue) -> None:
    request = RestRequest("/premiumIndex", 1, {"symbol": "A"})
    venue.poller.set_polls([Poll(OPEN_INTEREST, request, 10, "A"), Poll(FUNDING, request, 10, "B")])
    venue.answer = lambda _: b"{}"
    venue.poller._at_once = 1
    await time.advance(100)
    assert venue.poller.requests.keys() == {"open_interest", "funding_rate"}


async def test_it_tells_how_it_goes(time: FakeTime, venue: Venue) -> None:
    venue.poller.set_polls([make_poll("A", 10), make_poll("B", 20)])
    (one, _) = venue.poller.polls()
    assert one.answered_seconds == float("inf")
    await time.advance(100)
    status = venue.poller.status()
    assert (status.polls, status.in_flight, status.late, status.failing) == (2, 0, 0, 0)
    assert status.weight_per_second == pytest.approx(0.15)
    assert status.requests == {"open_interest": len(venue.asked)}
    assert status.failures == {}
    assert status.paused_seconds == 0.0
    one, other = venue.poller.polls()
    assert (one.native_symbol, one.every_seconds, other.native_symbol) == ("A", 10, "B")
    assert 0 < one.due_seconds <= 10
    assert 0 <= one.answered_seconds <= 10
