-- The tables of events, one a subject of the broker (services/storage/tables.py).
-- A row is read from the event's own bytes: EPHEMERAL columns take fields that others are made of.

CREATE TABLE IF NOT EXISTS {{ stored('trade') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `trade_id_input` String EPHEMERAL,
    `trade_number` UInt64 DEFAULT if(toUInt64OrZero(trade_id_input) != 0 AND toString(toUInt64OrZero(trade_id_input)) = trade_id_input, toUInt64OrZero(trade_id_input), 0) CODEC(Delta, ZSTD(3)),
    `trade_text` String DEFAULT if(toUInt64OrZero(trade_id_input) != 0 AND toString(toUInt64OrZero(trade_id_input)) = trade_id_input, '', trade_id_input) CODEC(ZSTD(3)),
    `trade_id` String ALIAS if(trade_number = 0, trade_text, toString(trade_number)),
    `venue_sequence` Int64 CODEC(Delta, ZSTD(3)),
    `exchange_time_seconds` Int64 EPHEMERAL,
    `exchange_time_nanos` Int32 EPHEMERAL,
    `time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(if(exchange_time_seconds * 1000000000 + exchange_time_nanos = 0, receive_time_seconds * 1000000000 + receive_time_nanos, exchange_time_seconds * 1000000000 + exchange_time_nanos), 'UTC') CODEC(Delta, ZSTD(3)),
    `exchange_time_told` Bool DEFAULT exchange_time_seconds * 1000000000 + exchange_time_nanos != 0 CODEC(ZSTD(3)),
    `exchange_time` DateTime64(9, 'UTC') ALIAS if(exchange_time_told, time, fromUnixTimestamp64Nano(toInt64(0), 'UTC')),
    `receive_time_seconds` Int64 EPHEMERAL,
    `receive_time_nanos` Int32 EPHEMERAL,
    `receive_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(receive_time_seconds * 1000000000 + receive_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `price_input` String EPHEMERAL,
    `price` Decimal(38, 18) DEFAULT if(throwIf(ifNull(toString(toDecimal128OrNull(price_input, 18)), 'none') != price_input, 'price: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, assumeNotNull(toDecimal128OrNull(price_input, 18)), 0) CODEC(ZSTD(3)),
    `quantity_input` String EPHEMERAL,
    `quantity` Decimal(38, 18) DEFAULT if(throwIf(ifNull(toString(toDecimal128OrNull(quantity_input, 18)), 'none') != quantity_input, 'quantity: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, assumeNotNull(toDecimal128OrNull(quantity_input, 18)), 0) CODEC(ZSTD(3)),
    `side` Enum8('SIDE_UNSPECIFIED' = 0, 'SIDE_BUY' = 1, 'SIDE_SELL' = 2) CODEC(ZSTD(3)),
    `trade_count` Int64 CODEC(Delta, ZSTD(3)),
    `liquidation` Bool CODEC(ZSTD(3)),
    `backfilled` Bool CODEC(ZSTD(3)),
    `stream_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_created` UInt64 CODEC(Delta, ZSTD(3)),
    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1,
    INDEX by_receive_time receive_time TYPE minmax GRANULARITY 1
)
ENGINE = {{ replacing_merge_tree }}
PARTITION BY toDate(time)
ORDER BY (exchange, symbol, time, trade_number, trade_text);
{{ distributed('trade') }}

CREATE TABLE IF NOT EXISTS {{ stored('order_book_snapshot') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `epoch` UInt64 CODEC(Delta, ZSTD(3)),
    `sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `exchange_time_seconds` Int64 EPHEMERAL,
    `exchange_time_nanos` Int32 EPHEMERAL,
    `exchange_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(exchange_time_seconds * 1000000000 + exchange_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `receive_time_seconds` Int64 EPHEMERAL,
    `receive_time_nanos` Int32 EPHEMERAL,
    `time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(receive_time_seconds * 1000000000 + receive_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `receive_time` DateTime64(9, 'UTC') ALIAS time,
    `venue_sequence` Int64 CODEC(Delta, ZSTD(3)),
    `reason` Enum8('SNAPSHOT_REASON_UNSPECIFIED' = 0, 'SNAPSHOT_REASON_EPOCH_START' = 1, 'SNAPSHOT_REASON_PERIODIC' = 2, 'SNAPSHOT_REASON_SUBSCRIBED' = 3, 'SNAPSHOT_REASON_RESUME_TOO_OLD' = 4, 'SNAPSHOT_REASON_CONFLATED' = 5, 'SNAPSHOT_REASON_REQUESTED' = 6, 'SNAPSHOT_REASON_TOP_CHANGED' = 7) CODEC(ZSTD(3)),
    `bids.price_input` Array(String) EPHEMERAL,
    `bids.price` Array(Decimal(38, 18)) DEFAULT if(throwIf(CAST(CAST(`bids.price_input` AS Array(Decimal(38, 18))) AS Array(String)) != `bids.price_input`, 'bids.price: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, CAST(`bids.price_input` AS Array(Decimal(38, 18))), []) CODEC(ZSTD(3)),
    `bids.quantity_input` Array(String) EPHEMERAL,
    `bids.quantity` Array(Decimal(38, 18)) DEFAULT if(throwIf(CAST(CAST(`bids.quantity_input` AS Array(Decimal(38, 18))) AS Array(String)) != `bids.quantity_input`, 'bids.quantity: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, CAST(`bids.quantity_input` AS Array(Decimal(38, 18))), []) CODEC(ZSTD(3)),
    `asks.price_input` Array(String) EPHEMERAL,
    `asks.price` Array(Decimal(38, 18)) DEFAULT if(throwIf(CAST(CAST(`asks.price_input` AS Array(Decimal(38, 18))) AS Array(String)) != `asks.price_input`, 'asks.price: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, CAST(`asks.price_input` AS Array(Decimal(38, 18))), []) CODEC(ZSTD(3)),
    `asks.quantity_input` Array(String) EPHEMERAL,
    `asks.quantity` Array(Decimal(38, 18)) DEFAULT if(throwIf(CAST(CAST(`asks.quantity_input` AS Array(Decimal(38, 18))) AS Array(String)) != `asks.quantity_input`, 'asks.quantity: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, CAST(`asks.quantity_input` AS Array(Decimal(38, 18))), []) CODEC(ZSTD(3)),
    `bid_horizon_input` String EPHEMERAL,
    `bid_horizon` Nullable(Decimal(38, 18)) DEFAULT if(throwIf(ifNull(toString(toDecimal128OrNull(bid_horizon_input, 18)), '') != bid_horizon_input, 'bid_horizon: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, toDecimal128OrNull(bid_horizon_input, 18), NULL) CODEC(ZSTD(3)),
    `ask_horizon_input` String EPHEMERAL,
    `ask_horizon` Nullable(Decimal(38, 18)) DEFAULT if(throwIf(ifNull(toString(toDecimal128OrNull(ask_horizon_input, 18)), '') != ask_horizon_input, 'ask_horizon: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, toDecimal128OrNull(ask_horizon_input, 18), NULL) CODEC(ZSTD(3)),
    `stream_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_created` UInt64 CODEC(Delta, ZSTD(3)),
    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1
)
ENGINE = {{ replacing_merge_tree }}
PARTITION BY toDate(time)
ORDER BY (exchange, symbol, time, epoch, sequence, reason);
{{ distributed('order_book_snapshot') }}

CREATE TABLE IF NOT EXISTS {{ stored('order_book_update') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `epoch` UInt64 CODEC(Delta, ZSTD(3)),
    `sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `exchange_time_seconds` Int64 EPHEMERAL,
    `exchange_time_nanos` Int32 EPHEMERAL,
    `exchange_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(exchange_time_seconds * 1000000000 + exchange_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `receive_time_seconds` Int64 EPHEMERAL,
    `receive_time_nanos` Int32 EPHEMERAL,
    `time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(receive_time_seconds * 1000000000 + receive_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `receive_time` DateTime64(9, 'UTC') ALIAS time,
    `venue_sequence` Int64 CODEC(Delta, ZSTD(3)),
    `first_venue_sequence` Int64 CODEC(Delta, ZSTD(3)),
    `previous_venue_sequence` Int64 CODEC(Delta, ZSTD(3)),
    `bids.price_input` Array(String) EPHEMERAL,
    `bids.price` Array(Decimal(38, 18)) DEFAULT if(throwIf(CAST(CAST(`bids.price_input` AS Array(Decimal(38, 18))) AS Array(String)) != `bids.price_input`, 'bids.price: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, CAST(`bids.price_input` AS Array(Decimal(38, 18))), []) CODEC(ZSTD(3)),
    `bids.quantity_input` Array(String) EPHEMERAL,
    `bids.quantity` Array(Decimal(38, 18)) DEFAULT if(throwIf(CAST(CAST(`bids.quantity_input` AS Array(Decimal(38, 18))) AS Array(String)) != `bids.quantity_input`, 'bids.quantity: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, CAST(`bids.quantity_input` AS Array(Decimal(38, 18))), []) CODEC(ZSTD(3)),
    `asks.price_input` Array(String) EPHEMERAL,
    `asks.price` Array(Decimal(38, 18)) DEFAULT if(throwIf(CAST(CAST(`asks.price_input` AS Array(Decimal(38, 18))) AS Array(String)) != `asks.price_input`, 'asks.price: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, CAST(`asks.price_input` AS Array(Decimal(38, 18))), []) CODEC(ZSTD(3)),
    `asks.quantity_input` Array(String) EPHEMERAL,
    `asks.quantity` Array(Decimal(38, 18)) DEFAULT if(throwIf(CAST(CAST(`asks.quantity_input` AS Array(Decimal(38, 18))) AS Array(String)) != `asks.quantity_input`, 'asks.quantity: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, CAST(`asks.quantity_input` AS Array(Decimal(38, 18))), []) CODEC(ZSTD(3)),
    `first_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_created` UInt64 CODEC(Delta, ZSTD(3)),
    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1
)
ENGINE = {{ replacing_merge_tree }}
PARTITION BY toDate(time)
ORDER BY (exchange, symbol, time, epoch, sequence);
{{ distributed('order_book_update') }}

CREATE TABLE IF NOT EXISTS {{ stored('order_book_status') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `epoch` UInt64 CODEC(Delta, ZSTD(3)),
    `sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `time_seconds` Int64 EPHEMERAL,
    `time_nanos` Int32 EPHEMERAL,
    `time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(time_seconds * 1000000000 + time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `venue_sequence` Int64 CODEC(Delta, ZSTD(3)),
    `state` Enum8('ORDER_BOOK_STATE_UNSPECIFIED' = 0, 'ORDER_BOOK_STATE_SYNCING' = 1, 'ORDER_BOOK_STATE_SYNCED' = 2, 'ORDER_BOOK_STATE_RESYNCING' = 3, 'ORDER_BOOK_STATE_STALE' = 4) CODEC(ZSTD(3)),
    `reason` Enum8('ORDER_BOOK_REASON_UNSPECIFIED' = 0, 'ORDER_BOOK_REASON_STARTUP' = 1, 'ORDER_BOOK_REASON_SYNCHRONISED' = 2, 'ORDER_BOOK_REASON_VENUE_GAP' = 3, 'ORDER_BOOK_REASON_VENUE_DISCONNECTED' = 4, 'ORDER_BOOK_REASON_SNAPSHOT_STALE' = 5, 'ORDER_BOOK_REASON_SNAPSHOT_FAILED' = 6, 'ORDER_BOOK_REASON_RATE_LIMITED' = 7, 'ORDER_BOOK_REASON_MALFORMED_FRAME' = 8, 'ORDER_BOOK_REASON_CHECKSUM_MISMATCH' = 9, 'ORDER_BOOK_REASON_CROSSED' = 10, 'ORDER_BOOK_REASON_FEED_SILENT' = 11, 'ORDER_BOOK_REASON_HORIZON_REACHED' = 12, 'ORDER_BOOK_REASON_BROKER_BACKPRESSURE' = 13, 'ORDER_BOOK_REASON_DELIVERY_GAP' = 14, 'ORDER_BOOK_REASON_BROKER_DISCONNECTED' = 15, 'ORDER_BOOK_REASON_COLLECTOR_SILENT' = 16, 'ORDER_BOOK_REASON_REQUESTED' = 17, 'ORDER_BOOK_REASON_VENUE_RESET' = 18, 'ORDER_BOOK_REASON_INSTRUMENT_CHANGED' = 19) CODEC(ZSTD(3)),
    `detail` String CODEC(ZSTD(3)),
    `outage_ms` Int64 CODEC(Delta, ZSTD(3)),
    `stream_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_created` UInt64 CODEC(Delta, ZSTD(3)),
    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1
)
ENGINE = {{ replacing_merge_tree }}
PARTITION BY toDate(time)
ORDER BY (exchange, symbol, time, epoch, sequence, state, reason);
{{ distributed('order_book_status') }}

CREATE TABLE IF NOT EXISTS {{ stored('best_bid_offer') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `venue_sequence` Int64 CODEC(Delta, ZSTD(3)),
    `exchange_time_seconds` Int64 EPHEMERAL,
    `exchange_time_nanos` Int32 EPHEMERAL,
    `time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(if(exchange_time_seconds * 1000000000 + exchange_time_nanos = 0, receive_time_seconds * 1000000000 + receive_time_nanos, exchange_time_seconds * 1000000000 + exchange_time_nanos), 'UTC') CODEC(Delta, ZSTD(3)),
    `exchange_time_told` Bool DEFAULT exchange_time_seconds * 1000000000 + exchange_time_nanos != 0 CODEC(ZSTD(3)),
    `exchange_time` DateTime64(9, 'UTC') ALIAS if(exchange_time_told, time, fromUnixTimestamp64Nano(toInt64(0), 'UTC')),
    `receive_time_seconds` Int64 EPHEMERAL,
    `receive_time_nanos` Int32 EPHEMERAL,
    `receive_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(receive_time_seconds * 1000000000 + receive_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `bid_price_input` String EPHEMERAL,
    `bid_price` Nullable(Decimal(38, 18)) DEFAULT if(throwIf(ifNull(toString(toDecimal128OrNull(bid_price_input, 18)), '') != bid_price_input, 'bid_price: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, toDecimal128OrNull(bid_price_input, 18), NULL) CODEC(ZSTD(3)),
    `bid_quantity_input` String EPHEMERAL,
    `bid_quantity` Nullable(Decimal(38, 18)) DEFAULT if(throwIf(ifNull(toString(toDecimal128OrNull(bid_quantity_input, 18)), '') != bid_quantity_input, 'bid_quantity: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, toDecimal128OrNull(bid_quantity_input, 18), NULL) CODEC(ZSTD(3)),
    `ask_price_input` String EPHEMERAL,
    `ask_price` Nullable(Decimal(38, 18)) DEFAULT if(throwIf(ifNull(toString(toDecimal128OrNull(ask_price_input, 18)), '') != ask_price_input, 'ask_price: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, toDecimal128OrNull(ask_price_input, 18), NULL) CODEC(ZSTD(3)),
    `ask_quantity_input` String EPHEMERAL,
    `ask_quantity` Nullable(Decimal(38, 18)) DEFAULT if(throwIf(ifNull(toString(toDecimal128OrNull(ask_quantity_input, 18)), '') != ask_quantity_input, 'ask_quantity: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, toDecimal128OrNull(ask_quantity_input, 18), NULL) CODEC(ZSTD(3)),
    `stream_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_created` UInt64 CODEC(Delta, ZSTD(3)),
    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1,
    INDEX by_receive_time receive_time TYPE minmax GRANULARITY 1
)
ENGINE = {{ replacing_merge_tree }}
PARTITION BY toDate(time)
ORDER BY (exchange, symbol, time, venue_sequence, stream_sequence);
{{ distributed('best_bid_offer') }}

CREATE TABLE IF NOT EXISTS {{ stored('ticker') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `exchange_time_seconds` Int64 EPHEMERAL,
    `exchange_time_nanos` Int32 EPHEMERAL,
    `time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(if(exchange_time_seconds * 1000000000 + exchange_time_nanos = 0, receive_time_seconds * 1000000000 + receive_time_nanos, exchange_time_seconds * 1000000000 + exchange_time_nanos), 'UTC') CODEC(Delta, ZSTD(3)),
    `exchange_time_told` Bool DEFAULT exchange_time_seconds * 1000000000 + exchange_time_nanos != 0 CODEC(ZSTD(3)),
    `exchange_time` DateTime64(9, 'UTC') ALIAS if(exchange_time_told, time, fromUnixTimestamp64Nano(toInt64(0), 'UTC')),
    `receive_time_seconds` Int64 EPHEMERAL,
    `receive_time_nanos` Int32 EPHEMERAL,
    `receive_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(receive_time_seconds * 1000000000 + receive_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `last_price_input` String EPHEMERAL,
    `last_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(last_price_input, 38)), '') != last_price_input, 'last_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(last_price_input, 38), NULL) CODEC(ZSTD(3)),
    `last_quantity_input` String EPHEMERAL,
    `last_quantity` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(last_quantity_input, 38)), '') != last_quantity_input, 'last_quantity: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(last_quantity_input, 38), NULL) CODEC(ZSTD(3)),
    `open_price_input` String EPHEMERAL,
    `open_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(open_price_input, 38)), '') != open_price_input, 'open_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(open_price_input, 38), NULL) CODEC(ZSTD(3)),
    `high_price_input` String EPHEMERAL,
    `high_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(high_price_input, 38)), '') != high_price_input, 'high_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(high_price_input, 38), NULL) CODEC(ZSTD(3)),
    `low_price_input` String EPHEMERAL,
    `low_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(low_price_input, 38)), '') != low_price_input, 'low_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(low_price_input, 38), NULL) CODEC(ZSTD(3)),
    `base_volume_input` String EPHEMERAL,
    `base_volume` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(base_volume_input, 38)), '') != base_volume_input, 'base_volume: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(base_volume_input, 38), NULL) CODEC(ZSTD(3)),
    `quote_volume_input` String EPHEMERAL,
    `quote_volume` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(quote_volume_input, 38)), '') != quote_volume_input, 'quote_volume: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(quote_volume_input, 38), NULL) CODEC(ZSTD(3)),
    `price_change_input` String EPHEMERAL,
    `price_change` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(price_change_input, 38)), '') != price_change_input, 'price_change: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(price_change_input, 38), NULL) CODEC(ZSTD(3)),
    `price_change_percent_input` String EPHEMERAL,
    `price_change_percent` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(price_change_percent_input, 38)), '') != price_change_percent_input, 'price_change_percent: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(price_change_percent_input, 38), NULL) CODEC(ZSTD(3)),
    `weighted_average_price_input` String EPHEMERAL,
    `weighted_average_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(weighted_average_price_input, 38)), '') != weighted_average_price_input, 'weighted_average_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(weighted_average_price_input, 38), NULL) CODEC(ZSTD(3)),
    `bid_price_input` String EPHEMERAL,
    `bid_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(bid_price_input, 38)), '') != bid_price_input, 'bid_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(bid_price_input, 38), NULL) CODEC(ZSTD(3)),
    `bid_quantity_input` String EPHEMERAL,
    `bid_quantity` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(bid_quantity_input, 38)), '') != bid_quantity_input, 'bid_quantity: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(bid_quantity_input, 38), NULL) CODEC(ZSTD(3)),
    `ask_price_input` String EPHEMERAL,
    `ask_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(ask_price_input, 38)), '') != ask_price_input, 'ask_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(ask_price_input, 38), NULL) CODEC(ZSTD(3)),
    `ask_quantity_input` String EPHEMERAL,
    `ask_quantity` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(ask_quantity_input, 38)), '') != ask_quantity_input, 'ask_quantity: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(ask_quantity_input, 38), NULL) CODEC(ZSTD(3)),
    `trade_count` Int64 CODEC(Delta, ZSTD(3)),
    `open_time_seconds` Int64 EPHEMERAL,
    `open_time_nanos` Int32 EPHEMERAL,
    `open_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(open_time_seconds * 1000000000 + open_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `stream_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_created` UInt64 CODEC(Delta, ZSTD(3)),
    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1,
    INDEX by_receive_time receive_time TYPE minmax GRANULARITY 1
)
ENGINE = {{ replacing_merge_tree }}
PARTITION BY toDate(time)
ORDER BY (exchange, symbol, time, stream_sequence);
{{ distributed('ticker') }}

CREATE TABLE IF NOT EXISTS {{ stored('candle') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `interval_seconds` Int64 EPHEMERAL,
    `interval_nanos` Int32 EPHEMERAL,
    `interval` Int64 DEFAULT interval_seconds * 1000000000 + interval_nanos CODEC(ZSTD(3)),
    `open_time_seconds` Int64 EPHEMERAL,
    `open_time_nanos` Int32 EPHEMERAL,
    `time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(open_time_seconds * 1000000000 + open_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `open_time` DateTime64(9, 'UTC') ALIAS time,
    `exchange_time_seconds` Int64 EPHEMERAL,
    `exchange_time_nanos` Int32 EPHEMERAL,
    `exchange_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(exchange_time_seconds * 1000000000 + exchange_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `receive_time_seconds` Int64 EPHEMERAL,
    `receive_time_nanos` Int32 EPHEMERAL,
    `receive_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(receive_time_seconds * 1000000000 + receive_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `close_time_seconds` Int64 EPHEMERAL,
    `close_time_nanos` Int32 EPHEMERAL,
    `close_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(close_time_seconds * 1000000000 + close_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `open_price_input` String EPHEMERAL,
    `open_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(open_price_input, 38)), '') != open_price_input, 'open_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(open_price_input, 38), NULL) CODEC(ZSTD(3)),
    `high_price_input` String EPHEMERAL,
    `high_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(high_price_input, 38)), '') != high_price_input, 'high_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(high_price_input, 38), NULL) CODEC(ZSTD(3)),
    `low_price_input` String EPHEMERAL,
    `low_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(low_price_input, 38)), '') != low_price_input, 'low_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(low_price_input, 38), NULL) CODEC(ZSTD(3)),
    `close_price_input` String EPHEMERAL,
    `close_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(close_price_input, 38)), '') != close_price_input, 'close_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(close_price_input, 38), NULL) CODEC(ZSTD(3)),
    `base_volume_input` String EPHEMERAL,
    `base_volume` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(base_volume_input, 38)), '') != base_volume_input, 'base_volume: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(base_volume_input, 38), NULL) CODEC(ZSTD(3)),
    `quote_volume_input` String EPHEMERAL,
    `quote_volume` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(quote_volume_input, 38)), '') != quote_volume_input, 'quote_volume: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(quote_volume_input, 38), NULL) CODEC(ZSTD(3)),
    `taker_buy_base_volume_input` String EPHEMERAL,
    `taker_buy_base_volume` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(taker_buy_base_volume_input, 38)), '') != taker_buy_base_volume_input, 'taker_buy_base_volume: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(taker_buy_base_volume_input, 38), NULL) CODEC(ZSTD(3)),
    `taker_buy_quote_volume_input` String EPHEMERAL,
    `taker_buy_quote_volume` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(taker_buy_quote_volume_input, 38)), '') != taker_buy_quote_volume_input, 'taker_buy_quote_volume: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(taker_buy_quote_volume_input, 38), NULL) CODEC(ZSTD(3)),
    `trade_count` Int64 CODEC(Delta, ZSTD(3)),
    `closed` Bool CODEC(ZSTD(3)),
    `stream_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_created` UInt64 CODEC(Delta, ZSTD(3)),
    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1,
    INDEX by_receive_time receive_time TYPE minmax GRANULARITY 1
)
ENGINE = {{ replacing_merge_tree }}
PARTITION BY toDate(time)
ORDER BY (exchange, symbol, interval, time, receive_time, stream_sequence);
{{ distributed('candle') }}

CREATE TABLE IF NOT EXISTS {{ stored('funding_rate') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `exchange_time_seconds` Int64 EPHEMERAL,
    `exchange_time_nanos` Int32 EPHEMERAL,
    `time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(if(exchange_time_seconds * 1000000000 + exchange_time_nanos = 0, receive_time_seconds * 1000000000 + receive_time_nanos, exchange_time_seconds * 1000000000 + exchange_time_nanos), 'UTC') CODEC(Delta, ZSTD(3)),
    `exchange_time_told` Bool DEFAULT exchange_time_seconds * 1000000000 + exchange_time_nanos != 0 CODEC(ZSTD(3)),
    `exchange_time` DateTime64(9, 'UTC') ALIAS if(exchange_time_told, time, fromUnixTimestamp64Nano(toInt64(0), 'UTC')),
    `receive_time_seconds` Int64 EPHEMERAL,
    `receive_time_nanos` Int32 EPHEMERAL,
    `receive_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(receive_time_seconds * 1000000000 + receive_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `funding_rate_input` String EPHEMERAL,
    `funding_rate` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(funding_rate_input, 38)), '') != funding_rate_input, 'funding_rate: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(funding_rate_input, 38), NULL) CODEC(ZSTD(3)),
    `funding_time_seconds` Int64 EPHEMERAL,
    `funding_time_nanos` Int32 EPHEMERAL,
    `funding_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(funding_time_seconds * 1000000000 + funding_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `next_funding_rate_input` String EPHEMERAL,
    `next_funding_rate` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(next_funding_rate_input, 38)), '') != next_funding_rate_input, 'next_funding_rate: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(next_funding_rate_input, 38), NULL) CODEC(ZSTD(3)),
    `next_funding_time_seconds` Int64 EPHEMERAL,
    `next_funding_time_nanos` Int32 EPHEMERAL,
    `next_funding_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(next_funding_time_seconds * 1000000000 + next_funding_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `funding_interval_seconds` Int64 EPHEMERAL,
    `funding_interval_nanos` Int32 EPHEMERAL,
    `funding_interval` Int64 DEFAULT funding_interval_seconds * 1000000000 + funding_interval_nanos CODEC(ZSTD(3)),
    `interest_rate_input` String EPHEMERAL,
    `interest_rate` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(interest_rate_input, 38)), '') != interest_rate_input, 'interest_rate: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(interest_rate_input, 38), NULL) CODEC(ZSTD(3)),
    `stream_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_created` UInt64 CODEC(Delta, ZSTD(3)),
    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1,
    INDEX by_receive_time receive_time TYPE minmax GRANULARITY 1
)
ENGINE = {{ replacing_merge_tree }}
PARTITION BY toDate(time)
ORDER BY (exchange, symbol, time, stream_sequence);
{{ distributed('funding_rate') }}

CREATE TABLE IF NOT EXISTS {{ stored('mark_price') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `exchange_time_seconds` Int64 EPHEMERAL,
    `exchange_time_nanos` Int32 EPHEMERAL,
    `time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(if(exchange_time_seconds * 1000000000 + exchange_time_nanos = 0, receive_time_seconds * 1000000000 + receive_time_nanos, exchange_time_seconds * 1000000000 + exchange_time_nanos), 'UTC') CODEC(Delta, ZSTD(3)),
    `exchange_time_told` Bool DEFAULT exchange_time_seconds * 1000000000 + exchange_time_nanos != 0 CODEC(ZSTD(3)),
    `exchange_time` DateTime64(9, 'UTC') ALIAS if(exchange_time_told, time, fromUnixTimestamp64Nano(toInt64(0), 'UTC')),
    `receive_time_seconds` Int64 EPHEMERAL,
    `receive_time_nanos` Int32 EPHEMERAL,
    `receive_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(receive_time_seconds * 1000000000 + receive_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `mark_price_input` String EPHEMERAL,
    `mark_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(mark_price_input, 38)), '') != mark_price_input, 'mark_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(mark_price_input, 38), NULL) CODEC(ZSTD(3)),
    `index_price_input` String EPHEMERAL,
    `index_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(index_price_input, 38)), '') != index_price_input, 'index_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(index_price_input, 38), NULL) CODEC(ZSTD(3)),
    `estimated_settlement_price_input` String EPHEMERAL,
    `estimated_settlement_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(estimated_settlement_price_input, 38)), '') != estimated_settlement_price_input, 'estimated_settlement_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(estimated_settlement_price_input, 38), NULL) CODEC(ZSTD(3)),
    `stream_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_created` UInt64 CODEC(Delta, ZSTD(3)),
    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1,
    INDEX by_receive_time receive_time TYPE minmax GRANULARITY 1
)
ENGINE = {{ replacing_merge_tree }}
PARTITION BY toDate(time)
ORDER BY (exchange, symbol, time, stream_sequence);
{{ distributed('mark_price') }}

CREATE TABLE IF NOT EXISTS {{ stored('index_price') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `exchange_time_seconds` Int64 EPHEMERAL,
    `exchange_time_nanos` Int32 EPHEMERAL,
    `time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(if(exchange_time_seconds * 1000000000 + exchange_time_nanos = 0, receive_time_seconds * 1000000000 + receive_time_nanos, exchange_time_seconds * 1000000000 + exchange_time_nanos), 'UTC') CODEC(Delta, ZSTD(3)),
    `exchange_time_told` Bool DEFAULT exchange_time_seconds * 1000000000 + exchange_time_nanos != 0 CODEC(ZSTD(3)),
    `exchange_time` DateTime64(9, 'UTC') ALIAS if(exchange_time_told, time, fromUnixTimestamp64Nano(toInt64(0), 'UTC')),
    `receive_time_seconds` Int64 EPHEMERAL,
    `receive_time_nanos` Int32 EPHEMERAL,
    `receive_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(receive_time_seconds * 1000000000 + receive_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `index_price_input` String EPHEMERAL,
    `index_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(index_price_input, 38)), '') != index_price_input, 'index_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(index_price_input, 38), NULL) CODEC(ZSTD(3)),
    `stream_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_created` UInt64 CODEC(Delta, ZSTD(3)),
    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1,
    INDEX by_receive_time receive_time TYPE minmax GRANULARITY 1
)
ENGINE = {{ replacing_merge_tree }}
PARTITION BY toDate(time)
ORDER BY (exchange, symbol, time, stream_sequence);
{{ distributed('index_price') }}

CREATE TABLE IF NOT EXISTS {{ stored('open_interest') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `exchange_time_seconds` Int64 EPHEMERAL,
    `exchange_time_nanos` Int32 EPHEMERAL,
    `time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(if(exchange_time_seconds * 1000000000 + exchange_time_nanos = 0, receive_time_seconds * 1000000000 + receive_time_nanos, exchange_time_seconds * 1000000000 + exchange_time_nanos), 'UTC') CODEC(Delta, ZSTD(3)),
    `exchange_time_told` Bool DEFAULT exchange_time_seconds * 1000000000 + exchange_time_nanos != 0 CODEC(ZSTD(3)),
    `exchange_time` DateTime64(9, 'UTC') ALIAS if(exchange_time_told, time, fromUnixTimestamp64Nano(toInt64(0), 'UTC')),
    `receive_time_seconds` Int64 EPHEMERAL,
    `receive_time_nanos` Int32 EPHEMERAL,
    `receive_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(receive_time_seconds * 1000000000 + receive_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `open_interest_input` String EPHEMERAL,
    `open_interest` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(open_interest_input, 38)), '') != open_interest_input, 'open_interest: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(open_interest_input, 38), NULL) CODEC(ZSTD(3)),
    `open_interest_base_input` String EPHEMERAL,
    `open_interest_base` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(open_interest_base_input, 38)), '') != open_interest_base_input, 'open_interest_base: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(open_interest_base_input, 38), NULL) CODEC(ZSTD(3)),
    `open_interest_quote_input` String EPHEMERAL,
    `open_interest_quote` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(open_interest_quote_input, 38)), '') != open_interest_quote_input, 'open_interest_quote: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(open_interest_quote_input, 38), NULL) CODEC(ZSTD(3)),
    `stream_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_created` UInt64 CODEC(Delta, ZSTD(3)),
    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1,
    INDEX by_receive_time receive_time TYPE minmax GRANULARITY 1
)
ENGINE = {{ replacing_merge_tree }}
PARTITION BY toDate(time)
ORDER BY (exchange, symbol, time, stream_sequence);
{{ distributed('open_interest') }}

