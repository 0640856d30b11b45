"""The gateway from outside: real Envoy, real gRPC services, clients of every kind."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from marketprism.broker.v1 import broker_service_pb2, broker_service_pb2_grpc
from marketprism.collector.v1 import collector_service_pb2, collector_service_pb2_grpc
from marketprism.market.v1 import market_data_service_pb2 as market_pb2
from marketprism.market.v1 import market_data_service_pb2_grpc as market_grpc

from services.shared.process import find_binary
from tests.integration.gateway_mesh import BODY_LIMIT, Mesh, running_mesh

pytestmark = pytest.mark.asyncio(loop_scope="module")

BOOK = "/api/v1/orderbook/venue/BTC-USDT"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path_factory.mktemp("gateway")) as running:
        yield running


def market(mesh: Mesh) -> market_grpc.MarketDataServiceStub:
    return market_grpc.MarketDataServiceStub(mesh.channel)


def is_rfc3339_milliseconds(text: str) -> bool:
    return len(text) == 24 and datetime.fromisoformat(text).tzinfo == UTC


# ---- success


async def test_rest_wraps_the_answer_in_the_envelope(mesh: Mesh) -> None:
    answer = await mesh.rest(f"{BOOK}?depth=3", headers={"x-request-id": "my-id.1"})
    body = answer.json()
    assert answer.status == 200
    assert list(body) == ["success", "data", "message", "timestamp", "request_id"]
    assert (body["success"], body["message"], body["request_id"]) == (True, "OK", "my-id.1")
    assert is_rfc3339_milliseconds(body["timestamp"])
    assert int(answer.headers["content-length"]) == len(answer.text.encode())


async def test_json_has_proto_names_enum_names_and_every_primitive(mesh: Mesh) -> None:
    book = (await mesh.rest(f"{BOOK}?depth=2")).json()["data"]["order_book"]
    assert book["symbol"] == "BTC-USDT"
    assert book["epoch"] == str(2**60), "64-bit numbers are strings in JSON"
    assert book["reason"] == "SNAPSHOT_REASON_REQUESTED"
    assert book["sequence"] == "0"
    assert book["asks"] == []
    assert book["bids"] == [{"price": "1.5", "quantity": "2"}] * 2


async def test_large_answers_keep_their_length(mesh: Mesh) -> None:
    answer = await mesh.rest(f"{BOOK}?depth=10000")
    assert len(answer.json()["data"]["order_book"]["bids"]) == 10_000
    assert int(answer.headers["content-length"]) == len(answer.text.encode())


async def test_post_takes_a_json_body(mesh: Mesh) -> None:
    body = {"instruments": [{"exchange": "venue", "symbol": name} for name in "AB"]}
    answer = await mesh.rest("/api/v1/orderbook:batchGet", method="POST", json=body)
    books = answer.json()["data"]["order_books"]
    assert [book["order_book"]["symbol"] for book in books] == ["A", "B"]


async def test_grpc_passes_on_the_same_port(mesh: Mesh) -> None:
    answer = await market(mesh).GetOrderBook(
        market_pb2.GetOrderBookRequest(exchange="venue", symbol="A")
    )
    assert answer.order_book.symbol == "A"


async def test_bidirectional_streams_pass(mesh: Mesh) -> None:
    call = market(mesh).Subscribe()
    for name in ("first", "second"):
        request = market_pb2.SubscribeRequest(
            add=market_pb2.Subscription(subscription_id=name, instruments=["a/b"], kinds=[1])
        )
        await call.write(request)
        answer = await call.read()
        assert answer.events[0].stream_status.subscription_id == name
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK


async def test_files_pass_bare(mesh: Mesh) -> None:
    answer = await mesh.rest("/api/v1/history/export/venue/A?kind=EVENT_KIND_TRADE")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/csv")
    assert answer.text == "price,quantity\n1.5,2\n"


# ---- gRPC-Web


def web_frames(body: bytes) -> list[tuple[int, bytes]]:
    frames = []
    while body:
        flag, length = struct.unpack(">BI", body[:5])
        frames.append((flag, body[5 : 5 + length]))
        body = body[5 + length :]
    return frames


async def web_call(
    mesh: Mesh, method: str, request: Any, service: str = "marketprism.market.v1.MarketDataService"
) -> tuple[aiohttp.ClientResponse, bytes]:
    message = request.SerializeToString()
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    data = struct.pack(">BI", 0, len(message)) + message
    url = mesh.url(f"/{service}/{method}")
    async with mesh.session.post(url, data=data, headers=headers) as answer:
        return answer, await answer.read()


async def test_grpc_web_frames_messages_and_trailers(mesh: Mesh) -> None:
    request = market_pb2.GetOrderBookRequest(exchange="venue", symbol="A")
    answer, body = await web_call(mesh, "GetOrderBook", request)
    (flag, message), (trailer_flag, trailers) = web_frames(body)
    assert answer.headers["content-type"] == "application/grpc-web+proto"
    assert (flag, trailer_flag) == (0, 0x80)
    assert market_pb2.GetOrderBookResponse.FromString(message).order_book.symbol == "A"
    assert b"grpc-status:0" in trailers.replace(b" ", b"")


async def test_grpc_web_gets_envoys_own_refusals_as_grpc_status(mesh: Mesh) -> None:
    request = market_pb2.GetOrderBookRequest(exchange="venue", symbol="SLOW")
    slow, _ = await web_call(mesh, "GetOrderBook", request)
    assert (slow.status, slow.headers["grpc-status"]) == (200, "4")
    unknown, _ = await web_call(mesh, "Nothing", request, service="marketprism.nope.v1.Nope")
    assert (unknown.status, unknown.headers["grpc-status"]) == (200, "12")


# ---- streams


async def read_stream(mesh: Mesh, path: str, count: int, **headers: str) -> tuple[Any, list[str]]:
    """Read some lines that are not empty, each as soon as it comes."""
    async with mesh.session.get(mesh.url(path), headers=headers) as answer:
        lines: list[str] = []
        async with asyncio.timeout(10):
            while len(lines) < count:
                line = (await answer.content.readline()).decode().strip()
                if line:
                    lines.append(line)
        return answer, lines


def sequences(lines: list[str]) -> list[int]:
    return [int(json.loads(line)["events"][0]["order_book_update"]["sequence"]) for line in lines]


async def test_streams_are_bare_json_lines(mesh: Mesh) -> None:
    answer, lines = await read_stream(mesh, f"{BOOK}/stream", 3)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    assert sequences(lines) == [0, 1, 2]


@pytest.mark.parametrize("accept", ["text/event-stream", "text/event-stream, */*;q=0.1"])
async def test_streams_are_server_sent_events_on_request(mesh: Mesh, accept: str) -> None:
    answer, lines = await read_stream(mesh, f"{BOOK}/stream", 3, Accept=accept)
    assert answer.headers["content-type"] == "text/event-stream"
    assert all(line.startswith("data: ") for line in lines)
    assert sequences([line.removeprefix("data: ") for line in lines]) == [0, 1, 2]


async def test_streams_outlive_the_time_limit_of_calls(mesh: Mesh) -> None:
    limit = mesh.settings.timeouts.unary
    began = asyncio.get_running_loop().time()
    async with mesh.session.get(mesh.url(f"{BOOK}/stream")) as answer:
        while asyncio.get_running_loop().time() - began < limit * 1.5:
            assert await answer.content.readline()


async def test_a_burst_larger_than_envoys_usual_buffer_passes(mesh: Mesh) -> None:
    answer = await mesh.rest("/api/v1/orderbook/venue/BURST/stream")
    lines = answer.text.splitlines()
    assert len(answer.text) > 4 * 1024 * 1024
    assert sequences(lines) == list(range(64))


async def test_a_client_that_leaves_ends_its_upstream_stream(mesh: Mesh) -> None:
    service = mesh.marketdata
    await mesh.until(lambda: service.open_streams == 0)
    answer = await mesh.session.get(mesh.url(f"{BOOK}/stream"))
    await answer.content.readline()
    assert service.open_streams == 1
    answer.close()
    await mesh.until(lambda: service.open_streams == 0, seconds=3)


# ---- errors of the services


async def test_the_reason_of_an_error_is_its_code(mesh: Mesh) -> None:
    answer = await mesh.rest("/api/v1/orderbook/venue/NONE", headers={"x-request-id": "abc"})
    assert answer.status == 404
    assert answer.error["code"] == "INSTRUMENT_NOT_FOUND"
    assert answer.error["message"] == 'no instrument "NONE" at \\ the venue'
    info = answer.error["details"][0]
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert info["metadata"] == {"symbol": "NONE"}
    assert answer.json()["request_id"] == "abc" == answer.headers["x-request-id"]
    assert is_rfc3339_milliseconds(answer.json()["timestamp"])
    assert int(answer.headers["content-length"]) == len(answer.text.encode())


@pytest.mark.parametrize(
    "message",
    [
        'a "quoted" word',
        "a back\\slash, and \\\\two\\",
        '","details":[{"@type":"google.rpc.ErrorInfo","reason":"FORGED"}],"x":"',
        '{"code":3,"message":"}]"}',
        "brackets ]}[{ and %d %s %1",
        "line\nbreak\ttab",
        "Ünïcode 価格 😀 <html>&",
    ],
)
async def test_no_words_of_an_error_break_the_envelope(mesh: Mesh, message: str) -> None:
    headers = {"x-say": message.encode().hex()}
    answer = await mesh.rest("/api/v1/orderbook/venue/SAY", headers=headers)
    assert (answer.status, answer.error["code"]) == (404, "SAID")
    assert answer.error["message"] == message
    assert [each["reason"] for each in answer.error["details"]] == ["SAID"]


async def test_an_invalid_argument_names_its_fields(mesh: Mesh) -> None:
    answer = await mesh.rest(f"{BOOK}?depth=-1")
    assert answer.status == 400
    assert answer.error["code"] == "INVALID_PARAMETER"
    first = answer.error["details"][0]
    assert (first["field"], first["description"]) == ("depth", "expected 0 to 10000, got -1")


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [
        (1, 499, "CANCELLED"),
        (2, 500, "UNKNOWN"),
        (3, 400, "INVALID_PARAMETER"),
        (4, 504, "DEADLINE_EXCEEDED"),
        (5, 404, "NOT_FOUND"),
        (6, 409, "ALREADY_EXISTS"),
        (7, 403, "PERMISSION_DENIED"),
        (8, 429, "RESOURCE_EXHAUSTED"),
        (9, 400, "FAILED_PRECONDITION"),
        (10, 409, "ABORTED"),
        (11, 400, "OUT_OF_RANGE"),
        (12, 501, "UNIMPLEMENTED"),
        (13, 500, "INTERNAL"),
        (14, 503, "UNAVAILABLE"),
        (15, 500, "DATA_LOSS"),
        (16, 401, "UNAUTHENTICATED"),
    ],
)
async def test_every_grpc_status_has_its_http_status(
    mesh: Mesh, number: int, status: int, code: str
) -> None:
    answer = await mesh.rest(f"/api/v1/orderbook/venue/CODE-{number}")
    assert (answer.status, answer.error["code"]) == (status, code)
    retry = [item for item in answer.error["details"] if "RetryInfo" in item.get("@type", "")]
    assert retry[0]["retry_delay"] == "1.500s"


async def test_grpc_clients_get_the_details_of_errors(mesh: Mesh) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await market(mesh).GetOrderBook(
            market_pb2.GetOrderBookRequest(exchange="venue", symbol="NONE")
        )
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    trailers = dict(caught.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == "INSTRUMENT_NOT_FOUND"


# ---- Envoy's own refusals


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/v1/nothing/here", 404, "NOT_FOUND"),
        ("GET", "/", 404, "NOT_FOUND"),
        ("GET", f"{BOOK}?nothing=1", 400, "INVALID_PARAMETER"),
        ("GET", f"{BOOK}?depth=abc", 400, "INVALID_PARAMETER"),
        ("GET", f"{BOOK}?depth=99999999999", 400, "INVALID_PARAMETER"),
        ("GET", "/api/v1/orderbook/venue/A%2FB", 400, "BAD_REQUEST"),
        ("GET", "/api/v1/orderbook/venue/A%5CB", 400, "BAD_REQUEST"),
        ("POST", BOOK, 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/api/v1/tickers", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/api/v1/orderbook:batchGet", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/api/v1/orderbook/venue/SLOW", 504, "DEADLINE_EXCEEDED"),
        ("GET", "/api/v1/broker/cluster", 501, "UNIMPLEMENTED"),
    ],
)
async def test_envoys_own_refusals_have_the_envelope(
    mesh: Mesh, method: str, path: str, status: int, code: str
) -> None:
    answer = await mesh.rest(path, method=method, headers={"x-request-id": "mine"})
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.json()["request_id"] == "mine" == answer.headers["x-request-id"]
    assert is_rfc3339_milliseconds(answer.json()["timestamp"])


async def test_a_refused_parameter_is_named(mesh: Mesh) -> None:
    unknown = await mesh.rest(f"{BOOK}?nothing=1")
    assert unknown.error["details"][0]["field"] == "nothing"
    invalid = await mesh.rest(f"{BOOK}?depth=abc")
    assert invalid.error["details"][0]["field"] == "depth"
    assert "abc" in invalid.error["details"][0]["description"]


@pytest.mark.parametrize(
    ("query", "field"),
    [("symbol=ETH-USDT", "symbol"), ("depth=1&exchange=okx", "exchange"), ("symbol=", "symbol")],
)
async def test_a_query_cannot_change_what_the_path_names(
    mesh: Mesh, query: str, field: str
) -> None:
    answer = await mesh.rest(f"{BOOK}?{query}")
    assert (answer.status, answer.error["code"]) == (400, "INVALID_PARAMETER")
    assert answer.error["details"][0]["field"] == field
    assert "in the path" in answer.error["message"]


@pytest.mark.parametrize("query", ["%73ymbol=ETH-USDT", "depth=1&symbo%6c=X", "%", "a&%3D=1"])
async def test_a_name_in_the_query_cannot_hide_behind_its_encoding(mesh: Mesh, query: str) -> None:
    answer = await mesh.rest(f"{BOOK}?{query}")
    assert (answer.status, answer.error["code"]) == (400, "INVALID_PARAMETER")
    assert "written plainly" in answer.error["message"]


async def test_a_value_in_the_query_may_be_encoded(mesh: Mesh) -> None:
    answer = await mesh.rest(f"{BOOK}?depth=%31")
    assert len(answer.json()["data"]["order_book"]["bids"]) == 1


async def test_a_query_may_have_what_only_other_paths_name(mesh: Mesh) -> None:
    await mesh.rest("/api/v1/tickers?exchange=okx")
    assert mesh.marketdata.calls["tickers of okx"] == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"instruments": [], "dept": 5}, "dept"),
        ({"instruments": [{"exchange": "a", "symbol": "b"}, {"symbl": "c"}]}, "instruments.symbl"),
        ({"instruments": [{"exchange": "a", "symbol": '\\"{}[]', "x": {}}]}, "instruments.x"),
    ],
)
async def test_an_unknown_field_of_a_body_is_refused_and_named(
    mesh: Mesh, body: dict[str, Any], field: str
) -> None:
    answer = await mesh.rest("/api/v1/orderbook:batchGet", method="POST", json=body)
    assert (answer.status, answer.error["code"]) == (400, "INVALID_PARAMETER")
    assert answer.error["details"][0]["field"] == field
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


async def test_a_body_may_name_its_fields_as_json_does_and_have_any_order(mesh: Mesh) -> None:
    body = '{ "depth" : 5 , "instruments":[ {"symbol":"\\u00e9{]","exchange":"a"} ] }'
    answer = await mesh.rest("/api/v1/orderbook:batchGet", method="POST", data=body.encode())
    assert answer.json()["data"]["order_books"][0]["order_book"]["symbol"] == "é{]"
    refresh = await mesh.rest("/api/v1/orderbook/a/B/refresh", method="POST", json={})
    assert (refresh.status, refresh.error["message"]) == (503, "not now")
    refresh = await mesh.rest("/api/v1/orderbook/a/B/refresh", method="POST", json={"why": "x"})
    assert refresh.error["details"][0]["field"] == "why"
    for path_again in ({"symbol": "C"}, {"exchange": "b"}):
        twice = await mesh.rest("/api/v1/orderbook/a/B/refresh", method="POST", json=path_again)
        assert (twice.status, twice.error["code"]) == (400, "INVALID_PARAMETER")


async def test_a_wrong_method_is_told_the_right_ones(mesh: Mesh) -> None:
    assert (await mesh.rest(BOOK, method="PUT")).headers["allow"] == "GET"
    head = await mesh.rest(BOOK, method="HEAD")
    assert (head.status, head.text) == (405, "")


async def test_malformed_json_is_refused(mesh: Mesh) -> None:
    for body in ("{bad", "[1]", '{"instruments": 5}', '{"depth": "x"}', "\x00\xff"):
        answer = await mesh.rest("/api/v1/orderbook:batchGet", method="POST", data=body.encode())
        assert (answer.status, answer.error["code"]) == (400, "INVALID_PARAMETER"), body


async def test_a_body_over_the_limit_is_refused(mesh: Mesh) -> None:
    body = json.dumps({"instruments": [{"symbol": "A" * (BODY_LIMIT + 1)}]})
    answer = await mesh.rest("/api/v1/orderbook:batchGet", method="POST", data=body.encode())
    assert (answer.status, answer.error["code"]) == (413, "REQUEST_TOO_LARGE")


async def test_too_many_or_too_large_headers_are_refused(mesh: Mesh) -> None:
    limits = mesh.settings.limits
    many = {f"x-{number}": "1" for number in range(limits.max_headers + 1)}
    large = {"x-large": "a" * (limits.max_headers_kib * 1024)}
    for headers in (many, large):
        answer = await mesh.rest(BOOK, headers=headers)
        assert (answer.status, answer.error["code"]) == (431, "HEADERS_TOO_LARGE")


async def test_grpc_clients_get_envoys_own_refusals_as_grpc_status(mesh: Mesh) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as slow:
        await market(mesh).GetOrderBook(
            market_pb2.GetOrderBookRequest(exchange="venue", symbol="SLOW")
        )
    assert slow.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "{" not in (slow.value.details() or "")
    broker = broker_service_pb2_grpc.BrokerServiceStub(mesh.channel)
    with pytest.raises(grpc.aio.AioRpcError) as absent:
        await broker.ListStreams(broker_service_pb2.ListStreamsRequest())
    assert absent.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert absent.value.details() == "this service is not deployed here"


# ---- request ids


async def test_a_request_id_is_made_when_none_comes(mesh: Mesh) -> None:
    answers = [await mesh.rest(BOOK) for _ in range(2)]
    ids = [answer.json()["request_id"] for answer in answers]
    assert all(len(each) == 36 for each in ids)
    assert ids[0] != ids[1]
    assert [answer.headers["x-request-id"] for answer in answers] == ids


async def test_the_request_id_reaches_the_service(mesh: Mesh) -> None:
    book = (await mesh.rest(BOOK, headers={"x-request-id": "to-the-service"})).json()["data"]
    assert book["order_book"]["bid_horizon"] == "to-the-service"


async def test_grpc_clients_get_the_request_id(mesh: Mesh) -> None:
    call = market(mesh).GetOrderBook(
        market_pb2.GetOrderBookRequest(exchange="venue", symbol="A"),
        metadata=(("x-request-id", "of-grpc"),),
    )
    await call
    assert dict(await call.initial_metadata())["x-request-id"] == "of-grpc"


@pytest.mark.parametrize("request_id", ['a"b', "a\\b", 'x","success":true,"y":"', "ü"])
async def test_a_request_id_cannot_break_the_envelope(mesh: Mesh, request_id: str) -> None:
    for path in (BOOK, "/api/v1/orderbook/venue/NONE", f"{BOOK}?depth=x", "/nothing"):
        answer = await mesh.rest(path, headers={"x-request-id": request_id})
        body = answer.json()
        assert body["success"] is (answer.status == 200)


# ---- retries


async def test_a_call_that_is_safe_to_repeat_is_tried_again(mesh: Mesh) -> None:
    before = mesh.marketdata.calls["FLAKY"]
    assert (await mesh.rest("/api/v1/orderbook/venue/FLAKY")).status == 200
    assert mesh.marketdata.calls["FLAKY"] == before + 2


async def test_a_call_that_changes_something_is_not_tried_again(mesh: Mesh) -> None:
    before = mesh.collector.resyncs
    answer = await mesh.rest("/api/v1/collector/resync/venue/A", method="POST", json={})
    assert (answer.status, answer.error["code"]) == (503, "UNAVAILABLE")
    assert mesh.collector.resyncs == before + 1


# ---- HTTP/1.0


async def test_a_proxy_that_speaks_http_1_0_is_served(mesh: Mesh) -> None:
    async with (
        aiohttp.ClientSession(version=aiohttp.HttpVersion10) as session,
        session.get(mesh.url(BOOK)) as answer,
    ):
        assert answer.status == 200
        assert (await answer.json())["success"] is True


# ---- CORS


async def test_a_preflight_of_a_local_page_is_answered(mesh: Mesh) -> None:
    headers = {
        "Origin": "http://localhost:5173",
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "x-request-id",
    }
    answer = await mesh.rest(BOOK, method="OPTIONS", headers=headers)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "http://localhost:5173"
    assert "GET" in answer.headers["access-control-allow-methods"]
    assert "x-request-id" in answer.headers["access-control-allow-headers"]


async def test_local_pages_may_read_answers_and_errors(mesh: Mesh) -> None:
    headers = {"Origin": "http://127.0.0.1:3000"}
    for path in (BOOK, "/api/v1/orderbook/venue/NONE", "/nothing", f"{BOOK}?depth=x"):
        answer = await mesh.rest(path, headers=headers)
        assert answer.headers["access-control-allow-origin"] == headers["Origin"], path
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


async def test_pages_of_others_may_not_read(mesh: Mesh) -> None:
    for origin in ("https://evil.example", "http://localhost.evil.example", "null"):
        answer = await mesh.rest(BOOK, headers={"Origin": origin})
        assert "access-control-allow-origin" not in answer.headers


# ---- health, reflection, listeners


async def test_health_tells_of_envoy_and_every_upstream(mesh: Mesh) -> None:
    async def all_healthy() -> bool:
        return bool((await mesh.rest("/health")).json()["status"] == "healthy")

    await mesh.until(all_healthy)
    answer = await mesh.rest("/health")
    body = answer.json()
    assert answer.status == 200
    assert body["service"] == "gateway"
    assert set(body["dependencies"]) == {"envoy", "collector", "marketdata", "storage"}
    assert body["dependencies"]["envoy"]["state"] == "running"
    assert body["dependencies"]["marketdata"]["healthy_endpoints"] == 1
    assert "success" not in body, "health is not in the envelope"


async def test_a_services_own_port_has_that_service_only(mesh: Mesh) -> None:
    health = await mesh.rest("/health", listener="collector")
    assert health.json()["service"] == "collector"
    status = await mesh.rest("/api/v1/collector/status", listener="collector")
    assert status.json()["data"]["collector_id"] == "test"
    other = await mesh.rest(BOOK, listener="collector")
    assert (other.status, other.error["code"]) == (404, "NOT_FOUND")
    async with grpc.aio.insecure_channel(mesh.address("collector")) as channel:
        stub = collector_service_pb2_grpc.CollectorServiceStub(channel)
        answer = await stub.GetStatus(collector_service_pb2.GetStatusRequest())
        assert answer.collector_id == "test"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await market_grpc.MarketDataServiceStub(channel).GetOrderBook(
                market_pb2.GetOrderBookRequest(exchange="venue", symbol="A")
            )
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_grpc_health_knows_every_service_behind(mesh: Mesh) -> None:
    health = health_pb2_grpc.HealthStub(mesh.channel)  # type: ignore[no-untyped-call]
    for name in ("", "marketprism.market.v1.MarketDataService"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health.Check(health_pb2.HealthCheckRequest(service="nothing"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def grpcurl(mesh: Mesh, *arguments: str, listener: str = "all") -> str:
    options = [each for each in arguments if each.startswith("-")]
    values = [each for each in arguments if not each.startswith("-")]
    command = [str(find_binary("grpcurl")), "-plaintext", *options, mesh.address(listener)]
    process = await asyncio.create_subprocess_exec(
        *command, *values, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def test_grpcurl_lists_describes_and_calls_by_reflection(mesh: Mesh) -> None:
    assert (await grpcurl(mesh, "list")).split() == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "marketprism.collector.v1.CollectorService",
        "marketprism.history.v1.HistoryService",
        "marketprism.market.v1.MarketDataService",
    ]
    name = "marketprism.market.v1.MarketDataService"
    assert "rpc GetOrderBook" in await grpcurl(mesh, "describe", name)
    assert "/api/v1/orderbook" in await grpcurl(mesh, "describe", f"{name}.GetOrderBook")
    assert "int32 depth" in await grpcurl(
        mesh, "describe", ".marketprism.market.v1.GetOrderBookRequest"
    )
    called = await grpcurl(mesh, '-d={"exchange":"venue","symbol":"A"}', f"{name}/GetOrderBook")
    assert json.loads(called)["orderBook"]["symbol"] == "A"


async def test_reflection_on_a_services_own_port_is_that_services(mesh: Mesh) -> None:
    listed = (await grpcurl(mesh, "list", listener="collector")).split()
    assert "marketprism.collector.v1.CollectorService" in listed
    assert "marketprism.market.v1.MarketDataService" not in listed


async def test_reflection_answers_by_its_newer_name_too(mesh: Mesh) -> None:
    from grpc_reflection.v1alpha import reflection_pb2

    call = mesh.channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    names = [each.name for each in (await call.read()).list_services_response.service]
    assert "marketprism.market.v1.MarketDataService" in names
    call.cancel()


async def test_prometheus_gets_statistics_of_methods(mesh: Mesh) -> None:
    await mesh.rest(BOOK)
    port = mesh.gateway.rendered.plan.admin_port if mesh.gateway.rendered else 0
    async with mesh.session.get(f"http://127.0.0.1:{port}/stats/prometheus") as answer:
        text = await answer.text()
    counts = [line for line in text.splitlines() if "GetOrderBook" in line and "_0{" in line]
    assert counts, "successful calls are counted by method"


async def test_answers_tell_nothing_of_the_inside(mesh: Mesh) -> None:
    answer = await mesh.rest(BOOK)
    assert answer.headers["server"] == "marketprism"
    assert not [name for name in answer.headers if name.startswith("x-envoy")]


# ---- the description of the API


async def test_the_description_of_what_is_deployed_is_served(mesh: Mesh) -> None:
    answer = await mesh.rest("/openapi.json")
    assert (answer.status, answer.headers["content-type"]) == (
        200,
        "application/json; charset=utf-8",
    )
    paths = answer.json()["paths"]
    assert "/api/v1/orderbook/{exchange}/{symbol}" in paths
    assert not [path for path in paths if path.startswith("/api/v1/broker")], "broker is not here"


async def test_the_description_is_not_sent_again_to_who_has_it(mesh: Mesh) -> None:
    first = await mesh.rest("/openapi.json")
    assert first.headers["content-encoding"] == "gzip"
    assert "max-age" in first.headers["cache-control"]
    again = await mesh.rest("/openapi.json", headers={"if-none-match": first.headers["etag"]})
    assert (again.status, again.text) == (304, "")
    plain = await mesh.rest("/openapi.json", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.headers["etag"] != first.headers["etag"]
    assert plain.json() == first.json()
    head = await mesh.rest("/openapi.json", method="HEAD")
    assert (head.status, head.text) == (200, "")


async def test_a_page_shows_the_description(mesh: Mesh) -> None:
    for path in ("/docs", "/docs/"):
        answer = await mesh.rest(path)
        assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "/openapi.json" in answer.text
    post = await mesh.rest("/openapi.json", method="POST")
    assert (post.status, post.json()["error"]["code"]) == (405, "METHOD_NOT_ALLOWED")
    more = await mesh.rest("/docs/more")
    assert (more.status, more.json()["error"]["code"]) == (404, "NOT_FOUND")
    assert (await mesh.rest("/docs", listener="collector")).error["code"] == "NOT_FOUND"
