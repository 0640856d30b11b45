"""ListCandles and GetStatistics answer exactly what the trades held give, rolled up or not."""

import math
from collections.abc import AsyncIterator, Sequence
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from marketprism.collector.v1 import integrity_event_pb2
from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.history.v1.store_pb2 import Statistics
from marketprism.market.v1 import common_pb2, events_pb2, instrument_pb2

from services.shared.cache import Cache, MemoryStore
from services.shared.errors import InvalidArgument, NotFound
from services.shared.telemetry import Metrics
from services.storage.candle_calls import SETTLE_SECONDS, CandleCalls
from services.storage.engine import Engine
from services.storage.http_cache import Answers
from services.storage.known import KnownInstruments
from services.storage.rollup_sql import ROLLUP_TABLES
from services.storage.rollups import Rollups
from services.storage.statistics_calls import MINUTES_OF_A_YEAR, StatisticsCalls
from tests.integration.storage.rollup_tools import (
    BEGIN,
    BUY,
    DAY,
    NANOS,
    SELL,
    instrument,
    last_of_each,
    naive_candle,
    naive_candles,
    store,
    trade,
)
from tests.integration.storage.store_tools import make_answers, no_context, open_store

SPOT, INVERSE = "BTC-USDT", "BTC-USD-PERP"
NOW = (BEGIN + 40 * DAY) * NANOS


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with open_store(tmp_path) as engine:
        await store(
            engine,
            "instrument",
            [
                (1, instrument(SPOT, instrument_pb2.QUANTITY_UNIT_BASE)),
                (2, instrument(INVERSE, instrument_pb2.QUANTITY_UNIT_QUOTE)),
            ],
        )
        yield engine


def candle_calls(engine: Engine, now: int = NOW) -> CandleCalls:
    answers = make_answers(changing_seconds=0, settled_seconds=0)
    return CandleCalls(engine, KnownInstruments(engine), answers, now=lambda: now)


async def ask(calls: CandleCalls, **fields: Any) -> pb.ListCandlesResponse:
    seconds = fields.pop("interval", None)
    if isinstance(seconds, int):
        fields["interval"] = Duration(seconds=seconds)
    elif seconds is not None:
        fields["interval"] = seconds
    request = pb.ListCandlesRequest(**{"exchange": "binance", "symbol": SPOT, **fields})
    return pb.ListCandlesResponse.FromString(await calls.ListCandles(request, no_context()))


async def pages(calls: CandleCalls, **fields: Any) -> list[events_pb2.Candle]:
    found: list[events_pb2.Candle] = []
    token = ""
    for _ in range(200):
        answer = await ask(calls, page_token=token, **fields)
        assert len(answer.candles) <= fields.get("page_size", 1000)
        found += answer.candles
        token = answer.next_page_token
        if not token:
            return found
    raise AssertionError("the pages do not end")


def moment(seconds: float) -> Any:
    whole = int(seconds)
    return {"seconds": whole, "nanos": round((seconds - whole) * NANOS)}


def text(value: Decimal) -> str:
    plain = f"{value:f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def rounded(value: Decimal, digits: int) -> str:
    with localcontext() as context:
        context.prec = 150
        return text(value.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_EVEN))


def expected_candle(
    symbol: str, begin: int, interval: int, values: dict[str, Any], closed: bool
) -> events_pb2.Candle:
    if symbol == INVERSE:
        base = rounded(values["volume_over_price"], 18)
        bought = rounded(values["taker_buy_volume_over_price"], 18)
        quote, bought_quote = values["volume"], values["taker_buy_volume"]
    else:
        base, bought = text(values["volume"]), text(values["taker_buy_volume"])
        quote = values["volume_times_price"]
        bought_quote = values["taker_buy_volume_times_price"]
    sideless = values["sideless_trades"]
    candle = events_pb2.Candle(
        exchange="binance",
        symbol=symbol,
        interval=Duration(seconds=interval),
        open_time=moment(begin),
        close_time=moment(begin + interval),
        open_price=text(values["open_price"]),
        high_price=text(values["high_price"]),
        low_price=text(values["low_price"]),
        close_price=text(values["close_price"]),
        base_volume=base,
        quote_volume=text(quote),
        taker_buy_base_volume="" if sideless else bought,
        taker_buy_quote_volume="" if sideless else text(bought_quote),
        trade_count=values["trade_count"],
        closed=closed,
    )
    candle.exchange_time.FromNanoseconds(values["last_time"])
    candle.receive_time.FromNanoseconds(values["last_receive_time"])
    return candle


