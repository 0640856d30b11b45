"""Sets of places in streams, and the SQL condition for rows that are at such places.

A rollup remembers which rows it has dealt with by their place: the stream's time of creation and
the sequence in it. Places are not dealt with strictly in order. An insert of rows of several days
is one part a day, and a kill can leave some of them; the others come when the messages are
delivered again. So what is done is a set of ranges with holes, not one number.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["LAST_SEQUENCE", "Places", "Ranges", "at", "not_at"]

LAST_SEQUENCE: Final = 2**64 - 1
"""The greatest sequence there can be."""

Ranges = tuple[tuple[int, int], ...]
"""Ranges of sequences, first and last, both inclusive; in rising order and apart."""

Places = Mapping[int, Ranges]
"""Ranges by the stream's time of creation."""


def joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Give ranges in order, those that touch or overlap made one."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return tuple(found)


def without(ranges: Ranges, removed: Ranges) -> Ranges:
    """Give what is in `ranges` and not in `removed`."""
    found = []
    for first, last in ranges:
        begin = first
        # The first of the removed that can reach into this range.
        start = max(0, bisect_right(removed, (begin, -1)) - 1)
        for low, high in removed[start:]:
            if low > last:
                break
            if high < begin:
                continue
            if low > begin:
                found.append((begin, low - 1))
            begin = high + 1
        if begin <= last:
            found.append((begin, last))
    return tuple(found)


def cut(ranges: Ranges, most: int) -> Ranges:
    """Give the first `most` places of ranges."""
    found = []
    for first, last in ranges:
        if most <= 0:
            break
        end = min(last, first + most - 1)
        found.append((first, end))
        most -= end - first + 1
    return tuple(found)


def closed(ranges: Ranges, holes: int) -> Ranges:
    """Give ranges with their lowest holes filled so that at most `holes` are left.

    What lies below the first range is a hole too.
    """
    if len(ranges) <= holes:
        return ranges
    kept = ranges[len(ranges) - holes :] if holes else ()
    lower = ranges[: len(ranges) - holes]
    return ((0, lower[-1][1]), *kept)


class _Parameters(dict[str, Any]):
    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix

    def place(self, value: int) -> str:
        name = f"{self._prefix}{len(self)}"
        self[name] = value
        return f"{{{name}:UInt64}}"


def at(places: Places, prefix: str = "place") -> tuple[str, dict[str, Any]]:
    """Give the condition for rows at places, and its parameters, named with the prefix."""
    parameters = _Parameters(prefix)
    streams = [_of_stream(stream, ranges, parameters) for stream, ranges in places.items()]
    return _any(streams), dict(parameters)


def not_at(places: Places, prefix: str = "place") -> tuple[str, dict[str, Any]]:
    """Give the condition for rows at other places, and its parameters, named with the prefix.

    Streams that are not among `places` are other places. It is made of ranges, by which indexes of
    smallest and greatest values leave most rows unread.
    """
    parameters = _Parameters(prefix)
    everywhere: Ranges = ((0, LAST_SEQUENCE),)
    streams = []
    for stream in sorted(places):
        ranges = without(everywhere, places[stream])
        if ranges:
            streams.append(_of_stream(stream, ranges, parameters))
    streams.extend(
        _between("stream_created", low, high, parameters)
        for low, high in without(everywhere, joined((stream, stream) for stream in places))
    )
    return _any(streams), dict(parameters)


def _of_stream(stream: int, ranges: Ranges, parameters: _Parameters) -> str:
    sequences = [_between("stream_sequence", first, last, parameters) for first, last in ranges]
    return f"(stream_created = {parameters.place(stream)} AND {_any(sequences)})"


def _between(column: str, low: int, high: int, parameters: _Parameters) -> str:
    if low == high:
        return f"{column} = {parameters.place(low)}"
    if low == 0 and high == LAST_SEQUENCE:
        return "true"
    if low == 0:
        return f"{column} <= {parameters.place(high)}"
    if high == LAST_SEQUENCE:
        return f"{column} >= {parameters.place(low)}"
    return f"{column} BETWEEN {parameters.place(low)} AND {parameters.place(high)}"


def _any(conditions: list[str]) -> str:
    return f"({' OR '.join(conditions)})" if conditions else "false"
