"""Real recorded traffic played through the whole mesh comes out as the venue told it."""

import asyncio
import gzip
import hashlib
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import pytest
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import market_data_service_pb2_grpc as pb_grpc

from tests.e2e.mesh import Mesh, running_mesh, wait_for
from tests.e2e.test_faults import stored_trades

pytestmark = pytest.mark.timeout(240)

Top = tuple[tuple[Decimal, Decimal], tuple[Decimal, Decimal]]


@pytest.fixture
def capture() -> Path:
    folder = os.environ.get("MARKETPRISM_CAPTURES")
    if not folder:
        pytest.skip("MARKETPRISM_CAPTURES is not set: no recorded traffic to play")
    return Path(folder) / "streams" / "HBT_spot_ethusdt.jsonl.gz"


def _told_by_the_venue(capture: Path) -> tuple[dict[int, Top], list[int]]:
    """Give the venue's best bid and offer by update id, and the ids of its trades."""
    tops: dict[int, Top] = {}
    trades = []
    with gzip.open(capture, "rt") as lines:
        for line in lines:
            record = json.loads(line)
            if record["kind"] != "ws":
                continue
            message = json.loads(record["data"])
            data = message["data"]
            if message["stream"].endswith("@bookTicker"):
                tops[data["u"]] = (
                    (Decimal(data["b"]), Decimal(data["B"])),
                    (Decimal(data["a"]), Decimal(data["A"])),
                )
            elif message["stream"].endswith("@trade"):
                trades.append(data["t"])
    return tops, trades


async def _follow(address: str, last: int) -> dict[int, Top]:
    """Keep the book over a stream until the venue's id `last`; give its tops by update id."""
    sides: dict[str, dict[Decimal, Decimal]] = {"bids": {}, "asks": {}}
    tops: dict[int, Top] = {}
    place = (0, 0)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.MarketDataServiceStub(channel)
        call = stub.StreamOrderBook(
            pb.StreamOrderBookRequest(exchange="binance", symbol="ETH-USDT")
        )
        async for response in call:
            for event in response.events:
                kind = event.WhichOneof("event")
                if kind == "order_book_snapshot":
                    message: Any = event.order_book_snapshot
                    sides = {"bids": {}, "asks": {}}
                elif kind == "order_book_update":
                    message = event.order_book_update
                    assert (message.epoch, message.sequence) == (place[0], place[1] + 1)
                else:
                    continue
                place = (message.epoch, message.sequence)
                for side in ("bids", "asks"):
                    for level in getattr(message, side):
                        price, quantity = Decimal(level.price), Decimal(level.quantity)
                        if quantity:
                            sides[side][price] = quantity
                        else:
                            sides[side].pop(price, None)
                bid, ask = max(sides["bids"]), min(sides["asks"])
                tops[message.venue_sequence] = (
                    (bid, sides["bids"][bid]),
                    (ask, sides["asks"][ask]),
                )
                if message.venue_sequence >= last:
                    return tops
    raise AssertionError("the stream ended before the capture did")


def _digest(mesh: Mesh) -> str:
    book = mesh.get("/api/v1/orderbook/binance/ETH-USDT?depth=50")["data"]["order_book"]
    text = "".join(
        f"{name} {level['price']} {level['quantity']}\n"
        for name, side in (("bid", book["bids"]), ("ask", book["asks"]))
        for level in side
    )
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_capture_through_the_whole_mesh(tmp_path: Path, capture: Path) -> None:
    expected = next(
        each
        for each in map(json.loads, (capture.parent / "EXPECTED.jsonl").read_text().splitlines())
        if each["capture"] == capture.name
    )
    venue_tops, venue_trades = _told_by_the_venue(capture)
    # When the capture is over nothing comes any more, which is no fault here.
    patient = {"MARKETPRISM__COLLECTOR__EXCHANGES__BINANCE__SILENCE_SECONDS": "300"}
    with running_mesh(
        tmp_path / "mesh", "--capture", str(capture), "--speed", "40", env=patient
    ) as mesh:
        wait_for(lambda: mesh.books_in_step(), "the book is in step")
        tops = asyncio.run(_follow(mesh.address("all"), expected["venue_sequence"]))
        assert _digest(mesh) == expected["digest"]

        same = [update_id for update_id in tops if update_id in venue_tops]
        different = [each for each in same if tops[each] != venue_tops[each]]
        assert not different, f"the best bid and offer differ at {different[:5]}"
        assert len(same) > 200, "too few update ids in common for the comparison to mean much"

        status = mesh.get("/api/v1/collector/instruments", "collector")["data"]["instruments"][0]
        assert (status["gaps"], status["resyncs"]) == ("0", "0")

        url = f"nats://{mesh.address('nats')}"
        stored = wait_for(
            lambda: (
                ids
                if (ids := asyncio.run(stored_trades(url, "ETH-USDT")))[-1] == venue_trades[-1]
                else None
            ),
            "the last trade of the capture is stored",
        )
        assert stored == venue_trades[venue_trades.index(stored[0]) :]
