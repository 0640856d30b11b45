"""What a venue says of connections and lists, and what two connections and contracts make of it."""

import dataclasses
from typing import Any

from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2, events_pb2
from marketprism.market.v1 import order_book_pb2 as pb

from services.collector.connection import VenueConnectionTask
from services.collector.venues.base import (
    BookSnapshot,
    InstrumentsChanged,
    Observation,
    Ping,
    Several,
    TopOfBook,
    TradePrint,
)
from tests.unit.collector.support import diff
from tests.unit.collector.test_feed import SECOND, T0
from tests.unit.collector.test_venue import Bench

# What is about connections and lists


def test_a_connection_that_the_venue_will_end_is_replaced() -> None:
    bench = Bench()
    bench.subscribed()
    text = b'{"stream":"!","data":{"e":"serverShutdown","E":1}}'
    bench.venue.on_frame(bench.connection, text, T0)
    old, new = bench.venue.connections
    assert (old, new.connection_id) == (bench.connection, "binance-1.2")
    assert set(new.topics.topics) == set(old.topics.topics)
    bench.venue.on_frame(bench.connection, text, T0)
    assert len(bench.venue.connections) == 2, "once"


def test_the_list_is_read_again_when_the_venue_says_that_it_changed() -> None:
    bench = Bench()
    bench.venue._dispatch(bench.connection, InstrumentsChanged("BTC-1JAN"), T0)
    assert bench.venue.roster._refresh
    assert bench.connection.controls == 1, "no market data"


def test_a_ping_is_answered_in_the_venues_words() -> None:
    bench = Bench()
    bench.venue._dispatch(bench.connection, Ping("pong 7"), T0)
    assert bench.connection._replies == ["pong 7"]


def test_each_of_several_messages_in_a_frame_goes_its_way() -> None:
    bench = Bench(count=2)
    bench.in_step()
    several = Several(
        (
            diff(102, 102, [("9", "1")]),
            TradePrint("S0USDT", 7, T0, "10", "1", False),
            TradePrint("S1USDT", 8, T0, "10", "1", False),
        )
    )
    bench.feeds[0].book.venue_sequence = 101
    bench.venue.feeds["BTCUSDT"] = bench.feeds[0]
    bench.venue._dispatch(bench.connection, several, T0)
    assert bench.feeds[0].book.venue_sequence == 102
    assert [feed.trades.last_id for feed in bench.feeds[:2]] == [7, 8]


# Two connections


def second(bench: Bench) -> VenueConnectionTask:
    """Another connection that carries the same, as a rollover brings about."""
    bench.venue.pool.roll_over(bench.connection, "for the test")
    new = bench.venue.connections[1]
    topics = list(new.topics.topics.values())
    bench.venue.on_subscribed(new, topics, T0)
    return new


def test_what_one_of_two_connections_damages_the_other_one_tells() -> None:
    bench = Bench()
    bench.in_step()
    new = second(bench)
    (feed,) = bench.feeds
    for lane in (new, bench.connection):
        feed.on_diff(lane.connection_id, diff(102, 102), T0)
    assert feed.lanes.is_aligned(new.connection_id)
    damaged = b'{"stream":"s0usdt@depth@100ms","data":{"e":"depthUpdate","U":"x"}}'
    bench.venue.on_frame(bench.connection, damaged, T0)
    assert feed.book.in_step
    entry = bench.entries[-1]
    assert (entry.kind, entry.symbol) == (integrity.INTEGRITY_KIND_MALFORMED_FRAME, "S0-USDT")
    feed.on_diff(new.connection_id, diff(103, 103), T0)
    feed.on_diff(bench.connection.connection_id, diff(104, 104), T0)
    assert (feed.book.in_step, feed.book.venue_sequence) == (True, 104)


def test_a_change_that_both_connections_damage_costs_the_book() -> None:
    bench = Bench()
    bench.in_step()
    new = second(bench)
    (feed,) = bench.feeds
    for lane in (new, bench.connection):
        feed.on_diff(lane.connection_id, diff(102, 102), T0)
    for lane in (new, bench.connection):
        feed.on_diff(lane.connection_id, diff(104, 104), T0)
    assert not feed.book.in_step
    assert feed.book.reason == pb.ORDER_BOOK_REASON_VENUE_GAP


def test_the_end_of_one_of_two_connections_is_told_and_no_book_is_lost() -> None:
    bench = Bench()
    bench.in_step()
    new = second(bench)
    (feed,) = bench.feeds
    for lane in (new, bench.connection):
        feed.on_diff(lane.connection_id, diff(102, 102), T0)
    bench.venue.on_closed(bench.connection, "cut", T0)
    assert (feed.book.in_step, feed.connection_id) == (True, new.connection_id)
    assert bench.entries[-1].kind == integrity.INTEGRITY_KIND_DISCONNECTED
    bench.venue.on_closed(new, "cut", T0)
    assert not feed.book.in_step


