"""What the mesh promises when something breaks, each with the real processes under load.

After every fault the served book and a subscriber's own book equal the simulated venue's true
book at the very update id, every trade is in JetStream once and in order, and the subscriber was
told of what it missed.
"""

import asyncio
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import nats
import pytest
from marketprism.market.v1 import events_pb2
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from tests.e2e.book_client import BookClient
from tests.e2e.mesh import Mesh, running_mesh, wait_for

pytestmark = pytest.mark.timeout(300)

BTC = ("BTC-USDT", "BTCUSDT")
OTHERS = (
    ("binance_usdm", "BTC-USDT-PERP", "BTCUSDT"),
    ("binance_coinm", "BTC-USD-PERP", "BTCUSD_PERP"),
    ("okx", "BTC-USDT-PERP", "BTC-USDT-SWAP"),
    ("deribit", "BTC-USD-PERP", "BTC-PERPETUAL"),
)
"""One instrument of each other venue of the mesh, with the venue's own name."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    directory = tmp_path_factory.mktemp("mesh")
    quick = {
        "MARKETPRISM__COLLECTOR__EXCHANGES__BINANCE__SILENCE_SECONDS": "2",
        "MARKETPRISM__COLLECTOR__EXCHANGES__BINANCE__LAG_SECONDS": "1",
        "MARKETPRISM__COLLECTOR__BOOKS__SNAPSHOT_EVERY_UPDATES": "100",
    }
    with running_mesh(
        directory, "--simulated", "--depth-rate", "10", "--trade-rate", "10", env=quick
    ) as mesh:
        wait_for(mesh.books_in_step, "every book is in step")
        yield mesh


@pytest.fixture
def client(mesh: Mesh) -> Iterator[BookClient]:
    with BookClient(mesh.address("all"), "binance", BTC[0]) as client:
        wait_for(lambda: client.in_step, "the subscriber's book is in step")
        client.told.clear()
        yield client
        assert client.breaches == [], "the server broke the streaming contract"


def same_as_truth(mesh: Mesh, client: BookClient) -> bool:
    """Hold the subscriber's own book against the venue's at the id it stands at."""
    state, sequence, levels, horizon = client.book()
    if state != "SYNCED":
        return False
    truth = mesh.venue(f"/sim/book?symbol={BTC[1]}&update_id={sequence}")
    for side in ("bids", "asks"):
        edge = Decimal(horizon[side]) if horizon[side] else None

        def known(price: Decimal, edge: Decimal | None = edge, side: str = side) -> bool:
            return edge is None or (price >= edge if side == "bids" else price <= edge)

        ours = [level for level in levels[side] if known(level[0])]
        theirs = [
            (Decimal(price), Decimal(quantity))
            for price, quantity in truth[side]
            if known(Decimal(price))
        ]
        assert ours == theirs, f"the subscriber's {side} at {sequence} are not the venue's"
    return True


def recovered(mesh: Mesh, client: BookClient, seconds: float = 40) -> None:
    wait_for(mesh.books_in_step, "every book is in step again", seconds)
    wait_for(lambda: client.in_step, "the subscriber's book is in step again", seconds)
    for native in ("BTCUSDT", "ETHUSDT", "SOLUSDT", "BNBUSDT", "XRPUSDT"):
        symbol = f"{native[:-4]}-USDT"
        wait_for(lambda s=symbol, n=native: mesh.equals_truth(s, n), f"{symbol} equals the truth")
    for exchange, symbol, native in OTHERS:
        wait_for(
            lambda e=exchange, s=symbol, n=native: mesh.equals_truth(s, n, e),
            f"{exchange} {symbol} equals the truth",
        )
    before = client.updates
    wait_for(lambda: client.updates > before + 5, "the subscriber's book moves on")
    wait_for(lambda: same_as_truth(mesh, client), "the subscriber's book equals the truth")


async def stored_trades(url: str, symbol: str, exchange: str = "binance") -> list[int]:
    """Give the ids of an instrument's trades in JetStream, in the order of their storing."""
    connection = await nats.connect(url)
    try:
        js = connection.jetstream()
        subscription = await js.subscribe(
            f"market.trade.{exchange}.{symbol}",
            stream="MARKET_TRADE",
            config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE),
        )
        ids = []
        pending = 1
        while pending:
            message = await subscription.next_msg(timeout=10)
            ids.append(int(events_pb2.Trade.FromString(message.data).trade_id))
            pending = message.metadata.num_pending
        return ids
    finally:
        await connection.close()