TIMES = st.builds(
    lambda day, second, nanos: (BEGIN + day * DAY + second) * NANOS + nanos,
    st.sampled_from([0, 1, 2, 9]),
    st.sampled_from([0, 1, 59, 60, 61, 119, 299, 300, 3599, 3600, 14400, DAY - 1]),
    st.sampled_from([0, 7, NANOS - 1]),
)
TRADES = st.builds(
    trade,
    time=TIMES,
    price=st.sampled_from(["0.5", "3", "7.000000000000000001", "61234.5"]),
    quantity=st.sampled_from(["0.000000000000000003", "1", "2.5", "1000"]),
    number=st.integers(1, 4),
    side=st.sampled_from([BUY, SELL, SELL, 0]),
    symbol=st.sampled_from([SPOT, INVERSE]),
    trade_count=st.integers(0, 3),
)
STEPS = st.lists(
    st.tuples(st.lists(TRADES, max_size=8), st.sampled_from(["nothing", "fine", "all"])),
    min_size=1,
    max_size=4,
)


async def fill(
    engine: Engine, steps: Sequence[tuple[list[events_pb2.Trade], str]]
) -> list[events_pb2.Trade]:
    """Store trades in steps, of which some are rolled up, some in part, and some not."""
    for table in (*ROLLUP_TABLES, "trade", "applied_rollup"):
        await engine.command(f"TRUNCATE TABLE {table}")
    rollups = Rollups(engine)
    inserted: list[events_pb2.Trade] = []
    for trades, then in steps:
        await store(engine, "trade", enumerate(trades, len(inserted) + 1))
        inserted += trades
        if then == "fine":
            await rollups.step_fine()
        elif then == "all":
            await rollups.catch_up()
    await rollups.close()
    return inserted


