"""Closes candles for venues that do not say when a candle is final.

The first candle of the next interval says that the one before is over. It is final then if nothing
was missed meanwhile: after an interruption only what begins anew can be closed.
"""

from typing import cast

from marketprism.market.v1 import events_pb2

from services.collector.venues.base import Observation

__all__ = ["CandleCloser"]


class CandleCloser:
    """Follows the candles of one venue, each (instrument, key) by itself. Pure."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], events_pb2.Candle] = {}
        self._whole: set[tuple[str, str]] = set()

    def interrupt(self) -> None:
        """Note that candles may have been missed: those that are open now are never closed."""
        self._whole.clear()

    def observe(self, observation: Observation) -> list[Observation]:
        """Give the observations to publish: this one, and before it the one that it closes."""
        candle = cast("events_pb2.Candle", observation.message)
        name = (observation.native_symbol or observation.symbol, observation.key)
        before = self._last.get(name)
        # A copy, because the message is completed in place when it is published.
        current = events_pb2.Candle()
        current.CopyFrom(candle)
        opened = candle.open_time.ToNanoseconds()
        if before is None:
            self._last[name] = current
            return [observation]
        previous = before.open_time.ToNanoseconds()
        if opened <= previous:
            if opened == previous:
                self._last[name] = current
            return [observation]
        self._last[name] = current
        follows = opened == previous + candle.interval.ToNanoseconds()
        final = follows and name in self._whole
        # From its very beginning on this one is seen whole.
        self._whole.add(name)
        if not final:
            return [observation]
        before.closed = True
        closed = Observation(
            observation.kind,
            before,
            native_symbol=observation.native_symbol,
            symbol=observation.symbol,
            contracts=observation.contracts,
            key=observation.key,
        )
        return [closed, observation]

    def forget(self, native_symbol: str) -> None:
        """Let go of an instrument that is no longer collected."""
        for name in [name for name in self._last if name[0] == native_symbol]:
            del self._last[name]
            self._whole.discard(name)
