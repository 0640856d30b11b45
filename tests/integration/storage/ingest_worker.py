"""A process that ingests trades until it is told to end, or killed.

python -m tests.integration.storage.ingest_worker nats://127.0.0.1:4222 folder
"""

import asyncio
import signal
import sys
from pathlib import Path

from services.shared.log import configure_logging
from services.shared.settings import LogSettings
from services.shared.telemetry import Metrics
from services.storage.ingest import Ingest
from services.storage.tables import TABLES
from tests.integration.storage.ingest_tools import QUICK
from tests.integration.storage.store_tools import open_store


async def _work(url: str, folder: Path) -> None:
    stopping, ready = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with open_store(folder) as engine:
        ready.set()
        ingest = Ingest(url, engine, QUICK, Metrics("storage"), [TABLES["trade"]])
        print("reading")
        await ingest.run(ready, stopping)


if __name__ == "__main__":
    configure_logging(LogSettings(level="warning"), stream=sys.stderr)
    asyncio.run(_work(sys.argv[1], Path(sys.argv[2])))
