"""Deribit's names are read alone, and no two of them give one symbol."""

from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from marketprism.market.v1 import instrument_pb2 as pb

from services.collector.venues.deribit import Deribit
from services.collector.venues.deribit_names import index_symbol

DERIBIT = Deribit()

_KINDS = {
    "spot": pb.INSTRUMENT_KIND_SPOT,
    "perpetual": pb.INSTRUMENT_KIND_PERPETUAL,
    "future": pb.INSTRUMENT_KIND_FUTURE,
    "option": pb.INSTRUMENT_KIND_OPTION,
}


@pytest.mark.parametrize(
    ("native", "symbol", "kind", "base", "quote", "settlement", "unit", "underlying"),
    [
        ("BTC-PERPETUAL", "BTC-USD-PERP", "perpetual", "BTC", "USD", "BTC", "QUOTE", "btc_usd"),
        ("BTC_USDC-PERPETUAL", "BTC-USDC-PERP", "perpetual", "BTC", "USDC", "USDC", "BASE",
         "btc_usdc"),
        ("BTC-26DEC25", "BTC-USD-20251226", "future", "BTC", "USD", "BTC", "QUOTE", "btc_usd"),
        ("ETH_USDC-2JAN26", "ETH-USDC-20260102", "future", "ETH", "USDC", "USDC", "BASE",
         "eth_usdc"),
        ("BTC-27MAR26-60000-C", "BTC-USD-20260327-60000-C", "option", "BTC", "BTC", "BTC", "BASE",
         "btc_usd"),
        ("XRP_USDC-26DEC25-1d02-P", "XRP-USDC-20251226-1d02-P", "option", "XRP", "USDC", "USDC",
         "BASE", "xrp_usdc"),
        ("BTC_USDC", "BTC-USDC", "spot", "BTC", "USDC", "", "BASE", ""),
    ],
)  # fmt: skip
def test_a_name_tells_the_instrument(
    native: str,
    symbol: str,
    kind: str,
    base: str,
    quote: str,
    settlement: str,
    unit: str,
    underlying: str,
) -> None:
    spec = DERIBIT.infer_instrument(native)
    assert (spec.exchange, spec.native_symbol, spec.symbol) == ("deribit", native, symbol)
    assert (spec.kind, spec.base, spec.quote) == (_KINDS[kind], base, quote)
    assert (spec.settlement, spec.underlying, spec.contract_size) == (settlement, underlying, "1")
    assert pb.QuantityUnit.Name(spec.quantity_unit) == f"QUANTITY_UNIT_{unit}"


def test_an_option_tells_its_strike_right_and_expiry() -> None:
    spec = DERIBIT.infer_instrument("MATIC_USDC-9MAR24-1d02-C")
    assert (spec.strike, spec.option_right) == ("1.02", pb.OPTION_RIGHT_CALL)
    expiry = datetime(2024, 3, 9, 8, tzinfo=UTC)
    assert spec.expiry_time == int(expiry.timestamp()) * 10**9
    assert DERIBIT.infer_instrument("BTC-9MAR24-70000-P").option_right == pb.OPTION_RIGHT_PUT
    assert DERIBIT.infer_instrument("BTC-PERPETUAL").expiry_time == 0


@pytest.mark.parametrize(
    "native",
    [
        "BTC-FS-30SEP22_PERP", "BTC-CSR12-16SEP22-21000_23000", "BTC-STRD-30SEP22-20000",
        "BTC-CS-26DEC25-90000_95000", "BTC_USDC-FS-26DEC25_PERP",
        "BTC_USD-PERPETUAL", "BTC", "", "BTC-26DEC25-60000", "BTC-26DEC25-60000-X",
        "BTC-26DEC25-٣-C", "btc-perpetual",
    ],
)  # fmt: skip
def test_a_name_of_no_known_form_stays_itself(native: str) -> None:
    spec = DERIBIT.infer_instrument(native)
    assert (spec.symbol, spec.kind) == (native, pb.INSTRUMENT_KIND_UNSPECIFIED)


@pytest.mark.parametrize("native", ["BTC-31FEB25", "BTC-08JUN20", "BTC-USD-PERP", "BTC-USDC"])
def test_a_name_that_reads_like_a_symbol_is_told_apart_from_it(native: str) -> None:
    assert DERIBIT.infer_instrument(native).symbol == f"{native}_"


_bases = st.sampled_from(["BTC", "ETH", "XRP", "USD", "1INCH"])
_days = st.sampled_from(["26DEC25", "2JAN26", "02JAN26", "31FEB26", "20251226"])
_tails = st.one_of(
    st.just("PERPETUAL"),
    st.just("PERP"),
    _days,
    st.tuples(_days, st.sampled_from(["60000", "1d02", "1d020", "1", "01"]), st.sampled_from("CP"))
    .map("-".join),
)  # fmt: skip
_heads = _bases | st.tuples(_bases, _bases).map("_".join) | st.tuples(_bases, _bases).map("-".join)
_names = (
    _heads
    | st.tuples(_heads, _tails).map("-".join)
    | st.tuples(_heads, _tails, st.text("_", max_size=2)).map(lambda n: f"{n[0]}-{n[1]}{n[2]}")
    | st.text(max_size=12)
)


@given(_names, _names)
@example("BTC-PERPETUAL", "BTC_USD-PERPETUAL")
@example("BTC-PERPETUAL", "BTC-USD-PERP")
@example("BTC_USDC", "BTC-USDC")
@example("BTC-2JAN26", "BTC-02JAN26")
def test_two_names_never_give_one_symbol(one: str, other: str) -> None:
    symbols = {DERIBIT.infer_instrument(name).symbol for name in (one, other)}
    assert len(symbols) == len({one, other})


def test_an_index_is_a_pair() -> None:
    assert index_symbol("btc_usd") == "BTC-USD"
    assert index_symbol("drbfix-btc_usdc") == "DRBFIX-BTC-USDC"
