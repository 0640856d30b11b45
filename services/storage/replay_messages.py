"""Puts rows into messages: the items by their bytes, many a message, a ledger's entry by itself."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp

from services.marketdata.wire import stream_status_item
from services.shared.wire import field
from services.storage.validators import NANOS

__all__ = ["Packer", "position_field", "status_item"]

_GAPS: Final = 0
_ITEM: Final = itemgetter(-1)
_STREAM: Final = itemgetter(1)


class Packer:
    """Some rows in order, given as messages.

    A row's second value is 0 for a ledger's entry, its last one the item. A message has items of up
    to `max_bytes`, and one item at least.
    """

    def __init__(self, rows: Sequence[tuple[Any, ...]], max_bytes: int) -> None:
        self._items = list(map(_ITEM, rows))
        self._ends = list(accumulate(map(len, self._items)))
        self._max_bytes = max_bytes
        self._gaps = []
        if _GAPS in set(map(_STREAM, rows)):
            self._gaps = [place for place, row in enumerate(rows) if row[1] == _GAPS]

    def __len__(self) -> int:
        return len(self._items)

    def messages(self, begin: int, end: int) -> Iterator[tuple[bytes, int]]:
        """Give the rows from `begin` to before `end`: joined items, and the place after them."""
        gaps = iter(self._gaps[bisect_right(self._gaps, begin - 1) :])
        gap = next(gaps, end)
        while begin < end:
            if begin == gap:
                yield self._items[begin], begin + 1
                begin += 1
                gap = next(gaps, end)
                continue
            before = self._ends[begin - 1] if begin else 0
            stop = bisect_right(self._ends, before + self._max_bytes, begin, min(gap, end))
            stop = max(stop, begin + 1)
            yield b"".join(self._items[begin:stop]), stop
            begin = stop


def position_field(number: int, nanoseconds: int) -> bytes:
    """Encode a field with an instant, nanoseconds since 1970."""
    seconds, nanos = divmod(nanoseconds, NANOS)
    return field(number, Timestamp(seconds=seconds, nanos=nanos).SerializeToString())


def status_item(state: int, time: int, reason: str, message: str = "") -> bytes:
    """Encode a status of the stream as an `events` item; `time` is nanoseconds since 1970."""
    return stream_status_item(state, now=time, reason=reason, message=message)
