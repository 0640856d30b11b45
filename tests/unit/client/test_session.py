"""A subscription outlives its connections, and its books say when they are in doubt."""

import grpc
import pytest
from marketprism.client.book import BrokenBookError
from marketprism.client.session import ClientError, Session, kind_number, wish
from marketprism.market.v1 import common_pb2
from marketprism.market.v1 import order_book_pb2 as pb
from marketprism.market.v1.market_event_pb2 import MarketEvent, StreamState, StreamStatus

from tests.unit.client.test_book import snapshot, status, update


def told(state: "StreamState.ValueType", reason: str = "", **more: str) -> MarketEvent:
    return MarketEvent(stream_status=StreamStatus(state=state, reason=reason, **more))  # type: ignore[arg-type]


OPEN = told(StreamState.STREAM_STATE_OPEN, "SUBSCRIBED")
SYNCED = status(pb.ORDER_BOOK_STATE_SYNCED)
RESUMED = told(StreamState.STREAM_STATE_SUBSCRIPTION, "RESUMED", exchange="x", symbol="S")


class Failure(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "why"


def session() -> Session:
    made = Session(wish("x/S", ["order_book"]))
    made.take([OPEN, snapshot(3, [("10", "1")], [("11", "1")]), SYNCED])
    return made


def test_a_new_connection_goes_on_where_the_book_stands() -> None:
    made = session()
    made.take([update(4, [], [])])
    made.ended(Failure(grpc.StatusCode.UNAVAILABLE))
    book = made.book("x", "S")
    assert not book.is_trusted, "nobody carries it now"
    _, request = made.requests()
    (resume,) = request.add.resumes
    assert (resume.resume.epoch, resume.resume.sequence) == (7, 4)
    made.take([OPEN])
    assert not book.is_trusted, "the server has not said yet that it goes on"
    made.take([RESUMED])
    assert book.is_trusted
    assert made.reconnects == 1


def test_a_broken_book_asks_for_a_snapshot() -> None:
    made = session()
    with pytest.raises(BrokenBookError):
        made.take([update(9, [], [])])
    made.ended(BrokenBookError("gap"))
    _, request = made.requests()
    assert not request.add.resumes
    assert not made.book("x", "S").is_trusted


@pytest.mark.parametrize("scope", [{}, {"exchange": "x"}, {"exchange": "x", "symbol": "S"}])
def test_a_book_is_in_doubt_while_its_way_is_interrupted(scope: dict[str, str]) -> None:
    made = session()
    book = made.book("x", "S")
    made.take([told(StreamState.STREAM_STATE_INTERRUPTED, "COLLECTOR_SILENT", **scope)])
    assert not book.is_trusted
    made.take([told(StreamState.STREAM_STATE_OPEN, "RESUMED", exchange="other")])
    assert not book.is_trusted
    made.take([told(StreamState.STREAM_STATE_OPEN, "RESUMED", **scope)])
    assert book.is_trusted


def test_a_refusal_is_final() -> None:
    with pytest.raises(ClientError, match="INVALID_PATTERN"):
        session().take(
            [told(StreamState.STREAM_STATE_SUBSCRIPTION, "INVALID_PATTERN", message="refused: x")]
        )
    with pytest.raises(ClientError, match="NOT_FOUND"):
        session().ended(Failure(grpc.StatusCode.NOT_FOUND))


def test_waits_grow_until_something_comes() -> None:
    made = session()
    waits = [made.ended(Failure(grpc.StatusCode.UNAVAILABLE)) for _ in range(12)]
    assert waits[0] <= 0.1
    assert 5 <= waits[-1] <= 10
    made.take([OPEN])
    assert made.ended(None) <= 0.1


def test_what_is_wished_is_asked_for() -> None:
    made = Session(
        wish(
            ["x/*", "y/S"],
            ["trade", "order_book"],
            depth=5,
            conflation_seconds=0.25,
            price_grouping="0.5",
            heartbeat_seconds=2,
        )
    )
    heartbeat, request = made.requests()
    assert heartbeat.heartbeat_interval.ToMilliseconds() == 2000
    assert list(request.add.instruments) == ["x/*", "y/S"]
    assert list(request.add.kinds) == [
        common_pb2.EVENT_KIND_TRADE, common_pb2.EVENT_KIND_ORDER_BOOK,
    ]  # fmt: skip
    assert (request.add.depth, request.add.price_grouping) == (5, "0.5")
    assert request.add.conflation_interval.ToMilliseconds() == 250


def test_a_kind_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(ValueError, match="expected one of trade, order_book"):
        kind_number("trades")
