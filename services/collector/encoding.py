"""Encodes market events once, by hand, into the bytes that every reader downstream uses.

Each encoder keeps the parts of its message that never change (exchange, symbol, epoch) encoded
already. Field numbers are those of `proto/marketprism/market/v1`; the tests hold the result against
the protobuf library.
"""

from services.collector.wire import text_field, timestamp_field, uint_field
from services.shared.wire import varint

__all__ = [
    "BestBidOfferEncoder",
    "OrderBookEncoder",
    "TradeEncoder",
]

_EXCHANGE_TIME = b"\x2a"  # field 5, length-delimited
_RECEIVE_TIME = b"\x32"  # field 6, length-delimited


def _identity(exchange: str, symbol: str) -> bytes:
    return text_field(1, exchange) + text_field(2, symbol)


class OrderBookEncoder:
    """Encodes the snapshots and updates of one instrument's book.

    Times are nanoseconds since 1970, 0 where there is none. `levels` are fields 10 and 11 as
    `OrderBook.apply` and `OrderBook.encode_levels` return them.
    """

    __slots__ = ("_epoch", "_identity")

    def __init__(self, exchange: str, symbol: str) -> None:
        self._identity = _identity(exchange, symbol)
        self._epoch = self._identity

    def begin_epoch(self, epoch: int) -> None:
        """Use this epoch from now on."""
        self._epoch = self._identity + uint_field(3, epoch)

    def update(
        self,
        sequence: int,
        exchange_time: int,
        receive_time: int,
        venue_sequence: int,
        first_venue_sequence: int,
        previous_venue_sequence: int,
        levels: bytes,
    ) -> bytes:
        """Encode an OrderBookUpdate."""
        return b"".join(
            (
                self._epoch,
                b"\x20",
                varint(sequence),
                timestamp_field(_EXCHANGE_TIME, exchange_time),
                timestamp_field(_RECEIVE_TIME, receive_time),
                b"\x38" + varint(venue_sequence) if venue_sequence else b"",
                b"\x40" + varint(first_venue_sequence) if first_venue_sequence else b"",
                b"\x48" + varint(previous_venue_sequence) if previous_venue_sequence else b"",
                levels,
            )
        )

    def snapshot(
        self,
        sequence: int,
        exchange_time: int,
        receive_time: int,
        venue_sequence: int,
        reason: int,
        levels: bytes,
        bid_horizon: str,
        ask_horizon: str,
    ) -> bytes:
        """Encode an OrderBookSnapshot; `reason` is a SnapshotReason."""
        return b"".join(
            (
                self._epoch,
                uint_field(4, sequence),
                timestamp_field(_EXCHANGE_TIME, exchange_time),
                timestamp_field(_RECEIVE_TIME, receive_time),
                uint_field(7, venue_sequence),
                uint_field(9, reason),
                levels,
                text_field(12, bid_horizon),
                text_field(13, ask_horizon),
            )
        )


class TradeEncoder:
    """Encodes the trades of one instrument."""

    __slots__ = ("_identity",)

    def __init__(self, exchange: str, symbol: str) -> None:
        self._identity = _identity(exchange, symbol)

    def trade(
        self,
        trade_id: str,
        exchange_time: int,
        receive_time: int,
        price: str,
        quantity: str,
        side: int,
        *,
        venue_sequence: int = 0,
        trade_count: int = 0,
        liquidation: bool = False,
        backfilled: bool = False,
    ) -> bytes:
        """Encode a Trade; `price` and `quantity` are canonical, `side` is a Side."""
        return b"".join(
            (
                self._identity,
                text_field(3, trade_id),
                uint_field(4, venue_sequence),
                timestamp_field(_EXCHANGE_TIME, exchange_time),
                timestamp_field(_RECEIVE_TIME, receive_time),
                text_field(7, price),
                text_field(8, quantity),
                uint_field(9, side),
                uint_field(10, trade_count),
                b"\x58\x01" if liquidation else b"",
                b"\x60\x01" if backfilled else b"",
            )
        )


class BestBidOfferEncoder:
    """Encodes the best bids and offers of one instrument."""

    __slots__ = ("_identity",)

    def __init__(self, exchange: str, symbol: str) -> None:
        self._identity = _identity(exchange, symbol)

    def best_bid_offer(
        self,
        venue_sequence: int,
        exchange_time: int,
        receive_time: int,
        bid: tuple[str, str],
        ask: tuple[str, str],
    ) -> bytes:
        """Encode a BestBidOffer; sides are canonical (price, quantity), empty text for none."""
        return b"".join(
            (
                self._identity,
                uint_field(3, venue_sequence),
                timestamp_field(_EXCHANGE_TIME, exchange_time),
                timestamp_field(_RECEIVE_TIME, receive_time),
                text_field(7, bid[0]),
                text_field(8, bid[1]),
                text_field(9, ask[0]),
                text_field(10, ask[1]),
            )
        )
