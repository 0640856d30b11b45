"""The record that collectors share, and who should hold what."""

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from services.collector.leases_group import (
    DIED,
    FREE,
    Group,
    GroupUnreadable,
    Member,
    Slots,
    decode_group,
    desired_owners,
    encode_group,
    slot_of,
)

GROUP = Group(
    format=1,
    era="e",
    settled=True,
    version=7,
    lease_seconds=5.0,
    members={"a": Member("1", 3, ("okx",)), "b": Member("2", 9, ("okx",), leaving=True)},
    exchanges={"okx": Slots(("a", FREE, DIED, "b"), (7, 0, 3, 4))},
)

_names = st.frozensets(st.text(min_size=1, max_size=5), min_size=1, max_size=6)


def test_it_is_read_as_it_was_written() -> None:
    assert decode_group(encode_group(GROUP)) == GROUP


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "form 2"),
        ({"lease_seconds": 0.0}, "its lease is 0 s"),
        ({"members": {}}, "belongs to"),
        ({"exchanges": {"okx": Slots((), ())}}, "its slots of okx are 0 and 0"),
        ({"exchanges": {"okx": Slots((FREE,), ())}}, "its slots of okx are 1 and 0"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(change: dict[str, object], says: str) -> None:
    broken = msgspec.structs.replace(GROUP, **change)
    with pytest.raises(GroupUnreadable, match=says):
        decode_group(encode_group(broken))


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_raise_anything_else(payload: bytes) -> None:
    with pytest.raises(GroupUnreadable, match="expected the collectors' record"):
        decode_group(payload)


def test_a_key_that_this_version_does_not_know_is_refused_and_not_dropped() -> None:
    payload = encode_group(GROUP).replace(b'"era"', b'"newer":1,"era"')
    with pytest.raises(GroupUnreadable, match="newer"):
        decode_group(payload)


def test_without_a_member_its_slots_are_nobody_s() -> None:
    group = GROUP.without("a", DIED)
    assert list(group.members) == ["b"]
    assert group.exchanges["okx"].owners == (DIED, FREE, DIED, "b")
    assert GROUP.candidates("okx") == ["a"], "expected who leaves to get nothing"
    assert GROUP.candidates("binance") == []


@pytest.mark.parametrize(
    ("symbol", "slot"),
    [("BTC-USDT", 32), ("ETH-USDT", 7), ("BTC-USD-20261225-60000-C", 24), ("币安人生-USDT", 19)],
)
def test_a_symbol_has_the_same_slot_everywhere(symbol: str, slot: int) -> None:
    assert slot_of(symbol, 64) == slot


@given(_names, st.integers(1, 64))
def test_everybody_gets_about_the_same(names: frozenset[str], slots: int) -> None:
    owners = desired_owners("okx", slots, names)
    assert set(owners) <= names
    assert max(map(owners.count, names)) <= -(-slots * 11 // (10 * len(names)))


@given(_names, st.data())
def test_little_more_moves_than_what_the_one_who_goes_had(
    names: frozenset[str], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(names)))
    before = desired_owners("okx", 64, names)
    after = desired_owners("okx", 64, names - {gone})
    moved = [b for b, a in zip(before, after, strict=True) if b not in (a, gone)]
    assert len(moved) <= 8, "expected at most an eighth of the slots to move besides"


def test_without_anybody_nobody_should_hold_anything() -> None:
    assert desired_owners("okx", 3, frozenset()) == (FREE, FREE, FREE)
