-- What no event may be, whatever its bytes say: text that is not UTF-8, which no client could read
-- again, and a row without its place, which an event that is cut off would have swallowed.

ALTER TABLE {{ stored('trade') }} ADD CONSTRAINT IF NOT EXISTS is_whole CHECK stream_sequence > 0 AND stream_created > 0 AND exchange != '' AND isValidUTF8(exchange) AND isValidUTF8(symbol) AND isValidUTF8(trade_text);
ALTER TABLE {{ stored('order_book_snapshot') }} ADD CONSTRAINT IF NOT EXISTS is_whole CHECK stream_sequence > 0 AND stream_created > 0 AND exchange != '' AND isValidUTF8(exchange) AND isValidUTF8(symbol);
ALTER TABLE {{ stored('order_book_update') }} ADD CONSTRAINT IF NOT EXISTS is_whole CHECK stream_sequence > 0 AND stream_created > 0 AND exchange != '' AND isValidUTF8(exchange) AND isValidUTF8(symbol);
ALTER TABLE {{ stored('order_book_status') }} ADD CONSTRAINT IF NOT EXISTS is_whole CHECK stream_sequence > 0 AND stream_created > 0 AND exchange != '' AND isValidUTF8(exchange) AND isValidUTF8(symbol) AND isValidUTF8(detail);
ALTER TABLE {{ stored('best_bid_offer') }} ADD CONSTRAINT IF NOT EXISTS is_whole CHECK stream_sequence > 0 AND stream_created > 0 AND exchange != '' AND isValidUTF8(exchange) AND isValidUTF8(symbol);
ALTER TABLE {{ stored('ticker') }} ADD CONSTRAINT IF NOT EXISTS is_whole CHECK stream_sequence > 0 AND stream_created > 0 AND exchange != '' AND isValidUTF8(exchange) AND isValidUTF8(symbol);
ALTER TABLE {{ stored('candle') }} ADD CONSTRAINT IF NOT EXISTS is_whole CHECK stream_sequence > 0 AND stream_created > 0 AND exchange != '' AND isValidUTF8(exchange) AND isValidUTF8(symbol);
ALTER TABLE {{ stored('funding_rate') }} ADD CONSTRAINT IF NOT EXISTS is_whole CHECK stream_sequence > 0 AND stream_created > 0 AND exchange != '' AND isValidUTF8(exchange) AND isValidUTF8(symbol);
ALTER TABLE {{ stored('mark_price') }} ADD CONSTRAINT IF NOT EXISTS is_whole CHECK stream_sequence > 0 AND stream_created > 0 AND exchange != '' AND isValidUTF8(exchange) AND isValidUTF8(symbol);
ALTER TABLE {{ stored('index_price') }} ADD CONSTRAINT IF NOT EXISTS is_whole CHECK stream_sequence > 0 AND stream_created > 0 AND exchange != '' AND isValidUTF8(exchange) AND isValidUTF8(symbol);
ALTER TABLE {{ stored('open_interest') }} ADD CONSTRAINT IF NOT EXISTS is_whole CHECK stream_sequence > 0 AND stream_created > 0 AND exchange != '' AND isValidUTF8(exchange) AND isValidUTF8(symbol);
ALTER TABLE {{ stored('liquidation') }} ADD CONSTRAINT IF NOT EXISTS is_whole CHECK stream_sequence > 0 AND stream_created > 0 AND exchange != '' AND isValidUTF8(exchange) AND isValidUTF8(symbol) AND isValidUTF8(liquidation_id);
ALTER TABLE {{ stored('long_short_ratio') }} ADD CONSTRAINT IF NOT EXISTS is_whole CHECK stream_sequence > 0 AND stream_created > 0 AND exchange != '' AND isValidUTF8(exchange) AND isValidUTF8(symbol);
ALTER TABLE {{ stored('volatility_index') }} ADD CONSTRAINT IF NOT EXISTS is_whole CHECK stream_sequence > 0 AND stream_created > 0 AND exchange != '' AND isValidUTF8(exchange) AND isValidUTF8(symbol);
ALTER TABLE {{ stored('option_greeks') }} ADD CONSTRAINT IF NOT EXISTS is_whole CHECK stream_sequence > 0 AND stream_created > 0 AND exchange != '' AND isValidUTF8(exchange) AND isValidUTF8(symbol) AND isValidUTF8(underlying);
ALTER TABLE {{ stored('instrument') }} ADD CONSTRAINT IF NOT EXISTS is_whole CHECK stream_sequence > 0 AND stream_created > 0 AND exchange != '' AND isValidUTF8(exchange) AND isValidUTF8(symbol) AND isValidUTF8(native_symbol) AND isValidUTF8(base) AND isValidUTF8(quote) AND isValidUTF8(settlement) AND isValidUTF8(underlying);
ALTER TABLE {{ stored('integrity') }} ADD CONSTRAINT IF NOT EXISTS is_whole CHECK stream_sequence > 0 AND stream_created > 0 AND exchange != '' AND isValidUTF8(exchange) AND isValidUTF8(symbol) AND isValidUTF8(event_id) AND isValidUTF8(detail) AND isValidUTF8(connection_id) AND isValidUTF8(collector_id) AND isValidUTF8(previous_event_id);
