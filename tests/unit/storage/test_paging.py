"""Tokens of pages hold any place, and only for the request that they were made for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketprism.history.v1 import history_service_pb2 as pb

from services.shared.errors import InvalidArgument
from services.storage.paging import read_token, write_token

PLACES = st.lists(st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20), max_size=6)
REQUEST = pb.ListTradesRequest(exchange="binance", symbol="BTC-USDT", page_size=7)


def with_token(token: str, **fields: object) -> pb.ListTradesRequest:
    request = pb.ListTradesRequest()
    request.CopyFrom(REQUEST)
    request.MergeFrom(pb.ListTradesRequest(page_token=token, **fields))  # type: ignore[arg-type]
    return request


def test_the_first_page_has_no_place() -> None:
    assert read_token(REQUEST) is None


@given(PLACES)
def test_a_place_comes_back_also_when_the_size_changes(place: list[int | str]) -> None:
    token = write_token(REQUEST, place)
    assert read_token(with_token(token, page_size=9)) == place
    again = write_token(with_token(token), place)
    assert again == token, "the token before is no part of what a token is bound to"


@given(PLACES, st.data())
def test_a_token_with_any_character_changed_is_refused(
    place: list[int | str], data: st.DataObject
) -> None:
    token = write_token(REQUEST, place)
    at = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.characters(exclude_characters=token[at], codec="utf-8"))
    changed = token[:at] + other + token[at + 1 :]
    with pytest.raises(InvalidArgument) as raised:
        read_token(with_token(changed))
    assert raised.value.reason == "PAGE_TOKEN_INVALID"
    assert [each.field for each in raised.value.violations] == ["page_token"]


@given(st.text(max_size=300))
def test_any_text_is_a_token_or_refused(text: str) -> None:
    if text:
        with pytest.raises(InvalidArgument):
            read_token(with_token(text))


@pytest.mark.parametrize(
    "fields", [{"descending": True}, {"end_time": {"seconds": 5}}, {"symbol": "ETH-USDT"}]
)
def test_a_token_is_bound_to_every_field_of_its_request(fields: dict[str, object]) -> None:
    token = write_token(REQUEST, [1])
    with pytest.raises(InvalidArgument, match="its other fields have changed"):
        read_token(with_token(token, **fields))


def test_a_token_is_bound_to_its_list() -> None:
    token = write_token(REQUEST, [1])
    other = pb.ListTickersRequest(exchange="binance", symbol="BTC-USDT", page_token=token)
    with pytest.raises(InvalidArgument):
        read_token(other)
