"""Cases about the list of instruments: one appears, one ends, one changes, all while running."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal

from marketprism.market.v1 import instrument_pb2

from conformance.follower import until
from conformance.scene import Missed, Scene

__all__ = ["expired", "listed", "tick"]

_SECONDS = 30.0


async def listed(scene: Scene) -> None:
    """List an instrument: its book must come into step and equal the truth; then end it."""
    symbol = await _list_one(scene)
    scene.took = time.monotonic() - scene.struck_at
    scene.seen.append("instrument TRADING")
    follower = scene.rig.follower
    book = follower.books[symbol]
    before = book.updates
    if not await until(lambda: book.updates >= before + 10, _SECONDS):
        raise Missed(f"the book of {symbol} does not go on")
    await follower.comparer.settle()
    await _end_one(scene, symbol)


async def expired(scene: Scene) -> None:
    """End an instrument: its book must say that it is no more, and its description too."""
    symbol = await _list_one(scene)
    began = time.monotonic()
    await _end_one(scene, symbol)
    scene.took = time.monotonic() - began
    scene.seen.append("instrument EXPIRED")
    told = {f"{entry.kind}:{entry.cause}" for entry in scene.entries(symbol)}
    if "HANDED_OVER:INSTRUMENT_CHANGED" not in told:
        raise Missed(f"the ledger does not tell the end of {symbol}, only {sorted(told)}")
    scene.seen.append("HANDED_OVER:INSTRUMENT_CHANGED")


async def tick(scene: Scene) -> None:
    """Double the price step: the description must follow, and the book go on."""
    venue, follower = scene.rig.venue, scene.rig.follower
    before = Decimal((await venue.instruments())[scene.native]["tick"])
    wanted = 2 * before
    await venue.change_tick(scene.native, f"{wanted:f}")
    await scene.struck()

    def told() -> bool:
        instrument = follower.instruments.get(scene.symbol)
        return instrument is not None and Decimal(instrument.tick_size or 0) == wanted

    if not await until(told, _SECONDS):
        raise Missed(f"within {_SECONDS:g} s the tick of {scene.symbol} was not told as {wanted}")
    scene.took = time.monotonic() - scene.struck_at
    scene.seen.append("instrument with the new tick")


async def _list_one(scene: Scene) -> str:
    rig = scene.rig
    native = scene.unused_symbol(set(await rig.venue.instruments()), rig.used)
    rig.used.add(native)
    await rig.venue.list_instrument(native)
    await scene.struck()
    found: list[str] = []

    async def known() -> bool:
        found[:] = [s.symbol for s in await rig.states() if s.native_symbol == native]
        return bool(found)

    await _wait(known, f"{native} is collected")
    symbol = found[0]
    rig.natives[symbol] = native
    book = rig.follower.books[symbol]
    book.symbol = symbol
    if not await until(lambda: book.in_step, _SECONDS):
        raise Missed(f"within {_SECONDS:g} s the book of {symbol} did not come into step")
    if not await until(lambda: _status(scene, symbol) == "TRADING", _SECONDS):
        raise Missed(f"{symbol} was not described as TRADING")
    return symbol


async def _end_one(scene: Scene, symbol: str) -> None:
    rig = scene.rig
    native = rig.natives[symbol]
    await rig.venue.expire(native)
    book = rig.follower.books[symbol]
    if not await until(
        lambda: book.state == "STALE" and book.said[-1].reason == "INSTRUMENT_CHANGED", _SECONDS
    ):
        raise Missed(f"{symbol} ended, and its book is {book.state}")
    if not await until(lambda: _status(scene, symbol) in ("EXPIRED", "HALTED"), _SECONDS):
        raise Missed(f"{symbol} ended, and is described as {_status(scene, symbol)}")

    async def gone() -> bool:
        return all(state.symbol != symbol for state in await rig.states())

    await _wait(gone, f"{symbol} is collected no more")
    await rig.follower.comparer.settle()
    del rig.natives[symbol]
    scene.positions.pop(symbol, None)


def _status(scene: Scene, symbol: str) -> str:
    instrument = scene.rig.follower.instruments.get(symbol)
    if instrument is None:
        return "nothing"
    name: str = instrument_pb2.InstrumentStatus.Name(instrument.status)
    return name.removeprefix("INSTRUMENT_STATUS_")


async def _wait(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + _SECONDS
    while not await condition():
        if asyncio.get_running_loop().time() > deadline:
            raise Missed(f"within {_SECONDS:g} s: expected that {what}")
        await asyncio.sleep(0.1)
