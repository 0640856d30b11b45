"""A process that stores trades and makes candles of them until it is killed.

Arguments: the store's folder, the place of its first trade. It prints each place that is stored.
"""

import asyncio
import sys
from pathlib import Path

from services.storage.rollups import Rollups
from services.storage.settings import RollupSettings
from tests.integration.storage.rollup_tools import store, trade_at
from tests.integration.storage.store_tools import open_store


async def main(folder: Path, place: int) -> None:
    async with open_store(folder) as engine:
        rollups = Rollups(engine, RollupSettings(fine_seconds=0.01, coarse_seconds=0.01))
        task = asyncio.create_task(rollups.run(asyncio.Event()))
        while not task.done():
            batch = [(place + each, trade_at(place + each)) for each in range(50)]
            await store(engine, "trade", batch)
            place += len(batch)
            print(place - 1, flush=True)
        await task


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
