"""Follows a book with the client library: the whole program.

    python examples/python/follow_book.py binance BTC-USDT --address localhost:8080

The library connects again and resumes by itself; `is_trusted` says whether the book may be used.
"""

import argparse
import time

from marketprism.client import Client


def main() -> None:
    """Print the top of the book, at most ten times a second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exchange", help="for example binance")
    parser.add_argument("symbol", help="for example BTC-USDT")
    parser.add_argument("--address", default="localhost:8080")
    parser.add_argument("--lines", type=int, default=0, help="end after so many lines")
    given = parser.parse_args()
    shown, count = 0.0, 0
    with Client(given.address) as client:
        for book in client.follow_book(given.exchange, given.symbol):
            if time.monotonic() - shown < 0.1:
                continue
            shown = time.monotonic()
            bid, ask = book.best_bid(), book.best_ask()
            trust = "" if book.is_trusted else "  (not to be trusted now)"
            print(
                f"{book.epoch}/{book.sequence}  {bid.quantity if bid else '-'} @ "
                f"{bid.price if bid else '-'}  |  {ask.price if ask else '-'} @ "
                f"{ask.quantity if ask else '-'}{trust}",
                flush=True,
            )
            count += 1
            if count == given.lines:
                return


if __name__ == "__main__":
    main()
