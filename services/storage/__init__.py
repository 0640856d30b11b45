"""Storage: what was collected, kept in ClickHouse and served as history."""
