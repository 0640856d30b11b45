"""OKX's REST requests and answers.

Follows "Public data", "Order book trading, market data" and "Trading statistics" of OKX's v5
documents. An answer is {"code":"0","msg":"","data":[...]}; any other code is a refusal.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import msgspec
from marketprism.market.v1 import common_pb2, events_pb2, instrument_pb2

from services.collector.venues.base import (
    BookSnapshot,
    InstrumentSpec,
    MalformedFrameError,
    Observation,
    Poll,
    RestPool,
    RestRequest,
    Selection,
    TradePrint,
)
from services.collector.venues.okx_common import DECODE_ERRORS, Time, nanoseconds
from services.collector.venues.okx_instruments import Instrument, spec_of
from services.collector.venues.okx_market import Book, Trade, snapshot, trade_print
from services.collector.venues.okx_observations import OpenInterest, open_interest
from services.shared.decimals import canonical_decimal

__all__ = [
    "INSTRUMENTS_PATH",
    "OPTION_FAMILIES",
    "PAST_TRADES",
    "POOL",
    "decode_instruments",
    "decode_poll",
    "decode_snapshot",
    "decode_trades",
    "instrument_requests",
    "older_trades_request",
    "polls",
    "rest_refusal",
    "snapshot_request",
    "trades_request",
]

OPTION_FAMILIES = ("BTC-USD", "ETH-USD")
"""Families whose options are listed by default: OKX lists options only by family."""
INSTRUMENTS_PATH = "/api/v5/public/instruments"
POOL = RestPool("okx", limit=16, window_seconds=2.0)
"""OKX limits each endpoint by itself. The narrowest of those that are used takes 20 requests in
2 s from one address; long/short ratios 5 in 2 s of each instrument, which a poll never reaches."""

PAST_TRADES = 100
"""Trades that a page of /api/v5/market/history-trades holds."""

_T = TypeVar("_T")
_OPTION = instrument_pb2.INSTRUMENT_KIND_OPTION
_WITH_RATIOS = (
    instrument_pb2.INSTRUMENT_KIND_PERPETUAL,
    instrument_pb2.INSTRUMENT_KIND_FUTURE,
)
_DEEPEST = 400
_MOST_TRADES = 500
_TRADES_SINCE = 200  # that may come between a hole and the answer
_RATIO_PERIOD = 300
_OPEN_INTEREST_PATH = "/api/v5/public/open-interest"
_OPEN_INTEREST_SECONDS = 10.0
_RATIOS = {
    "/api/v5/rubik/stat/contracts/long-short-account-ratio-contract-top-trader": (
        events_pb2.LONG_SHORT_RATIO_KIND_TOP_ACCOUNTS
    ),
    "/api/v5/rubik/stat/contracts/long-short-position-ratio-contract-top-trader": (
        events_pb2.LONG_SHORT_RATIO_KIND_TOP_POSITIONS
    ),
    "/api/v5/rubik/stat/contracts/long-short-account-ratio-contract": (
        events_pb2.LONG_SHORT_RATIO_KIND_ALL_ACCOUNTS
    ),
}
# Too many requests of an address or account; a system that is too busy.
_TOO_MUCH = frozenset(("50011", "50061", "50013", "50040"))
_LONGEST_REFUSAL = 4096


class _Head(msgspec.Struct, gc=False, frozen=True):
    code: str | int = ""
    msg: str = ""


class _Answer(msgspec.Struct, gc=False, frozen=True):
    code: str | int
    msg: str = ""
    data: msgspec.Raw = msgspec.Raw()


class _Ratio(msgspec.Struct, array_like=True, gc=False, frozen=True):
    time: Time
    ratio: str


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode
_instruments = msgspec.json.Decoder(list[Instrument]).decode
_books = msgspec.json.Decoder(list[Book]).decode
_trades = msgspec.json.Decoder(list[Trade]).decode
_open_interests = msgspec.json.Decoder(list[OpenInterest]).decode
_ratios = msgspec.json.Decoder(list[_Ratio]).decode


def instrument_requests(option_families: Iterable[str]) -> list[RestRequest]:
    """GET /api/v5/public/instruments of each type, and of each family of options."""
    plain = [RestRequest(INSTRUMENTS_PATH, 1, {"instType": t}) for t in ("SPOT", "SWAP", "FUTURES")]
    return plain + [
        RestRequest(INSTRUMENTS_PATH, 1, {"instType": "OPTION", "instFamily": family})
        for family in option_families
    ]


def decode_instruments(body: bytes, exchange: str) -> list[InstrumentSpec]:
    """Decode a list of instruments of any type. Raises MalformedFrameError.

    Those whose contract size is not told yet are left out.
    """

    def read(data: msgspec.Raw) -> list[InstrumentSpec]:
        specs = (spec_of(exchange, item) for item in _instruments(data))
        return [spec for spec in specs if spec is not None]

    return _read(exchange, "instruments", body, "", read)


def snapshot_request(native_symbol: str, depth: int) -> RestRequest:
    """GET /api/v5/market/books, at most 400 levels."""
    size = str(max(1, min(depth, _DEEPEST)))
    return RestRequest("/api/v5/market/books", 1, {"instId": native_symbol, "sz": size})


def decode_snapshot(body: bytes, request: RestRequest, exchange: str) -> BookSnapshot:
    """Decode a book. Raises MalformedFrameError."""
    native_symbol = request.query.get("instId", "")

    def read(data: msgspec.Raw) -> BookSnapshot:
        books = _books(data)
        if not books:
            raise msgspec.ValidationError("expected a book, got none")
        return snapshot(books[0], native_symbol, int(request.query.get("sz", "0")))

    return _read(exchange, "books", body, native_symbol, read)


def trades_request(native_symbol: str, first_id: int, count: int) -> RestRequest:
    """GET /api/v5/market/trades: the latest, at most 500, which reach back past a fresh hole.

    A hole ends where the stream is, so that these hold more of it than a page of 100 of
    /api/v5/market/history-trades does.
    """
    limit = str(min(max(1, count) + _TRADES_SINCE, _MOST_TRADES))
    return RestRequest("/api/v5/market/trades", 1, {"instId": native_symbol, "limit": limit})


def older_trades_request(native_symbol: str, first_id: int, last_id: int) -> RestRequest:
    """GET /api/v5/market/history-trades, by trade id: a page of 100, three months back."""
    query = {
        "instId": native_symbol,
        "type": "1",
        "after": str(last_id + 1),
        "limit": str(min(last_id - first_id + 1, PAST_TRADES)),
    }
    return RestRequest("/api/v5/market/history-trades", 1, query)


def decode_trades(body: bytes, native_symbol: str, exchange: str) -> list[TradePrint]:
    """Decode past trades, oldest first. Raises MalformedFrameError."""

    def read(data: msgspec.Raw) -> list[TradePrint]:
        trades = [trade_print(each) for each in _trades(data)]
        return sorted(trades, key=lambda trade: trade.trade_id)

    return _read(exchange, "trades", body, native_symbol, read)


def polls(specs: Sequence[InstrumentSpec], selection: Selection) -> list[Poll]:
    """Make the polls of what OKX offers by REST only, long/short ratios, or cheaper so."""
    wanted: list[Poll] = []
    kind = common_pb2.EVENT_KIND_OPEN_INTEREST
    if kind in selection.kinds:
        families = sorted({spec.family for spec in specs if spec.kind == _OPTION and spec.family})
        wanted += [
            Poll(
                kind,
                RestRequest(_OPEN_INTEREST_PATH, 1, {"instType": "OPTION", "instFamily": family}),
                _OPEN_INTEREST_SECONDS,
            )
            for family in families
        ]
    kind = common_pb2.EVENT_KIND_LONG_SHORT_RATIO
    if kind in selection.kinds:
        wanted += [
            Poll(
                kind,
                # One more than the newest: a poll that comes late leaves none out.
                RestRequest(path, 1, {"instId": spec.native_symbol, "period": "5m", "limit": "2"}),
                _RATIO_PERIOD,
                spec.native_symbol,
            )
            for spec in specs
            if spec.kind in _WITH_RATIOS
            for path in _RATIOS
        ]
    return wanted


def decode_poll(body: bytes, poll: Poll, exchange: str) -> list[Observation]:
    """Decode the answer to one of `polls`, oldest first. Raises MalformedFrameError."""
    path = poll.request.path

    def read(data: msgspec.Raw) -> list[Observation]:
        if path == _OPEN_INTEREST_PATH:
            return [open_interest(each) for each in _open_interests(data)]
        whose = _RATIOS.get(path)
        if whose is None:
            raise msgspec.ValidationError(f"{path[:80]!r} is not one of this venue's polls")
        rows = sorted(_ratios(data), key=lambda row: nanoseconds(row.time))
        return [_ratio(row, poll.native_symbol, whose) for row in rows]

    return _read(exchange, path.rpartition("/")[2][:80], body, poll.native_symbol, read)


def rest_refusal(status: int, body: bytes) -> float | None:
    """Tell whether an answer says that we ask too much: 0 seconds, for it does not say how long."""
    if status == 429:
        return 0.0
    if len(body) > _LONGEST_REFUSAL:
        return None
    try:
        code = str(_decode_head(body).code)
    except DECODE_ERRORS:
        return None
    return 0.0 if code in _TOO_MUCH else None


def _read(
    exchange: str, what: str, body: bytes, native_symbol: str, read: Callable[[msgspec.Raw], _T]
) -> _T:
    """Read the data of an answer. Raises MalformedFrameError."""
    try:
        answer = _decode_answer(body)
        if str(answer.code) != "0":
            raise msgspec.ValidationError(
                f"the venue refused with code {str(answer.code)[:20]}: {answer.msg[:200]}"
            )
        return read(answer.data)
    except DECODE_ERRORS as error:
        raise MalformedFrameError(
            f"{exchange}: {what}: {error} in {body[:160]!r}", native_symbol
        ) from error


def _ratio(
    row: _Ratio, native_symbol: str, whose: "events_pb2.LongShortRatioKind.ValueType"
) -> Observation:
    message = events_pb2.LongShortRatio(kind=whose, ratio=canonical_decimal(row.ratio))
    message.period.FromSeconds(_RATIO_PERIOD)
    message.exchange_time.FromNanoseconds(nanoseconds(row.time))
    name = events_pb2.LongShortRatioKind.Name(whose).removeprefix("LONG_SHORT_RATIO_KIND_").lower()
    return Observation(common_pb2.EVENT_KIND_LONG_SHORT_RATIO, message, native_symbol, key=name)
