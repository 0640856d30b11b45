-- What is derived from events (services/storage/rollup_sql.py): candles of trades, spreads of best
-- bids and offers. A row is computed anew when events of its time come; the one that was made from
-- the most events stands, so it outlives events that the retention drops.

{% for level in ['1s', '1m', '5m', '15m', '1h', '4h', '1d'] %}
CREATE TABLE IF NOT EXISTS {{ stored('candle_' + level) }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `time` DateTime('UTC') CODEC(Delta, ZSTD(3)),
    `open_price` Decimal(38, 18) CODEC(ZSTD(3)),
    `high_price` Decimal(38, 18) CODEC(ZSTD(3)),
    `low_price` Decimal(38, 18) CODEC(ZSTD(3)),
    `close_price` Decimal(38, 18) CODEC(ZSTD(3)),
    `volume` Decimal(76, 18) CODEC(ZSTD(3)) COMMENT 'sum of quantity',
    `volume_times_price` Decimal(76, 36) CODEC(ZSTD(3)) COMMENT 'sum of quantity * price',
    `volume_over_price` Decimal(76, 36) CODEC(ZSTD(3)) COMMENT 'sum of quantity / price, each cut after 36 digits',
    `taker_buy_volume` Decimal(76, 18) CODEC(ZSTD(3)),
    `taker_buy_volume_times_price` Decimal(76, 36) CODEC(ZSTD(3)),
    `taker_buy_volume_over_price` Decimal(76, 36) CODEC(ZSTD(3)),
    `liquidated_volume` Decimal(76, 18) CODEC(ZSTD(3)) COMMENT 'of trades that the venue marks as liquidations',
    `largest_quantity` Decimal(38, 18) CODEC(ZSTD(3)) COMMENT 'of one trade',
    `trade_count` Int64 CODEC(ZSTD(3)) COMMENT 'trades of the venue: one that others were folded into counts as all of them',
    `trades` UInt64 CODEC(ZSTD(3)) COMMENT 'rows of trade',
    `taker_buy_trades` UInt64 CODEC(ZSTD(3)) COMMENT 'of them, those whose taker bought',
    `sideless_trades` UInt64 CODEC(ZSTD(3)) COMMENT 'of them, those without a side',
    `first_time` DateTime64(9, 'UTC') CODEC(Delta, ZSTD(3)) COMMENT 'of the first trade',
    `last_time` DateTime64(9, 'UTC') CODEC(Delta, ZSTD(3)) COMMENT 'of the last trade',
    `last_time_told` Bool CODEC(ZSTD(3)) COMMENT 'whether last_time is the time of the venue',
    `last_receive_time` DateTime64(9, 'UTC') CODEC(Delta, ZSTD(3))
)
ENGINE = {{ replacing_merge_tree }}(trades)
PARTITION BY toYYYYMM(time)
ORDER BY (exchange, symbol, time);
{{ distributed('candle_' + level) }}
{% endfor %}

CREATE TABLE IF NOT EXISTS {{ stored('spread_1m') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `time` DateTime('UTC') CODEC(Delta, ZSTD(3)),
    `quotes` UInt64 CODEC(ZSTD(3)) COMMENT 'rows of best_bid_offer',
    `two_sided_quotes` UInt64 CODEC(ZSTD(3)) COMMENT 'of them, those with a bid and an offer',
    `min_spread` Nullable(Decimal(38, 18)) CODEC(ZSTD(3)),
    `max_spread` Nullable(Decimal(38, 18)) CODEC(ZSTD(3)),
    `sum_spread` Decimal(76, 18) CODEC(ZSTD(3)) COMMENT 'over two-sided quotes',
    `average_spread` Nullable(Decimal(76, 18)) ALIAS if(two_sided_quotes = 0, NULL, sum_spread / greatest(two_sided_quotes, 1)),
    `weighted_spread` Decimal(76, 18) CODEC(ZSTD(3)) COMMENT 'sum of spread * nanoseconds until the next quote of the minute',
    `weighted_nanoseconds` Int64 CODEC(ZSTD(3)) COMMENT 'for how long two-sided quotes stood, from the first to the last quote of the minute',
    `time_weighted_spread` Nullable(Decimal(76, 18)) ALIAS if(weighted_nanoseconds = 0, NULL, weighted_spread / greatest(weighted_nanoseconds, 1)),
    `last_spread` Nullable(Decimal(38, 18)) CODEC(ZSTD(3)),
    `first_time` DateTime64(9, 'UTC') CODEC(Delta, ZSTD(3)) COMMENT 'of the first quote',
    `last_time` DateTime64(9, 'UTC') CODEC(Delta, ZSTD(3)) COMMENT 'of the last quote'
)
ENGINE = {{ replacing_merge_tree }}(quotes)
PARTITION BY toYYYYMM(time)
ORDER BY (exchange, symbol, time);
{{ distributed('spread_1m') }}

-- Which places of which stream the rows above are made from. A backup takes tables by name: this one
-- comes before those, so that it never tells of more than they have.
CREATE TABLE IF NOT EXISTS {{ stored('applied_rollup') }}
(
    `exchange` String DEFAULT '' COMMENT 'empty: all rows lie on one shard',
    `symbol` String DEFAULT '',
    `rollup` String,
    `stream_created` UInt64,
    `first_sequences` Array(UInt64) COMMENT 'of each range that is done',
    `last_sequences` Array(UInt64),
    `version` UInt64
)
ENGINE = {{ replacing_merge_tree }}(version)
ORDER BY (rollup, stream_created);
{{ distributed('applied_rollup') }}

-- Rows that are not done yet are found by their place, and by the stream when one is made anew.
ALTER TABLE {{ stored('trade') }} ADD INDEX IF NOT EXISTS by_stream_created stream_created TYPE minmax GRANULARITY 1;
ALTER TABLE {{ stored('best_bid_offer') }} ADD INDEX IF NOT EXISTS by_stream_created stream_created TYPE minmax GRANULARITY 1;
