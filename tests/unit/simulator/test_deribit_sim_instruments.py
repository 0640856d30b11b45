"""What the simulated Deribit lists has the venue's names, steps and units."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.deribit_instruments import (
    default_names,
    expiry_text,
    instrument,
    listed,
    more_names,
    strike_text,
)
from services.simulator.deribit_numbers import dumps
from services.simulator.fixed import SCALE, to_units
from services.simulator.instrument import InstrumentKind

_TODAY = datetime.date(2026, 11, 24)


def test_inverse_futures_count_dollars_and_linear_ones_count_coins() -> None:
    inverse, linear = instrument("BTC-PERPETUAL"), instrument("SOL_USDC-PERPETUAL")
    assert (inverse.quote, inverse.settlement, inverse.index) == ("USD", "BTC", "btc_usd")
    assert (inverse.contract, inverse.whole_amounts) == (10 * SCALE, True)
    assert (linear.quote, linear.settlement, linear.index) == ("USDC", "USDC", "sol_usdc")
    assert (linear.contract, linear.whole_amounts) == (SCALE // 10, False)
    assert listed("BTC-PERPETUAL").spec.contract_currency == "USD"
    assert listed("BTC-PERPETUAL").spec.kind is InstrumentKind.PERPETUAL


def test_an_inverse_option_is_priced_in_coins_on_a_stepped_grid() -> None:
    option = instrument("BTC-25DEC26-100000-C")
    assert (option.kind, option.quote, option.counter) == ("option", "BTC", "USD")
    assert option.tick == to_units("0.0001")
    assert option.tick_steps == ((to_units("0.005"), to_units("0.0005")),)
    assert option.price % option.grid == 0
    assert option.expiration_ms == 1_798_185_600_000  # 25 December 2026, 08:00 UTC
    spec = option.listed().spec
    assert (spec.kind, spec.right, spec.strike) == (InstrumentKind.OPTION, "C", 100_000 * SCALE)


def test_a_small_strike_is_spelt_with_a_d() -> None:
    option = instrument("XRP_USDC-26DEC25-1d02-C")
    assert option.strike == to_units("1.02")
    assert (option.quote, option.settlement, option.inverse) == ("USDC", "USDC", False)
    assert strike_text(to_units("1.02")) == "1d02"
    assert strike_text(60_000 * SCALE) == "60000"


@given(st.integers(1, 10**14))
def test_every_strike_is_read_back_from_its_spelling(strike: int) -> None:
    assert instrument(f"XRP_USDC-25DEC26-{strike_text(strike)}-P").strike == strike


@pytest.mark.parametrize(
    "name",
    [
        "",
        "BTC",
        "BTCUSDT",
        "BTC-PERP",
        "SOL-PERPETUAL",
        "BTC-31FEB27",
        "BTC-05DEC26",
        "BTC-25DEC26-0-C",
        "BTC-25DEC26-1000-X",
        "BTC-PERPETUAL-1000-C",
        "btc-perpetual",
    ],
)
def test_a_name_that_the_venue_would_not_have_is_refused_with_what_was_expected(name: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        instrument(name)


def test_the_default_listing_has_every_kind_and_lies_ahead() -> None:
    names = default_names(_TODAY)
    assert names[:4] == (
        "BTC-PERPETUAL",
        "ETH-PERPETUAL",
        "BTC_USDC-PERPETUAL",
        "SOL_USDC-PERPETUAL",
    )
    kinds = [listed(name).spec.kind for name in names]
    assert kinds.count(InstrumentKind.FUTURE) == 1
    assert kinds.count(InstrumentKind.OPTION) == 4
    day = datetime.datetime.fromtimestamp(instrument(names[4]).expiration_ms / 1000, datetime.UTC)
    assert (day.date() - _TODAY).days >= 30
    assert (day.weekday(), day.hour) == (4, 8)


@given(st.dates(datetime.date(2020, 1, 1), datetime.date(2090, 1, 1)))
def test_the_listing_is_valid_on_every_day(today: datetime.date) -> None:
    for name in more_names(16, (), today):
        assert listed(name).spec.symbol == name


def test_made_up_names_continue_the_known_ones_and_depend_on_nothing_else() -> None:
    names = more_names(60, ("ETH-PERPETUAL",), _TODAY)
    assert len(set(names)) == 60
    assert names[0] == "ETH-PERPETUAL"
    assert any(name.startswith("SIM") for name in names)
    assert listed(names[-1]) == listed(names[-1])


def test_a_description_has_the_fields_of_get_instruments() -> None:
    future = instrument("BTC-PERPETUAL").describe(to_units("0.5"))
    option = instrument("BTC-25DEC26-100000-C").describe(to_units("0.0005"))
    assert {"strike", "option_type"} == set(option) - set(future)
    assert {"future_type", "max_leverage", "max_liquidation_commission"} == set(future) - set(
        option
    )
    assert (future["instrument_type"], future["settlement_period"]) == ("reversed", "perpetual")
    assert dumps(option["tick_size_steps"]) == '[{"tick_size":0.0005,"above_price":0.005}]'
    assert dumps(option["tick_size"]) == "0.0001"


def test_a_changed_tick_is_described_without_the_old_steps() -> None:
    told = instrument("BTC-25DEC26-100000-C").describe(to_units("0.001"))
    assert (dumps(told["tick_size"]), told["tick_size_steps"]) == ("0.001", [])


def test_days_are_spelt_without_a_leading_zero() -> None:
    assert expiry_text(datetime.date(2027, 6, 4)) == "4JUN27"
