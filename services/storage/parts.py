"""The parts that answer HistoryService, each a few RPCs over the store."""

import asyncio

from services.storage.book_history import BookHistory
from services.storage.candle_calls import CandleCalls
from services.storage.coverage import CoverageLists
from services.storage.engine import Engine
from services.storage.event_lists import EventLists
from services.storage.export import Export
from services.storage.http_cache import Answers
from services.storage.integrity import Integrity
from services.storage.known import KnownInstruments
from services.storage.replay import MarketReplay, OpenStreams
from services.storage.settings import StorageSettings
from services.storage.sql import SqlCalls
from services.storage.statistics_calls import StatisticsCalls
from services.storage.stream_events import EventStreams

__all__ = ["make_parts"]


def make_parts(
    engine: Engine, settings: StorageSettings, answers: Answers, stopping: asyncio.Event
) -> list[object]:
    """Give one object for each group of RPCs; streams end when `stopping` is set."""
    known = KnownInstruments(engine)
    streams = OpenStreams(settings.replay.max_streams, stopping)
    return [
        EventLists(engine, known, answers),
        Export(engine, known),
        SqlCalls(engine, settings.sql),
        CoverageLists(engine, known),
        Integrity(engine, known),
        CandleCalls(engine, known, answers),
        StatisticsCalls(engine, known, answers),
        BookHistory(engine, known, answers),
        MarketReplay(engine, known, settings.replay, streams),
        EventStreams(engine, known, settings.replay, streams),
    ]
