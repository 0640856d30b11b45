"""`/sim/...`: questions about the truth, counters, and faults, for tests in other processes."""

import json
from typing import TYPE_CHECKING

from aiohttp import web

from services.simulator.control_instruments import instrument_routes
from services.simulator.faults import FaultError
from services.simulator.fixed import canonical
from services.simulator.market import UnknownSymbolError, UpdateIdUnavailableError

if TYPE_CHECKING:
    from services.simulator.server import SimulatedVenue

__all__ = ["control_routes"]

_LONGEST_WAIT_SECONDS = 60.0


class _BadQueryError(ValueError):
    """A query parameter that is missing or malformed."""


def control_routes(venue: "SimulatedVenue") -> list[web.RouteDef]:
    """Return the routes below `/sim`."""
    control = _Control(venue)
    return [
        web.get("/sim/book", control.book),
        web.get("/sim/trades", control.trades),
        web.get("/sim/stats", control.stats),
        web.get("/sim/connections", control.connections),
        web.get("/sim/symbols", control.symbols),
        web.get("/sim/faults", control.faults),
        web.post("/sim/faults", control.add_fault),
        web.delete("/sim/faults", control.clear_faults),
        web.delete("/sim/faults/{id}", control.remove_fault),
        *instrument_routes(venue),
    ]


class _Control:
    def __init__(self, venue: "SimulatedVenue") -> None:
        self._venue = venue

    async def book(self, request: web.Request) -> web.Response:
        try:
            symbol = request.query.get("symbol", "")
            update_id = _integer(request, "update_id", 0)
            depth = _integer(request, "depth", 0)
            wait = _seconds(request, "wait_seconds")
            market = self._venue.market
            if update_id is None:
                update_id = market.update_id(symbol)
            book = await market.true_book(symbol, update_id, depth, wait)
        except _BadQueryError as error:
            return _problem(400, str(error))
        except (UnknownSymbolError, UpdateIdUnavailableError) as error:
            return _problem(404, str(error))
        bids, asks = book.canonical()
        spec = market.symbols.get(symbol)
        current = market.update_id(symbol) if spec is not None else None
        size = canonical(spec.contract_size) if spec is not None else None
        multiplier = canonical(spec.multiplier) if spec is not None else None
        return web.json_response(
            {
                "symbol": symbol,
                "update_id": book.update_id,
                "current_update_id": current,
                "contract_size": size,
                "multiplier": multiplier,
                "bids": bids,
                "asks": asks,
                "digest": book.digest(),
            }
        )

    async def trades(self, request: web.Request) -> web.Response:
        symbol = request.query.get("symbol", "")
        if symbol not in self._venue.market.symbols:
            return _problem(404, str(UnknownSymbolError(symbol, self._venue.market.symbols)))
        sent = {
            stream: {"count": record.count, "ids": list(record.ids)}
            for stream, record in self._venue.hub.sent.items()
            if self._venue.protocol.symbol_of(stream) == symbol
        }
        made = [trade.trade_id for trade in self._venue.market.recent_trades(symbol, 1_000_000)]
        return web.json_response({"symbol": symbol, "made": made, "sent": sent})

    async def stats(self, _: web.Request) -> web.Response:
        return web.json_response(self._venue.stats())

    async def connections(self, _: web.Request) -> web.Response:
        told = [connection.describe() for connection in self._venue.hub.connections.values()]
        return web.json_response({"connections": told})

    async def symbols(self, _: web.Request) -> web.Response:
        return web.json_response({"symbols": list(self._venue.market.symbols)})

    async def faults(self, _: web.Request) -> web.Response:
        told = [fault.describe() for fault in self._venue.faults.all()]
        return web.json_response({"faults": told, "totals": self._venue.faults.totals})

    async def add_fault(self, request: web.Request) -> web.Response:
        try:
            body = json.loads(await request.text())
        except ValueError as error:
            return _problem(400, f"expected a JSON object such as {{'kind': 'drop'}}: {error}")
        try:
            fault = self._venue.inject(self._venue.faults.parse(body))
        except FaultError as error:
            return _problem(400, str(error))
        return web.json_response(fault.describe(), status=201)

    async def clear_faults(self, _: web.Request) -> web.Response:
        return web.json_response({"removed": self._venue.faults.clear()})

    async def remove_fault(self, request: web.Request) -> web.Response:
        text = request.match_info["id"]
        fault = self._venue.faults.remove(int(text)) if text.isdecimal() else None
        if fault is None:
            return _problem(404, f"no fault with id {text!r}; GET /sim/faults lists them")
        return web.json_response(fault.describe())


def _integer(request: web.Request, name: str, least: int) -> int | None:
    text = request.query.get(name)
    if text is None or text == "":
        return None
    if not text.isdecimal() or int(text) < least:
        raise _BadQueryError(f"{name}: expected an integer of at least {least}, got {text!r}")
    return int(text)


def _seconds(request: web.Request, name: str) -> float:
    text = request.query.get(name, "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _LONGEST_WAIT_SECONDS:
        raise _BadQueryError(
            f"{name}: expected 0 to {_LONGEST_WAIT_SECONDS:g} seconds, got {text!r}"
        )
    return seconds


def _problem(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)
