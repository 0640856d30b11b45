"""JetStream as the services use it: an ordered reader, and what the publisher is built of."""

from services.shared.jetstream.api import (
    JetStreamError,
    StoredMessage,
    last_message,
    list_streams,
    message_headers,
    stream_info,
    subject_matches,
)
from services.shared.jetstream.connection import (
    Connection,
    ConnectionLost,
    NoResponders,
    server_urls,
)
from services.shared.jetstream.consumer import last_per_subject
from services.shared.jetstream.messages import Message, ReaderStatus, StartAt
from services.shared.jetstream.pull import PullConsumer
from services.shared.jetstream.pull_types import (
    Lost,
    PullBatch,
    PullOptions,
    PullSession,
    PullStatus,
)
from services.shared.jetstream.reader import StreamReader

__all__ = [
    "Connection",
    "ConnectionLost",
    "JetStreamError",
    "Lost",
    "Message",
    "NoResponders",
    "PullBatch",
    "PullConsumer",
    "PullOptions",
    "PullSession",
    "PullStatus",
    "ReaderStatus",
    "StartAt",
    "StoredMessage",
    "StreamReader",
    "last_message",
    "last_per_subject",
    "list_streams",
    "message_headers",
    "server_urls",
    "stream_info",
    "subject_matches",
]
