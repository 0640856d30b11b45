"""`marketprism watch`: every event of any mix of instruments and kinds, a line each."""

import sys
from collections.abc import Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict, MessageToJson
from marketprism.client import AsyncClient, ClientError
from marketprism.market.v1.market_event_pb2 import MarketEvent, StreamState

from services.shared.errors import InvalidArgument

__all__ = ["event_json", "event_line", "watch"]

_SHOWN = (
    "price", "quantity", "side", "last_price", "mark_price", "index_price", "funding_rate",
    "open_interest", "ratio", "volatility", "delta", "mark_iv", "close_price", "closed",
    "bid_price", "bid_quantity", "ask_price", "ask_quantity", "epoch", "sequence", "state",
    "reason",
)  # fmt: skip


async def watch(
    address: str,
    instruments: Sequence[str],
    kinds: Sequence[str],
    *,
    as_json: bool,
    count: int | None,
) -> None:
    """Print events until cancelled, or so many of them; connects again by itself.

    As JSON each line is one MarketEvent with the names of the contract. What the stream says of
    itself goes to the standard error when it is not JSON. Raises InvalidArgument when the server
    refuses what is asked for.
    """
    left = count
    async with AsyncClient(address) as client:
        try:
            async for event in client.subscribe(instruments, kinds):
                if event.WhichOneof("event") == "stream_status" and not as_json:
                    _tell(event)
                    continue
                print(event_json(event) if as_json else event_line(event), flush=True)
                if left is not None and event.WhichOneof("event") != "stream_status":
                    left -= 1
                    if left == 0:
                        return
        except (ClientError, ValueError) as error:
            raise InvalidArgument(str(error)) from error


def event_json(event: MarketEvent) -> str:
    """Give an event as one line of JSON, with the names of the contract."""
    text: str = MessageToJson(event, preserving_proto_field_name=True, indent=None)
    return text


def _tell(event: MarketEvent) -> None:
    status = event.stream_status
    state = StreamState.Name(status.state).removeprefix("STREAM_STATE_")
    if state == "HEARTBEAT":
        return
    about = "/".join(part for part in (status.exchange, status.symbol) if part)
    print(" ".join(filter(None, (state, status.reason, about, status.message))), file=sys.stderr)


def event_line(event: MarketEvent) -> str:
    """Give an event as one line for a person."""
    kind = event.WhichOneof("event") or ""
    fields: dict[str, Any] = MessageToDict(getattr(event, kind), preserving_proto_field_name=True)
    told = [f"{name}={fields[name]}" for name in _SHOWN if name in fields]
    if kind in ("order_book_snapshot", "order_book_update"):
        told += [f"{len(fields.get('bids', ()))} bids, {len(fields.get('asks', ()))} asks"]
    where = f"{fields.get('exchange', '')}/{fields.get('symbol', '')}"
    when = str(fields.get("receive_time") or fields.get("time") or "")
    return f"{when:30} {kind:20} {where:36} {'  '.join(told)}"