CREATE TABLE IF NOT EXISTS {{ stored('liquidation') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `liquidation_id` String CODEC(ZSTD(3)),
    `exchange_time_seconds` Int64 EPHEMERAL,
    `exchange_time_nanos` Int32 EPHEMERAL,
    `time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(if(exchange_time_seconds * 1000000000 + exchange_time_nanos = 0, receive_time_seconds * 1000000000 + receive_time_nanos, exchange_time_seconds * 1000000000 + exchange_time_nanos), 'UTC') CODEC(Delta, ZSTD(3)),
    `exchange_time_told` Bool DEFAULT exchange_time_seconds * 1000000000 + exchange_time_nanos != 0 CODEC(ZSTD(3)),
    `exchange_time` DateTime64(9, 'UTC') ALIAS if(exchange_time_told, time, fromUnixTimestamp64Nano(toInt64(0), 'UTC')),
    `receive_time_seconds` Int64 EPHEMERAL,
    `receive_time_nanos` Int32 EPHEMERAL,
    `receive_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(receive_time_seconds * 1000000000 + receive_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `side` Enum8('SIDE_UNSPECIFIED' = 0, 'SIDE_BUY' = 1, 'SIDE_SELL' = 2) CODEC(ZSTD(3)),
    `price_input` String EPHEMERAL,
    `price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(price_input, 38)), '') != price_input, 'price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(price_input, 38), NULL) CODEC(ZSTD(3)),
    `quantity_input` String EPHEMERAL,
    `quantity` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(quantity_input, 38)), '') != quantity_input, 'quantity: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(quantity_input, 38), NULL) CODEC(ZSTD(3)),
    `average_price_input` String EPHEMERAL,
    `average_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(average_price_input, 38)), '') != average_price_input, 'average_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(average_price_input, 38), NULL) CODEC(ZSTD(3)),
    `filled_quantity_input` String EPHEMERAL,
    `filled_quantity` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(filled_quantity_input, 38)), '') != filled_quantity_input, 'filled_quantity: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(filled_quantity_input, 38), NULL) CODEC(ZSTD(3)),
    `sampled` Bool CODEC(ZSTD(3)),
    `stream_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_created` UInt64 CODEC(Delta, ZSTD(3)),
    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1,
    INDEX by_receive_time receive_time TYPE minmax GRANULARITY 1
)
ENGINE = {{ replacing_merge_tree }}
PARTITION BY toDate(time)
ORDER BY (exchange, symbol, time, stream_sequence);
{{ distributed('liquidation') }}

