"""Deribit's channel names are read as the venue reads them; what it does not know is nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.simulator.deribit_channels import ChannelKind, parse_channel


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("book.BTC-PERPETUAL.100ms", ChannelKind.BOOK),
        ("book.XRP_USDC-26DEC25-1d02-C.agg2", ChannelKind.BOOK),
        ("book.BTC-PERPETUAL.none.20.100ms", ChannelKind.BOOK_LEVELS),
        ("ticker.BTC-25DEC26-60000-C.100ms", ChannelKind.TICKER),
        ("trades.ETH-PERPETUAL.100ms", ChannelKind.TRADES),
        ("trades.option.BTC.100ms", ChannelKind.TRADES_OF_KIND),
        ("trades.any.any.agg2", ChannelKind.TRADES_OF_KIND),
        ("quote.BTC-PERPETUAL", ChannelKind.QUOTE),
        ("perpetual.BTC-PERPETUAL.100ms", ChannelKind.PERPETUAL),
        ("chart.trades.BTC-PERPETUAL.1D", ChannelKind.CHART),
        ("deribit_price_index.btc_usd", ChannelKind.PRICE_INDEX),
        ("deribit_volatility_index.btc_usd", ChannelKind.VOLATILITY_INDEX),
        ("markprice.options.btc_usd", ChannelKind.OPTION_MARKS),
        ("instrument.state.any.any", ChannelKind.INSTRUMENT_STATE),
    ],
)
def test_each_kind_of_channel_is_known(name: str, kind: ChannelKind) -> None:
    channel = parse_channel(name)
    assert channel is not None
    assert (channel.name, channel.kind) == (name, kind)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "book",
        "book.BTC-PERPETUAL",
        "book.BTC-PERPETUAL.50ms",
        "book.BTC-PERPETUAL.none.50.100ms",
        "book.BTC-PERPETUAL.3.10.100ms",
        "trades.spam.BTC.100ms",
        "chart.trades.BTC-PERPETUAL.7",
        "quote.BTC-PERPETUAL.100ms",
        "deribit_price_index.BTC_USD",
        "instrument.state.future.XYZ",
        "announcements",
        "book." + "X" * 200 + ".100ms",
    ],
)
def test_what_the_venue_does_not_know_is_no_channel(name: str) -> None:
    assert parse_channel(name) is None


def test_a_raw_channel_needs_authentication() -> None:
    raw, public = parse_channel("book.X-PERPETUAL.raw"), parse_channel("book.X-PERPETUAL.agg2")
    assert raw is not None
    assert public is not None
    assert (raw.needs_authentication, public.needs_authentication) == (True, False)


@given(st.text())
def test_no_name_makes_the_reader_fail(name: str) -> None:
    channel = parse_channel(name)
    assert channel is None or channel.name == name


@given(st.lists(st.sampled_from(["book", "BTC-PERPETUAL", "none", "20", "100ms", "any", ""])))
def test_no_arrangement_of_known_parts_makes_the_reader_fail(parts: list[str]) -> None:
    parse_channel(".".join(parts))
