"""Live market data: state from the broker, served over gRPC."""
