"""`marketprism events`: what a collector told, again, from its recording alone."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from marketprism.collector.v1 import integrity_event_pb2
from marketprism.market.v1 import instrument_pb2, market_event_pb2

from services.collector.replay import ReplayedEvent, replay

__all__ = ["print_events"]

_KINDS = market_event_pb2.MarketEvent.DESCRIPTOR.fields_by_name


def print_events(paths: Sequence[Path], kinds: Sequence[str]) -> int:
    """Print every event of a recording, one JSON object a line; gives how many.

    `kinds` are words of the subject such as "trade"; none means all. The files of a folder are
    read in the order of their names. Raises InvalidArgument when they hold no recording.
    """
    count = 0
    for event in replay(_files(paths)):
        kind = event.subject.split(".", 2)[1]
        if kinds and kind not in kinds:
            continue
        count += 1
        sys.stdout.write(json.dumps(_described(kind, event), separators=(",", ":")) + "\n")
    return count


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        found += sorted(path.glob("*.jsonl*")) if path.is_dir() else [path]
    return found


def _described(kind: str, event: ReplayedEvent) -> dict[str, Any]:
    message: Any
    if kind == "instrument":
        message = instrument_pb2.Instrument()
    elif kind == "integrity":
        message = integrity_event_pb2.IntegrityEvent()
    else:
        message = getattr(market_event_pb2.MarketEvent(), _KINDS[kind].name).__class__()
    message.ParseFromString(event.payload)
    return {
        "subject": event.subject,
        "message_id": event.message_id,
        "event": MessageToDict(message, preserving_proto_field_name=True),
    }
