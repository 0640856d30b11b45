"""Reads events straight from NATS with nats-py: for whoever wants the mesh's bytes as they travel.

    python examples/python/nats_subscriber.py market.trade.binance.BTC-USDT
    python examples/python/nats_subscriber.py 'market.order_book_update.>' --replay

The subject is `market.<kind>.<exchange>.<symbol>`; `kind` is the name of a field of
`marketprism.market.v1.MarketEvent`, and the payload is the encoded message of that field. With
`--replay` the stream is read from its first message, else from now on.
"""

import argparse
import asyncio

import nats
from google.protobuf import json_format
from marketprism.market.v1.market_event_pb2 import MarketEvent
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy


def decode(subject: str, payload: bytes) -> MarketEvent:
    """Put the payload into the field of MarketEvent that its subject names."""
    event = MarketEvent()
    getattr(event, subject.split(".")[1]).MergeFromString(payload)
    return event


async def main() -> None:
    """Print events as JSON, one a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "subject", help="for example market.trade.binance.BTC-USDT or market.trade.>"
    )
    parser.add_argument("--url", default="nats://127.0.0.1:4222")
    parser.add_argument("--replay", action="store_true", help="begin with the first message stored")
    parser.add_argument("--count", type=int, default=0, help="end after so many")
    arguments = parser.parse_args()
    connection = await nats.connect(arguments.url)
    try:
        policy = DeliverPolicy.ALL if arguments.replay else DeliverPolicy.NEW
        subscription = await connection.jetstream().subscribe(
            arguments.subject,
            config=ConsumerConfig(deliver_policy=policy, ack_policy=AckPolicy.NONE),
        )
        seen = 0
        async for message in subscription.messages:
            event = decode(message.subject, message.data)
            print(json_format.MessageToJson(event, indent=None), flush=True)
            seen += 1
            if seen == arguments.count:
                return
    finally:
        await connection.close()


if __name__ == "__main__":
    asyncio.run(main())
