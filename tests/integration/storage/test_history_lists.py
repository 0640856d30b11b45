"""Lists of HistoryService give each stored event once, exactly, in order, page by page."""

import os
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from marketprism.collector.v1 import integrity_event_pb2
from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.market.v1 import common_pb2, events_pb2

from services.shared.errors import InvalidArgument, MarketPrismError, NotFound
from services.storage.engine import Engine
from services.storage.event_lists import EventLists
from services.storage.known import KnownInstruments
from services.storage.paging import Keyset, Place
from services.storage.settings import EngineSettings
from services.storage.tables import TABLES
from tests.integration.storage.store_tools import (
    fill,
    fill_folder,
    make_answers,
    no_context,
    open_store,
    timestamp,
    venue_events,
)

HOUR = 3_600_000_000_000
SECOND = 1_000_000_000
BEGIN = 1_795_478_400 * SECOND
NOW = BEGIN + 400 * 24 * HOUR
KEY: dict[str, Any] = {"exchange": "binance", "symbol": "BTC-USDT"}

LISTS: dict[str, tuple[Any, Any, str]] = {
    "trade": (pb.ListTradesRequest, pb.ListTradesResponse, "ListTrades"),
    "ticker": (pb.ListTickersRequest, pb.ListTickersResponse, "ListTickers"),
    "best_bid_offer": (
        pb.ListBestBidOffersRequest, pb.ListBestBidOffersResponse, "ListBestBidOffers",
    ),
    "funding_rate": (pb.ListFundingRatesRequest, pb.ListFundingRatesResponse, "ListFundingRates"),
    "mark_price": (pb.ListMarkPricesRequest, pb.ListMarkPricesResponse, "ListMarkPrices"),
    "index_price": (pb.ListIndexPricesRequest, pb.ListIndexPricesResponse, "ListIndexPrices"),
    "open_interest": (
        pb.ListOpenInterestsRequest, pb.ListOpenInterestsResponse, "ListOpenInterests",
    ),
    "liquidation": (pb.ListLiquidationsRequest, pb.ListLiquidationsResponse, "ListLiquidations"),
    "long_short_ratio": (
        pb.ListLongShortRatiosRequest, pb.ListLongShortRatiosResponse, "ListLongShortRatios",
    ),
    "volatility_index": (
        pb.ListVolatilityIndexesRequest, pb.ListVolatilityIndexesResponse, "ListVolatilityIndexes",
    ),
    "option_greeks": (pb.ListOptionGreeksRequest, pb.ListOptionGreeksResponse, "ListOptionGreeks"),
}  # fmt: skip


def make_lists(engine: Engine, now: int = NOW) -> EventLists:
    """Give the lists without a cache that would hide what was inserted."""
    answers = make_answers(changing_seconds=0, settled_seconds=0)
    return EventLists(engine, KnownInstruments(engine), answers, now=lambda: now)


async def ask(lists: EventLists, table: str, **fields: Any) -> Any:
    make, answer, method = LISTS[table]
    encoded = await getattr(lists, method)(make(**{**KEY, **fields}), no_context())
    return answer.FromString(encoded)


def items(answer: Message) -> list[Any]:
    return list(getattr(answer, answer.DESCRIPTOR.fields[0].name))


async def walk(lists: EventLists, table: str, size: int, **fields: Any) -> list[bytes]:
    """Give every event of every page."""
    found: list[bytes] = []
    token = ""
    while True:
        answer = await ask(lists, table, page_size=size, page_token=token, **fields)
        page = items(answer)
        assert len(page) <= size, "a page has at most page_size events"
        assert page or not token, "a token is given only when there is more"
        found += [each.SerializeToString() for each in page]
        token = answer.next_page_token
        if not token:
            return found


def trades(count: int, *, seed: int = 5) -> list[events_pb2.Trade]:
    """Make trades over 40 days in bursts, many of one instant, some of no exchange_time."""
    rng = random.Random(seed)
    made = []
    time = BEGIN
    for number in range(1, count + 1):
        time += rng.choice([0, 0, 0, 1, 1_000_000, 1_000_000, 30 * SECOND])
        if number % 500 == 0:
            time += 10 * 24 * HOUR
        each = events_pb2.Trade(
            **KEY,
            trade_id=str(number) if number % 7 else f"T-{number}",
            price=str(60_000 + rng.randrange(1000)),
            quantity="0.000000000000000001",
            side=common_pb2.SIDE_BUY,
        )
        if number % 11:
            each.exchange_time.FromNanoseconds(time)
        each.receive_time.FromNanoseconds(time if number % 11 == 0 else time + 5_000_000)
        made.append(each)
    return made


