"""A simulated Deribit, and a client and a book that know its published rules and nothing else."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from typing import Any, Self

import aiohttp
import websockets

from services.simulator.deribit import Deribit, DeribitSettings
from services.simulator.server import SimulatedVenue
from services.simulator.venues import generated_market

DEADLINE = 20.0
BOOK = "book.BTC-PERPETUAL.100ms"
TRADES = "trades.BTC-PERPETUAL.100ms"
OPTION = "BTC-25DEC26-60000-C"


class Client:
    """A JSON-RPC client without any cleverness."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self.socket = socket
        self.notifications: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.heartbeats: list[str] = []
        self.answer_heartbeats = True
        self._replies: dict[object, asyncio.Future[dict[str, Any]]] = {}
        self._stray: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._number = 0
        self._reader = asyncio.create_task(self._read())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader

    async def _read(self) -> None:
        with contextlib.suppress(websockets.ConnectionClosed):
            async for text in self.socket:
                try:
                    message = json.loads(text, parse_float=Decimal)
                except ValueError:
                    message = {"method": "subscription", "params": {"damaged": text}}
                if message.get("method") == "subscription":
                    self.notifications.put_nowait(message["params"])
                elif message.get("method") == "heartbeat":
                    kind = message["params"]["type"]
                    self.heartbeats.append(kind)
                    if kind == "test_request" and self.answer_heartbeats:
                        await self.send("public/test")
                elif message.get("id") in self._replies:
                    self._replies.pop(message["id"]).set_result(message)
                else:
                    self._stray.put_nowait(message)

    async def send(self, method: str, **params: Any) -> int:
        """Send a request; return its id."""
        self._number += 1
        request = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        await self.socket.send(json.dumps(request))
        return self._number

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a request; return the whole reply."""
        reply = asyncio.get_running_loop().create_future()
        self._replies[self._number + 1] = reply
        await self.send(method, **params)
        async with asyncio.timeout(DEADLINE):
            return await reply

    async def stray(self) -> dict[str, Any]:
        """Return the next message that answers no request of ours."""
        async with asyncio.timeout(DEADLINE):
            return await self._stray.get()

    async def subscribe(self, *channels: str) -> list[str]:
        """Subscribe; return the channels which the venue took."""
        reply = await self.ask("public/subscribe", channels=list(channels))
        return list(reply["result"])

    async def next(self, channel: str) -> Any:
        """Return the data of the next notification of a channel; others are let go."""
        async with asyncio.timeout(DEADLINE):
            while True:
                params = await self.notifications.get()
                if params.get("channel") == channel:
                    return params["data"]

    async def closed(self) -> tuple[int | None, str | None]:
        """(close code, reason) once the connection is over."""
        async with asyncio.timeout(DEADLINE):
            await self.socket.wait_closed()
        return self.socket.close_code, self.socket.close_reason


class NaiveBook:
    """A book kept by the venue's published rules and nothing else."""

    def __init__(self) -> None:
        self.change_id = -1
        self.sides: dict[str, dict[Decimal, Decimal]] = {"bids": {}, "asks": {}}

    def take(self, data: dict[str, Any]) -> bool:
        """Apply a frame; False when it does not continue the book, which is then left alone."""
        if data["type"] == "snapshot":
            self.sides = {"bids": {}, "asks": {}}
        elif data["prev_change_id"] != self.change_id:
            return False
        self.change_id = data["change_id"]
        for name, side in self.sides.items():
            for _, price, amount in data[name]:
                if Decimal(amount):
                    side[Decimal(price)] = Decimal(amount)
                else:
                    side.pop(Decimal(price), None)
        return True


@contextlib.asynccontextmanager
async def simulated(
    market: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[SimulatedVenue, aiohttp.ClientSession]]:
    protocol = Deribit()
    options: dict[str, Any] = {
        "symbols": ("BTC-PERPETUAL", "ETH-PERPETUAL", "SOL_USDC-PERPETUAL", "BTC-25DEC26", OPTION),
        "depth_rate": 50.0,
        "trade_rate": 10.0,
        "levels": 80,
        **(market or {}),
    }
    limits = {"subscribe_credits": 10**9, "request_credits": 10**9, **settings}
    async with (
        asyncio.timeout(100),
        SimulatedVenue(
            generated_market(protocol, **options),
            settings=DeribitSettings(**limits),
            protocol=protocol,
        ) as venue,
        aiohttp.ClientSession(venue.rest_url) as session,
    ):
        yield venue, session


@contextlib.asynccontextmanager
async def client_of(venue: SimulatedVenue) -> AsyncIterator[Client]:
    url = f"{venue.ws_url}/ws/api/v2"
    async with (
        websockets.connect(url, max_queue=None, max_size=None) as socket,
        Client(socket) as client,
    ):
        yield client


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - there is nothing that could be awaited
            await asyncio.sleep(0.01)


async def equals_truth(session: aiohttp.ClientSession, symbol: str, book: NaiveBook) -> None:
    query = {"symbol": symbol, "update_id": str(book.change_id), "wait_seconds": "10"}
    async with session.get("/sim/book", params=query) as answer:
        assert answer.status == 200, await answer.text()
        truth = await answer.json()
    for side, best_first in (("bids", True), ("asks", False)):
        told = [(Decimal(price), Decimal(amount)) for price, amount in truth[side]]
        assert sorted(book.sides[side].items(), reverse=best_first) == told
