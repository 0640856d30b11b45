"""Writes into a recording what a collector did beside reading: enough to do it all again.

Frames and REST answers are recorded as they came. What a collector did about them also depends on
when it looked at its clock, which connection had been acknowledged, where an earlier collector had
stopped. Each such input is one `config` record of the capture format, `conn` the exchange, `data` a
JSON object whose `input` names it. `services.collector.replay` gives them to the same code again.
"""

import dataclasses
from typing import Any

import msgspec

from services.collector.recording import Recorder

__all__ = ["Journal"]

_encode = msgspec.json.Encoder().encode


class Journal:
    """The inputs of one venue, written into the recorder's file in the order of their effect."""

    def __init__(self, recorder: Recorder, exchange: str) -> None:
        self._recorder = recorder
        self._exchange = exchange

    def note(self, what: str, now: int, **data: Any) -> None:
        """Write one input; dataclasses become objects. `now` is nanoseconds since 1970."""
        told = {
            name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
            for name, value in data.items()
        }
        self._recorder.record(
            "config", "", self._exchange, _encode({"input": what, **told}).decode(), now
        )
