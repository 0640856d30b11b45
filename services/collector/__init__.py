"""Collects what venues publish: connections, books, trades; encodes each event once; publishes."""
