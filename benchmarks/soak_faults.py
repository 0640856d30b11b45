"""Disturbs simulated venues at random: seeded, of all kinds, and never faster than they recover.

An incident is one fault, or a few that make it meet what it is about: a stale snapshot needs a book
that is being rebuilt, a refused connection one that is being opened. Small incidents hit one
instrument or a few frames, large ones whole connections or the whole venue.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from benchmarks.soak_books import Follower
from conformance.simulated import SimulatedVenueClient, SimulatorError

__all__ = ["INCIDENTS", "Saboteur"]

_Steps = list[dict[str, Any]]
_Make = Callable[[random.Random, str], _Steps]
_MODES = ("json", "truncate", "types", "binary", "utf8", "empty")
_LARGE_PAUSE = 25.0
_SETTLED_SHARE = 0.9
_INSTRUMENT_STEPS = (2, 5, 10)


def _few(rng: random.Random, most: int = 4) -> int:
    return rng.randint(1, most)


def _seconds(rng: random.Random, least: float, most: float) -> float:
    return round(rng.uniform(least, most), 2)


def _on_frames(kind: str, **more: Callable[[random.Random], Any]) -> _Make:
    """Hit a few frames, of one instrument or of whoever comes next."""

    def make(rng: random.Random, symbol: str) -> _Steps:
        fault: dict[str, Any] = {"kind": kind, "count": _few(rng), "skip": rng.randrange(30)}
        if rng.random() < 0.8:
            fault["symbol"] = symbol
        fault.update({name: choose(rng) for name, choose in more.items()})
        return [fault]

    return make


def _rebuilt_with(kind: str, **more: Callable[[random.Random], Any]) -> _Make:
    """Trouble with the request by which a book is rebuilt, and a gap that makes it rebuild."""

    def make(rng: random.Random, symbol: str) -> _Steps:
        trouble = {"kind": kind, **{name: choose(rng) for name, choose in more.items()}}
        return [trouble | {"symbol": symbol}, {"kind": "gap", "symbol": symbol}]

    return make


def _reopened_with(kind: str, **more: Callable[[random.Random], Any]) -> _Make:
    """Trouble with a connection that is being opened, and a cut that makes it open."""

    def make(rng: random.Random, symbol: str) -> _Steps:
        trouble = {"kind": kind, **{name: choose(rng) for name, choose in more.items()}}
        return [trouble, {"kind": "cut", "connection": "?", "abort": rng.random() < 0.5}]

    return make


_SMALL: Mapping[str, tuple[int, _Make]] = {
    "frames dropped": (5, _on_frames("drop")),
    "frames sent twice": (3, _on_frames("duplicate")),
    "frames reordered": (4, _on_frames("reorder")),
    "frames damaged": (4, _on_frames("corrupt", mode=lambda r: r.choice(_MODES))),
    "frames late": (3, _on_frames("delay", seconds=lambda r: _seconds(r, 0.05, 2.5))),
    "ids skipped": (2, lambda r, s: [{"kind": "gap", "symbol": s, "ids": r.randint(1, 500)}]),
    "ids begin again": (2, lambda _, s: [{"kind": "sequence_reset", "symbol": s}]),
    "old snapshot": (3, _rebuilt_with("stale_snapshot", count=_few)),
    "old snapshot by a few ids": (
        2,
        _rebuilt_with("stale_snapshot", behind=lambda r: r.randint(1, 300)),
    ),
    "REST says 429": (
        1,
        _rebuilt_with("rest_429", count=_few, retry_after=lambda r: r.randint(0, 3)),
    ),
    "REST fails": (2, _rebuilt_with("rest_5xx", count=_few, status=lambda r: r.randint(500, 504))),
    "past trades incomplete": (
        1,
        lambda r, s: [
            {"kind": "rest_trades_missing", "ids": r.randint(2, 9)},
            {"kind": "drop", "symbol": s, "count": _few(r, 20)},
        ],
    ),
    "REST is late": (2, _rebuilt_with("rest_slow", seconds=lambda r: _seconds(r, 0.5, 4))),
    "pings unanswered": (1, lambda r, _: [{"kind": "heartbeat_refusal", "count": _few(r)}]),
    "subscription silent": (
        2,
        lambda _, s: [{"kind": "silence", "symbol": s}, {"kind": "gap", "symbol": s}],
    ),
    "subscription refused": (
        1,
        lambda _, s: [{"kind": "refuse_subscription", "symbol": s}, {"kind": "gap", "symbol": s}],
    ),
}
_LARGE: Mapping[str, tuple[int, _Make]] = {
    "connection cut": (
        4,
        lambda r, _: [{"kind": "cut", "connection": "?", "abort": r.random() < 0.5}],
    ),
    "connection cut in a frame": (
        2,
        lambda r, _: [{"kind": "cut", "when": "frame", "skip": r.randrange(500)}],
    ),
    "all connections cut": (1, lambda _, __: [{"kind": "cut", "count": 100}]),
    "connections refused": (
        2,
        _reopened_with("refuse_connections", count=_few, abort=lambda r: r.random() < 0.5),
    ),
    "subscriptions silent": (2, _reopened_with("silence", count=_few)),
    "subscriptions refused": (1, _reopened_with("refuse_subscription", count=_few)),
    "connection ended with notice": (
        2,
        lambda r, _: [
            {"kind": "server_shutdown", "connection": "?", "seconds": _seconds(r, 0.5, 6)}
        ],
    ),
    "maintenance": (
        2,
        lambda r, _: [
            {
                "kind": "maintenance",
                "seconds": _seconds(r, 1, 6),
                "notice": _seconds(r, 0, 2),
            }
        ],
    ),
    "all frames late": (
        1,
        lambda r, _: [{"kind": "delay", "seconds": _seconds(r, 0.5, 4), "connection": "?"}],
    ),
    "address banned": (1, lambda r, _: [{"kind": "rest_418", "retry_after": r.randint(2, 5)}]),
}
INCIDENTS = {**_SMALL, **_LARGE}
"""Everything that can happen, by name: how often beside the others of its size, and its faults."""


class Saboteur:
    """Disturbs one venue. `done` counts incidents by name, `refused` those that made no sense.

    `spare` are names of instruments that can be listed; each is listed at the most once. `note` is
    told each incident, `before_expiry(exchange, native)` is awaited before an instrument ends.
    """

    def __init__(
        self,
        exchange: str,
        venue: SimulatedVenueClient,
        follower: Follower,
        rng: random.Random,
        spare: list[str],
        *,
        every: float,
        instruments_every: float,
        note: Callable[[str], None],
        before_expiry: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self.exchange = exchange
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.waited = 0.0
        self._venue = venue
        self._follower = follower
        self._rng = rng
        self._spare = spare
        self._every = every
        self._note = note
        self._before_expiry = before_expiry
        self._instruments_every = instruments_every
        self._last_large = time.monotonic()

    async def run(self) -> None:
        """Disturb until cancelled."""
        next_instruments = time.monotonic() + self._pause(self._instruments_every)
        while True:
            await asyncio.sleep(self._pause(self._every))
            began = time.monotonic()
            while self._follower.in_step_share(self.exchange) < _SETTLED_SHARE:  # noqa: ASYNC110
                await asyncio.sleep(0.25)
            self.waited += time.monotonic() - began
            try:
                if self._instruments_every and time.monotonic() > next_instruments:
                    next_instruments = time.monotonic() + self._pause(self._instruments_every)
                    await self._change_instruments()
                else:
                    await self._incident()
            except SimulatorError as error:
                # A fault that names what has just gone, or that this venue does not have.
                self.refused[str(error)[:160]] += 1

    def _pause(self, mean: float) -> float:
        return min(self._rng.expovariate(1 / mean), 4 * mean) if mean else float("inf")

    async def _incident(self) -> None:
        rng = self._rng
        large = time.monotonic() - self._last_large > _LARGE_PAUSE and rng.random() < 0.25
        kinds = _LARGE if large else _SMALL
        name = rng.choices(list(kinds), [weight for weight, _ in kinds.values()])[0]
        if large:
            self._last_large = time.monotonic()
        trading = sorted(book.native for book in self._follower.expected(self.exchange))
        for step in kinds[name][1](rng, rng.choice([each for each in trading if each])):
            if step.get("connection") == "?":
                told = await self._venue.connections()
                if not told:
                    return
                step["connection"] = rng.choice(told)["connection"]
            self._note(f"{self.exchange} {name}: {step}")
            await self._venue.fault(**step)
        self.done[name] += 1

    async def _change_instruments(self) -> None:
        rng = self._rng
        listed = await self._venue.instruments()
        if rng.random() < 0.25:
            name = rng.choice(sorted(listed))
            tick = float(listed[name]["tick"]) * rng.choice(_INSTRUMENT_STEPS)
            self._note(f"{self.exchange} {name}: the price step becomes {tick:.12f}")
            await self._venue.change_tick(name, f"{tick:.12f}".rstrip("0").rstrip("."))
            self.done["tick changed"] += 1
        elif self._spare:
            gone, new = rng.choice(sorted(listed)), self._spare.pop(0)
            self._note(f"{self.exchange} {new} is listed, {gone} expires")
            await self._venue.list_instrument(new)
            self.done["instrument listed"] += 1
            await self._before_expiry(self.exchange, gone)
            self._follower.expire(self.exchange, gone)
            await self._venue.expire(gone)
            self.done["instrument expired"] += 1
