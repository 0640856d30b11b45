"""Trades to store, and the naive computation that derived rows must equal."""

from collections.abc import Iterable, Sequence
from decimal import ROUND_DOWN, Decimal, localcontext
from typing import Any

from marketprism.market.v1 import common_pb2, events_pb2, instrument_pb2

from services.storage.engine import Engine
from services.storage.tables import TABLES, frame

BUY, SELL = common_pb2.SIDE_BUY, common_pb2.SIDE_SELL
NANOS = 1_000_000_000
DAY = 86_400
BEGIN = 1_795_478_400
"""A midnight, seconds since 1970."""

CREATED = 1_795_000_000_000_000_000
"""When the stream was made."""

Stored = tuple[int, events_pb2.Trade]
"""A trade and its place in the stream."""


def trade(
    time: int,
    price: str = "100",
    quantity: str = "1",
    *,
    number: int | str = 1,
    side: int = BUY,
    symbol: str = "BTC-USDT",
    **fields: Any,
) -> events_pb2.Trade:
    """Make a trade; `time` is nanoseconds since 1970."""
    made = events_pb2.Trade(
        exchange="binance",
        symbol=symbol,
        trade_id=str(number),
        price=price,
        quantity=quantity,
        side=side,  # type: ignore[arg-type]
        **fields,
    )
    made.exchange_time.FromNanoseconds(time)
    made.receive_time.FromNanoseconds(time + 5_000_000)
    return made


def trade_at(place: int) -> events_pb2.Trade:
    """Make the trade at a place of a stream: every tenth is late, every seventh comes twice."""
    number = place - place % 7 // 6
    late = number % 10 == 9
    time = (BEGIN + number // 40 - (3600 if late else 0)) * NANOS + number
    return trade(time, str(100 + number % 13), f"{number % 17}.5", number=number)


def instrument(symbol: str, unit: int) -> instrument_pb2.Instrument:
    """Describe an instrument whose quantities are in a unit."""
    made = instrument_pb2.Instrument(exchange="binance", symbol=symbol, contract_size="1")
    made.tick_size = made.lot_size = "1"
    made.quantity_unit = unit  # type: ignore[assignment]
    made.update_time.FromNanoseconds(BEGIN * NANOS)
    return made


async def store(
    engine: Engine, name: str, placed: Iterable[tuple[int, Any]], created: int = CREATED
) -> None:
    """Insert events at their places, in one insert."""
    block = b"".join(frame(event.SerializeToString(), place, created) for place, event in placed)
    if block:
        await engine.insert(TABLES[name], block)


def last_of_each(inserted: Sequence[events_pb2.Trade]) -> list[events_pb2.Trade]:
    """Give trades by time and number, of each identity the one that was inserted last."""
    kept = {}
    for each in inserted:
        key = each.trade_id
        number = int(key) if key.isdigit() and str(int(key)) == key else 0
        order = (each.exchange_time.ToNanoseconds(), number, "" if number else key)
        kept[each.exchange, each.symbol, order] = each
    return [kept[key] for key in sorted(kept)]


def over(quantity: Decimal, price: Decimal) -> Decimal:
    """Divide as the contract says: each trade cut after 36 digits."""
    with localcontext() as context:
        context.prec = 120
        if price == 0:
            return Decimal(0)
        return (quantity / price).quantize(Decimal(1).scaleb(-36), ROUND_DOWN)


def naive_candle(trades: Sequence[events_pb2.Trade]) -> dict[str, Any]:
    """Compute one candle from its trades, in order."""
    with localcontext() as context:
        context.prec = 120
        prices = [Decimal(each.price) for each in trades]
        rows = [(Decimal(t.price), Decimal(t.quantity), t) for t in trades]
        bought = [(p, q) for p, q, t in rows if t.side == BUY]
        return {
            "open_price": prices[0],
            "high_price": max(prices),
            "low_price": min(prices),
            "close_price": prices[-1],
            "volume": sum((q for _, q, _ in rows), Decimal(0)),
            "volume_times_price": sum((p * q for p, q, _ in rows), Decimal(0)),
            "volume_over_price": sum((over(q, p) for p, q, _ in rows), Decimal(0)),
            "taker_buy_volume": sum((q for _, q in bought), Decimal(0)),
            "taker_buy_volume_times_price": sum((p * q for p, q in bought), Decimal(0)),
            "taker_buy_volume_over_price": sum((over(q, p) for p, q in bought), Decimal(0)),
            "liquidated_volume": sum((q for _, q, t in rows if t.liquidation), Decimal(0)),
            "largest_quantity": max(q for _, q, _ in rows),
            "trade_count": sum(max(t.trade_count, 1) for t in trades),
            "trades": len(trades),
            "taker_buy_trades": len(bought),
            "sideless_trades": sum(t.side == common_pb2.SIDE_UNSPECIFIED for t in trades),
            "first_time": trades[0].exchange_time.ToNanoseconds(),
            "last_time": trades[-1].exchange_time.ToNanoseconds(),
            "last_time_told": True,
            "last_receive_time": trades[-1].receive_time.ToNanoseconds(),
        }


def naive_candles(
    inserted: Sequence[events_pb2.Trade], seconds: int
) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Compute all candles of a length from trades in the order of their inserts."""
    buckets: dict[tuple[str, str, int], list[events_pb2.Trade]] = {}
    for each in last_of_each(inserted):
        begin = each.exchange_time.seconds // seconds * seconds
        buckets.setdefault((each.exchange, each.symbol, begin), []).append(each)
    return {key: naive_candle(trades) for key, trades in buckets.items()}
