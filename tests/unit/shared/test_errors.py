"""One root, one table, and a status that clients can act on and that leaks nothing."""

import base64
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2

from services.shared import errors
from services.shared.errors import (
    STATUS_TABLE,
    FieldViolation,
    InvalidArgument,
    MarketPrismError,
    NotFound,
    ResourceExhausted,
    StartupError,
    grpc_code,
    http_status,
)


def detail(error: MarketPrismError, kind: type, request_id: str = "") -> object | None:
    message = kind()
    for packed in error.to_status(request_id).details:
        if packed.Unpack(message):
            return message
    return None


def test_table_has_each_code_but_ok_once() -> None:
    codes = [code for code, _ in STATUS_TABLE.values()]
    assert sorted(codes, key=lambda c: c.value[0]) == [
        c for c in sorted(grpc.StatusCode, key=lambda c: c.value[0]) if c is not grpc.StatusCode.OK
    ]


def test_subclass_has_the_code_of_its_nearest_base() -> None:
    assert grpc_code(StartupError("x")) is grpc.StatusCode.FAILED_PRECONDITION
    assert http_status(NotFound) == 404
    assert http_status(MarketPrismError("x")) == 500


def test_exported_errors_have_one_root_and_an_upper_snake_reason() -> None:
    for name in errors.__all__:
        each = getattr(errors, name)
        if isinstance(each, type) and issubclass(each, Exception):
            assert issubclass(each, MarketPrismError)
            assert each.default_reason == each.default_reason.upper()


def test_status_carries_reason_domain_and_metadata() -> None:
    error = NotFound("no such symbol", reason="SYMBOL_UNKNOWN", metadata={"symbol": "X", "n": 3})
    info = detail(error, error_details_pb2.ErrorInfo)
    assert info == error_details_pb2.ErrorInfo(
        reason="SYMBOL_UNKNOWN", domain="marketprism", metadata={"symbol": "X", "n": "3"}
    )
    assert error.to_status().code == 5


def test_status_carries_violations_request_id_and_retry() -> None:
    error = ResourceExhausted(
        "slow down", retry_after=1.5, violations=[FieldViolation("depth", "at most 5000", "RANGE")]
    )
    bad = detail(error, error_details_pb2.BadRequest)
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [(v.field, v.description, v.reason) for v in bad.field_violations] == [
        ("depth", "at most 5000", "RANGE")
    ]
    request = detail(error, error_details_pb2.RequestInfo, "abc")
    assert request == error_details_pb2.RequestInfo(request_id="abc")
    retry = detail(error, error_details_pb2.RetryInfo)
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.ToMilliseconds() == 1500


@pytest.mark.parametrize("char", ["x", "ü", "币", "%", "\n", "🙂"])
def test_status_fits_into_trailers_however_much_is_wrong(char: str) -> None:
    error = InvalidArgument(
        char * 100_000,
        metadata={"what": char * 10_000},
        violations=[FieldViolation(f"field{i}{char}" * 50, char * 5000) for i in range(1000)],
    )
    status = error.to_status("r")
    assert status.message.endswith("…")
    # As headers they must stay below the usual 8 KiB.
    message = quote(status.message, safe="".join(map(chr, range(33, 127))).replace("%", ""))
    assert len(message) <= 1024 + 32
    assert len(message) + len(base64.b64encode(status.SerializeToString())) < 8000


def test_a_message_that_fits_is_not_cut() -> None:
    text = "binance has no instrument '币安人生-USDT'; did you mean 币安-USDT? " + "x" * 500
    assert NotFound(text).to_status().message == text


def test_status_holds_no_secret() -> None:
    error = NotFound(
        "cannot reach nats://user:hunter2@host",
        metadata={"url": "redis://:hunter2@host", "api_key": "hunter2"},
        violations=[FieldViolation("url", "got http://u:hunter2@h")],
    )
    assert b"hunter2" not in error.to_status().SerializeToString()


def test_error_survives_the_wire() -> None:
    sent = NotFound(
        "no such symbol",
        reason="SYMBOL_UNKNOWN",
        metadata={"symbol": "X"},
        violations=[FieldViolation("symbol", "expected a known one", "UNKNOWN")],
        retry_after=2.0,
    )
    received = errors.from_rpc_error(
        grpc.aio.AioRpcError(
            grpc.StatusCode.NOT_FOUND,
            grpc.aio.Metadata(),
            grpc.aio.Metadata(
                ("grpc-status-details-bin", sent.to_status("id").SerializeToString())
            ),
            "no such symbol",
        )
    )
    assert type(received) is NotFound
    assert vars(received) == vars(sent)


@pytest.mark.parametrize("code", list(grpc.StatusCode)[1:])
def test_foreign_status_becomes_the_error_of_its_code(code: grpc.StatusCode) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "connection lost")
    assert grpc_code(errors.from_rpc_error(error)) is code
