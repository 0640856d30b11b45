"""The client's book is the server's, or says that it must not be used."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketprism.client.book import BrokenBookError, Level, OrderBook
from marketprism.market.v1 import order_book_pb2 as pb
from marketprism.market.v1.market_event_pb2 import MarketEvent

Levels = list[tuple[str, str]]


def event(message: object) -> MarketEvent:
    names = {
        pb.OrderBookSnapshot: "order_book_snapshot",
        pb.OrderBookUpdate: "order_book_update",
        pb.OrderBookStatus: "order_book_status",
    }
    return MarketEvent(**{names[type(message)]: message})


def snapshot(sequence: int, bids: Levels, asks: Levels, epoch: int = 7) -> MarketEvent:
    message = pb.OrderBookSnapshot(exchange="x", symbol="S", epoch=epoch, sequence=sequence)
    for side, levels in ((message.bids, bids), (message.asks, asks)):
        for price, quantity in levels:
            side.add(price=price, quantity=quantity)
    return event(message)


def update(
    sequence: int, bids: Levels, asks: Levels, *, epoch: int = 7, first: int = 0
) -> MarketEvent:
    message = pb.OrderBookUpdate(
        exchange="x", symbol="S", epoch=epoch, sequence=sequence, first_sequence=first
    )
    for side, levels in ((message.bids, bids), (message.asks, asks)):
        for price, quantity in levels:
            side.add(price=price, quantity=quantity)
    return event(message)


def status(state: "pb.OrderBookState.ValueType") -> MarketEvent:
    return event(pb.OrderBookStatus(exchange="x", symbol="S", state=state))


def book() -> OrderBook:
    made = OrderBook("x", "S")
    made.connected = True
    made.apply(snapshot(3, [("10", "1"), ("9.5", "2")], [("10.5", "1"), ("11", "4")]))
    made.apply(status(pb.ORDER_BOOK_STATE_SYNCED))
    return made


def test_a_snapshot_and_its_updates_make_the_book() -> None:
    held = book()
    held.apply(update(4, [("10", "0"), ("9.9", "3")], [("11", "5")]))
    assert held.bids() == [
        Level(Decimal("9.9"), Decimal(3)), Level(Decimal("9.5"), Decimal(2)),
    ]  # fmt: skip
    assert held.asks(1) == [Level(Decimal("10.5"), Decimal(1))]
    assert (held.mid, held.spread) == (Decimal("10.2"), Decimal("0.6"))
    assert held.is_trusted
    assert (held.epoch, held.sequence) == (7, 4)


@pytest.mark.parametrize(("epoch", "sequence"), [(7, 5), (7, 3), (8, 4)])
def test_an_update_that_does_not_continue_breaks_the_book(epoch: int, sequence: int) -> None:
    held = book()
    with pytest.raises(BrokenBookError, match=r"expected an update that continues 7\.3"):
        held.apply(update(sequence, [], [], epoch=epoch))
    assert not held.is_trusted
    assert not held.can_resume
    held.apply(update(4, [("1", "1")], []))
    assert len(held.bids()) == 2, "nothing is applied to a broken book"
    held.apply(snapshot(9, [("10", "1")], [], epoch=8))
    assert held.is_trusted


def test_merged_updates_continue_by_their_first() -> None:
    held = book()
    held.apply(update(9, [("10", "7")], [], first=4))
    assert held.sequence == 9
    with pytest.raises(BrokenBookError):
        held.apply(update(20, [], [], first=11))


@pytest.mark.parametrize(
    "state", [pb.ORDER_BOOK_STATE_RESYNCING, pb.ORDER_BOOK_STATE_STALE, pb.ORDER_BOOK_STATE_SYNCING]
)
def test_a_book_is_trusted_only_in_step(state: "pb.OrderBookState.ValueType") -> None:
    held = book()
    held.apply(status(state))
    assert not held.is_trusted
    held.apply(status(pb.ORDER_BOOK_STATE_SYNCED))
    assert held.is_trusted
    held.connected = False
    assert not held.is_trusted


def test_events_of_other_books_are_not_taken() -> None:
    held = book()
    other = pb.OrderBookUpdate(exchange="x", symbol="OTHER", epoch=1, sequence=1)
    assert not held.apply(event(other))
    assert held.is_trusted


def test_an_empty_book_has_no_best_levels() -> None:
    held = OrderBook("x", "S")
    assert held.best_bid() is held.best_ask() is held.mid is held.spread is None
    assert "not to be trusted" in repr(held)


_sides = st.dictionaries(st.integers(1, 40), st.integers(0, 5), max_size=6)


@given(st.lists(st.tuples(_sides, _sides), max_size=30))
def test_any_updates_give_what_a_plain_book_gives(changes: list[tuple[dict, dict]]) -> None:  # type: ignore[type-arg]
    held = OrderBook("x", "S")
    held.apply(snapshot(0, [], []))
    plain: tuple[dict[int, int], dict[int, int]] = ({}, {})
    for number, sides in enumerate(changes, 1):
        levels = [[(str(p), str(q)) for p, q in side.items()] for side in sides]
        held.apply(update(number, levels[0], levels[1]))
        for kept, side in zip(plain, sides, strict=True):
            for price, quantity in side.items():
                kept.pop(price, None)
                if quantity:
                    kept[price] = quantity
    assert [(int(p), int(q)) for p, q in held.bids()] == sorted(plain[0].items(), reverse=True)
    assert [(int(p), int(q)) for p, q in held.asks()] == sorted(plain[1].items())
    assert held.bids(3) == held.bids()[:3]
