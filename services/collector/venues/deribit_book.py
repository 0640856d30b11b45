"""Books of Deribit: `book.{instrument}.{interval}` and the whole books of fixed depth.

The levels are most of a frame. msgspec finds where each side begins and ends and proves it to be
JSON; one pass of a regular expression then cuts the numbers out of it as text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import msgspec

from services.collector.venues.base import BookSnapshot, Ignored, VenueMessage

__all__ = ["DeribitBookUpdate", "book_side", "decode_book_frame"]

Id: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Milliseconds: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=10**14)]

_NUMBER = r"([-+.0-9eE]+)"
# A deleted level comes with an amount of 0; should it not, the pattern leaves it to the slow way.
_CHANGES = re.compile(
    rf'\["(?:delete",(?=[^,]+,0(?:\.0*)?\])|new",|change",){_NUMBER},{_NUMBER}\]', re.ASCII
)
_LEVELS = re.compile(rf"\[{_NUMBER},{_NUMBER}\]", re.ASCII)
_ONE_NUMBER = re.compile(_NUMBER, re.ASCII)


@dataclass(frozen=True, slots=True)
class DeribitBookUpdate:
    """A `change` of a book channel; see `BookDiff`."""

    native_symbol: str
    """Instrument."""
    previous: int
    """`prev_change_id`."""
    last: int
    """`change_id`."""
    bids: Sequence[tuple[str, str]]
    """Changed bids."""
    asks: Sequence[tuple[str, str]]
    """Changed asks."""
    exchange_time: int
    """`timestamp` in nanoseconds."""

    @property
    def first(self) -> int:
        """Deribit names only the last change."""
        return self.last

    @property
    def checksum(self) -> int:
        """Deribit sends none."""
        return 0


class _Data(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="instrument_name")
    time: Milliseconds = msgspec.field(name="timestamp")
    last: Id = msgspec.field(name="change_id")
    bids: msgspec.Raw
    asks: msgspec.Raw
    previous: Id | None = msgspec.field(name="prev_change_id", default=None)
    type: Literal["snapshot", "change"] | None = None


class _Params(msgspec.Struct, gc=False, frozen=True):
    channel: str
    data: _Data


class _Frame(msgspec.Struct, gc=False, frozen=True):
    params: _Params


_decode_frame = msgspec.json.Decoder(_Frame).decode
_decode_changes = msgspec.json.Decoder(
    list[tuple[Literal["new", "change", "delete"], msgspec.Raw, msgspec.Raw]]
).decode
_decode_levels = msgspec.json.Decoder(list[tuple[msgspec.Raw, msgspec.Raw]]).decode


def decode_book_frame(frame: bytes) -> VenueMessage:
    """Decode a push of a book channel.

    Raises msgspec.DecodeError (ValidationError) or UnicodeError when it is none.
    """
    params = _decode_frame(frame).params
    data = params.data
    channel = params.channel
    native_symbol = data.native_symbol
    end = len(native_symbol) + 5
    if channel[:5] != "book." or channel[5:end] != native_symbol or channel[end : end + 1] != ".":
        # Neither tells which of them is damaged; the chain of either book would notice too late.
        raise msgspec.ValidationError(
            f"expected the book of one instrument, got {native_symbol[:40]!r} on {channel[:80]!r}"
        )
    if channel.count(".") > 2:
        return _whole_book(channel, data)
    # Before `type` was introduced a snapshot was told by the id that it lacks. Today a change
    # that lacks it is damaged: taken for a snapshot it would replace the book by a few levels.
    if data.type == "snapshot" or (data.type is None and data.previous is None):
        return _snapshot(data, 0)
    if data.previous is None:
        raise msgspec.ValidationError("expected prev_change_id of a change, got none")
    return DeribitBookUpdate(
        native_symbol,
        data.previous,
        data.last,
        book_side(data.bids),
        book_side(data.asks),
        data.time * 1_000_000,
    )


def _snapshot(data: _Data, limit: int) -> BookSnapshot:
    return BookSnapshot(
        data.last,
        book_side(data.bids),
        book_side(data.asks),
        limit,
        data.time * 1_000_000,
        0,
        data.native_symbol,
    )


def _whole_book(channel: str, data: _Data) -> VenueMessage:
    """Take `book.{instrument}.{group}.{depth}.{interval}`: the best levels, all of them each time.

    With a group other than `none` the prices are rounded, which is no book of the venue's.
    """
    group, depth = channel.split(".")[2:4]
    if group != "none" or not (depth.isascii() and depth.isdigit()):
        return Ignored(channel[:80])
    return _snapshot(data, int(depth[:9]))


def book_side(raw: msgspec.Raw) -> list[tuple[str, str]]:
    """Cut the levels of a side out of their JSON: `["new", price, amount]` or `[price, amount]`.

    The numbers stay as the venue spells them, but for deletions, whose amount is told as 0.
    Raises msgspec.DecodeError on anything else.
    """
    text = str(raw, "ascii")
    if text == "[]":
        return []
    tagged = text.startswith('[["')
    levels: list[tuple[str, str]] = (_CHANGES if tagged else _LEVELS).findall(text)
    # It is a JSON array; with so many brackets and commas there is nothing else in it.
    count = len(levels)
    if text.count("[") != count + 1 or text.count(",") != (3 if tagged else 2) * count - 1:
        return _side_any_spelling(raw)
    return levels


def _side_any_spelling(raw: msgspec.Raw) -> list[tuple[str, str]]:
    """Cut levels out of JSON with spaces between, or refuse them with the reason."""
    if '"' not in str(raw, "ascii"):
        return [(_text(price), _text(amount)) for price, amount in _decode_levels(raw)]
    return [
        (_text(price), "0" if action == "delete" else _text(amount))
        for action, price, amount in _decode_changes(raw)
    ]


def _text(raw: msgspec.Raw) -> str:
    text = str(raw, "ascii")
    if _ONE_NUMBER.fullmatch(text) is None:
        raise msgspec.ValidationError(f"expected a number in a level, got {text[:40]!r}")
    return text
