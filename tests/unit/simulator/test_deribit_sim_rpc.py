"""JSON-RPC as Deribit speaks it: replies, errors, credits."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.deribit_credits import CreditPool
from services.simulator.deribit_rpc import (
    BAD_REQUEST,
    INVALID_PARAMS,
    RpcError,
    error_reply,
    parse_request,
    result_reply,
)


def test_a_request_is_read_with_or_without_params() -> None:
    read = parse_request('{"jsonrpc":"2.0","id":7,"method":"public/test"}')
    assert (read.number, read.method, read.params) == (7, "public/test", {})
    read = parse_request('{"id":"a","method":"/public/ticker","params":{"instrument_name":"X"}}')
    assert (read.number, read.method, read.params) == (
        "a",
        "public/ticker",
        {"instrument_name": "X"},
    )


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{nope", BAD_REQUEST),
        ("[]", BAD_REQUEST),
        ("7", BAD_REQUEST),
        ("{}", BAD_REQUEST),
        ('{"id":1,"method":7}', BAD_REQUEST),
        ('{"id":{"a":1},"method":"public/test"}', BAD_REQUEST),
        ("[" * 100_000, BAD_REQUEST),
        ('{"id":1,"method":"public/test","params":[1]}', INVALID_PARAMS),
    ],
)
def test_what_is_no_request_gets_the_venues_error(text: str, code: int) -> None:
    with pytest.raises(RpcError) as refused:
        parse_request(text)
    assert refused.value.code == code


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.text() | _json.map(json.dumps))
def test_no_text_makes_the_reader_fail(text: str) -> None:
    try:
        read = parse_request(text)
    except RpcError:
        return
    json.loads(result_reply(read.number, b"1", 1))


@given(
    st.fixed_dictionaries(
        {}, optional={"id": _json, "method": st.text() | _json, "params": _json, "jsonrpc": _json}
    )
)
def test_every_readable_request_can_be_answered_with_its_own_id(message: dict[str, Any]) -> None:
    try:
        read = parse_request(json.dumps(message))
    except RpcError:
        return
    reply = json.loads(result_reply(read.number, b"null", 1))
    assert reply.get("id") == message.get("id")


def test_a_reply_has_the_venues_shape() -> None:
    reply = json.loads(result_reply(3, b'"ok"', 5))
    assert list(reply) == ["jsonrpc", "id", "result", "usIn", "usOut", "usDiff", "testnet"]
    assert reply["usDiff"] == reply["usOut"] - reply["usIn"]
    error = json.loads(error_reply(None, RpcError(11050, "bad_request", "invalid json"), 5))
    assert list(error) == ["jsonrpc", "error", "usIn", "usOut", "usDiff", "testnet"]
    assert error["error"] == {"code": 11050, "data": "invalid json", "message": "bad_request"}


def test_credits_allow_a_burst_and_then_a_steady_rate() -> None:
    now = [0.0]
    pool = CreditPool(30_000, 10_000, lambda: now[0])
    assert sum(pool.take(3000) for _ in range(20)) == 10
    assert pool.refused == 10
    now[0] = 0.29
    assert not pool.take(3000)
    now[0] = 0.31
    assert pool.take(3000)
    now[0] = 1000.0
    assert pool.left == 30_000
