"""The diff depth streams of Binance futures: one book, told at several paces.

`@depth@0ms` tells every frame of the market, the others gather what came within their interval.
"""

from services.simulator.market import DepthUpdate

__all__ = ["DEPTH_STREAMS", "DepthPace", "first_id_of", "next_first_id"]

DEPTH_STREAMS = {
    "depth@0ms": 0,
    "depth@100ms": 100_000,
    "depth": 250_000,
    "depth@250ms": 250_000,
    "depth@500ms": 500_000,
}
"""Least market time between two frames of a stream, microseconds."""

_SKIPS = 3
_EARLY_US = 5_000  # frames of the market come at their nominal interval, never exactly


def first_id_of(event: DepthUpdate) -> int:
    """Return the `U` of a frame, which is often above `pu` + 1.

    At the venue ids count more than the changes of one book. Here the first changes of a frame
    are told without their ids, so that nobody can take `U` == `pu` + 1 for a rule.
    """
    return min(event.last_id, event.first_id + event.previous_id % _SKIPS)


def next_first_id(frame_id: int) -> int:
    """Return the `U` of the frame that follows the one which ended at `frame_id`, at the most.

    A book between the two ids could not be fitted to the stream by the venue's rules.
    """
    return frame_id + 1 + frame_id % _SKIPS


class DepthPace:
    """Gathers the frames of one symbol for one stream."""

    def __init__(self, interval_us: int) -> None:
        self._interval_us = interval_us
        self._sent_us = -interval_us
        self._waiting: DepthUpdate | None = None
        self._first_id = 0

    def take(self, event: DepthUpdate) -> tuple[DepthUpdate, int] | None:
        """Add a frame of the market; the frame to send and its `U`, None while it is too soon."""
        waiting, first_id = self._waiting, first_id_of(event)
        # Frames that were not shown to us, for nobody was subscribed, leave nothing to go on with.
        if waiting is not None and waiting.last_id == event.previous_id:
            event = event._replace(
                first_id=waiting.first_id,
                previous_id=waiting.previous_id,
                bids=sorted((dict(waiting.bids) | dict(event.bids)).items(), reverse=True),
                asks=sorted((dict(waiting.asks) | dict(event.asks)).items()),
            )
            first_id = self._first_id
        if event.time_us - self._sent_us < self._interval_us - _EARLY_US:
            self._waiting, self._first_id = event, first_id
            return None
        self._waiting = None
        self._sent_us = event.time_us
        return event, first_id
