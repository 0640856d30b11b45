"""Drives every fault on every venue and holds what a collector serves against the truth."""
