"""Page tokens and the finer rules of requests."""

import base64
import json

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import order_book_pb2

from services.marketdata import validators
from services.shared.errors import InvalidArgument
from services.shared.paging import page_after, read_token, write_token

keys = st.tuples(st.text(max_size=3), st.text(max_size=3))


@given(st.sets(keys, max_size=30), st.integers(1, 7))
def test_pages_give_everything_once_and_in_order(found: set[tuple[str, str]], size: int) -> None:
    keyed = [(key, key) for key in sorted(found)]
    place: object = None
    seen: list[tuple[str, str]] = []
    while True:
        page, following = page_after(keyed, place, size)
        seen += page
        if following is None:
            break
        assert len(page) == size
        token = write_token(("scope",), following)
        place = read_token(token, ("scope",))
    assert seen == sorted(found)


def test_a_page_goes_on_where_its_last_entry_was_removed() -> None:
    keyed = [(("a", str(n)), n) for n in range(6)]
    page, place = page_after(keyed, None, 3)
    assert page == [0, 1, 2]
    del keyed[2]
    assert page_after(keyed, place, 3) == ([3, 4, 5], None)


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "%%%",
        "ééé",
        base64.urlsafe_b64encode(b"{}").decode(),
        base64.urlsafe_b64encode(b"[1]").decode(),
        base64.urlsafe_b64encode(b"[" * 5000).decode(),
        write_token(("other",), ["a", "b"]),
    ],
)
def test_a_token_of_another_request_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_token(token, ("scope",))
    assert caught.value.violations[0].field == "page_token"


@pytest.mark.parametrize("place", [[], ["a"], ["a", 1], "ab", 5, {"a": 1}])
def test_a_place_that_is_no_key_is_refused(place: object) -> None:
    assert json.loads(json.dumps(place)) == place
    with pytest.raises(InvalidArgument):
        page_after([(("a", "b"), 1)], place, 1)


@pytest.mark.parametrize(
    ("depth", "is_valid"), [(-1, False), (0, True), (1, True), (10_000, True), (10_001, False)]
)
def test_depth(depth: int, is_valid: bool) -> None:
    if is_valid:
        validators.check_depth(depth)
        return
    with pytest.raises(InvalidArgument, match=f"got {depth}") as caught:
        validators.check_depth(depth)
    assert [v.field for v in caught.value.violations] == ["depth"]


@pytest.mark.parametrize(
    ("interval", "seconds"),
    [
        (None, 15.0),
        (Duration(nanos=100_000_000), 0.1),
        (Duration(seconds=60), 60.0),
        (Duration(nanos=99_999_999), None),
        (Duration(seconds=60, nanos=1), None),
        (Duration(), None),
        (Duration(seconds=-1), None),
    ],
)
def test_heartbeat_interval(interval: Duration | None, seconds: float | None) -> None:
    if seconds is not None:
        assert validators.heartbeat_seconds(interval, 15.0) == seconds
        return
    with pytest.raises(InvalidArgument):
        validators.heartbeat_seconds(interval, 15.0)


def test_states_and_kinds_must_exist() -> None:
    validators.check_states([order_book_pb2.ORDER_BOOK_STATE_STALE])
    validators.check_instrument_kind(0)
    for wrong in (0, 99):
        with pytest.raises(InvalidArgument) as caught:
            validators.check_states([1, wrong])
        assert caught.value.violations[0].field == "states[1]"
    with pytest.raises(InvalidArgument):
        validators.check_instrument_kind(99)


def test_a_resume_point_names_an_epoch() -> None:
    assert validators.resume_point(pb.StreamOrderBookRequest()) is None
    request = pb.StreamOrderBookRequest(resume=pb.ResumePoint(epoch=7))
    assert validators.resume_point(request) == (7, 0)
    with pytest.raises(InvalidArgument, match=r"resume\.epoch"):
        validators.resume_point(pb.StreamOrderBookRequest(resume=pb.ResumePoint(sequence=7)))
