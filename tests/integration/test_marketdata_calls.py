"""Unary calls against a real nats-server: lists, pages, and what wrong requests are told."""

from pathlib import Path
from typing import Any

from marketprism.market.v1 import (
    events_pb2,
    order_book_pb2,
)
from marketprism.market.v1 import market_data_service_pb2 as pb

from services.broker.server import NatsServer
from tests.integration.marketdata_tools import KEY, Venue, client, marketdata, ready, refused
from tests.integration.nats_tools import until
from tests.unit.marketdata.truth import Collected, levels_of

S = order_book_pb2


async def test_bad_requests_name_the_field_or_the_instrument(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    await venue.begin(Collected())
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)

        async def field_of(call: Any) -> str:
            error = await refused(call)
            assert error.violations, error
            return error.violations[0].field

        for depth in (-1, 10_001):
            call = stub.GetOrderBook(pb.GetOrderBookRequest(**KEY, depth=depth))
            assert await field_of(call) == "depth"
        assert await field_of(stub.GetOrderBook(pb.GetOrderBookRequest(exchange="x"))) == "symbol"
        keys = [pb.InstrumentKey(**KEY)]
        batch = pb.BatchGetOrderBooksRequest(instruments=keys * 101)
        assert await field_of(stub.BatchGetOrderBooks(batch)) == "instruments"
        statuses = pb.ListOrderBookStatusesRequest(page_size=1001)
        assert await field_of(stub.ListOrderBookStatuses(statuses)) == "page_size"
        trades = pb.ListRecentTradesRequest(**KEY, page_token="nonsense")
        assert await field_of(stub.ListRecentTrades(trades)) == "page_token"
        stream = pb.StreamOrderBookRequest(**KEY, resume=pb.ResumePoint(sequence=4))
        assert await field_of(stub.StreamOrderBook(stream).read()) == "resume.epoch"
        quick = pb.StreamTradesRequest(**KEY)
        quick.heartbeat_interval.FromMilliseconds(99)
        assert await field_of(stub.StreamTrades(quick).read()) == "heartbeat_interval"

        request = pb.GetOrderBookRequest(exchange="binance", symbol="btc_usdt")
        error = await refused(stub.GetOrderBook(request))
        assert error.reason == "INSTRUMENT_NOT_FOUND"
        assert error.metadata == {"exchange": "binance", "symbol": "btc_usdt"}
        assert "did you mean BTC-USDT" in error.message
        stream = pb.StreamOrderBookRequest(exchange="binanc", symbol="BTC-USDT")
        error = await refused(stub.StreamOrderBook(stream).read())
        assert error.reason == "EXCHANGE_NOT_FOUND"
        assert "did you mean binance" in error.message


async def test_lists_are_paged_and_tokens_are_bound_to_their_filter(
    nats: NatsServer, venue: Venue, tmp_path: Path
) -> None:
    books = [Collected(symbol=f"{base}-USDT", levels=3) for base in ("ADA", "BTC", "ETH", "SOL")]
    for book in books:
        await venue.begin(book)
    await venue.put(books[2].subject("order_book_status"), books[2].resyncing())
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        symbols: list[str] = []
        token = ""
        for _ in range(2):
            page = await stub.ListInstruments(
                pb.ListInstrumentsRequest(page_size=2, page_token=token)
            )
            symbols += [instrument.symbol for instrument in page.instruments]
            token = page.next_page_token
            if token:
                other = pb.ListInstrumentsRequest(page_size=2, page_token=token, base="BTC")
                assert (await refused(stub.ListInstruments(other))).reason == "PAGE_TOKEN_INVALID"
        assert (symbols, token) == ([book.symbol for book in books], "")
        found = await stub.ListInstruments(pb.ListInstrumentsRequest(base="BTC"))
        assert [i.native_symbol for i in found.instruments] == ["BTCUSDT"]
        one = await stub.GetInstrument(pb.GetInstrumentRequest(**KEY))
        assert one.instrument == found.instruments[0]

        statuses = await stub.ListOrderBookStatuses(pb.ListOrderBookStatusesRequest(page_size=3))
        assert [s.symbol for s in statuses.statuses] == ["ADA-USDT", "BTC-USDT", "ETH-USDT"]
        rest = await stub.ListOrderBookStatuses(
            pb.ListOrderBookStatusesRequest(page_size=3, page_token=statuses.next_page_token)
        )
        assert [s.symbol for s in rest.statuses] == ["SOL-USDT"]
        out = await stub.ListOrderBookStatuses(
            pb.ListOrderBookStatusesRequest(states=[S.ORDER_BOOK_STATE_RESYNCING])
        )
        assert [s.symbol for s in out.statuses] == ["ETH-USDT"]
        keys = [pb.InstrumentKey(exchange="binance", symbol=book.symbol) for book in books]
        batch = await stub.BatchGetOrderBooks(pb.BatchGetOrderBooksRequest(instruments=keys))
        for book, answer in zip(books, batch.order_books, strict=True):
            assert levels_of(answer.order_book) == book.best()
        keys.append(pb.InstrumentKey(exchange="binance", symbol="NO-USDT"))
        error = await refused(
            stub.BatchGetOrderBooks(pb.BatchGetOrderBooksRequest(instruments=keys))
        )
        assert error.reason == "INSTRUMENT_NOT_FOUND"


async def test_best_bid_and_offer(nats: NatsServer, venue: Venue, tmp_path: Path) -> None:
    await venue.instrument(Collected())
    async with marketdata(nats, tmp_path) as service, client(service) as stub:
        await ready(service)
        request = pb.GetBestBidOfferRequest(**KEY)
        error = await refused(stub.GetBestBidOffer(request))
        assert error.reason == "BEST_BID_OFFER_NOT_READY"
        offer = events_pb2.BestBidOffer(**KEY, bid_price="1", ask_price="2", venue_sequence=7)
        await venue.put("market.best_bid_offer.binance.BTC-USDT", offer.SerializeToString())
        await venue.put("market.best_bid_offer.binance.BTC-USDT", b"\xff")
        await until(lambda: service.market.tally.malformed == 1, "the garbage was counted")
        assert (await stub.GetBestBidOffer(request)).best_bid_offer == offer
