"""Books and services as they are shown to a person."""

from decimal import Decimal

import pytest
from marketprism.market.v1 import market_event_pb2 as event_pb
from marketprism.market.v1 import order_book_pb2 as pb
from marketprism.market.v1.common_pb2 import PriceLevel
from rich.console import Console, RenderableType

from services.cli.book_keeper import BookKeeper, Level
from services.cli.book_view import (
    BookView,
    Rate,
    Units,
    latency_text,
    plain_line,
    spread_text,
)
from services.cli.follow import Link
from services.cli.mesh_state import ChildRecord, MeshRecord
from services.cli.status import BookRow, MeshStatus, ServiceRow, _duration, _unregistered


def level(price: str, quantity: str = "1") -> Level:
    return Level(Decimal(price), Decimal(quantity))


@pytest.fixture
def keeper() -> BookKeeper:
    book = BookKeeper()
    snapshot = pb.OrderBookSnapshot(
        epoch=3,
        sequence=7,
        venue_sequence=1234,
        bids=[PriceLevel(price="100.5", quantity="4"), PriceLevel(price="100.4", quantity="1")],
        asks=[PriceLevel(price="100.7", quantity="2")],
        bid_horizon="90",
    )
    snapshot.receive_time.FromNanoseconds(1_000_000_000)
    book.apply(event_pb.MarketEvent(order_book_snapshot=snapshot))
    return book


def text_of(renderable: RenderableType) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_view_shows_levels_spread_place_and_horizon(keeper: BookKeeper) -> None:
    text = text_of(
        BookView("binance", "BTC-USDT", 5).render(keeper, Link(connected=True), 9.5, "1.2 ms")
    )
    for part in (
        "binance BTC-USDT  SYNCED",
        "100.5",
        "100.7",
        "spread 0.2",
        "epoch 3",
        "sequence 7",
        "venue 1234",
        "2+1 levels",
        "9.5 updates/s",
        "latency 1.2 ms",
        "known 90 to ...",
    ):
        assert part in text
    bars = [line.count("█") for line in text.splitlines() if "█" in line]
    assert bars == [12, 24, 6]


def test_the_view_says_when_the_book_is_not_in_step(keeper: BookKeeper) -> None:
    view = BookView("binance", "BTC-USDT", 5)
    assert "NOT CONNECTED" in text_of(view.render(keeper, Link(detail="gone"), 0.0, "-"))
    keeper.apply(
        event_pb.MarketEvent(
            order_book_status=pb.OrderBookStatus(
                state=pb.ORDER_BOOK_STATE_RESYNCING, epoch=3, detail="a frame is missing"
            )
        )
    )
    text = text_of(view.render(keeper, Link(connected=True), 0.0, "-"))
    assert "RESYNCING  not in step: a frame is missing" in text


def test_an_empty_book_can_be_shown() -> None:
    text = text_of(BookView("x", "Y", 5).render(BookKeeper(), Link(connected=True), 0.0, "-"))
    assert "NO BOOK" in text
    assert "one side is empty" in text


def test_a_pipe_gets_one_line_with_everything(keeper: BookKeeper) -> None:
    line = plain_line(keeper, Link(connected=True), 3.0, "10:11:12", "1.0 ms")
    assert line == (
        "10:11:12 SYNCED epoch=3 sequence=7 bid=100.5x4 ask=100.7x2 spread 0.2 (19.9 bp) "
        "updates/s=3.0 latency=1.0 ms"
    )
    assert "DISCONNECTED" in plain_line(keeper, Link(detail="gone"), 0.0, "", "")
    assert "no book: no snapshot yet" in plain_line(BookKeeper(), Link(connected=True), 0, "", "")


def test_what_prices_and_quantities_are_in_is_told(keeper: BookKeeper) -> None:
    view = BookView("deribit", "BTC-USD-PERP", 5, Units("USD", "USD"))
    text = text_of(view.render(keeper, Link(connected=True), 0.0, "-"))
    assert "price USD" in text
    assert "quantity USD" in text


def test_a_crossed_book_is_told() -> None:
    assert spread_text(level("2"), level("1")).endswith("CROSSED")
    assert spread_text(level("1"), None) == "one side is empty"


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate(window_seconds=2.0)
    assert rate.at(0.0, 0) == 0.0
    assert rate.at(1.0, 10) == 10.0
    assert rate.at(2.0, 20) == 10.0
    assert rate.at(3.0, 20) == 5.0
    assert rate.at(5.0, 20) == 0.0


def test_latency_is_from_the_collectors_socket_read(keeper: BookKeeper) -> None:
    assert latency_text(keeper, 1_001_500_000) == "1.5 ms"
    assert latency_text(BookKeeper(), 5) == "unknown"


def service(health: str = "healthy") -> ServiceRow:
    return ServiceRow("broker", health, 1, "", "", 1.0, 0)


def book(state: str = "SYNCED") -> BookRow:
    return BookRow("binance", "BTC-USDT", state, 1, 1, "")


def test_a_mesh_is_healthy_only_when_everything_is() -> None:
    def healthy(services: list[ServiceRow], books: list[BookRow], problems: list[str]) -> bool:
        return MeshStatus("/d", None, services, books, problems).healthy

    assert healthy([service()], [book()], [])
    assert not healthy([], [], [])
    assert not healthy([service("degraded")], [book()], [])
    assert not healthy([service()], [book("STALE")], [])
    assert not healthy([service()], [book()], ["cannot ask"])


def test_a_process_that_is_not_registered_is_shown_with_what_the_supervisor_knows() -> None:
    record = MeshRecord(
        pid=1,
        started="2026-01-31T10:11:12Z",
        mode="microservice",
        source="simulated",
        ready=True,
        addresses={"simulator.okx": "127.0.0.1:9303", "simulator.deribit": "127.0.0.1:9304"},
        children=(
            ChildRecord("simulator", (), 1, "running", 0, None),
            ChildRecord("broker", ("broker",), None, "backoff", 4, -9),
            ChildRecord("gateway", ("gateway",), 2, "running", 0, None),
        ),
    )
    rows = {row.name: row for row in _unregistered(record, {"gateway"})}
    assert set(rows) == {"simulator", "broker"}
    assert rows["simulator"].health == "healthy"
    assert rows["simulator"].http == "127.0.0.1:9303"
    assert (rows["broker"].health, rows["broker"].restarts) == ("backoff", 4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (65, "1 min 5 s"), (3700, "1 h 1 min"), (90_000, "1 d 1 h")],
)
def test_durations_are_told_in_two_units(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
