"""The SQL of derived rows: candles out of trades, coarser candles out of finer ones, spreads.

Every statement computes whole buckets of time anew from what is stored, so it can be repeated and
cut short anywhere. A bucket's row has the number of events it was made of as its version
(`ReplacingMergeTree(trades)`): events only ever join a bucket, so the row with most of them is
right, whoever wrote it and when, and a row outlives events that the retention has dropped.
"""

from dataclasses import dataclass
from typing import Final

__all__ = [
    "CANDLE_COLUMNS",
    "LEVELS",
    "LEVEL_TABLES",
    "ROLLUP_TABLES",
    "Step",
    "bucket_sql",
    "candle_from_candles",
    "candle_from_trades",
    "candle_step",
    "coarsest_level",
    "spread_step",
    "trade_second_step",
]

LEVELS: Final = (1, 60, 300, 900, 3600, 14400, 86400)
"""Lengths of the candles that are kept, seconds: each is a multiple of the one before."""

LEVEL_TABLES: Final = {
    1: "candle_1s",
    60: "candle_1m",
    300: "candle_5m",
    900: "candle_15m",
    3600: "candle_1h",
    14400: "candle_4h",
    86400: "candle_1d",
}
"""Table of each level. Those of 60 s and less are kept up with every second, the others later."""

ROLLUP_TABLES: Final = (*LEVEL_TABLES.values(), "spread_1m")
"""Every table of derived rows; each has a `time`, by which it can be kept."""

# What a DateTime can hold; a time beyond it is a clock gone wrong.
_TIMES: Final = (
    "time >= toDateTime64('1970-01-01 00:00:00', 9, 'UTC') "
    "AND time < toDateTime64('2106-01-01 00:00:00', 9, 'UTC')"
)
_FIRST: Final = "(t.time, t.trade_number, t.trade_text)"
_VALUE: Final = "toDecimal256(t.price, 18) * t.quantity"
# Division cuts after the digits of the dividend; what has no price has no base volume.
_OVER: Final = (
    "if(t.price = 0, toDecimal256(0, 36), "
    "CAST(t.quantity AS Decimal(76, 36)) / if(t.price = 0, toDecimal128(1, 18), t.price))"
)
_BOUGHT: Final = "t.side = 'SIDE_BUY'"

_COLUMNS: Final = {
    # Column: out of trades t, out of candles c.
    "open_price": (f"argMin(t.price, {_FIRST})", "argMin(c.open_price, c.first_time)"),
    "high_price": ("max(t.price)", "max(c.high_price)"),
    "low_price": ("min(t.price)", "min(c.low_price)"),
    "close_price": (f"argMax(t.price, {_FIRST})", "argMax(c.close_price, c.last_time)"),
    "volume": ("sum(toDecimal256(t.quantity, 18))", "sum(c.volume)"),
    "volume_times_price": (f"sum({_VALUE})", "sum(c.volume_times_price)"),
    "volume_over_price": (f"sum({_OVER})", "sum(c.volume_over_price)"),
    "taker_buy_volume": (
        f"sumIf(toDecimal256(t.quantity, 18), {_BOUGHT})",
        "sum(c.taker_buy_volume)",
    ),
    "taker_buy_volume_times_price": (
        f"sumIf({_VALUE}, {_BOUGHT})",
        "sum(c.taker_buy_volume_times_price)",
    ),
    "taker_buy_volume_over_price": (
        f"sumIf({_OVER}, {_BOUGHT})",
        "sum(c.taker_buy_volume_over_price)",
    ),
    "liquidated_volume": (
        "sumIf(toDecimal256(t.quantity, 18), t.liquidation)",
        "sum(c.liquidated_volume)",
    ),
    "largest_quantity": ("max(t.quantity)", "max(c.largest_quantity)"),
    "trade_count": ("sum(greatest(t.trade_count, 1))", "sum(c.trade_count)"),
    "trades": ("count()", "sum(c.trades)"),
    "taker_buy_trades": (f"countIf({_BOUGHT})", "sum(c.taker_buy_trades)"),
    "sideless_trades": ("countIf(t.side = 'SIDE_UNSPECIFIED')", "sum(c.sideless_trades)"),
    "first_time": ("min(t.time)", "min(c.first_time)"),
    "last_time": ("max(t.time)", "max(c.last_time)"),
    "last_time_told": (
        f"argMax(t.exchange_time_told, {_FIRST})",
        "argMax(c.last_time_told, c.last_time)",
    ),
    "last_receive_time": (
        f"argMax(t.receive_time, {_FIRST})",
        "argMax(c.last_receive_time, c.last_time)",
    ),
}

CANDLE_COLUMNS: Final = tuple(_COLUMNS)
"""Columns of a candle after exchange, symbol and time."""


