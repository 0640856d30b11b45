"""The Python client keeps a book through a rebuild, a restart of the server and a cut network."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import grpc
import pytest
from marketprism.client import AsyncClient, Client, ClientError, OrderBook
from marketprism.client.tables import columns
from marketprism.collector.v1 import collector_service_pb2, collector_service_pb2_grpc
from marketprism.market.v1 import market_data_service_pb2, market_data_service_pb2_grpc

from tests.e2e.mesh import Mesh, running_mesh, wait_for
from tests.e2e.tcp_proxy import TcpProxy

EXCHANGE, SYMBOL = "binance", "BTC-USDT"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    directory: Path = tmp_path_factory.mktemp("mesh")
    with running_mesh(
        directory, "--simulated", "--exchanges", EXCHANGE, "--symbols", f"{SYMBOL},ETH-USDT"
    ) as mesh:
        wait_for(mesh.books_in_step, "every book is in step")
        yield mesh


def address(mesh: Mesh) -> str:
    return mesh.address("all").removeprefix("http://")


class Follower:
    """Follows a book in a thread, and keeps what it was at each place."""

    def __init__(self, target: str) -> None:
        self.client = Client(target)
        self.book = OrderBook(EXCHANGE, SYMBOL)
        self.seen: dict[tuple[int, int], tuple[list, list]] = {}  # type: ignore[type-arg]
        self.doubts = 0
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            for book in self.client.follow_book(EXCHANGE, SYMBOL, heartbeat_seconds=0.5):
                self.book = book
                if book.is_trusted:
                    self.seen[book.epoch, book.sequence] = (book.bids(), book.asks())
                else:
                    self.doubts += 1
        except (grpc.RpcError, ValueError):
            # The channel was closed under it.
            return
        except Exception as error:
            self.error = error

    def stop(self) -> None:
        self.client.close()
        self.thread.join(10)
        assert self.error is None


def compare(mesh: Mesh, follower: Follower) -> None:
    """Hold the book against the server's at the same place."""
    with grpc.insecure_channel(address(mesh)) as channel:
        stub = market_data_service_pb2_grpc.MarketDataServiceStub(channel)

        def equal() -> bool:
            answer = stub.GetOrderBook(
                market_data_service_pb2.GetOrderBookRequest(exchange=EXCHANGE, symbol=SYMBOL)
            ).order_book
            held = follower.seen.get((answer.epoch, answer.sequence))
            if held is None:
                return False
            for mine, theirs in zip(held, (answer.bids, answer.asks), strict=True):
                assert [(level.price, level.quantity) for level in mine] == [
                    (Decimal(level.price), Decimal(level.quantity)) for level in theirs
                ]
            return True

        wait_for(equal, "the book is the server's at the same place", seconds=30)


def test_a_book_lives_through_everything_and_never_hides_a_doubt(mesh: Mesh) -> None:
    with TcpProxy(address(mesh)) as proxy:
        follower = Follower(proxy.address)
        try:
            wait_for(lambda: len(follower.seen) > 5, "the book is followed")
            compare(mesh, follower)

            epoch = follower.book.epoch
            with grpc.insecure_channel(address(mesh)) as channel:
                collector_service_pb2_grpc.CollectorServiceStub(channel).Resync(
                    collector_service_pb2.ResyncRequest(exchange=EXCHANGE, symbol=SYMBOL)
                )
            wait_for(
                lambda: follower.book.epoch > epoch and follower.book.is_trusted,
                "the rebuilt book is followed",
            )
            compare(mesh, follower)

            doubts = follower.doubts
            proxy.cut()
            wait_for(lambda: follower.doubts > doubts, "the cut is told")
            wait_for(lambda: follower.book.is_trusted, "the book goes on")
            compare(mesh, follower)

            doubts = follower.doubts
            mesh.kill(mesh.pid("marketdata"))
            wait_for(lambda: follower.doubts > doubts, "the end of the server is told")
            wait_for(lambda: follower.book.is_trusted, "the book goes on", seconds=60)
            compare(mesh, follower)
        finally:
            follower.stop()


async def test_events_of_any_kind_come_by_pattern(mesh: Mesh) -> None:
    async with AsyncClient(address(mesh)) as client, asyncio.timeout(60):
        symbols: set[str] = set()
        trades = []
        async for event in client.subscribe(f"{EXCHANGE}/*-USDT", ["trade", "ticker"]):
            if event.WhichOneof("event") == "trade":
                trades.append(event)
                symbols.add(event.trade.symbol)
            if len(symbols) == 2 and len(trades) > 5:
                break
        table = columns(trades)
        assert set(table["symbol"]) == {SYMBOL, "ETH-USDT"}
        assert all(table["trade_id"])


async def test_requests_are_answered_whole(mesh: Mesh) -> None:
    async with AsyncClient(address(mesh)) as client:
        instruments = await client.instruments(EXCHANGE)
        assert {each.symbol for each in instruments} >= {SYMBOL, "ETH-USDT"}
        book = await client.order_book(EXCHANGE, SYMBOL, depth=5)
        assert len(book.bids()) == 5
        assert book.spread is not None
        assert book.spread > 0
        trades = await client.recent_trades(EXCHANGE, SYMBOL, limit=3)
        assert len(trades) == 3
        with pytest.raises(ClientError, match="NOT_FOUND"):
            await client.order_book(EXCHANGE, "NO-SUCH")
        with pytest.raises(ClientError, match="INVALID"):
            async for _ in client.subscribe("nonsense", ["trade"]):
                pass


def test_the_ordinary_client_answers_the_same(mesh: Mesh) -> None:
    with Client(address(mesh)) as client:
        assert {each.symbol for each in client.instruments(EXCHANGE)} >= {SYMBOL, "ETH-USDT"}
        assert client.tickers(EXCHANGE)
        assert client.order_book(EXCHANGE, SYMBOL).is_trusted


def run_cli(mesh: Mesh, *arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments, "--address", address(mesh)],
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def test_the_terminal_watches_events_as_json(mesh: Mesh) -> None:
    result = run_cli(mesh, "watch", f"{EXCHANGE}/*", "--kinds", "trade", "--json", "-n", "3")
    assert result.returncode == 0, result.stderr
    events = [json.loads(line) for line in result.stdout.splitlines()]
    trades = [event["trade"] for event in events if "trade" in event]
    assert len(trades) == 3
    assert all(trade["exchange"] == EXCHANGE for trade in trades)
    refused = run_cli(mesh, "watch", "nonsense", "--kinds", "trade")
    assert refused.returncode == 2
    assert "INVALID_PATTERN" in refused.stderr


def test_the_terminal_shows_many_instruments_at_once(mesh: Mesh) -> None:
    result = run_cli(mesh, "top", f"{EXCHANGE}/*", "--once")
    assert result.returncode == 0, result.stderr
    assert f"{EXCHANGE}/{SYMBOL}" in result.stdout
    assert "SYNCED" in result.stdout
