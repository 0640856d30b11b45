"""OKX's instruments and their names.

Follows "Get instruments" of OKX's v5 documents. Names are BTC-USDT, BTC-USDT-SWAP, BTC-USD-261225
and BTC-USD-261225-66000-C; a second part such as USD_UM or USD_UM_XPERP names a variety of the
quote currency, by which contracts of the same index differ (coin-margined, margined in dollars,
futures of five years with funding), and so it stays in the canonical symbol.
"""

from dataclasses import replace
from datetime import UTC, datetime

import msgspec
from marketprism.market.v1 import instrument_pb2

from services.collector.contracts import ContractSize
from services.collector.venues.base import InstrumentSpec
from services.collector.venues.okx_common import is_inverse
from services.shared.decimals import InvalidDecimalError, canonical_decimal

__all__ = ["Instrument", "infer_spec", "spec_of"]

_SPOT = instrument_pb2.INSTRUMENT_KIND_SPOT
_PERPETUAL = instrument_pb2.INSTRUMENT_KIND_PERPETUAL
_FUTURE = instrument_pb2.INSTRUMENT_KIND_FUTURE
_OPTION = instrument_pb2.INSTRUMENT_KIND_OPTION
_KINDS = {"SPOT": _SPOT, "SWAP": _PERPETUAL, "FUTURES": _FUTURE, "OPTION": _OPTION}
_RIGHTS = {
    "C": instrument_pb2.OPTION_RIGHT_CALL,
    "P": instrument_pb2.OPTION_RIGHT_PUT,
}
_BASE = instrument_pb2.QUANTITY_UNIT_BASE
_QUOTE = instrument_pb2.QUANTITY_UNIT_QUOTE
_DELIVERY_HOUR = 8  # UTC, on the day that the name tells


class Instrument(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    """An entry of the answer to GET /api/v5/public/instruments."""

    inst_id: str
    """Name."""
    inst_type: str = ""
    """SPOT, SWAP, FUTURES or OPTION."""
    state: str = ""
    """`live` when orders match."""
    base_ccy: str = ""
    """Base currency, of spot only."""
    quote_ccy: str = ""
    """Quote currency, of spot only."""
    settle_ccy: str = ""
    """Settlement currency, of derivatives only."""
    uly: str = ""
    """Underlying index, of derivatives only."""
    inst_family: str = ""
    """Family, of derivatives only; older recordings name only the underlying."""
    tick_sz: str = ""
    """Price step."""
    lot_sz: str = ""
    """Quantity step, in contracts of derivatives."""
    min_sz: str = ""
    """Smallest order, in contracts of derivatives."""
    ct_val: str = ""
    """Contract value, in `ct_val_ccy`."""
    ct_mult: str = ""
    """What the contract value is multiplied with."""
    ct_val_ccy: str = ""
    """Currency of the contract value."""
    ct_type: str = ""
    """`linear` or `inverse`, of swaps and futures only."""
    exp_time: str = ""
    """Expiry, milliseconds since 1970; of a spot pair or swap, when it will be taken off."""
    stk: str = ""
    """Strike price."""
    opt_type: str = ""
    """C or P."""


def infer_spec(exchange: str, native_symbol: str) -> InstrumentSpec:
    """Tell what a name alone tells: not the contract size, nor any step."""
    base, _, rest = native_symbol.partition("-")
    variety, _, term = rest.partition("-")
    date, dash, option = term.partition("-")
    kind = _SPOT
    expiry = 0
    if date == "SWAP":
        kind, date = _PERPETUAL, "PERP"
    elif len(date) == 6 and date.isascii() and date.isdigit():
        kind = _OPTION if option else _FUTURE
        expiry = _expiry(date)
        date = f"20{date}"
    strike, _, right = option.rpartition("-")
    quote = variety.partition("_")[0]
    # A symbol is one word of a NATS subject: a strike's point is spelt as Deribit spells it.
    parts = (base, variety, f"{date}{dash}{option}".replace(".", "d"))
    derivative = kind != _SPOT
    return InstrumentSpec(
        exchange,
        "-".join(part for part in parts if part),
        native_symbol,
        base,
        quote,
        kind=kind,
        expiry_time=expiry,
        strike=_number(strike) if kind == _OPTION else "",
        option_right=_RIGHTS.get(right, instrument_pb2.OPTION_RIGHT_UNSPECIFIED)
        if kind == _OPTION
        else instrument_pb2.OPTION_RIGHT_UNSPECIFIED,
        quantity_unit=_QUOTE if is_inverse(native_symbol) else _BASE,
        underlying=f"{base}-{quote}" if derivative else "",
        family=f"{base}-{variety}" if derivative else "",
    )


def spec_of(exchange: str, item: Instrument) -> InstrumentSpec | None:
    """Describe an instrument; a malformed or unknown step is left empty.

    None when the venue does not tell what a contract is worth, as of one whose listing is only
    announced: its quantities could not be told.
    """
    guess = infer_spec(exchange, item.inst_id)
    kind = _KINDS.get(item.inst_type, guess.kind)
    if kind == _SPOT:
        return replace(
            guess,
            kind=kind,
            base=item.base_ccy or guess.base,
            quote=item.quote_ccy or guess.quote,
            tick_size=_number(item.tick_sz),
            lot_size=_number(item.lot_sz),
            min_quantity=_number(item.min_sz),
            trading=item.state == "live",
            quantity_unit=_BASE,
        )
    size = _contract_size(item.ct_val, item.ct_mult)
    if size is None:
        return None
    underlying = item.uly or guess.underlying
    base, _, quote = underlying.partition("-")
    base, quote = base or guess.base, quote or guess.quote
    inverse = kind != _OPTION and (
        item.ct_val_ccy == quote if item.ct_val_ccy else item.ct_type == "inverse"
    )
    if kind == _OPTION and item.settle_ccy == base:
        quote = base  # prices of coin-margined options are in coins
    return replace(
        guess,
        kind=kind,
        base=base,
        quote=quote,
        settlement=item.settle_ccy,
        tick_size=_number(item.tick_sz),
        lot_size=_quantity(item.lot_sz, size),
        min_quantity=_quantity(item.min_sz, size),
        trading=item.state == "live",
        contract_size=size.size,
        quantity_unit=_QUOTE if inverse else _BASE,
        expiry_time=0 if kind == _PERPETUAL else _nanoseconds(item.exp_time) or guess.expiry_time,
        strike=_number(item.stk) or guess.strike,
        option_right=_RIGHTS.get(item.opt_type, guess.option_right),
        underlying=underlying,
        family=item.inst_family or guess.family,
    )


def _number(text: str) -> str:
    """Give a number greater than 0 in canonical spelling, else nothing."""
    try:
        number = canonical_decimal(text) if text else ""
    except InvalidDecimalError:
        return ""
    return "" if number == "0" or number[:1] == "-" else number


def _quantity(contracts: str, size: ContractSize) -> str:
    try:
        return size.sizes[number] if (number := _number(contracts)) else ""
    except InvalidDecimalError:
        return ""


def _contract_size(value: str, multiplier: str) -> ContractSize | None:
    try:
        return ContractSize(ContractSize(value).sizes[multiplier or "1"])
    except InvalidDecimalError:
        return None


def _nanoseconds(time: str) -> int:
    return int(time) * 1_000_000 if time.isascii() and time.isdigit() and len(time) < 15 else 0


def _expiry(date: str) -> int:
    try:
        day = datetime.strptime(f"20{date}", "%Y%m%d").replace(hour=_DELIVERY_HOUR, tzinfo=UTC)
    except ValueError:
        return 0
    return int(day.timestamp()) * 1_000_000_000