CREATE TABLE IF NOT EXISTS {{ stored('long_short_ratio') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `kind` Enum8('LONG_SHORT_RATIO_KIND_UNSPECIFIED' = 0, 'LONG_SHORT_RATIO_KIND_TOP_ACCOUNTS' = 1, 'LONG_SHORT_RATIO_KIND_TOP_POSITIONS' = 2, 'LONG_SHORT_RATIO_KIND_ALL_ACCOUNTS' = 3) CODEC(ZSTD(3)),
    `period_seconds` Int64 EPHEMERAL,
    `period_nanos` Int32 EPHEMERAL,
    `period` Int64 DEFAULT period_seconds * 1000000000 + period_nanos CODEC(ZSTD(3)),
    `exchange_time_seconds` Int64 EPHEMERAL,
    `exchange_time_nanos` Int32 EPHEMERAL,
    `time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(if(exchange_time_seconds * 1000000000 + exchange_time_nanos = 0, receive_time_seconds * 1000000000 + receive_time_nanos, exchange_time_seconds * 1000000000 + exchange_time_nanos), 'UTC') CODEC(Delta, ZSTD(3)),
    `exchange_time_told` Bool DEFAULT exchange_time_seconds * 1000000000 + exchange_time_nanos != 0 CODEC(ZSTD(3)),
    `exchange_time` DateTime64(9, 'UTC') ALIAS if(exchange_time_told, time, fromUnixTimestamp64Nano(toInt64(0), 'UTC')),
    `receive_time_seconds` Int64 EPHEMERAL,
    `receive_time_nanos` Int32 EPHEMERAL,
    `receive_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(receive_time_seconds * 1000000000 + receive_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `ratio_input` String EPHEMERAL,
    `ratio` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(ratio_input, 38)), '') != ratio_input, 'ratio: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(ratio_input, 38), NULL) CODEC(ZSTD(3)),
    `long_share_input` String EPHEMERAL,
    `long_share` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(long_share_input, 38)), '') != long_share_input, 'long_share: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(long_share_input, 38), NULL) CODEC(ZSTD(3)),
    `short_share_input` String EPHEMERAL,
    `short_share` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(short_share_input, 38)), '') != short_share_input, 'short_share: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(short_share_input, 38), NULL) CODEC(ZSTD(3)),
    `stream_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_created` UInt64 CODEC(Delta, ZSTD(3)),
    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1,
    INDEX by_receive_time receive_time TYPE minmax GRANULARITY 1
)
ENGINE = {{ replacing_merge_tree }}
PARTITION BY toDate(time)
ORDER BY (exchange, symbol, time, stream_sequence);
{{ distributed('long_short_ratio') }}

