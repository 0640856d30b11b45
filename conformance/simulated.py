"""The control of a simulated venue from another process: `/sim/...`."""

from typing import Any

import aiohttp

__all__ = ["SimulatedVenueClient", "SimulatorError"]


class SimulatorError(Exception):
    """The simulated venue refused or did not answer; the text says what was asked."""


class SimulatedVenueClient:
    """Asks a simulated venue for the truth, and switches faults on and off.

    `url` is its REST address. Use one session for many venues.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.url = url.rstrip("/")
        self._session = session

    async def fault(self, kind: str, **options: Any) -> int:
        """Put a fault in force; gives its id."""
        told = await self._call("POST", "/sim/faults", json={"kind": kind, **options})
        return int(told["id"])

    async def hits(self, fault: int) -> int:
        """How often a fault has happened."""
        told = await self._call("GET", "/sim/faults")
        return next((int(each["hits"]) for each in told["faults"] if each["id"] == fault), 0)

    async def clear(self) -> None:
        """End all faults."""
        await self._call("DELETE", "/sim/faults")

    async def book(
        self, symbol: str, update_id: int | None = None, *, depth: int = 0, wait: float = 0
    ) -> dict[str, Any] | None:
        """Give the true book at an id (the newest without one), None when it cannot be told."""
        query: dict[str, Any] = {"symbol": symbol}
        if update_id is not None:
            query["update_id"] = update_id
        if depth:
            query["depth"] = depth
        if wait:
            query["wait_seconds"] = wait
        told: dict[str, Any] | None = await self._call(
            "GET", "/sim/book", params=query, missing=True
        )
        return told

    async def position(self, symbol: str) -> int:
        """Give the id at which the venue's book stands now."""
        book = await self.book(symbol, depth=1)
        if book is None:
            raise SimulatorError(f"{self.url}: there is no book of {symbol}")
        return int(book["current_update_id"])

    async def trades(self, symbol: str) -> list[int]:
        """Give the numbers of the newest trades made, oldest first."""
        told = await self._call("GET", "/sim/trades", params={"symbol": symbol})
        return [int(each) for each in told["made"]]

    async def connections(self) -> list[dict[str, Any]]:
        """Describe the open connections."""
        told: list[dict[str, Any]] = (await self._call("GET", "/sim/connections"))["connections"]
        return told

    async def instruments(self) -> dict[str, dict[str, Any]]:
        """Describe the listed instruments by the venue's names."""
        told = await self._call("GET", "/sim/instruments")
        return {each["symbol"]: each for each in told["instruments"]}

    async def list_instrument(self, symbol: str) -> None:
        """Begin trading an instrument."""
        await self._call("POST", "/sim/instruments", json={"symbol": symbol})

    async def expire(self, symbol: str) -> None:
        """End trading an instrument."""
        await self._call("DELETE", "/sim/instruments", params={"symbol": symbol})

    async def change_tick(self, symbol: str, tick: str) -> None:
        """Change the price step of an instrument."""
        await self._call(
            "PATCH", "/sim/instruments", params={"symbol": symbol}, json={"tick": tick}
        )

    async def requests(self) -> dict[str, int]:
        """Count the REST requests by path since the start."""
        told = await self._call("GET", "/sim/stats")
        return {
            name.removeprefix("rest "): int(count)
            for name, count in told["counters"].items()
            if name.startswith("rest ")
        }

    async def _call(self, method: str, path: str, *, missing: bool = False, **options: Any) -> Any:
        try:
            async with self._session.request(method, f"{self.url}{path}", **options) as answer:
                if missing and answer.status == 404:
                    return None
                body = await answer.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise SimulatorError(f"{method} {self.url}{path}: {error!r}") from error
        if answer.status >= 400:
            raise SimulatorError(
                f"{method} {self.url}{path} {options}: {answer.status} {body.get('error')}"
            )
        return body
