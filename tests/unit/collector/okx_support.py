"""What the tests of OKX share: frames as the venue spells them, instruments, values by hand."""

import json
from decimal import Decimal
from typing import Any

from marketprism.market.v1 import instrument_pb2

from services.collector.venues.base import InstrumentSpec
from services.collector.venues.okx import Okx

OKX = Okx()
MS = 10**6


def frame(channel: str, *data: Any, action: str | None = None, **more: Any) -> str:
    """A push as OKX spells it; `more` goes into the argument."""
    push: dict[str, Any] = {"arg": {"channel": channel, **(more or {"instId": "BTC-USDT"})}}
    if action is not None:
        push["action"] = action
    return json.dumps({**push, "data": list(data)}, separators=(",", ":"))


def book(last: int | None, previous: int | None, **fields: Any) -> dict[str, Any]:
    """The payload of a book channel."""
    ids = {} if last is None else {"seqId": last, "prevSeqId": previous}
    return {"asks": [], "bids": [], "ts": "5", "checksum": 0, **ids, **fields}


def plain(text: str) -> str:
    """The number's one spelling, by way of Decimal; empty stays empty."""
    if not text:
        return ""
    spelt = format(Decimal(text), "f")
    spelt = spelt.rstrip("0").rstrip(".") if "." in spelt else spelt
    return "0" if spelt in ("-0", "") else spelt


def spec(native_symbol: str, **fields: Any) -> InstrumentSpec:
    """An instrument as the list would describe it."""
    kinds = {
        1: instrument_pb2.INSTRUMENT_KIND_SPOT,
        2: instrument_pb2.INSTRUMENT_KIND_FUTURE,
        4: instrument_pb2.INSTRUMENT_KIND_OPTION,
    }
    parts = native_symbol.split("-")
    kind = kinds[len(parts) - 1]
    if parts[-1] == "SWAP":
        kind = instrument_pb2.INSTRUMENT_KIND_PERPETUAL
    underlying = f"{parts[0]}-{parts[1].partition('_')[0]}" if len(parts) > 2 else ""
    family = "-".join(parts[:2]) if len(parts) > 2 else ""
    return InstrumentSpec(
        "okx", native_symbol, native_symbol, parts[0], parts[1].partition("_")[0],
        **{"kind": kind, "underlying": underlying, "family": family, **fields},
    )  # fmt: skip