def candle_from_trades() -> str:
    """Give the columns of a candle out of rows of trade named `t`.

    The first and the last trade are those by time, and of one time by number.
    """
    return ", ".join(f"{trades} AS {name}" for name, (trades, _) in _COLUMNS.items())


def candle_from_candles() -> str:
    """Give the columns of a candle out of candles named `c` whose times do not overlap."""
    return ", ".join(f"{candles} AS {name}" for name, (_, candles) in _COLUMNS.items())


def coarsest_level(seconds: int) -> int:
    """Give the longest level that candles of so many seconds are a multiple of."""
    return next(level for level in reversed(LEVELS) if seconds % level == 0)


def bucket_sql(time: str, seconds: int) -> str:
    """Give the begin of the bucket that a time is in. Indexes by time see through it."""
    if seconds == 1:
        return f"toStartOfSecond({time})"
    return f"toDateTime(toStartOfInterval({time}, toIntervalSecond({seconds})), 'UTC')"


@dataclass(frozen=True, slots=True)
class Step:
    """One statement of a rollup."""

    target: str
    """Table that it fills."""

    source: str
    """Table of events that tells which buckets are touched."""

    sql: str
    """The statement, with `{rows}` for the condition on touching rows of the source and `{IN}` for
    the operator."""


def _touched(source: str, bucket: str) -> str:
    return f"(SELECT exchange, symbol, {bucket} FROM {source} WHERE {_TIMES} AND {{rows}})"


def trade_second_step() -> Step:
    """Make candles of one second out of trades."""
    bucket = bucket_sql("time", 1)
    return Step(
        "candle_1s",
        "trade",
        f"INSERT INTO candle_1s (exchange, symbol, time, {', '.join(CANDLE_COLUMNS)}) "
        f"SELECT t.exchange, t.symbol, toDateTime(toStartOfSecond(t.time), 'UTC') AS bucket, "
        f"{candle_from_trades()} FROM trade AS t FINAL "
        f"WHERE (exchange, symbol, {bucket}) {{IN}} {_touched('trade', bucket)} "
        "GROUP BY t.exchange, t.symbol, bucket",
    )


def candle_step(seconds: int, finer: int) -> Step:
    """Make candles of so many seconds out of finer ones."""
    target = LEVEL_TABLES[seconds]
    return Step(
        target,
        "trade",
        f"INSERT INTO {target} (exchange, symbol, time, {', '.join(CANDLE_COLUMNS)}) "
        f"SELECT c.exchange, c.symbol, {bucket_sql('c.time', seconds)} AS bucket, "
        f"{candle_from_candles()} FROM {LEVEL_TABLES[finer]} AS c FINAL "
        f"WHERE (exchange, symbol, {bucket_sql('time', seconds)}) "
        f"{{IN}} {_touched('trade', bucket_sql('time', seconds))} "
        "GROUP BY c.exchange, c.symbol, bucket",
    )


def spread_step() -> Step:
    """Make spreads of a minute out of best bids and offers.

    A quote stands until the next one of the minute; the last one counts for no time, so that a
    minute is made of its own quotes only.
    """
    bucket = bucket_sql("time", 60)
    order = "PARTITION BY exchange, symbol, bucket ORDER BY time, venue_sequence, stream_sequence"
    return Step(
        "spread_1m",
        "best_bid_offer",
        "INSERT INTO spread_1m (exchange, symbol, time, quotes, two_sided_quotes, min_spread, "
        "max_spread, sum_spread, weighted_spread, weighted_nanoseconds, last_spread, first_time, "
        "last_time) SELECT exchange, symbol, bucket, count(), countIf(two_sided), "
        "if(countIf(two_sided) = 0, NULL, minIf(width, two_sided)), "
        "if(countIf(two_sided) = 0, NULL, maxIf(width, two_sided)), "
        "sumIf(toDecimal256(width, 18), two_sided), "
        "sumIf(toDecimal256(width, 18) * stood, two_sided), sumIf(stood, two_sided), "
        "argMax(tuple(spread), place).1, min(moment), max(moment) FROM ("
        f"SELECT exchange, symbol, {bucket} AS bucket, time AS moment, "
        "ask_price - bid_price AS spread, isNotNull(spread) AS two_sided, "
        "ifNull(spread, toDecimal128(0, 18)) AS width, "
        "(time, venue_sequence, stream_sequence) AS place, "
        f"toUnixTimestamp64Nano(leadInFrame(time, 1, time) OVER ({order} ROWS BETWEEN UNBOUNDED "
        "PRECEDING AND UNBOUNDED FOLLOWING)) - toUnixTimestamp64Nano(time) AS stood "
        f"FROM best_bid_offer FINAL WHERE {_TIMES} AND (exchange, symbol, {bucket}) "
        f"{{IN}} {_touched('best_bid_offer', bucket)}) GROUP BY exchange, symbol, bucket",
    )
