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
from services.shared.jetstream.outbox import OutboxLimits
from services.shared.jetstream.reader import (
    Message,
    ReaderStatus,
    StartAt,
    StreamReader,
    last_per_subject,
)

__all__ = [
    "Connection",
    "ConnectionLost",
    "JetStreamError",
    "Message",
    "NoResponders",
    "OutboxLimits",
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