def test_a_connection_that_was_replaced_tells_nothing_more() -> None:
    bench = Bench()
    bench.in_step()
    new = second(bench)
    (feed,) = bench.feeds
    for lane in (new, bench.connection):
        feed.on_diff(lane.connection_id, diff(102, 102), T0)
    bench.venue.on_rolled_over(bench.connection, new, "it is old", T0)
    assert bench.entries[-1].kind == integrity.INTEGRITY_KIND_ROLLED_OVER
    assert feed.lanes.names == [new.connection_id]
    epoch = feed.book.epoch
    feed.on_diff(new.connection_id, diff(103, 103), T0)
    assert (feed.book.epoch, feed.book.venue_sequence) == (epoch, 103)


# Contracts


def test_contracts_are_converted_wherever_they_are_counted() -> None:
    bench = Bench()
    (feed,) = bench.feeds
    spec = dataclasses.replace(feed.spec, contract_size="0.001")
    bench.venue.roster.change(feed, spec, T0)
    bench.subscribed()
    feed.book.on_snapshot(BookSnapshot(100, [("10", "5")], [("11", "70")]), T0)
    feed.on_diff(bench.connection.connection_id, diff(101, 101, [("9", "0"), ("8", "2")]), T0)
    bench.frame(
        {"u": 102, "s": "S0USDT", "b": "10", "B": "5", "a": "11", "A": "70"}, "x@bookTicker"
    )
    bench.frame(
        {"e": "trade", "s": "S0USDT", "t": 1, "p": "10", "q": "3", "T": 1, "m": True},
        "s0usdt@trade",
    )
    interest = Observation(
        common_pb2.EVENT_KIND_OPEN_INTEREST,
        events_pb2.OpenInterest(open_interest="1500", open_interest_base="1.5"),
        native_symbol="S0USDT",
        contracts=("open_interest",),
    )
    bench.venue._dispatch(bench.connection, interest, T0)

    def told(kind: str, message: type[Any]) -> Any:
        return message.FromString(bench.out.of(kind)[-1])

    snapshot = told("order_book_snapshot", pb.OrderBookSnapshot)
    assert [each.quantity for each in (*snapshot.bids, *snapshot.asks)] == ["0.005", "0.07"]
    update = told("order_book_update", pb.OrderBookUpdate)
    assert [each.quantity for each in update.bids] == ["0", "0.002"]
    best = told("best_bid_offer", events_pb2.BestBidOffer)
    assert (best.bid_quantity, best.ask_quantity) == ("0.005", "0.07")
    assert told("trade", events_pb2.Trade).quantity == "0.003"
    told_interest = told("open_interest", events_pb2.OpenInterest)
    assert told_interest.open_interest == "1.5"
    assert told_interest.open_interest_base == "1.5"


def test_a_book_is_not_held_against_a_top_in_another_unit() -> None:
    bench = Bench()
    bench.in_step()
    (feed,) = bench.feeds
    feed.on_diff(bench.connection.connection_id, diff(102, 102), T0)
    feed.on_top(TopOfBook("S0USDT", 104, 0, ("10", "1"), ("11", "1")), T0)
    spec = dataclasses.replace(feed.spec, contract_size="10")
    bench.venue.roster.change(feed, spec, T0)
    feed.book.on_snapshot(BookSnapshot(103, [("10", "1")], [("11", "1")]), T0)
    feed.on_diff(bench.connection.connection_id, diff(104, 104), T0 + SECOND)
    assert feed.book.in_step
    assert feed.top_mismatches == 0


def test_a_subscription_that_begins_anew_does_not_carry_the_book_meanwhile() -> None:
    """If the other connection ends just then, the book must not wait for nothing, in step."""
    bench = Bench()
    bench.in_step()
    new = second(bench)
    (feed,) = bench.feeds
    for lane in (new, bench.connection):
        feed.on_diff(lane.connection_id, diff(102, 102), T0)
    topics = [t for t in new.topics.topics.values() if t.subscription.topic.endswith("depth@100ms")]
    bench.venue.on_unsubscribed(new, topics, T0)
    bench.venue.on_closed(bench.connection, "cut", T0)
    assert not feed.book.in_step
    bench.venue.on_subscribed(new, topics, T0)
    feed.book.on_snapshot(BookSnapshot(110, [("10", "1")], [("11", "1")]), T0)
    feed.on_diff(new.connection_id, diff(111, 111), T0)
    assert feed.book.in_step


def test_a_subscription_that_begins_anew_joins_a_book_that_goes_on() -> None:
    bench = Bench()
    bench.in_step()
    new = second(bench)
    (feed,) = bench.feeds
    epoch = feed.book.epoch
    for lane in (new, bench.connection):
        feed.on_diff(lane.connection_id, diff(102, 102), T0)
    topics = [t for t in new.topics.topics.values() if t.subscription.topic.endswith("depth@100ms")]
    bench.venue.on_unsubscribed(new, topics, T0)
    feed.on_diff(bench.connection.connection_id, diff(103, 103), T0)
    bench.venue.on_subscribed(new, topics, T0)
    for lane in (bench.connection, new):
        feed.on_diff(lane.connection_id, diff(104, 104), T0)
    bench.venue.on_closed(bench.connection, "cut", T0)
    feed.on_diff(new.connection_id, diff(105, 105), T0)
    assert (feed.book.in_step, feed.book.epoch, feed.book.venue_sequence) == (True, epoch, 105)
