"""`/sim/instruments`: listing, expiring and changing what is listed while the venue runs."""

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from aiohttp import web

from services.simulator.fixed import canonical, to_units
from services.simulator.instrument import Listed, SymbolSpec
from services.simulator.market import NotOfferedError, UnknownSymbolError

if TYPE_CHECKING:
    from services.simulator.server import SimulatedVenue

__all__ = ["described", "instrument_routes"]

_LISTABLE = frozenset({"symbol", "price", "tick", "expiry_seconds"})
_CHANGEABLE = frozenset({"tick"})


class _BadRequestError(ValueError):
    """A body or a query that makes no sense; the text says what was expected."""


def described(spec: SymbolSpec) -> dict[str, object]:
    """Return an instrument JSON-ready; numbers as plain decimals, times in microseconds."""
    return {
        "symbol": spec.symbol,
        "kind": spec.kind.value,
        "base": spec.base,
        "quote": spec.quote,
        "tick": canonical(spec.tick),
        "lot": canonical(spec.lot),
        "contract_size": canonical(spec.contract_size),
        "multiplier": canonical(spec.multiplier),
        "contract_currency": spec.contract_currency or spec.base,
        "settlement": spec.settlement,
        "inverse": spec.inverse,
        "listed_us": spec.listed_us,
        "expiry_us": spec.expiry_us,
        "strike": None if spec.strike is None else canonical(spec.strike),
        "right": spec.right,
        "underlying": spec.underlying,
        "family": spec.family,
        "index": spec.index,
    }


def instrument_routes(venue: "SimulatedVenue") -> list[web.RouteDef]:
    """GET lists, POST lists a new one, PATCH changes one, DELETE expires one."""
    control = _Instruments(venue)
    return [
        web.get("/sim/instruments", control.all),
        web.post("/sim/instruments", control.add),
        web.patch("/sim/instruments", control.change),
        web.delete("/sim/instruments", control.expire),
    ]


class _Instruments:
    def __init__(self, venue: "SimulatedVenue") -> None:
        self._venue = venue

    async def all(self, _: web.Request) -> web.Response:
        told = [described(spec) for spec in self._venue.market.symbols.values()]
        return web.json_response({"instruments": told})

    async def add(self, request: web.Request) -> web.Response:
        try:
            body = _known(await _body(request), _LISTABLE)
            listing = self._listing(body)
            self._venue.market.list_instrument(listing)
        except (_BadRequestError, NotOfferedError, UnknownSymbolError) as error:
            return _problem(error)
        return web.json_response(described(listing.spec), status=201)

    def _listing(self, body: dict[str, Any]) -> Listed:
        symbol = body.get("symbol")
        if not isinstance(symbol, str) or not symbol:
            raise _BadRequestError(f"symbol: expected the venue's name of it, got {symbol!r}")
        try:
            listing = self._venue.protocol.listed(symbol)
        except ValueError as error:
            raise _BadRequestError(f"symbol: {error}") from error
        spec = dataclasses.replace(listing.spec, listed_us=self._venue.market.time_us)
        if "tick" in body:
            spec = dataclasses.replace(spec, tick=_units(body, "tick"))
        if "expiry_seconds" in body:
            seconds = _units(body, "expiry_seconds")
            expiry = self._venue.market.time_us + seconds // 100
            spec = dataclasses.replace(spec, expiry_us=expiry)
        price = _units(body, "price") if "price" in body else listing.price
        if price < 10 * spec.tick:
            raise _BadRequestError(
                f"price: expected at least ten ticks of {canonical(spec.tick)}, "
                f"got {canonical(price)}"
            )
        return dataclasses.replace(listing, spec=spec, price=price)

    async def change(self, request: web.Request) -> web.Response:
        try:
            symbol = _symbol(request)
            body = _known(await _body(request), _CHANGEABLE)
            self._venue.market.change_tick(symbol, _units(body, "tick"))
        except (_BadRequestError, NotOfferedError, UnknownSymbolError) as error:
            return _problem(error)
        return web.json_response(described(self._venue.market.symbols[symbol]))

    async def expire(self, request: web.Request) -> web.Response:
        try:
            symbol = _symbol(request)
            spec = self._venue.market.symbols.get(symbol)
            self._venue.market.expire(symbol)
        except (_BadRequestError, NotOfferedError, UnknownSymbolError) as error:
            return _problem(error)
        assert spec is not None
        return web.json_response(described(spec))


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.text())
    except ValueError as error:
        raise _BadRequestError(f"expected a JSON object: {error}") from error
    if not isinstance(body, dict):
        raise _BadRequestError(f"expected a JSON object, got {type(body).__name__}")
    return body


def _known(body: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    if unknown := sorted(body.keys() - names):
        raise _BadRequestError(
            f"{', '.join(unknown)}: expected nothing but {', '.join(sorted(names))}"
        )
    return body


def _symbol(request: web.Request) -> str:
    symbol = request.query.get("symbol", "")
    if not symbol:
        raise _BadRequestError("symbol: expected ?symbol= with the venue's name of it")
    return symbol


def _units(body: dict[str, Any], name: str) -> int:
    value = body.get(name)
    try:
        units = to_units(str(value))
    except ValueError as error:
        raise _BadRequestError(f"{name}: {error}") from error
    if units <= 0:
        raise _BadRequestError(f"{name}: expected a number above 0, got {value!r}")
    return units


def _problem(error: Exception) -> web.Response:
    status = 400
    if isinstance(error, UnknownSymbolError):
        status = 404
    elif isinstance(error, NotOfferedError):
        status = 409
    return web.json_response({"error": str(error)}, status=status)