def trades_stored_once(mesh: Mesh) -> None:
    """Every trade that the venue made since the first one stored is stored once, in order."""
    url = f"nats://{mesh.address('nats')}"
    for exchange, symbol, native in (
        ("binance", *BTC),
        ("binance", "ETH-USDT", "ETHUSDT"),
        *OTHERS,
    ):
        made = mesh.venue(f"/sim/trades?symbol={native}", exchange)["made"]

        def complete(
            exchange: str = exchange, symbol: str = symbol, last: int = made[-1]
        ) -> list[int] | None:
            ids = asyncio.run(stored_trades(url, symbol, exchange))
            return ids if ids and ids[-1] >= last else None

        stored = wait_for(complete, f"the last trade of {exchange} {symbol} is stored")
        # Binance's futures number what is no trade of the market (liquidations at the fund) too.
        has_holes = exchange in ("binance_usdm", "binance_coinm")
        ids = range(stored[0], stored[-1] + 1)
        expected = sorted(set(stored) & set(ids)) if has_holes else list(ids)
        assert stored == expected, (
            f"trades of {exchange} {symbol} are missing, repeated or mixed up"
        )
        assert set(made) & set(ids) <= set(stored), f"trades of {exchange} {symbol} are missing"


def test_a_quiet_mesh_serves_the_venues_books(mesh: Mesh, client: BookClient) -> None:
    recovered(mesh, client)
    trades_stored_once(mesh)
    assert "RESYNCING" not in client.told


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        pytest.param({"kind": "drop", "stream": "@depth@100ms"}, "RESYNCING", id="dropped"),
        pytest.param({"kind": "duplicate", "stream": "@depth@100ms"}, None, id="duplicated"),
        pytest.param({"kind": "reorder", "stream": "@depth@100ms"}, "RESYNCING", id="reordered"),
        pytest.param(
            {"kind": "corrupt", "mode": "json", "stream": "@depth@100ms"},
            "RESYNCING",
            id="malformed-json",
        ),
        pytest.param(
            {"kind": "corrupt", "mode": "types", "stream": "@depth@100ms"},
            "RESYNCING",
            id="malformed-types",
        ),
        pytest.param(
            {"kind": "corrupt", "mode": "binary", "stream": "@depth@100ms"},
            "RESYNCING",
            id="malformed-binary",
        ),
        pytest.param({"kind": "drop", "stream": "@trade"}, None, id="dropped-trade"),
    ],
)
def test_a_bad_frame(
    mesh: Mesh, client: BookClient, fault: dict[str, str], told: str | None
) -> None:
    before = mesh.venue("/sim/faults")["totals"][fault["kind"]]
    mesh.fault(symbol="BTCUSDT", **fault)
    wait_for(
        lambda: mesh.venue("/sim/faults")["totals"][fault["kind"]] > before,
        "the fault happened",
    )
    if told:
        wait_for(lambda: told in client.told, f"the subscriber is told {told}")
    recovered(mesh, client)
    trades_stored_once(mesh)
    if told is None:
        assert "RESYNCING" not in client.told


@pytest.mark.parametrize(
    ("exchange", "symbol", "native"), OTHERS, ids=[exchange for exchange, _, _ in OTHERS]
)
def test_a_lost_frame_of_any_venue(mesh: Mesh, exchange: str, symbol: str, native: str) -> None:
    with BookClient(mesh.address("all"), exchange, symbol) as client:
        wait_for(lambda: client.in_step, "the subscriber's book is in step")
        client.told.clear()
        mesh.fault(exchange, kind="gap", symbol=native, ids=3)
        wait_for(lambda: "RESYNCING" in client.told, "the subscriber is told RESYNCING")
        wait_for(lambda: client.in_step, "the subscriber's book is in step again")
        wait_for(lambda: mesh.equals_truth(symbol, native, exchange), "it equals the truth")
        assert client.breaches == [], "the server broke the streaming contract"