HYPOTHESIS = settings(
    # Each example asks a database: shrinking one would take minutes.
    phases=[Phase.explicit, Phase.generate],
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@HYPOTHESIS
@given(
    steps=STEPS,
    interval=st.sampled_from([1, 7, 60, 90, 300, 900, 3600, 5400, 14400, DAY, 2 * DAY, 31 * DAY]),
    symbol=st.sampled_from([SPOT, INVERSE]),
    size=st.sampled_from([1, 2, 5, 1000]),
    descending=st.booleans(),
    start=st.sampled_from([None, 0, 1, 60, DAY]),
    end=st.sampled_from([None, 61, 3600, DAY, 3 * DAY]),
)
async def test_candles_equal_the_trades_held(
    engine: Engine,
    steps: list[tuple[list[events_pb2.Trade], str]],
    interval: int,
    symbol: str,
    size: int,
    descending: bool,
    start: int | None,
    end: int | None,
) -> None:
    """At any interval, page by page, rolled up wholly, in part or not at all."""
    if start is not None and end is not None and start >= end:
        end = start + 5
    inserted = [each for each in await fill(engine, steps) if each.symbol == symbol]
    calls = candle_calls(engine)
    fields: dict[str, Any] = {"interval": interval, "symbol": symbol, "page_size": size}
    if start is not None:
        fields["start_time"] = moment(BEGIN + start)
    if end is not None:
        fields["end_time"] = moment(BEGIN + end)
    found = await pages(calls, **fields, descending=descending, source=pb.CANDLE_SOURCE_TRADES)
    low = 0 if start is None else BEGIN + start
    high = NOW // NANOS if end is None else BEGIN + end
    expected = [
        expected_candle(
            symbol,
            begin,
            interval,
            values,
            begin + interval <= NOW // NANOS - SETTLE_SECONDS,
        )
        for (_, _, begin), values in sorted(naive_candles(inserted, interval).items())
        if low <= begin < high
    ]
    assert found == (expected[::-1] if descending else expected)


@HYPOTHESIS
@given(
    steps=STEPS,
    interval=st.sampled_from([3600, DAY]),
    size=st.sampled_from([50, 100]),
    descending=st.booleans(),
    start=st.sampled_from([None, 0, 3600, 26 * 3600]),
    end=st.sampled_from([30 * 3600, 3 * DAY, 12 * DAY]),
)
async def test_filled_candles_have_no_holes(
    engine: Engine,
    steps: list[tuple[list[events_pb2.Trade], str]],
    interval: int,
    size: int,
    descending: bool,
    start: int | None,
    end: int,
) -> None:
    """From the first trade on, each interval has a candle; a flat one stands at the last price."""
    inserted = [each for each in await fill(engine, steps) if each.symbol == SPOT]
    fields: dict[str, Any] = {} if start is None else {"start_time": moment(BEGIN + start)}
    found = await pages(
        candle_calls(engine),
        interval=interval,
        page_size=size,
        descending=descending,
        end_time=moment(BEGIN + end),
        fill_empty=True,
        source=pb.CANDLE_SOURCE_TRADES,
        **fields,
    )
    held = {begin: values for (_, _, begin), values in naive_candles(inserted, interval).items()}
    expected = []
    price = ""
    begin = min(held, default=BEGIN + end)
    while begin < BEGIN + end:
        if begin in held:
            values = held[begin]
            price = text(values["close_price"])
            expected.append(expected_candle(SPOT, begin, interval, values, True))
        else:
            expected.append(flat(begin, interval, price))
        begin += interval
    low = 0 if start is None else BEGIN + start
    expected = [each for each in expected if each.open_time.seconds >= low]
    assert found == (expected[::-1] if descending else expected)


def flat(begin: int, interval: int, price: str) -> events_pb2.Candle:
    return events_pb2.Candle(
        exchange="binance",
        symbol=SPOT,
        interval=Duration(seconds=interval),
        open_time=moment(begin),
        close_time=moment(begin + interval),
        open_price=price,
        high_price=price,
        low_price=price,
        close_price=price,
        base_volume="0",
        quote_volume="0",
        taker_buy_base_volume="0",
        taker_buy_quote_volume="0",
        closed=True,
    )


async def test_weeks_begin_on_mondays(engine: Engine) -> None:
    """2026-11-24 is a Tuesday; its week began the day before."""
    await store(engine, "trade", [(1, trade(BEGIN * NANOS))])
    found = await ask(candle_calls(engine), interval=7 * DAY, source=pb.CANDLE_SOURCE_TRADES)
    assert [each.open_time.ToJsonString() for each in found.candles] == ["2026-11-23T00:00:00Z"]


async def test_the_open_candle_is_there_and_open(engine: Engine) -> None:
    """The current bucket is computed when it is asked for, and closes only when it is settled."""
    await store(engine, "trade", [(1, trade((BEGIN + 30) * NANOS))])
    for seconds, closed in ((31, False), (60, False), (60 + SETTLE_SECONDS, True)):
        found = await ask(candle_calls(engine, (BEGIN + seconds) * NANOS))
        assert [each.closed for each in found.candles] == [closed], f"{seconds} s"


async def test_a_candle_stays_open_while_its_trades_wait(engine: Engine) -> None:
    """A backlog keeps candles open, but not longer than the broker holds trades."""
    await store(engine, "trade", [(1, trade((BEGIN + 30) * NANOS))])
    waiting = (BEGIN + 40) * NANOS
    answers = Answers(
        Cache(MemoryStore(1), "history", "test", metrics=Metrics("storage")),
        stored_until=lambda: waiting,
    )
    for later, closed in ((3600, False), (DAY + 60, True)):
        calls = CandleCalls(
            engine,
            KnownInstruments(engine),
            answers,
            now=lambda seconds=BEGIN + later: seconds * NANOS,  # type: ignore[misc]
        )
        assert [each.closed for each in (await ask(calls, page_size=2)).candles] == [closed]


async def test_nothing_is_filled_into_the_future(engine: Engine) -> None:
    """Of what is still to come nobody knows that nothing was traded."""
    await store(engine, "trade", [(1, trade(BEGIN * NANOS))])
    found = await ask(
        candle_calls(engine, (BEGIN + 130) * NANOS),
        fill_empty=True,
        end_time=moment(BEGIN + DAY),
    )
    begins = [each.open_time.seconds - BEGIN for each in found.candles]
    assert begins == [0, 60, 120]
    assert [each.closed for each in found.candles] == [True, True, False]


def venue_candle(
    begin: int, interval: int, close: str, received: int, **fields: Any
) -> events_pb2.Candle:
    made = events_pb2.Candle(
        exchange="binance",
        symbol=SPOT,
        interval=Duration(seconds=interval),
        open_time=moment(begin),
        close_time=moment(begin + interval),
        open_price="1",
        high_price="9",
        low_price="1",
        close_price=close,
        base_volume="5",
        quote_volume="25",
        **fields,
    )
    made.receive_time.FromNanoseconds(received)
    made.exchange_time.FromNanoseconds(received)
    return made


async def test_the_venues_candles_are_their_last_states(engine: Engine) -> None:
    """Of a candle that was published again and again, the newest state is the answer."""
    states = [
        venue_candle(BEGIN, 60, "2", 10),
        venue_candle(BEGIN, 60, "4", 30, closed=True),
        venue_candle(BEGIN, 60, "3", 20),
        venue_candle(BEGIN + 120, 60, "5", 40),
        venue_candle(BEGIN, 3600, "6", 50),
    ]
    await store(engine, "candle", enumerate(states, 1))
    await store(engine, "trade", [(1, trade(BEGIN * NANOS))])
    calls = candle_calls(engine)
    for source in (pb.CANDLE_SOURCE_VENUE, pb.CANDLE_SOURCE_UNSPECIFIED):
        assert await pages(calls, source=source, page_size=1) == [states[1], states[3]]
        assert await pages(calls, source=source, descending=True) == [states[3], states[1]]
    filled = await pages(calls, fill_empty=True, end_time=moment(BEGIN + 180))
    assert [each.close_price for each in filled] == ["4", "4", "5"]
    assert filled[1].base_volume == "0"
    # The venue has none of that length, so they come from trades.
    built = await ask(calls, interval=7)
    assert [each.trade_count for each in built.candles] == [1]
    with pytest.raises(InvalidArgument, match=r"interval.*60 s, 3600 s") as refused:
        await ask(calls, interval=7, source=pb.CANDLE_SOURCE_VENUE)
    assert [each.field for each in refused.value.violations] == ["interval"]


async def test_candles_name_the_gaps_that_touch_them(engine: Engine) -> None:
    """A gap in the trades is a hole in the candles, and is told with them."""
    gap = integrity_event_pb2.IntegrityEvent(
        exchange="binance",
        symbol=SPOT,
        event_id="gap-1",
        kind=integrity_event_pb2.INTEGRITY_KIND_GAP,
        event_kind=common_pb2.EVENT_KIND_TRADE,
        receive_time=moment(BEGIN + 90),
        begin_time=moment(BEGIN + 70),
        end_time=moment(BEGIN + 80),
    )
    await store(engine, "integrity", [(1, gap)])
    held = [trade((BEGIN + second) * NANOS) for second in (0, 61, 200)]
    await store(engine, "trade", enumerate(held, 1))
    calls = candle_calls(engine)
    end = moment(BEGIN + 3600)
    first = await ask(calls, page_size=1, start_time=moment(BEGIN), end_time=end)
    assert not first.gaps
    second = await ask(
        calls, page_size=1, start_time=moment(BEGIN), end_time=end,
        page_token=first.next_page_token,
    )  # fmt: skip
    assert list(second.gaps) == [gap]
    figures = await statistics(engine, start_time=moment(BEGIN), end_time=end)
    assert figures.gaps == 1
    assert not (await statistics(engine, end_time=moment(BEGIN + 60))).gaps


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"interval": Duration(nanos=5)}, "interval"),
        ({"interval": Duration(seconds=1, nanos=5)}, "interval"),
        ({"interval": 31 * DAY + 1}, "interval"),
        ({"interval": -60}, "interval"),
        ({"source": 9}, "source"),
        ({"page_size": 10_001}, "page_size"),
        ({"page_token": "nonsense"}, "page_token"),
        ({"start_time": moment(5), "end_time": moment(5)}, "start_time"),
        ({"exchange": "bin ance"}, "exchange"),
    ],
)
async def test_bad_requests_name_the_field(
    engine: Engine, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await ask(candle_calls(engine), **fields)
    assert [each.field for each in refused.value.violations] == [field]


async def test_unknown_instruments_are_not_empty(engine: Engine) -> None:
    for fields in ({"symbol": "NO-SUCH"}, {"exchange": "nowhere"}):
        with pytest.raises(NotFound):
            await ask(candle_calls(engine), **fields)
        with pytest.raises(NotFound):
            await statistics(engine, **fields)


async def statistics(engine: Engine, **fields: Any) -> Statistics:
    answers = make_answers(changing_seconds=0, settled_seconds=0)
    calls = StatisticsCalls(engine, KnownInstruments(engine), answers, now=lambda: NOW)
    request = pb.GetStatisticsRequest(**{"exchange": "binance", "symbol": SPOT, **fields})
    data = await calls.GetStatistics(request, no_context())
    return pb.GetStatisticsResponse.FromString(data).statistics


def naive_volatility(trades: Sequence[events_pb2.Trade]) -> float | None:
    closes = {each.exchange_time.seconds // 60: float(each.price) for each in trades}
    if len(closes) < 2:
        return None
    returns, price = [], closes[min(closes)]
    for minute in range(min(closes) + 1, max(closes) + 1):
        returns.append(math.log(closes.get(minute, price) / price))
        price = closes.get(minute, price)
    mean = math.fsum(returns) / len(returns)
    variance = math.fsum((each - mean) ** 2 for each in returns) / len(returns)
    return math.sqrt(variance * MINUTES_OF_A_YEAR) * 100


@HYPOTHESIS
@given(
    steps=STEPS,
    symbol=st.sampled_from([SPOT, INVERSE]),
    start=st.sampled_from([None, 0.0, 0.5, 1.0, 59.000000007, 61.0, DAY - 0.5]),
    length=st.sampled_from([None, 0.25, 1.0, 2.5, 61.0, 3600.75, float(DAY), 5.0 * DAY]),
)
async def test_statistics_equal_the_trades_held(
    engine: Engine,
    steps: list[tuple[list[events_pb2.Trade], str]],
    symbol: str,
    start: float | None,
    length: float | None,
) -> None:
    """Over any range, cut at any nanosecond, rolled up or not."""
    inserted = [each for each in await fill(engine, steps) if each.symbol == symbol]
    fields: dict[str, Any] = {"symbol": symbol}
    low, high = 0, NOW
    if start is not None:
        fields["start_time"] = moment(BEGIN + start)
        low = fields["start_time"]["seconds"] * NANOS + fields["start_time"]["nanos"]
    if length is not None:
        fields["end_time"] = moment(BEGIN + (start or 0) + length)
        high = fields["end_time"]["seconds"] * NANOS + fields["end_time"]["nanos"]
    figures = await statistics(engine, **fields)
    trades = [
        each for each in last_of_each(inserted)
        if low <= each.exchange_time.ToNanoseconds() < high
    ]  # fmt: skip
    assert figures.end_time.ToNanoseconds() == high
    if not trades:
        assert (figures.trade_count, figures.open_price, figures.base_volume) == (0, "", "0")
        return
    values = naive_candle(trades)
    candle = expected_candle(symbol, BEGIN, 60, {**values, "sideless_trades": 0}, True)
    for name in ("open_price", "high_price", "low_price", "close_price", "base_volume",
                 "quote_volume", "taker_buy_base_volume", "trade_count"):  # fmt: skip
        assert getattr(figures, name) == getattr(candle, name), name
    assert figures.largest_quantity == text(values["largest_quantity"])
    with localcontext() as context:
        context.prec = 150
        change = values["close_price"] - values["open_price"]
        base, quote = values["volume"], values["volume_times_price"]
        if symbol == INVERSE:
            base, quote = values["volume_over_price"], values["volume"]
        assert figures.price_change == text(change)
        assert figures.weighted_average_price == rounded(quote / base, 18)
        percent = change * 100 / values["open_price"]
        assert figures.price_change_percent == rounded(percent, 6)
    first = trades[0].exchange_time.ToNanoseconds()
    assert figures.start_time.ToNanoseconds() == (first if start is None else low)
    volatility = naive_volatility(trades)
    if volatility is None:
        assert figures.realised_volatility == ""
    else:
        assert float(figures.realised_volatility) == pytest.approx(volatility, rel=1e-9, abs=2e-6)
