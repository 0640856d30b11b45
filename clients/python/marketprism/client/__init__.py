"""Client library of MarketPrism: books that keep themselves, events of any kind, plain requests.

    from marketprism.client import Client

    with Client("localhost:8080") as client:
        for book in client.follow_book("binance", "BTC-USDT"):
            if book.is_trusted:
                print(book.best_bid(), book.best_ask())

`AsyncClient` is the same for asyncio. Both connect again and resume by themselves; a book that must
not be used says so (`is_trusted`). Tables for pandas and Arrow are in `marketprism.client.tables`.
"""

from marketprism.client.aio import AsyncClient
from marketprism.client.book import BrokenBookError, Level, OrderBook
from marketprism.client.session import ClientError
from marketprism.client.sync import Client

__all__ = ["AsyncClient", "BrokenBookError", "Client", "ClientError", "Level", "OrderBook"]
