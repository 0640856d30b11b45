"""The soak notices what it is there to notice."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2, events_pb2, instrument_pb2
from marketprism.market.v1 import order_book_pb2 as pb

from benchmarks.soak_books import Book, Comparer, Follower, Trades
from benchmarks.soak_faults import INCIDENTS
from benchmarks.soak_figures import Sample, growth
from services.shared.jetstream import Message
from services.simulator.faults import FaultKind, FaultSpec

EXCHANGE, SYMBOL = "okx", "BTC-USDT"


def level(price: str, quantity: str) -> common_pb2.PriceLevel:
    return common_pb2.PriceLevel(price=price, quantity=quantity)


def snapshot(**more: Any) -> pb.OrderBookSnapshot:
    values = {
        "epoch": 5, "sequence": 0, "venue_sequence": 100,
        "bids": [level("10", "1"), level("9", "2")], "asks": [level("11", "3")], **more,
    }  # fmt: skip
    return pb.OrderBookSnapshot(exchange=EXCHANGE, symbol=SYMBOL, **values)


def update(**more: Any) -> pb.OrderBookUpdate:
    values = {
        "epoch": 5, "sequence": 1, "venue_sequence": 101, "previous_venue_sequence": 100,
        "bids": [level("10", "4")], **more,
    }  # fmt: skip
    return pb.OrderBookUpdate(exchange=EXCHANGE, symbol=SYMBOL, **values)


def status(state: int) -> pb.OrderBookStatus:
    return pb.OrderBookStatus(exchange=EXCHANGE, symbol=SYMBOL, state=state)


def in_step() -> Book:
    book = Book(EXCHANGE, SYMBOL, SYMBOL)
    assert book.on_snapshot(snapshot()) == ""
    book.on_status(status(pb.ORDER_BOOK_STATE_SYNCED))
    return book


def test_updates_and_repeated_snapshots_that_fit_are_no_problem() -> None:
    book = in_step()
    assert book.on_update(update()) == ""
    repeated = snapshot(sequence=1, venue_sequence=101, bids=[level("10", "4"), level("9", "2")])
    assert book.on_snapshot(repeated) == ""
    assert book.in_step


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (update(sequence=2), "does not continue"),
        (update(epoch=6), "does not continue"),
        (update(previous_venue_sequence=99), "the book stands at 100"),
    ],
)
def test_an_update_that_breaks_the_contract_is_told(wrong: pb.OrderBookUpdate, told: str) -> None:
    assert told in in_step().on_update(wrong)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (snapshot(epoch=4), "went back"),
        (snapshot(sequence=3), "stands at 5.0"),
        (snapshot(bids=[level("10", "1")]), "not what the updates told"),
    ],
)
def test_a_snapshot_that_breaks_the_contract_is_told(
    wrong: pb.OrderBookSnapshot, told: str
) -> None:
    assert told in in_step().on_snapshot(wrong)


def test_an_update_of_a_book_that_is_not_in_step_is_told() -> None:
    book = in_step()
    book.on_status(status(pb.ORDER_BOOK_STATE_RESYNCING))
    assert "RESYNCING" in book.on_update(update())


def trade(number: int, count: int = 0) -> events_pb2.Trade:
    return events_pb2.Trade(
        exchange=EXCHANGE, symbol=SYMBOL, trade_id=str(number), trade_count=count
    )


def test_a_missing_trade_is_a_hole_until_the_ledger_or_the_venue_explains_it() -> None:
    tape = Trades()
    assert [tape.on_trade(trade(number)) for number in (1, 2, 4, 8)] == ["", "", "", ""]
    assert tape.unexplained() == [(3, 3), (5, 7)]
    tape.told_lost.append((5, 9))
    assert tape.unexplained() == [(3, 3)]
    tape.excuse([1, 2, 3, 4])
    assert tape.unexplained() == [(3, 3)], "the venue did make trade 3"
    tape.excuse([1, 2, 4])
    assert tape.unexplained() == []


def test_a_trade_that_comes_twice_or_late_is_told() -> None:
    tape = Trades()
    assert tape.on_trade(trade(5)) == ""
    assert "came after 5" in tape.on_trade(trade(5))
    assert "came after 5" in tape.on_trade(trade(7, count=3))
    assert tape.on_trade(trade(8, count=3)) == ""


def test_a_backfilled_trade_may_come_late_into_a_hole_and_only_there() -> None:
    tape = Trades()
    assert [tape.on_trade(trade(number)) for number in (1, 5)] == ["", ""]
    late = trade(3)
    assert "came after 5" in tape.on_trade(late), "only what is marked may come late"
    late.backfilled = True
    assert tape.on_trade(late) == ""
    assert tape.unexplained() == [(2, 2), (4, 4)]
    assert "came after 5" in tape.on_trade(late), "once"


def test_a_follower_counts_breaches_and_takes_losses_from_the_ledger() -> None:
    follower = Follower("nats://127.0.0.1:1")
    follower._on_market_trade([_message("trade", trade(1)), _message("trade", trade(4))])
    lost = integrity.IntegrityEvent(
        exchange=EXCHANGE, symbol=SYMBOL, kind=integrity.INTEGRITY_KIND_GAP,
        event_kind=common_pb2.EVENT_KIND_TRADE, first_missing_id=2, last_missing_id=3,
    )  # fmt: skip
    tape = follower.trades[EXCHANGE, SYMBOL]
    assert tape.unexplained() == [(2, 3)]
    follower._on_market_integrity([_message("integrity", lost)])
    assert tape.unexplained() == []
    assert follower.entries[EXCHANGE, "GAP"] == 1
    follower._on_market_order_book(
        [
            _message("order_book_snapshot", snapshot()),
            _message("order_book_update", update(sequence=7)),
        ]
    )
    assert follower.breach_count == 1


def _message(kind: str, message: Any) -> Message:
    return Message(f"market.{kind}.{EXCHANGE}.{SYMBOL}", message.SerializeToString(), 1)


class _Venue:
    def __init__(self, **truth: Any) -> None:
        self.truth = truth

    async def book(self, symbol: str, update_id: int, *, wait: float) -> Mapping[str, Any]:
        assert (symbol, update_id) == (SYMBOL, 100)
        return {"bids": [["10", "1"], ["9", "2"]], "asks": [["11", "3"]], **self.truth}

    async def instruments(self) -> dict[str, dict[str, str]]:
        return {SYMBOL: {"contract_size": "1", "multiplier": "1"}}


async def compared(tmp_path: Path, book: Book, **truth: Any) -> list[str]:
    follower = Follower("nats://127.0.0.1:1")
    venues: Any = {EXCHANGE: _Venue(**truth)}
    comparer = Comparer(follower, venues, tmp_path, random.Random(1))
    await comparer.compare(book)
    assert comparer.compared[EXCHANGE] == 1
    return comparer.wrong


async def test_a_book_is_compared_level_by_level_with_evidence(tmp_path: Path) -> None:
    assert await compared(tmp_path, in_step()) == []
    wrong = await compared(tmp_path, in_step(), bids=[["10", "1"], ["9", "2.5"]])
    assert "2 of 2 bids differ" in wrong[0]
    assert (tmp_path / "wrong-1.json").exists()
    assert await compared(tmp_path, in_step(), asks=[])


async def test_beyond_the_horizon_nothing_is_compared(tmp_path: Path) -> None:
    book = in_step()
    book.bid_horizon = "9.5"
    assert await compared(tmp_path, book, bids=[["10", "1"], ["9", "7"], ["8", "1"]]) == []
    assert await compared(tmp_path, book, bids=[["10", "1"], ["9.6", "7"]])


def samples(**figures: list[float]) -> list[Sample]:
    names = ("rss", "fds", "sockets", "tasks", "messages", "waiting", "cpu")
    count = len(next(iter(figures.values())))
    return [
        Sample(float(n), **{name: figures.get(name, [0] * count)[n] for name in names})  # type: ignore[arg-type]
        for n in range(count)
    ]


def test_what_grows_is_told_from_what_only_moves() -> None:
    leak = growth(samples(rss=[100 + n for n in range(40)]), "rss", share=0.05, least=12)
    assert leak.grows
    assert leak.trend == pytest.approx(39)
    noise = [100 + (n * 7) % 11 + (50 if n == 20 else 0) for n in range(40)]
    assert not growth(samples(rss=noise), "rss", share=0.05, least=12).grows
    tasks = growth(samples(tasks=[80 + n // 2 for n in range(60)]), "tasks", share=0.1, least=6)
    assert tasks.grows


@pytest.mark.parametrize("name", INCIDENTS)
def test_every_incident_is_made_of_faults_that_the_simulated_venue_knows(name: str) -> None:
    rng = random.Random(3)
    for _ in range(20):
        for step in INCIDENTS[name][1](rng, SYMBOL):
            FaultSpec.model_validate(step)


def test_incidents_are_of_every_kind_but_checksums() -> None:
    rng = random.Random(4)
    kinds = {
        step["kind"]
        for _, make in INCIDENTS.values()
        for _ in range(3)
        for step in make(rng, SYMBOL)
    }
    assert kinds == {kind.value for kind in FaultKind} - {"wrong_checksum"}


def test_an_instrument_that_ended_is_expected_no_longer() -> None:
    follower = Follower("nats://127.0.0.1:1")
    told = instrument_pb2.Instrument(exchange=EXCHANGE, symbol=SYMBOL, native_symbol=SYMBOL)
    follower._on_market_instrument([_message("instrument", told)])
    assert [book.symbol for book in follower.expected(EXCHANGE)] == [SYMBOL]
    follower.expire(EXCHANGE, SYMBOL)
    assert follower.expected() == []