CREATE TABLE IF NOT EXISTS {{ stored('volatility_index') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `exchange_time_seconds` Int64 EPHEMERAL,
    `exchange_time_nanos` Int32 EPHEMERAL,
    `time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(if(exchange_time_seconds * 1000000000 + exchange_time_nanos = 0, receive_time_seconds * 1000000000 + receive_time_nanos, exchange_time_seconds * 1000000000 + exchange_time_nanos), 'UTC') CODEC(Delta, ZSTD(3)),
    `exchange_time_told` Bool DEFAULT exchange_time_seconds * 1000000000 + exchange_time_nanos != 0 CODEC(ZSTD(3)),
    `exchange_time` DateTime64(9, 'UTC') ALIAS if(exchange_time_told, time, fromUnixTimestamp64Nano(toInt64(0), 'UTC')),
    `receive_time_seconds` Int64 EPHEMERAL,
    `receive_time_nanos` Int32 EPHEMERAL,
    `receive_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(receive_time_seconds * 1000000000 + receive_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `volatility_input` String EPHEMERAL,
    `volatility` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(volatility_input, 38)), '') != volatility_input, 'volatility: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(volatility_input, 38), NULL) CODEC(ZSTD(3)),
    `stream_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_created` UInt64 CODEC(Delta, ZSTD(3)),
    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1,
    INDEX by_receive_time receive_time TYPE minmax GRANULARITY 1
)
ENGINE = {{ replacing_merge_tree }}
PARTITION BY toDate(time)
ORDER BY (exchange, symbol, time, stream_sequence);
{{ distributed('volatility_index') }}