def test_a_stale_snapshot_is_not_believed(mesh: Mesh, client: BookClient) -> None:
    mesh.fault(kind="stale_snapshot", symbol="BTCUSDT", count=2)
    mesh.fault(kind="drop", symbol="BTCUSDT", stream="@depth@100ms")
    wait_for(lambda: "RESYNCING" in client.told, "the subscriber is told RESYNCING")
    recovered(mesh, client)


def rest_budget(mesh: Mesh) -> dict[str, str]:
    """Give the use of Binance spot's REST limit, as the collector tells it."""
    budgets = mesh.get("/api/v1/collector/status", "collector")["data"]["rest_budgets"]
    return next(each for each in budgets if each["exchange"] == "binance")


def test_rate_limits_are_obeyed(mesh: Mesh, client: BookClient) -> None:
    mesh.fault(kind="rest_429", retry_after=3, path="/api/v3/depth")
    mesh.fault(kind="drop", symbol="BTCUSDT", stream="@depth@100ms")
    wait_for(lambda: "RESYNCING" in client.told, "the subscriber is told RESYNCING")
    limited = wait_for(
        lambda: mesh.venue("/sim/faults")["totals"]["rest_429"], "the 429 is answered"
    )
    began = time.monotonic()
    requests = rest_budget(mesh)
    recovered(mesh, client)
    after = rest_budget(mesh)
    assert limited >= 1
    assert int(after["rate_limited"]) >= 1
    assert time.monotonic() - began >= 2.0, "a request was made before Retry-After had passed"
    assert int(after["requests"]) - int(requests["requests"]) <= 10


@pytest.mark.parametrize("abort", [False, True], ids=["closed", "aborted"])
def test_a_venue_disconnect(mesh: Mesh, client: BookClient, abort: bool) -> None:
    mesh.fault(kind="cut", abort=abort)
    wait_for(lambda: "RESYNCING" in client.told, "the subscriber is told RESYNCING")
    recovered(mesh, client)
    trades_stored_once(mesh)


def test_a_feed_silent_after_its_acknowledgement(mesh: Mesh, client: BookClient) -> None:
    mesh.fault(kind="silence", stream="@depth@100ms", symbol="BTCUSDT")
    mesh.fault(kind="cut")
    wait_for(lambda: "STALE" in client.told, "the subscriber is told STALE")
    recovered(mesh, client)


@pytest.mark.parametrize(
    ("service", "binary", "told"),
    [
        ("broker", "nats-server", "STALE"),
        ("gateway", "envoy", "DISCONNECTED"),
        ("collector", None, None),
        ("marketdata", None, "DISCONNECTED"),
    ],
)
def test_kill_9(
    mesh: Mesh, client: BookClient, service: str, binary: str | None, told: str | None
) -> None:
    pid = mesh.pid_of_binary(service, binary) if binary else mesh.pid(service)
    epochs = {client.book()[1]}
    mesh.kill(pid)
    if told:
        wait_for(lambda: told in client.told, f"the subscriber is told {told}")
    else:
        # A new collector begins new epochs; the snapshot of one tells the subscriber.
        before = client.snapshots
        wait_for(lambda: client.snapshots > before, "the subscriber gets a book of a new epoch")
    recovered(mesh, client)
    trades_stored_once(mesh)
    assert client.book()[1] > max(epochs)


def test_the_mesh_stops_in_order(tmp_path: Path) -> None:
    with running_mesh(tmp_path / "mesh", "--simulated", "--mode", "full") as mesh:
        wait_for(mesh.books_in_step, "every book is in step")
        assert mesh.stop() < 10
        assert mesh.process.returncode == 0
