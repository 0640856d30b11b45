"""The parts that answer HistoryService, each a few RPCs over the store."""

from services.storage.engine import Engine
from services.storage.settings import StorageSettings

__all__ = ["make_parts"]


def make_parts(engine: Engine, settings: StorageSettings) -> list[object]:
    """Give one object for each group of RPCs."""
    del engine, settings
    return []