def time_of(event: Any) -> int:
    told = event.exchange_time if event.HasField("exchange_time") else event.receive_time
    return int(told.ToNanoseconds())


def trade_order(trade: events_pb2.Trade) -> tuple[int, int, str]:
    number = int(trade.trade_id) if trade.trade_id.isdigit() else 0
    return time_of(trade), number, "" if number else trade.trade_id


TRADES = trades(2000)
IN_ORDER = [each.SerializeToString() for each in sorted(TRADES, key=trade_order)]


def reference_events() -> dict[str, list[Any]]:
    """Make 60 events of each other kind, 20 minutes apart, two of each instant."""
    made: dict[str, list[Any]] = {}
    for name in LISTS:
        if name == "trade":
            continue
        events = []
        for number in range(60):
            event: Any = TABLES[name].message(**KEY)
            event.receive_time.FromNanoseconds(BEGIN + number // 2 * HOUR // 3)
            if name == "funding_rate":
                event.funding_rate = f"0.{number + 1:04}".rstrip("0")
                event.funding_time.FromNanoseconds(
                    BEGIN + (number // 2 * HOUR // 3 // (8 * HOUR) + 1) * 8 * HOUR
                )
            elif name == "long_short_ratio":
                event.kind = number % 3 + 1
                event.period.seconds = 300 if number % 2 else 3600
                event.ratio = str(number + 1)
            elif name == "best_bid_offer":
                event.venue_sequence = number
                event.bid_price = str(number + 1)
            events.append(event)
        made[name] = events
    return made


REFERENCE = reference_events()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a store with trades in many parts, and 60 events of each other kind."""
    made = tmp_path_factory.mktemp("store")
    shuffled = list(TRADES)
    random.Random(1).shuffle(shuffled)
    other = [events_pb2.Trade(**{**KEY, "symbol": "BTC-USDT-PERP"}, price="1", quantity="1")]
    other[0].receive_time.FromNanoseconds(BEGIN)
    fill_folder(
        made,
        {"trade": shuffled[:700]},
        # The same trades again, as a broker's second delivery or a backfill brings them.
        {"trade": shuffled[500:1400]},
        {"trade": shuffled[1400:], **REFERENCE},
        {"trade": other},
    )
    return made


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[Engine]:
    async with open_store(folder) as opened:
        yield opened


@pytest.fixture
def lists(engine: Engine) -> EventLists:
    return make_lists(engine)


@pytest.fixture
def closed_lists(tmp_path: Path) -> EventLists:
    """Give lists whose store is not open: what is refused must not need it."""
    return make_lists(Engine(EngineSettings(), tmp_path))


@pytest.mark.parametrize("size", [1999, 2000, 167])
@pytest.mark.parametrize("descending", [False, True])
async def test_pages_together_are_the_whole_list(
    lists: EventLists, size: int, descending: bool
) -> None:
    expected = IN_ORDER[::-1] if descending else IN_ORDER
    assert await walk(lists, "trade", size, descending=descending) == expected


@pytest.mark.parametrize("descending", [False, True])
async def test_trades_of_one_instant_are_told_apart_at_every_border(
    lists: EventLists, descending: bool
) -> None:
    """One event a page: each border lies within or beside an instant with several trades."""
    start, end = time_of(TRADES[480]), time_of(TRADES[515])
    expected = [
        each.SerializeToString()
        for each in sorted(TRADES, key=trade_order)
        if start <= time_of(each) < end
    ]
    times = [time_of(each) for each in TRADES if start <= time_of(each) < end]
    assert len(set(times)) < len(times), "the test needs trades of one instant"
    found = await walk(
        lists, "trade", 1,
        start_time=timestamp(start), end_time=timestamp(end), descending=descending,
    )  # fmt: skip
    assert found == (expected[::-1] if descending else expected)


@pytest.mark.parametrize("index", [0, 250, 499, 500, 1999])
async def test_a_range_has_its_begin_and_not_its_end_to_the_nanosecond(
    lists: EventLists, index: int
) -> None:
    time = time_of(TRADES[index])
    at = [each for each in TRADES if time_of(each) == time]
    answer = await ask(lists, "trade", start_time=timestamp(time), end_time=timestamp(time + 1))
    assert sorted(t.trade_id for t in answer.trades) == sorted(t.trade_id for t in at)
    before = await ask(lists, "trade", end_time=timestamp(time), page_size=10_000)
    assert len(before.trades) == sum(time_of(each) < time for each in TRADES)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("table", sorted(set(LISTS) - {"trade"}))
async def test_every_kind_is_listed_in_order_with_all_that_came(
    lists: EventLists, table: str, descending: bool
) -> None:
    expected = [event.SerializeToString() for event in REFERENCE[table]]
    if descending:
        expected.reverse()
    assert await walk(lists, table, 7, descending=descending) == expected


async def test_what_is_inserted_between_pages_neither_repeats_nor_hides_an_event(
    tmp_path: Path,
) -> None:
    first, later = TRADES[:600], TRADES[600:1200]
    for descending in (False, True):
        async with open_store(tmp_path, database=f"d{int(descending)}") as engine:
            await fill(engine, {"trade": first[::2]})
            lists = make_lists(engine)
            found: list[bytes] = []
            token = ""
            rest = [*first[1::2], *later]
            while True:
                answer = await ask(
                    lists, "trade", page_size=50, page_token=token, descending=descending
                )
                found += [each.SerializeToString() for each in answer.trades]
                token = answer.next_page_token
                if not token:
                    break
                batch, rest = rest[:40], rest[40:]
                await fill(engine, {"trade": batch}, first_sequence=10_000 - len(rest))
            assert len(set(found)) == len(found), "no event comes twice"
            there = {each.SerializeToString() for each in first[::2]}
            assert there <= set(found), "what was there at the first page is on some page"
            parsed = [events_pb2.Trade.FromString(each) for each in found]
            order = sorted(parsed, key=trade_order, reverse=descending)
            assert parsed == order


async def test_a_walk_without_an_end_ends_at_the_now_of_its_first_page(tmp_path: Path) -> None:
    async with open_store(tmp_path) as engine:
        await fill(engine, {"trade": TRADES[:10]})
        now = time_of(TRADES[9]) + 1
        answer = await ask(make_lists(engine, now), "trade", page_size=5)
        late = events_pb2.Trade(**KEY, trade_id="99999", price="1", quantity="1")
        late.receive_time.FromNanoseconds(now + SECOND)
        await fill(engine, {"trade": [late]}, first_sequence=100)
        lists = make_lists(engine, now + HOUR)
        rest = await ask(lists, "trade", page_size=9, page_token=answer.next_page_token)
        assert len(rest.trades) == 5
        assert not rest.next_page_token


async def test_settled_funding_is_the_last_rate_told_before_each_settlement(
    lists: EventLists,
) -> None:
    """Also where the range ends between that rate and the settlement, or cuts its period."""
    settled: dict[int, bytes] = {}
    for event in REFERENCE["funding_rate"]:
        if event.funding_time.ToNanoseconds() <= NOW:
            settled[event.funding_time.ToNanoseconds()] = event.SerializeToString()
    expected = [settled[each] for each in sorted(settled)]
    for descending in (False, True):
        found = await walk(lists, "funding_rate", 1, settled_only=True, descending=descending)
        assert found == (expected[::-1] if descending else expected)
    last = events_pb2.FundingRate.FromString(expected[0])
    at = time_of(last)
    answer = await ask(lists, "funding_rate", settled_only=True, end_time=timestamp(at))
    assert not answer.funding_rates, "of an earlier rate it is known that it was not the last"
    answer = await ask(lists, "funding_rate", settled_only=True, end_time=timestamp(at + 1))
    assert [each.SerializeToString() for each in answer.funding_rates] == expected[:1]


async def test_a_settlement_to_come_has_no_settled_rate(engine: Engine) -> None:
    lists = make_lists(engine, BEGIN + 9 * HOUR)
    answer = await ask(lists, "funding_rate", settled_only=True)
    assert [each.funding_time.ToNanoseconds() for each in answer.funding_rates] == [
        BEGIN + 8 * HOUR
    ]


async def test_ratios_are_narrowed_by_kind_and_period(lists: EventLists) -> None:
    for kind in (0, 2):
        for seconds in (0, 300, 7):
            fields: dict[str, Any] = {"kind": kind}
            if seconds:
                fields["period"] = {"seconds": seconds}
            expected = [
                each.SerializeToString()
                for each in REFERENCE["long_short_ratio"]
                if kind in (0, each.kind) and seconds in (0, each.period.seconds)
            ]
            assert await walk(lists, "long_short_ratio", 11, **fields) == expected


def gap(event_id: str, begin: int, end: int, **fields: Any) -> integrity_event_pb2.IntegrityEvent:
    entry = integrity_event_pb2.IntegrityEvent(
        **{**KEY, **fields}, event_id=event_id, kind=integrity_event_pb2.INTEGRITY_KIND_GAP
    )
    entry.begin_time.FromNanoseconds(begin)
    entry.end_time.FromNanoseconds(end)
    entry.receive_time.FromNanoseconds(end)
    return entry


async def test_a_page_names_the_gaps_that_touch_what_it_covers(tmp_path: Path) -> None:
    times = [BEGIN + number * 60 * SECOND for number in range(10)]
    held = []
    for number, time in enumerate(times, start=1):
        each = events_pb2.Trade(**KEY, trade_id=str(number), price="1", quantity="1")
        each.receive_time.FromNanoseconds(time)
        held.append(each)
    middle = 30 * SECOND
    ledger = [
        gap("before", times[0] - 2 * middle, times[0] - middle),
        gap("in the first page", times[1] + 1, times[1] + middle),
        gap("between pages", times[4] + middle, times[4] + middle + 1),
        gap("of books", times[2], times[3], event_kind=common_pb2.EVENT_KIND_ORDER_BOOK),
        gap("of another", times[2], times[3], symbol="ETH-USDT"),
        gap("after the last", times[9] + middle, times[9] + middle + 1),
        gap("of the whole venue", times[6], times[7], symbol=""),
        gap("beyond the range", times[9] + HOUR, times[9] + HOUR + 1),
    ]
    async with open_store(tmp_path) as engine:
        await fill(engine, {"trade": held, "integrity": ledger})
        lists = make_lists(engine)
        fields = {
            "start_time": timestamp(times[0] - HOUR),
            "end_time": timestamp(times[9] + HOUR // 2),
            "page_size": 5,
        }

        async def names(**more: Any) -> tuple[list[str], str]:
            answer = await ask(lists, "trade", **{**fields, **more})
            return [each.event_id for each in answer.gaps], answer.next_page_token

        found, token = await names()
        assert found == ["before", "in the first page"]
        found, _ = await names(page_token=token)
        assert found == ["between pages", "of the whole venue", "after the last"]
        found, token = await names(descending=True)
        assert found == ["of the whole venue", "after the last"]
        found, _ = await names(descending=True, page_token=token)
        assert found == ["before", "in the first page", "between pages"]
        empty = await ask(
            lists, "trade",
            start_time=timestamp(times[4] + 1), end_time=timestamp(times[5]),
        )  # fmt: skip
        assert not empty.trades
        assert [each.event_id for each in empty.gaps] == ["between pages"]


async def test_a_page_of_too_many_bytes_is_shorter_and_followed_by_the_rest(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.storage.pages._MAX_BYTES", 1000)
    lists = make_lists(engine)
    answer = await ask(lists, "trade", page_size=100)
    assert 1 <= len(answer.trades) < 20
    assert await walk(lists, "trade", 1999, end_time=timestamp(time_of(TRADES[300]))) == [
        each
        for each in IN_ORDER
        if time_of(events_pb2.Trade.FromString(each)) < time_of(TRADES[300])
    ]


@pytest.mark.parametrize("descending", [False, True])
async def test_the_place_of_a_page_is_found_by_the_index_in_every_table(
    engine: Engine, descending: bool
) -> None:
    for table in TABLES.values():
        if not table.identity:
            continue
        keyset = Keyset(table)
        texts = ("trade_text", "event_id")
        place: Place = ["x" if name in texts else 1 for name in keyset.columns]
        condition, parameters = keyset.behind(place, descending=descending)
        rows = await engine.query(
            f"EXPLAIN indexes = 1 SELECT {keyset.select} FROM {table.name} FINAL "
            f"WHERE exchange = 'binance' AND symbol = 'BTC-USDT' AND {condition} "
            f"ORDER BY {keyset.order_by(descending=descending)} LIMIT 10",
            parameters,
        )
        plan = [str(line).strip() for (line,) in rows]
        if "PrimaryKey" not in plan:
            continue
        keys = plan[plan.index("PrimaryKey") :]
        assert {"exchange", "symbol", keyset.columns[0]} <= set(keys), f"{table.name}: {plan}"


# What is refused.


async def refusal(lists: EventLists, table: str, **fields: Any) -> MarketPrismError:
    with pytest.raises(MarketPrismError) as raised:
        await ask(lists, table, **fields)
    return raised.value


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"start_time": {"seconds": 10}, "end_time": {"seconds": 9}}, "start_time"),
        ({"start_time": {"seconds": 10}, "end_time": {"seconds": 10}}, "start_time"),
        ({"end_time": {}}, "end_time"),
        ({"start_time": {"seconds": -1}}, "start_time"),
        ({"start_time": {"nanos": -1}}, "start_time.nanos"),
        ({"end_time": {"seconds": 9, "nanos": 1_000_000_000}}, "end_time.nanos"),
        ({"end_time": {"seconds": 253_402_300_799}}, "end_time"),
        ({"end_time": {"seconds": 2**63 - 1, "nanos": 2**31 - 1}}, "end_time.nanos"),
        ({"start_time": {"seconds": -(2**63)}}, "start_time"),
        ({"page_size": -1}, "page_size"),
        ({"page_size": 10_001}, "page_size"),
        ({"exchange": "bin ance"}, "exchange"),
        ({"exchange": "x" * 65}, "exchange"),
        ({"exchange": "' OR 1 = 1 --"}, "exchange"),
        ({"symbol": "BTC/USDT"}, "symbol"),
        ({"symbol": "*"}, "symbol"),
        ({"symbol": "BTC\x00USDT"}, "symbol"),
        ({"symbol": "S" * 129}, "symbol"),
        ({"symbol": "ÄÖÜ"}, "symbol"),
    ],
)
async def test_a_bad_request_is_refused_with_the_field_named(
    closed_lists: EventLists, fields: dict[str, Any], field: str
) -> None:
    for table in ("trade", "funding_rate"):
        error = await refusal(closed_lists, table, **fields)
        assert isinstance(error, InvalidArgument)
        assert [each.field for each in error.violations] == [field]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"kind": 99}, "kind"),
        ({"period": {}}, "period"),
        ({"period": {"seconds": -5}}, "period"),
        ({"period": {"seconds": 1, "nanos": -1}}, "period.nanos"),
        ({"period": {"seconds": 10**12}}, "period"),
    ],
)
async def test_a_bad_filter_of_ratios_is_refused_with_the_field_named(
    closed_lists: EventLists, fields: dict[str, Any], field: str
) -> None:
    error = await refusal(closed_lists, "long_short_ratio", **fields)
    assert isinstance(error, InvalidArgument)
    assert [each.field for each in error.violations] == [field]


@pytest.mark.parametrize(
    ("fields", "reason", "hint"),
    [
        ({"symbol": "BTC-USDX"}, "INSTRUMENT_NOT_FOUND", "BTC-USDX"),
        ({"exchange": "binanse"}, "EXCHANGE_NOT_FOUND", "binanse"),
        ({"exchange": "BINANCE"}, "EXCHANGE_NOT_FOUND", "BINANCE"),
    ],
)
async def test_a_name_that_nothing_is_stored_of_is_not_found(
    lists: EventLists, fields: dict[str, Any], reason: str, hint: str
) -> None:
    error = await refusal(lists, "trade", **fields)
    assert isinstance(error, NotFound)
    assert error.reason == reason
    assert hint in error.message


async def test_a_known_instrument_without_events_of_the_kind_is_an_empty_list(
    lists: EventLists,
) -> None:
    answer = await ask(lists, "ticker", symbol="BTC-USDT-PERP")
    assert items(answer) == []
    assert not answer.next_page_token


async def test_an_instrument_is_known_as_soon_as_it_is_stored(tmp_path: Path) -> None:
    clock = [0.0]
    async with open_store(tmp_path) as engine:
        known = KnownInstruments(engine, clock=lambda: clock[0])
        with pytest.raises(NotFound) as raised:
            await known.check("okx", "BTC-USDT")
        assert raised.value.reason == "EXCHANGE_NOT_FOUND"
        described = TABLES["instrument"].message(exchange="okx", symbol="BTC-USDT")
        await fill(engine, {"instrument": [described]})
        clock[0] += 10.0
        await known.check("okx", "BTC-USDT")
        with pytest.raises(NotFound, match="did you mean BTC-USDT"):
            await known.check("okx", "BTC-USDC")


async def first_token(lists: EventLists, **fields: Any) -> str:
    answer = await ask(lists, "trade", page_size=3, **fields)
    assert answer.next_page_token
    return str(answer.next_page_token)


@pytest.mark.parametrize(
    "changed",
    [
        {"descending": True},
        {"symbol": "BTC-USDT-PERP"},
        {"start_time": {"seconds": 1}},
        {"end_time": {"seconds": 4_000_000_000}},
    ],
)
async def test_a_token_of_another_request_is_refused(
    lists: EventLists, changed: dict[str, Any]
) -> None:
    error = await refusal(lists, "trade", page_token=await first_token(lists), **changed)
    assert isinstance(error, InvalidArgument)
    assert error.reason == "PAGE_TOKEN_INVALID"
    assert [each.field for each in error.violations] == ["page_token"]


async def test_a_token_of_another_list_is_refused(lists: EventLists) -> None:
    error = await refusal(lists, "ticker", page_token=await first_token(lists))
    assert error.reason == "PAGE_TOKEN_INVALID"


async def test_the_size_of_pages_may_change_within_a_walk(lists: EventLists) -> None:
    token = await first_token(lists)
    answer = await ask(lists, "trade", page_size=5, page_token=token)
    assert [each.SerializeToString() for each in answer.trades] == IN_ORDER[3:8]


async def test_a_token_that_was_changed_is_refused(lists: EventLists) -> None:
    token = await first_token(lists)
    broken: Sequence[str] = [
        *(token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :] for at in range(30)),
        token[:-1],
        token[1:],
        token + "A",
        token + token,
        "junk",
        "ü",
        "=" * 8,
        "A" * 5000,
    ]
    for each in broken:
        error = await refusal(lists, "trade", page_size=3, page_token=each)
        assert isinstance(error, InvalidArgument), each
        assert error.reason == "PAGE_TOKEN_INVALID", each


# Real events.

_CAPTURES = os.environ.get("MARKETPRISM_CAPTURES")


@pytest.mark.skipif(_CAPTURES is None, reason="set MARKETPRISM_CAPTURES to the folder of captures")
async def test_a_capture_comes_back_byte_for_byte_and_in_order(tmp_path: Path) -> None:
    assert _CAPTURES is not None
    held = venue_events(Path(_CAPTURES) / "streams" / "HBT_spot_ethusdt.jsonl.gz")
    assert len(held["trade"]) > 10_000
    held["best_bid_offer"] = held["best_bid_offer"][:15_000]
    async with open_store(tmp_path) as engine:
        await fill(engine, held)
        lists = make_lists(engine)
        fields = {"symbol": "ETH-USDT"}
        parsed = [events_pb2.Trade.FromString(each) for each in held["trade"]]
        expected = [each.SerializeToString() for each in sorted(parsed, key=trade_order)]
        assert await walk(lists, "trade", 4999, **fields) == expected
        assert await walk(lists, "trade", 7001, descending=True, **fields) == expected[::-1]
        offers = [events_pb2.BestBidOffer.FromString(each) for each in held["best_bid_offer"]]
        in_order = [
            offer.SerializeToString()
            for _, _, _, offer in sorted(
                (time_of(offer), offer.venue_sequence, place, offer)
                for place, offer in enumerate(offers)
            )
        ]
        assert await walk(lists, "best_bid_offer", 9001, **fields) == in_order
