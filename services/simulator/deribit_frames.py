"""Deribit's notifications, as the venue writes them: pure functions of plain values.

Prices and amounts are integers in units of 1e-8, times milliseconds since the epoch. Follows
"Subscriptions" of the Deribit documentation; keys stand in the order in which the venue sends them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from services.simulator.deribit_numbers import Float, Numbers, dumps, plain
from services.simulator.window import LevelChange

__all__ = [
    "DeribitTrade",
    "book_change",
    "book_levels",
    "book_snapshot",
    "chart_trades",
    "heartbeat",
    "instrument_state",
    "levels_text",
    "markprice_options",
    "notification",
    "perpetual",
    "price_index",
    "quote",
    "trade_object",
    "trades",
    "volatility_index",
]

_float = Numbers()

Levels = Iterable[tuple[int, int]]


def notification(channel: str, data: bytes) -> bytes:
    """Return a whole frame: `data` is JSON already."""
    return b'{"jsonrpc":"2.0","method":"subscription","params":{"channel":"%b","data":%b}}' % (
        channel.encode(),
        data,
    )


def heartbeat(kind: str) -> bytes:
    """Return a `heartbeat` or `test_request` message, keys in the venue's own order."""
    return b'{"params":{"type":"%b"},"method":"heartbeat","jsonrpc":"2.0"}' % kind.encode()


def book_snapshot(
    channel: str,
    name: str,
    time_ms: int,
    change_id: int,
    bids: Levels,
    asks: Levels,
    *,
    whole_amounts: bool,
) -> bytes:
    """Return the first frame of a book channel: every level, and no `prev_change_id`.

    The venue writes the whole dollars of inverse instruments as integers here, and only here.
    """
    return notification(
        channel,
        b'{"timestamp":%d,"type":"snapshot","change_id":%d,"instrument_name":"%b",'
        b'"bids":[%b],"asks":[%b]}'
        % (
            time_ms,
            change_id,
            name.encode(),
            _new_levels(bids, whole_amounts),
            _new_levels(asks, whole_amounts),
        ),
    )


def _new_levels(levels: Levels, whole_amounts: bool) -> bytes:
    if whole_amounts:
        return b",".join(
            b'["new",%b,%b]' % (_float[price], plain(amount).encode()) for price, amount in levels
        )
    return b",".join(b'["new",%b,%b]' % (_float[price], _float[amount]) for price, amount in levels)


def book_change(
    channel: str,
    name: str,
    time_ms: int,
    change_id: int,
    previous_id: int,
    bids: Sequence[LevelChange],
    asks: Sequence[LevelChange],
) -> bytes:
    """Return a later frame of a book channel: what became of each level that changed."""
    return notification(
        channel,
        b'{"timestamp":%d,"type":"change","change_id":%d,"instrument_name":"%b",'
        b'"bids":[%b],"asks":[%b],"prev_change_id":%d}'
        % (
            time_ms,
            change_id,
            name.encode(),
            _changed_levels(bids),
            _changed_levels(asks),
            previous_id,
        ),
    )


def _changed_levels(changes: Sequence[LevelChange]) -> bytes:
    number = _float
    return b",".join(
        [
            b'["delete",%b,0.0]' % number[price]
            if not after
            else b'["%b",%b,%b]' % (b"change" if before else b"new", number[price], number[after])
            for price, before, after in changes
        ]
    )


def book_levels(
    channel: str, name: str, time_ms: int, change_id: int, bids: Levels, asks: Levels
) -> bytes:
    """Return a frame of a grouped book channel: the whole window, without a chain."""
    return notification(
        channel,
        b'{"timestamp":%d,"change_id":%d,"instrument_name":"%b","bids":%b,"asks":%b}'
        % (time_ms, change_id, name.encode(), levels_text(bids), levels_text(asks)),
    )


def levels_text(levels: Levels) -> bytes:
    """Return levels as a list of `[price, amount]`."""
    return b"[%b]" % b",".join([b"[%b,%b]" % (_float[p], _float[amount]) for p, amount in levels])


