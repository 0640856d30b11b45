"""Fixtures that several modules use by name."""

from tests.integration.marketdata_tools import nats_fixture, venue_fixture

__all__ = ["nats_fixture", "venue_fixture"]
