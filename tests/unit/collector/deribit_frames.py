"""Frames of Deribit, written as the venue writes them."""

import json
from typing import Any

__all__ = ["book", "change", "push", "trade"]


def push(channel: str, data: str) -> str:
    """A notification as Deribit spells it; `data` is JSON."""
    return (
        f'{{"jsonrpc":"2.0","method":"subscription","params":{{"channel":"{channel}",'
        f'"data":{data}}}}}'
    )


def book(bids: str = "[]", asks: str = "[]", **fields: Any) -> str:
    """The data of a book channel; levels are JSON."""
    told = {"timestamp": 5, "instrument_name": "BTC-PERPETUAL", "change_id": 10, **fields}
    return f'{json.dumps(told)[:-1]}, "bids":{bids}, "asks":{asks}}}'


def change(bids: str = "[]", asks: str = "[]", **fields: Any) -> str:
    """A change of a book, as a frame."""
    fields = {"type": "change", "prev_change_id": 9, **fields}
    return push("book.BTC-PERPETUAL.100ms", book(bids, asks, **fields))


def trade(**fields: Any) -> str:
    """The data of a trades channel with one trade; numbers as JSON."""
    told = {
        "trade_seq": 7, "trade_id": "ETH-12", "timestamp": 5, "price": 0.1, "amount": 2,
        "instrument_name": "BTC-PERPETUAL", "direction": "buy", **fields,
    }  # fmt: skip
    return f"[{json.dumps(told)}]"
