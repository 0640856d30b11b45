"""What a publisher keeps when its room is full: trades before books, whole books or none."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.shared.jetstream.outbox import ENTRY_OVERHEAD, Entry, Outbox, OutboxLimits

LIMITS = OutboxLimits(messages=20, bytes=20_000, keyed_share=0.5)


def entry(size: int = 100) -> Entry:
    return Entry("s", b"x" * (size - 2), "i")


def outbox(limits: OutboxLimits = LIMITS) -> tuple[Outbox, list[tuple[str, int]]]:
    dropped: list[tuple[str, int]] = []
    return Outbox(limits, lambda key, count: dropped.append((key, count))), dropped


def test_an_entry_counts_with_what_holds_it() -> None:
    assert entry(100).size == 100 + ENTRY_OVERHEAD


def test_trades_are_taken_while_there_is_room() -> None:
    box, _ = outbox()
    assert [box.add(entry(), None) for _ in range(21)] == [True] * 20 + [False]
    assert (box.messages, box.bytes) == (20, 20 * entry().size)


def test_bytes_are_a_limit_too() -> None:
    box, _ = outbox()
    assert box.add(entry(15_000), None)
    assert not box.add(entry(15_000), None)
    assert box.add(entry(100), None), "expected a smaller one to fit still"


def test_books_leave_a_share_for_trades() -> None:
    box, dropped = outbox()
    for number in range(30):
        box.add(entry(), f"book-{number}")
        assert box.messages <= 10
    assert sum(count for _, count in dropped) == 20
    assert [box.add(entry(), None) for _ in range(10)] == [True] * 10


def test_the_largest_book_goes_as_a_whole() -> None:
    box, dropped = outbox()
    small, large = entry(), [entry() for _ in range(9)]
    assert box.add(small, "small")
    assert all(box.add(each, "large") for each in large)
    assert box.add(entry(), "other")
    assert dropped == [("large", 9)]
    assert all(each.is_dropped for each in large)
    assert not small.is_dropped
    assert box.messages == 2


def test_a_book_too_large_for_its_room_takes_its_newest_message_with_it() -> None:
    box, dropped = outbox()
    for _ in range(10):
        assert box.add(entry(), "book")
    assert not box.add(entry(), "book")
    assert dropped == [("book", 11)]
    assert box.messages == 0
    assert box.add(entry(), "book"), "expected the book to begin anew"


def test_a_book_that_does_not_fit_is_broken_though_others_could_go() -> None:
    box, dropped = outbox()
    assert box.add(entry(), "book")
    assert not box.add(entry(15_000), "book")
    assert sum(count for key, count in dropped if key == "book") == 2
    assert box.messages == 0


def test_trades_take_the_room_of_books() -> None:
    box, dropped = outbox()
    for number in range(10):
        box.add(entry(), f"book-{number % 2}")
    for _ in range(15):
        assert box.add(entry(), None)
    assert dropped == [("book-0", 5)]
    for _ in range(5):
        assert box.add(entry(), None)
    assert len(dropped) == 2
    assert not box.add(entry(), None)
    assert (box.messages, box.bytes) == (20, 20 * entry().size)


def test_what_was_sent_makes_room() -> None:
    box, _ = outbox()
    first, keyed = entry(), entry()
    assert box.add(first, None)
    assert box.add(keyed, "book")
    box.remove(first)
    box.remove(keyed)
    assert (box.messages, box.bytes) == (0, 0)


def test_dropped_entries_are_swept_before_they_hold_much() -> None:
    box, _ = outbox()
    for _ in range(11):
        box.add(entry(), "book")
    assert box.needs_sweep
    box.swept()
    assert not box.needs_sweep


def test_the_report_comes_when_the_accounts_are_true_again() -> None:
    seen: list[int] = []

    def on_dropped(_key: str, _count: int) -> None:
        seen.append(box.messages)
        assert box.add(entry(), None)

    box = Outbox(LIMITS, on_dropped)
    for _ in range(11):
        box.add(entry(), "book")
    assert seen == [0]
    assert box.messages == 1


Step = tuple[str, str | None, int]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "send"]),
            st.sampled_from([None, "a", "b", "c"]),
            st.integers(min_value=2, max_value=6_000),
        ),
        max_size=200,
    )
)
def test_accounts_are_those_of_what_lives_and_limits_hold(steps: list[Step]) -> None:
    reported: dict[str, int] = defaultdict(int)
    refused = 0
    box = Outbox(LIMITS, lambda key, count: reported.__setitem__(key, reported[key] + count))
    queue: list[Entry] = []
    taken: dict[str | None, int] = defaultdict(int)
    sent: dict[str | None, int] = defaultdict(int)
    for what, key, size in steps:
        if what == "add":
            new = entry(size)
            if box.add(new, key):
                queue.append(new)
            elif key is None:
                refused += 1
            taken[key] += 1
        else:
            for index, each in enumerate(queue):
                if not each.is_dropped:
                    box.remove(each)
                    sent[each.key.name if each.key else None] += 1
                    del queue[index]
                    break
        alive = [each for each in queue if not each.is_dropped]
        assert box.messages == len(alive) <= LIMITS.messages
        assert box.bytes == sum(each.size for each in alive) <= LIMITS.bytes
        keyed = [each for each in alive if each.key is not None]
        assert len(keyed) <= LIMITS.messages * LIMITS.keyed_share
        assert sum(each.size for each in keyed) <= LIMITS.bytes * LIMITS.keyed_share
    for key in ("a", "b", "c"):
        waiting = sum(1 for e in queue if e.key and e.key.name == key and not e.is_dropped)
        assert taken[key] == sent[key] + waiting + reported[key], "expected each told or kept"
    waiting = sum(1 for e in queue if e.key is None)
    assert taken[None] == sent[None] + waiting + refused


def test_the_order_of_publishing_is_kept_in_entries() -> None:
    first, second = entry(), entry()
    assert first.order < second.order


@pytest.mark.parametrize("key", [None, "book"])
def test_a_message_larger_than_the_room_is_never_taken(key: str | None) -> None:
    box, dropped = outbox()
    box.add(entry(), "other")
    assert not box.add(entry(30_000), key)
    told = [] if key is None else [("book", 1)]
    assert dropped == told, "expected no other book to go for what cannot fit anyway"
