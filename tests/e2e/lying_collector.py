"""A collector that takes whatever comes for the next change: what the suite is there to find.

Started by the conformance suite as another collector would be, with a plan of its own.
"""

import json
import os
from pathlib import Path

from services.collector.service import CollectorService
from services.collector.settings import CollectorSettings
from services.collector.synchroniser import BookSynchroniser
from services.shared.run import serve
from services.shared.settings import MeshSettings, NatsSettings, ServiceSettings


def main() -> None:
    import asyncio

    plan_file = Path(os.environ["CONFORMANCE_PLAN"])
    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    port = int(plan["grpc_address"].rpartition(":")[2])
    mesh = MeshSettings(
        data_dir=plan_file.parent / "var",
        nats=NatsSettings(url=plan["nats_url"]),
        services={"collector": ServiceSettings(grpc_port=port)},
    )
    exchange = {
        **plan["settings"],
        "rest_url": plan["rest_url"],
        "ws_url": plan["ws_url"],
        "symbols": plan["symbols"],
        "kinds": plan["kinds"],
    }
    settings = CollectorSettings.model_validate(
        {"collector_id": "liar", "exchanges": {plan["exchange"]: exchange}}
    )
    apply = BookSynchroniser._apply
    BookSynchroniser.on_diff = lambda self, diff, now: (  # type: ignore[method-assign]
        apply(self, diff, now) if self.in_step else self._keep(diff, now)
    )

    async def run() -> None:
        await serve([CollectorService(mesh, settings)])

    asyncio.run(run())


if __name__ == "__main__":
    main()
