"""A follower keeps what is published by the contract's rules, and says where they are broken."""

from decimal import Decimal

import pytest
from marketprism.market.v1 import events_pb2
from marketprism.market.v1 import order_book_pb2 as pb

from conformance.followed import FollowedBook, FollowedTrades
from conformance.truth import difference


def snapshot(epoch: int, sequence: int, *, bid: str = "1", **more: str) -> pb.OrderBookSnapshot:
    message = pb.OrderBookSnapshot(epoch=epoch, sequence=sequence, venue_sequence=7, **more)
    message.bids.add(price="10", quantity=bid)
    message.asks.add(price="11", quantity="1")
    return message


def update(epoch: int, sequence: int, *, bid: str = "2") -> pb.OrderBookUpdate:
    message = pb.OrderBookUpdate(epoch=epoch, sequence=sequence, venue_sequence=8)
    message.bids.add(price="10", quantity=bid)
    return message


def status(state: str, reason: str = "SYNCHRONISED") -> pb.OrderBookStatus:
    return pb.OrderBookStatus(
        state=pb.OrderBookState.Value(f"ORDER_BOOK_STATE_{state}"),
        reason=pb.OrderBookReason.Value(f"ORDER_BOOK_REASON_{reason}"),
    )


@pytest.fixture
def book() -> FollowedBook:
    book = FollowedBook("BTC-USDT")
    book.on_snapshot(snapshot(5, 0))
    book.on_status(status("SYNCED"))
    return book


def test_a_book_goes_on_by_one(book: FollowedBook) -> None:
    book.on_update(update(5, 1))
    assert (book.bids, book.in_step, book.breaches) == ({"10": "2"}, True, [])


@pytest.mark.parametrize(("epoch", "sequence"), [(5, 2), (5, 0), (6, 1)])
def test_what_does_not_continue_a_book_is_a_breach_and_ends_it(
    book: FollowedBook, epoch: int, sequence: int
) -> None:
    book.on_update(update(epoch, sequence))
    assert len(book.breaches) == 1
    assert not book.in_step


def test_an_epoch_never_goes_back(book: FollowedBook) -> None:
    book.on_snapshot(snapshot(4, 0))
    assert "went back" in book.breaches[0]


def test_a_repeated_snapshot_must_tell_what_the_updates_told(book: FollowedBook) -> None:
    book.on_update(update(5, 1))
    book.on_snapshot(snapshot(5, 1, bid="2"))
    assert book.breaches == []
    book.on_snapshot(snapshot(5, 1, bid="3"))
    assert "another book" in book.breaches[0]


def test_a_snapshot_must_stand_where_the_updates_are(book: FollowedBook) -> None:
    book.on_snapshot(snapshot(5, 3))
    assert len(book.breaches) == 1


def test_what_left_the_horizon_may_be_missing_in_a_repetition(book: FollowedBook) -> None:
    book.bids["9"] = "1"
    book.on_snapshot(snapshot(5, 0, bid_horizon="10"))
    assert book.breaches == []


def test_no_update_comes_while_a_book_is_out_of_step(book: FollowedBook) -> None:
    book.on_status(status("RESYNCING", "VENUE_GAP"))
    book.on_update(update(5, 1))
    assert "RESYNCING" in book.breaches[0]


def trade(number: int, count: int = 0) -> events_pb2.Trade:
    return events_pb2.Trade(trade_id=str(number), trade_count=count)


def test_trades_come_once_and_in_order() -> None:
    tape = FollowedTrades()
    for message in (trade(5), trade(6), trade(9, 3), trade(12)):
        tape.on_trade(message)
    assert (tape.missing, tape.breaches) == ({10, 11}, [])
    tape.on_trade(trade(12))
    tape.on_trade(trade(11))
    assert len(tape.breaches) == 2


def test_a_trade_that_was_missing_may_come_behind_newer_ones_when_it_is_marked() -> None:
    tape = FollowedTrades()
    for message in (trade(5), trade(9)):
        tape.on_trade(message)
    late = trade(7)
    late.backfilled = True
    for _ in range(2):
        tape.on_trade(late)
    assert (tape.missing, tape.last) == ({6, 8}, 9)
    assert tape.breaches == ["trade 7 came after 9"], "the second time it is there already"


def test_a_book_is_held_against_the_truth_in_its_own_unit_and_within_its_horizon(
    book: FollowedBook,
) -> None:
    truth = {"bids": [["10", "100"], ["9", "5"]], "asks": [["11", "100"]]}
    assert "1 bids differ" in difference(book.moment(), truth, Decimal("0.01"))
    book.bid_horizon = "9.5"
    assert difference(book.moment(), truth, Decimal("0.01")) == ""
    assert "bids differ" in difference(book.moment(), truth, Decimal(1))
    book.ask_horizon = "11"
    truth["asks"].append(["12", "1"])
    assert difference(book.moment(), truth, Decimal("0.01")) == ""
    truth["asks"].insert(0, ["10.5", "1"])
    assert "asks differ" in difference(book.moment(), truth, Decimal("0.01"))
