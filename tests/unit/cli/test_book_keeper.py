"""A client's book follows the contract's continuity rules, or says that it does not."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketprism.market.v1 import market_event_pb2 as event_pb
from marketprism.market.v1 import order_book_pb2 as pb
from marketprism.market.v1.common_pb2 import PriceLevel

from services.cli.book_keeper import BookKeeper, Level, state_name


def levels(*pairs: tuple[str, str]) -> list[PriceLevel]:
    return [PriceLevel(price=price, quantity=quantity) for price, quantity in pairs]


def snapshot(
    epoch: int,
    sequence: int,
    bids: list[PriceLevel] | None = None,
    asks: list[PriceLevel] | None = None,
) -> event_pb.MarketEvent:
    return event_pb.MarketEvent(
        order_book_snapshot=pb.OrderBookSnapshot(
            epoch=epoch,
            sequence=sequence,
            venue_sequence=1000 + sequence,
            bids=bids if bids is not None else levels(("99", "1"), ("98", "2")),
            asks=asks if asks is not None else levels(("101", "1"), ("102", "2")),
        )
    )


def update(
    epoch: int,
    sequence: int,
    bids: list[PriceLevel] | None = None,
    asks: list[PriceLevel] | None = None,
) -> event_pb.MarketEvent:
    return event_pb.MarketEvent(
        order_book_update=pb.OrderBookUpdate(
            epoch=epoch,
            sequence=sequence,
            venue_sequence=1000 + sequence,
            bids=bids or [],
            asks=asks or [],
        )
    )


def status(
    state: "pb.OrderBookState.ValueType", epoch: int = 0, detail: str = ""
) -> event_pb.MarketEvent:
    return event_pb.MarketEvent(
        order_book_status=pb.OrderBookStatus(
            state=state, epoch=epoch, detail=detail, reason=pb.ORDER_BOOK_REASON_VENUE_GAP
        )
    )


def test_a_book_without_a_snapshot_is_not_in_step() -> None:
    keeper = BookKeeper()
    assert not keeper.in_step
    assert keeper.why == "no snapshot yet"
    assert keeper.resume_point is None


def test_nothing_is_known_beyond_the_worst_level_of_a_window_that_moved() -> None:
    keeper = BookKeeper()
    window = snapshot(1, 0)
    window.order_book_snapshot.bid_horizon = "98"
    window.order_book_snapshot.ask_horizon = "150"
    keeper.apply(window)
    assert keeper.known() == ("98", "150")
    keeper.apply(update(1, 1, bids=levels(("99.5", "1"), ("98", "0"))))
    assert keeper.known() == ("99", "150"), "expected what the venue took away to be unknown"
    keeper.apply(update(1, 2, bids=levels(("99.5", "0"), ("97", "1"))))
    assert keeper.known() == ("99", "150"), "expected no claim beyond the venue's own"


def test_an_update_before_the_snapshot_is_skipped_and_counted() -> None:
    keeper = BookKeeper()
    assert keeper.apply(update(1, 1)) is False
    assert keeper.counts["skipped"] == 1
    assert not keeper.needs_snapshot


def test_a_snapshot_then_its_successor_are_in_step() -> None:
    keeper = BookKeeper()
    keeper.apply(snapshot(7, 4))
    assert keeper.in_step
    assert keeper.apply(update(7, 5, bids=levels(("99.5", "3")), asks=levels(("101", "0"))))
    assert keeper.in_step
    assert (keeper.epoch, keeper.sequence, keeper.venue_sequence) == (7, 5, 1005)
    assert keeper.bids(2) == [
        Level(Decimal("99.5"), Decimal(3)),
        Level(Decimal(99), Decimal(1)),
    ]
    assert keeper.asks(5) == [Level(Decimal(102), Decimal(2))]


def test_deleting_a_level_that_is_not_there_is_normal() -> None:
    keeper = BookKeeper()
    keeper.apply(snapshot(1, 0))
    keeper.apply(update(1, 1, bids=levels(("50", "0"))))
    assert keeper.in_step
    assert keeper.level_counts == (2, 2)


@pytest.mark.parametrize(("epoch", "sequence"), [(1, 6), (1, 4), (1, 3), (2, 5), (0, 5)], ids=str)
def test_anything_but_the_next_sequence_of_the_epoch_discards_the_book(
    epoch: int, sequence: int
) -> None:
    keeper = BookKeeper()
    keeper.apply(snapshot(1, 4))
    keeper.apply(update(epoch, sequence))
    assert not keeper.in_step
    assert not keeper.has_book
    assert keeper.needs_snapshot
    assert keeper.level_counts == (0, 0)
    assert f"expected update 1/5, got {epoch}/{sequence}" in keeper.why


def test_a_discarded_book_stays_out_of_step_until_a_snapshot() -> None:
    keeper = BookKeeper()
    keeper.apply(snapshot(1, 4))
    keeper.apply(update(1, 6))
    keeper.apply(update(1, 7))
    assert not keeper.in_step
    keeper.apply(snapshot(1, 9))
    assert keeper.in_step
    assert not keeper.needs_snapshot


def test_a_snapshot_replaces_everything() -> None:
    keeper = BookKeeper()
    keeper.apply(snapshot(1, 4))
    keeper.apply(snapshot(2, 0, bids=levels(("10", "1")), asks=[]))
    assert keeper.bids(9) == [Level(Decimal(10), Decimal(1))]
    assert keeper.asks(9) == []
    assert (keeper.epoch, keeper.sequence) == (2, 0)


@pytest.mark.parametrize(("epoch", "sequence"), [(1, 9), (2, 3)], ids=str)
def test_a_snapshot_that_goes_back_is_not_believed(epoch: int, sequence: int) -> None:
    keeper = BookKeeper()
    keeper.apply(snapshot(2, 4))
    keeper.apply(snapshot(epoch, sequence))
    assert not keeper.in_step
    assert keeper.needs_snapshot


def test_a_repeated_snapshot_of_the_same_place_is_accepted() -> None:
    keeper = BookKeeper()
    keeper.apply(snapshot(2, 4))
    keeper.apply(snapshot(2, 4))
    assert keeper.in_step


def test_resyncing_says_why_and_the_next_epoch_ends_it() -> None:
    keeper = BookKeeper()
    keeper.apply(snapshot(1, 4))
    keeper.apply(status(pb.ORDER_BOOK_STATE_RESYNCING, 1, "expected U 5, got 9"))
    assert not keeper.in_step
    assert keeper.why == "expected U 5, got 9"
    keeper.apply(snapshot(2, 0))
    assert keeper.in_step
    assert keeper.why == ""


def test_a_status_without_detail_is_explained_by_its_reason() -> None:
    keeper = BookKeeper()
    keeper.apply(snapshot(1, 4))
    keeper.apply(status(pb.ORDER_BOOK_STATE_RESYNCING, 1))
    assert keeper.why == "venue gap"


def test_a_book_that_is_rebuilt_is_not_made_right_by_a_snapshot_of_its_old_epoch() -> None:
    keeper = BookKeeper()
    keeper.apply(status(pb.ORDER_BOOK_STATE_RESYNCING, 5, "rebuilding"))
    keeper.apply(snapshot(5, 10))
    assert keeper.has_book
    assert not keeper.in_step
    assert keeper.why == "rebuilding"


def test_stale_keeps_the_levels_and_synced_ends_it() -> None:
    keeper = BookKeeper()
    keeper.apply(snapshot(1, 4))
    keeper.apply(status(pb.ORDER_BOOK_STATE_STALE, 1, "feed silent"))
    assert not keeper.in_step
    assert keeper.level_counts == (2, 2)
    keeper.apply(update(1, 5))
    keeper.apply(status(pb.ORDER_BOOK_STATE_SYNCED, 1))
    assert keeper.in_step


def test_a_status_of_an_older_epoch_is_history() -> None:
    keeper = BookKeeper()
    keeper.apply(snapshot(3, 0))
    keeper.apply(status(pb.ORDER_BOOK_STATE_RESYNCING, 2, "old"))
    assert keeper.in_step


def test_the_resume_point_is_the_last_place_applied() -> None:
    keeper = BookKeeper()
    keeper.apply(snapshot(3, 7))
    keeper.apply(update(3, 8))
    resume = keeper.resume_point
    assert resume is not None
    assert (resume.epoch, resume.sequence) == (3, 8)
    keeper.reset()
    assert keeper.resume_point is None


@pytest.mark.parametrize(
    "bad", [("x", "1"), ("1", ""), ("1", "-1"), ("NaN", "1"), ("1", "Infinity")]
)
def test_a_level_that_is_no_number_is_an_error_that_is_told(bad: tuple[str, str]) -> None:
    keeper = BookKeeper()
    keeper.apply(snapshot(1, 0))
    keeper.apply(update(1, 1, bids=levels(bad)))
    assert not keeper.in_step
    assert "malformed" in keeper.why
    assert keeper.counts["breaks"] == 1


def test_a_malformed_update_changes_no_level_before_it_is_refused() -> None:
    keeper = BookKeeper()
    keeper.apply(snapshot(1, 0, bids=levels(("1", "1"))))
    keeper.apply(snapshot(1, 0, bids=levels(("2", "1"), ("x", "1"))))
    assert keeper.bids(9) == []


def test_unknown_states_have_a_name_too() -> None:
    assert state_name(pb.ORDER_BOOK_STATE_SYNCED) == "SYNCED"
    assert state_name(99) == "STATE_99"


def test_a_reason_that_only_a_newer_server_knows_is_told_by_its_number() -> None:
    keeper = BookKeeper()
    keeper.apply(snapshot(1, 0))
    status = pb.OrderBookStatus(epoch=1, state=pb.ORDER_BOOK_STATE_STALE, reason=99)  # type: ignore[arg-type]
    keeper.apply(event_pb.MarketEvent(order_book_status=status))
    assert (keeper.in_step, keeper.why) == (False, "99")


_price = st.integers(1, 12).map(str)
_quantity = st.integers(0, 3).map(str)
_changes = st.lists(st.tuples(_price, _quantity), max_size=4)


@given(st.lists(st.tuples(_changes, _changes), max_size=25))
def test_updates_in_order_give_the_book_that_a_plain_dictionary_gives(
    steps: list[tuple[list[tuple[str, str]], list[tuple[str, str]]]],
) -> None:
    keeper = BookKeeper()
    keeper.apply(snapshot(1, 0, bids=[], asks=[]))
    sides: tuple[dict[int, int], dict[int, int]] = ({}, {})
    for sequence, changes in enumerate(steps, 1):
        keeper.apply(update(1, sequence, bids=levels(*changes[0]), asks=levels(*changes[1])))
        for side, changed in zip(sides, changes, strict=True):
            for price, quantity in changed:
                side[int(price)] = int(quantity)
    bids = sorted(((p, q) for p, q in sides[0].items() if q), reverse=True)
    asks = sorted((p, q) for p, q in sides[1].items() if q)
    assert [(int(x.price), int(x.quantity)) for x in keeper.bids(99)] == bids
    assert [(int(x.price), int(x.quantity)) for x in keeper.asks(99)] == asks
    assert keeper.in_step


@given(st.lists(st.integers(1, 30), max_size=30))
def test_the_book_is_in_step_only_while_nothing_is_missing(sequences: list[int]) -> None:
    keeper = BookKeeper()
    keeper.apply(snapshot(1, 0))
    unbroken = True
    for expected, sequence in enumerate(sequences, 1):
        keeper.apply(update(1, sequence))
        unbroken = unbroken and sequence == expected
        assert keeper.in_step is unbroken