CREATE TABLE IF NOT EXISTS {{ stored('option_greeks') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `exchange_time_seconds` Int64 EPHEMERAL,
    `exchange_time_nanos` Int32 EPHEMERAL,
    `time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(if(exchange_time_seconds * 1000000000 + exchange_time_nanos = 0, receive_time_seconds * 1000000000 + receive_time_nanos, exchange_time_seconds * 1000000000 + exchange_time_nanos), 'UTC') CODEC(Delta, ZSTD(3)),
    `exchange_time_told` Bool DEFAULT exchange_time_seconds * 1000000000 + exchange_time_nanos != 0 CODEC(ZSTD(3)),
    `exchange_time` DateTime64(9, 'UTC') ALIAS if(exchange_time_told, time, fromUnixTimestamp64Nano(toInt64(0), 'UTC')),
    `receive_time_seconds` Int64 EPHEMERAL,
    `receive_time_nanos` Int32 EPHEMERAL,
    `receive_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(receive_time_seconds * 1000000000 + receive_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `delta_input` String EPHEMERAL,
    `delta` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(delta_input, 38)), '') != delta_input, 'delta: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(delta_input, 38), NULL) CODEC(ZSTD(3)),
    `gamma_input` String EPHEMERAL,
    `gamma` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(gamma_input, 38)), '') != gamma_input, 'gamma: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(gamma_input, 38), NULL) CODEC(ZSTD(3)),
    `vega_input` String EPHEMERAL,
    `vega` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(vega_input, 38)), '') != vega_input, 'vega: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(vega_input, 38), NULL) CODEC(ZSTD(3)),
    `theta_input` String EPHEMERAL,
    `theta` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(theta_input, 38)), '') != theta_input, 'theta: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(theta_input, 38), NULL) CODEC(ZSTD(3)),
    `rho_input` String EPHEMERAL,
    `rho` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(rho_input, 38)), '') != rho_input, 'rho: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(rho_input, 38), NULL) CODEC(ZSTD(3)),
    `mark_iv_input` String EPHEMERAL,
    `mark_iv` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(mark_iv_input, 38)), '') != mark_iv_input, 'mark_iv: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(mark_iv_input, 38), NULL) CODEC(ZSTD(3)),
    `bid_iv_input` String EPHEMERAL,
    `bid_iv` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(bid_iv_input, 38)), '') != bid_iv_input, 'bid_iv: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(bid_iv_input, 38), NULL) CODEC(ZSTD(3)),
    `ask_iv_input` String EPHEMERAL,
    `ask_iv` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(ask_iv_input, 38)), '') != ask_iv_input, 'ask_iv: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(ask_iv_input, 38), NULL) CODEC(ZSTD(3)),
    `mark_price_input` String EPHEMERAL,
    `mark_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(mark_price_input, 38)), '') != mark_price_input, 'mark_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(mark_price_input, 38), NULL) CODEC(ZSTD(3)),
    `underlying_price_input` String EPHEMERAL,
    `underlying_price` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(underlying_price_input, 38)), '') != underlying_price_input, 'underlying_price: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(underlying_price_input, 38), NULL) CODEC(ZSTD(3)),
    `underlying` LowCardinality(String) CODEC(ZSTD(3)),
    `interest_rate_input` String EPHEMERAL,
    `interest_rate` Nullable(Decimal(76, 38)) DEFAULT if(throwIf(ifNull(toString(toDecimal256OrNull(interest_rate_input, 38)), '') != interest_rate_input, 'interest_rate: expected a plain decimal that fits Decimal(76, 38) exactly') = 0, toDecimal256OrNull(interest_rate_input, 38), NULL) CODEC(ZSTD(3)),
    `stream_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_created` UInt64 CODEC(Delta, ZSTD(3)),
    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1,
    INDEX by_receive_time receive_time TYPE minmax GRANULARITY 1
)
ENGINE = {{ replacing_merge_tree }}
PARTITION BY toDate(time)
ORDER BY (exchange, symbol, time, stream_sequence);
{{ distributed('option_greeks') }}

CREATE TABLE IF NOT EXISTS {{ stored('instrument') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `native_symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `kind` Enum8('INSTRUMENT_KIND_UNSPECIFIED' = 0, 'INSTRUMENT_KIND_SPOT' = 1, 'INSTRUMENT_KIND_PERPETUAL' = 2, 'INSTRUMENT_KIND_FUTURE' = 3, 'INSTRUMENT_KIND_OPTION' = 4) CODEC(ZSTD(3)),
    `status` Enum8('INSTRUMENT_STATUS_UNSPECIFIED' = 0, 'INSTRUMENT_STATUS_TRADING' = 1, 'INSTRUMENT_STATUS_HALTED' = 2, 'INSTRUMENT_STATUS_EXPIRED' = 3) CODEC(ZSTD(3)),
    `base` LowCardinality(String) CODEC(ZSTD(3)),
    `quote` LowCardinality(String) CODEC(ZSTD(3)),
    `settlement` LowCardinality(String) CODEC(ZSTD(3)),
    `tick_size_input` String EPHEMERAL,
    `tick_size` Nullable(Decimal(38, 18)) DEFAULT if(throwIf(ifNull(toString(toDecimal128OrNull(tick_size_input, 18)), '') != tick_size_input, 'tick_size: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, toDecimal128OrNull(tick_size_input, 18), NULL) CODEC(ZSTD(3)),
    `lot_size_input` String EPHEMERAL,
    `lot_size` Nullable(Decimal(38, 18)) DEFAULT if(throwIf(ifNull(toString(toDecimal128OrNull(lot_size_input, 18)), '') != lot_size_input, 'lot_size: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, toDecimal128OrNull(lot_size_input, 18), NULL) CODEC(ZSTD(3)),
    `min_quantity_input` String EPHEMERAL,
    `min_quantity` Nullable(Decimal(38, 18)) DEFAULT if(throwIf(ifNull(toString(toDecimal128OrNull(min_quantity_input, 18)), '') != min_quantity_input, 'min_quantity: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, toDecimal128OrNull(min_quantity_input, 18), NULL) CODEC(ZSTD(3)),
    `min_notional_input` String EPHEMERAL,
    `min_notional` Nullable(Decimal(38, 18)) DEFAULT if(throwIf(ifNull(toString(toDecimal128OrNull(min_notional_input, 18)), '') != min_notional_input, 'min_notional: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, toDecimal128OrNull(min_notional_input, 18), NULL) CODEC(ZSTD(3)),
    `contract_size_input` String EPHEMERAL,
    `contract_size` Nullable(Decimal(38, 18)) DEFAULT if(throwIf(ifNull(toString(toDecimal128OrNull(contract_size_input, 18)), '') != contract_size_input, 'contract_size: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, toDecimal128OrNull(contract_size_input, 18), NULL) CODEC(ZSTD(3)),
    `quantity_unit` Enum8('QUANTITY_UNIT_UNSPECIFIED' = 0, 'QUANTITY_UNIT_BASE' = 1, 'QUANTITY_UNIT_QUOTE' = 2) CODEC(ZSTD(3)),
    `expiry_time_seconds` Int64 EPHEMERAL,
    `expiry_time_nanos` Int32 EPHEMERAL,
    `expiry_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(expiry_time_seconds * 1000000000 + expiry_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `strike_input` String EPHEMERAL,
    `strike` Nullable(Decimal(38, 18)) DEFAULT if(throwIf(ifNull(toString(toDecimal128OrNull(strike_input, 18)), '') != strike_input, 'strike: expected a plain decimal that fits Decimal(38, 18) exactly') = 0, toDecimal128OrNull(strike_input, 18), NULL) CODEC(ZSTD(3)),
    `option_right` Enum8('OPTION_RIGHT_UNSPECIFIED' = 0, 'OPTION_RIGHT_CALL' = 1, 'OPTION_RIGHT_PUT' = 2) CODEC(ZSTD(3)),
    `underlying` LowCardinality(String) CODEC(ZSTD(3)),
    `update_time_seconds` Int64 EPHEMERAL,
    `update_time_nanos` Int32 EPHEMERAL,
    `time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(update_time_seconds * 1000000000 + update_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `update_time` DateTime64(9, 'UTC') ALIAS time,
    `stream_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_created` UInt64 CODEC(Delta, ZSTD(3)),
    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1
)
ENGINE = {{ replacing_merge_tree }}
ORDER BY (exchange, symbol);
{{ distributed('instrument') }}

CREATE TABLE IF NOT EXISTS {{ stored('integrity') }}
(
    `exchange` LowCardinality(String) CODEC(ZSTD(3)),
    `symbol` LowCardinality(String) CODEC(ZSTD(3)),
    `event_id` String CODEC(ZSTD(3)),
    `kind` Enum8('INTEGRITY_KIND_UNSPECIFIED' = 0, 'INTEGRITY_KIND_GAP' = 1, 'INTEGRITY_KIND_RESYNC_BEGUN' = 2, 'INTEGRITY_KIND_RESYNC_FINISHED' = 3, 'INTEGRITY_KIND_DISCONNECTED' = 4, 'INTEGRITY_KIND_CONNECTED' = 5, 'INTEGRITY_KIND_SILENT' = 6, 'INTEGRITY_KIND_SPEAKING' = 7, 'INTEGRITY_KIND_RATE_LIMITED' = 8, 'INTEGRITY_KIND_MALFORMED_FRAME' = 9, 'INTEGRITY_KIND_DROPPED' = 10, 'INTEGRITY_KIND_BACKFILLED' = 11, 'INTEGRITY_KIND_SUBSCRIPTION_REFUSED' = 12, 'INTEGRITY_KIND_COLLECTOR_STARTED' = 13, 'INTEGRITY_KIND_COLLECTOR_STOPPED' = 14, 'INTEGRITY_KIND_TAKEN_OVER' = 15, 'INTEGRITY_KIND_HANDED_OVER' = 16, 'INTEGRITY_KIND_ROLLED_OVER' = 17) CODEC(ZSTD(3)),
    `event_kind` Enum8('EVENT_KIND_UNSPECIFIED' = 0, 'EVENT_KIND_TRADE' = 1, 'EVENT_KIND_ORDER_BOOK' = 2, 'EVENT_KIND_BEST_BID_OFFER' = 3, 'EVENT_KIND_TICKER' = 4, 'EVENT_KIND_CANDLE' = 5, 'EVENT_KIND_FUNDING_RATE' = 6, 'EVENT_KIND_MARK_PRICE' = 7, 'EVENT_KIND_INDEX_PRICE' = 8, 'EVENT_KIND_OPEN_INTEREST' = 9, 'EVENT_KIND_LIQUIDATION' = 10, 'EVENT_KIND_LONG_SHORT_RATIO' = 11, 'EVENT_KIND_VOLATILITY_INDEX' = 12, 'EVENT_KIND_OPTION_GREEKS' = 13) CODEC(ZSTD(3)),
    `receive_time_seconds` Int64 EPHEMERAL,
    `receive_time_nanos` Int32 EPHEMERAL,
    `time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(receive_time_seconds * 1000000000 + receive_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `receive_time` DateTime64(9, 'UTC') ALIAS time,
    `begin_time_seconds` Int64 EPHEMERAL,
    `begin_time_nanos` Int32 EPHEMERAL,
    `begin_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(begin_time_seconds * 1000000000 + begin_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `end_time_seconds` Int64 EPHEMERAL,
    `end_time_nanos` Int32 EPHEMERAL,
    `end_time` DateTime64(9, 'UTC') DEFAULT fromUnixTimestamp64Nano(end_time_seconds * 1000000000 + end_time_nanos, 'UTC') CODEC(Delta, ZSTD(3)),
    `first_missing_id` Int64 CODEC(Delta, ZSTD(3)),
    `last_missing_id` Int64 CODEC(Delta, ZSTD(3)),
    `count` Int64 CODEC(Delta, ZSTD(3)),
    `cause` Enum8('INTEGRITY_CAUSE_UNSPECIFIED' = 0, 'INTEGRITY_CAUSE_VENUE_SEQUENCE' = 1, 'INTEGRITY_CAUSE_VENUE_CLOSED' = 2, 'INTEGRITY_CAUSE_NETWORK' = 3, 'INTEGRITY_CAUSE_HEARTBEAT_MISSED' = 4, 'INTEGRITY_CAUSE_VENUE_MAINTENANCE' = 5, 'INTEGRITY_CAUSE_RATE_LIMIT' = 6, 'INTEGRITY_CAUSE_VENUE_REFUSED' = 7, 'INTEGRITY_CAUSE_UNDECODABLE' = 8, 'INTEGRITY_CAUSE_CHECKSUM_MISMATCH' = 9, 'INTEGRITY_CAUSE_CROSSED_BOOK' = 10, 'INTEGRITY_CAUSE_SNAPSHOT_UNUSABLE' = 11, 'INTEGRITY_CAUSE_HORIZON_REACHED' = 12, 'INTEGRITY_CAUSE_BROKER_BACKPRESSURE' = 13, 'INTEGRITY_CAUSE_OVERLOAD' = 14, 'INTEGRITY_CAUSE_PROCESS' = 15, 'INTEGRITY_CAUSE_REQUESTED' = 16, 'INTEGRITY_CAUSE_CONNECTION_AGE' = 17, 'INTEGRITY_CAUSE_LEASE' = 18, 'INTEGRITY_CAUSE_INSTRUMENT_CHANGED' = 19) CODEC(ZSTD(3)),
    `detail` String CODEC(ZSTD(3)),
    `epoch` UInt64 CODEC(Delta, ZSTD(3)),
    `sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `venue_sequence` Int64 CODEC(Delta, ZSTD(3)),
    `connection_id` LowCardinality(String) CODEC(ZSTD(3)),
    `collector_id` LowCardinality(String) CODEC(ZSTD(3)),
    `previous_event_id` String CODEC(ZSTD(3)),
    `stream_sequence` UInt64 CODEC(Delta, ZSTD(3)),
    `stream_created` UInt64 CODEC(Delta, ZSTD(3)),
    INDEX by_stream_sequence stream_sequence TYPE minmax GRANULARITY 1
)
ENGINE = {{ replacing_merge_tree }}
PARTITION BY toDate(time)
ORDER BY (exchange, symbol, time, event_id);
{{ distributed('integrity') }}