def quote(
    channel: str,
    name: str,
    time_ms: int,
    bid: tuple[int, int] | None,
    ask: tuple[int, int] | None,
) -> bytes:
    """Return the best prices with their amounts, 0 for a side that is empty."""
    bid_price, bid_amount = bid or (0, 0)
    ask_price, ask_amount = ask or (0, 0)
    return notification(
        channel,
        b'{"timestamp":%d,"instrument_name":"%b","best_bid_price":%b,"best_bid_amount":%b,'
        b'"best_ask_price":%b,"best_ask_amount":%b}'
        % (
            time_ms,
            name.encode(),
            _float[bid_price],
            _float[bid_amount],
            _float[ask_price],
            _float[ask_amount],
        ),
    )


class DeribitTrade(NamedTuple):
    """A trade as the venue tells it."""

    name: str
    time_us: int
    trade_seq: int
    """Contiguous within the instrument."""
    trade_id: str
    """With the currency before it, but for Bitcoin."""
    price: int
    amount: int
    contracts: int
    sell: bool
    """Whether the taker sold."""
    tick_direction: int
    """0 up, 1 as before after a rise, 2 down, 3 as before after a fall."""
    index_price: int
    mark_price: int
    liquidation: str | None
    """`M`, `T` or `MT`: whose order was a liquidation's."""
    iv: int | None
    """Of an option, in percent."""
    match_id: int


def trade_object(trade: DeribitTrade) -> bytes:
    """Return one trade as a JSON object."""
    text = (
        f'{{"timestamp":{trade.time_us // 1000},"price":{dumps(Float(trade.price))},'
        f'"amount":{dumps(Float(trade.amount))},"direction":"{"sell" if trade.sell else "buy"}",'
        f'"index_price":{dumps(Float(trade.index_price))},"instrument_name":"{trade.name}",'
        f'"trade_seq":{trade.trade_seq},"mark_price":{dumps(Float(trade.mark_price))},'
    )
    if trade.iv is not None:
        text += f'"iv":{dumps(Float(trade.iv))},'
    if trade.liquidation is not None:
        text += f'"liquidation":"{trade.liquidation}",'
    text += (
        f'"tick_direction":{trade.tick_direction},"starbase_match_id":"{trade.match_id}",'
        f'"trade_id":"{trade.trade_id}","contracts":{dumps(Float(trade.contracts))},'
        f'"starbase_timestamp":{trade.time_us * 1000}}}'
    )
    return text.encode()


def trades(channel: str, objects: Iterable[bytes]) -> bytes:
    """Return the trades of one interval, oldest first."""
    return notification(channel, b"[%b]" % b",".join(objects))


def price_index(channel: str, index: str, time_ms: int, price: int) -> bytes:
    """Return a price of an index."""
    data = {"timestamp": time_ms, "price": Float(price), "index_name": index}
    return notification(channel, dumps(data).encode())


def volatility_index(channel: str, index: str, time_ms: int, value: int) -> bytes:
    """Return a value of a volatility index, in points."""
    data = {"timestamp": time_ms, "volatility": Float(value), "index_name": index}
    return notification(channel, dumps(data).encode())


def chart_trades(
    channel: str,
    open_ms: int,
    prices: tuple[int, int, int, int],
    volume: int,
    cost: int,
) -> bytes:
    """Return a candle as it stands: `prices` are open, high, low, close; volume in base."""
    first, high, low, last = prices
    data = {
        "volume": Float(volume),
        "tick": open_ms,
        "open": Float(first),
        "low": Float(low),
        "high": Float(high),
        "cost": Float(cost),
        "close": Float(last),
    }
    return notification(channel, dumps(data).encode())


def instrument_state(channel: str, name: str, state: str, time_ms: int) -> bytes:
    """Return what became of an instrument."""
    data = {"timestamp": time_ms, "state": state, "instrument_name": name}
    return notification(channel, dumps(data).encode())


def perpetual(channel: str, time_ms: int, index: int, interest: int) -> bytes:
    """Return the running funding of a perpetual, a fraction for eight hours."""
    data = {"index_price": Float(index), "interest": Float(interest), "timestamp": time_ms}
    return notification(channel, dumps(data).encode())


def markprice_options(channel: str, rows: Iterable[Mapping[str, object]]) -> bytes:
    """Return marks of options of an index: `timestamp`, `iv` as a fraction, name, `mark_price`."""
    return notification(channel, dumps(list(rows)).encode())
