"""A true book can be asked for at every update id that it still keeps, and says no otherwise."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.book import TrueBook
from services.simulator.market import UpdateIdUnavailableError

_change = st.tuples(st.booleans(), st.integers(1, 12), st.integers(0, 5))
_blocks = st.lists(st.lists(_change, min_size=1, max_size=6), max_size=25)


def _set(side: dict[int, int], price: int, quantity: int) -> None:
    if quantity:
        side[price] = quantity
    else:
        side.pop(price, None)


@given(_blocks)
def test_every_kept_id_gives_the_book_as_it_was(blocks: list[list[tuple[bool, int, int]]]) -> None:
    book = TrueBook("X", 100, history=10_000)
    bids: dict[int, int] = {}
    asks: dict[int, int] = {}
    seen = {100: ({}, {})}
    for block in blocks:
        undo: list[int] = []
        for is_bid, price, quantity in block:
            side, mine = (book.bids, bids) if is_bid else (book.asks, asks)
            undo += (price if is_bid else -price, side.get(price, 0))
            _set(side, price, quantity)
            _set(mine, price, quantity)
            seen[max(seen) + 1] = (dict(bids), dict(asks))
        book.commit(undo, book.update_id + len(block))
    for update_id, (then_bids, then_asks) in seen.items():
        state = book.at(update_id)
        assert state.update_id == update_id
        assert state.bids == tuple(sorted(then_bids.items(), reverse=True))
        assert state.asks == tuple(sorted(then_asks.items()))


def test_a_frame_seen_as_a_whole_is_known_only_at_its_end() -> None:
    book = TrueBook("X", 10, history=100)
    book.apply(15, [(5, 1)], [])
    book.apply(20, [(5, 0), (4, 2)], [(7, 3)])
    assert book.at(15).bids == ((5, 1),)
    assert book.at(20).bids == ((4, 2),)
    for inside in (12, 17):
        with pytest.raises(UpdateIdUnavailableError, match="inside the frame"):
            book.at(inside)


def test_history_is_bounded_and_what_is_gone_is_said_to_be_gone() -> None:
    book = TrueBook("X", 0, history=10)
    for update_id in range(1, 101):
        book.apply(update_id, [(update_id, 1)], [])
    assert book.oldest_id == 90
    assert len(book.at(90).bids) == 90
    with pytest.raises(UpdateIdUnavailableError, match="no longer kept"):
        book.at(89)
    with pytest.raises(UpdateIdUnavailableError, match="not reached yet"):
        book.at(101)


def test_quantities_beyond_64_bits_are_kept_too() -> None:
    book = TrueBook("X", 0, history=10)
    book.apply(1, [(5, 10**20)], [])
    book.apply(2, [(5, 0)], [])
    assert book.at(1).bids == ((5, 10**20),)


@pytest.mark.parametrize(("before", "known"), [(21, 20), (20, 15), (16, 15), (15, 10), (3, 10)])
def test_the_newest_known_id_below_another_is_a_frame_end(before: int, known: int) -> None:
    book = TrueBook("X", 10, history=100)
    book.apply(15, [(5, 1)], [])
    book.apply(20, [(4, 2)], [])
    assert book.known_before(before) == known


def test_within_single_changes_every_id_is_known() -> None:
    book = TrueBook("X", 10, history=100)
    book.commit([1, 0, 2, 0, 3, 0], 13)
    assert [book.known_before(before) for before in (14, 13, 12, 11)] == [13, 12, 11, 10]


async def test_waiting_for_an_id_ends_when_it_is_reached_or_time_is_up() -> None:
    book = TrueBook("X", 10, history=100)
    waiting = asyncio.ensure_future(book.wait_for(12, timeout_seconds=5))
    await asyncio.sleep(0)
    book.apply(11, [], [(3, 1)])
    assert not waiting.done()
    book.apply(12, [], [(3, 2)])
    await waiting
    with pytest.raises(UpdateIdUnavailableError, match="not reached within"):
        await book.wait_for(13, timeout_seconds=0.01)
