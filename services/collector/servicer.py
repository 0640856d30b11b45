"""gRPC face of the collector."""

import time
from operator import itemgetter
from typing import Any, TypeAlias

import grpc
from marketprism.collector.v1 import collector_service_pb2 as pb
from marketprism.collector.v1 import collector_service_pb2_grpc as pb_grpc

from services.collector.sharing import Sharing
from services.collector.status import instrument_state, status_message
from services.collector.venue import Venue
from services.shared.errors import NotFound
from services.shared.paging import list_page
from services.shared.publisher import Publisher

__all__ = ["CollectorServicer"]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class CollectorServicer(pb_grpc.CollectorServiceServicer):
    """See `CollectorService` in proto/marketprism/collector/v1."""

    def __init__(
        self,
        collector_id: str,
        start_time: int,
        venues: list[Venue],
        publisher: Publisher,
        sharing: Sharing | None = None,
    ) -> None:
        self._collector_id = collector_id
        self._start_time = start_time
        self._venues = venues
        self._publisher = publisher
        self._sharing = sharing

    async def GetStatus(  # noqa: N802 - named by the contract
        self, request: pb.GetStatusRequest, context: Context
    ) -> pb.GetStatusResponse:
        """Answer with the whole state."""
        return status_message(
            self._collector_id, self._start_time, self._venues, self._publisher, self._sharing
        )

    async def ListInstrumentStates(  # noqa: N802 - named by the contract
        self, request: pb.ListInstrumentStatesRequest, context: Context
    ) -> pb.ListInstrumentStatesResponse:
        """Answer with a page of instrument states."""
        feeds = sorted(
            (
                ((feed.spec.exchange, feed.spec.symbol), (venue, feed))
                for venue in self._venues
                if request.exchange in ("", venue.exchange)
                for feed in venue.feeds.values()
            ),
            key=itemgetter(0),
        )
        page, token = list_page(
            feeds, request.page_size, request.page_token, ("instruments", request.exchange)
        )
        now = time.time_ns()
        return pb.ListInstrumentStatesResponse(
            instruments=[instrument_state(venue, feed, now) for venue, feed in page],
            next_page_token=token,
        )

    async def Resync(  # noqa: N802 - named by the contract
        self, request: pb.ResyncRequest, context: Context
    ) -> pb.ResyncResponse:
        """Begin a rebuild."""
        venue = next((each for each in self._venues if each.exchange == request.exchange), None)
        if venue is None:
            raise NotFound(
                f"exchange {request.exchange!r} is not collected here; these are: "
                + ", ".join(each.exchange for each in self._venues),
                reason="EXCHANGE_NOT_FOUND",
                metadata={"exchange": request.exchange},
            )
        feed = venue.by_symbol.get(request.symbol)
        if feed is not None:
            now = time.time_ns()
            venue.rebuild(feed, "a rebuild was asked for", now)
            return pb.ResyncResponse(status=feed.book.status(now))
        raise NotFound(
            f"{request.symbol!r} of {request.exchange} is not among the {len(venue.feeds)} "
            "instruments collected here",
            reason="INSTRUMENT_NOT_FOUND",
            metadata={"exchange": request.exchange, "symbol": request.symbol},
        )
