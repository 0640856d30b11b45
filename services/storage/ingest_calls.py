"""GetIngestStatus: how far the store is behind the broker."""

from typing import TypeAlias

import grpc
from marketprism.history.v1 import history_service_pb2 as api

from services.storage.ingest import Ingest

__all__ = ["IngestCalls"]

_Context: TypeAlias = (
    "grpc.aio.ServicerContext[api.GetIngestStatusRequest, api.GetIngestStatusResponse]"
)


class IngestCalls:
    """Answers from what ingestion knows of itself; without it nothing is ingested here."""

    def __init__(self, ingest: Ingest | None) -> None:
        self._ingest = ingest

    async def GetIngestStatus(  # noqa: N802 - the name is the contract's
        self,
        request: api.GetIngestStatusRequest,
        context: _Context,
    ) -> api.GetIngestStatusResponse:
        """Tell each stream's state, and whether the database takes writes."""
        del request, context
        if self._ingest is None:
            return api.GetIngestStatusResponse(writable=False)
        return api.GetIngestStatusResponse(
            streams=self._ingest.streams(), writable=self._ingest.writable
        )
