"""Contracts become quantities exactly, and nothing that is no quantity gets through."""

from decimal import Context, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.collector.contracts import ContractSize
from services.shared.decimals import InvalidDecimalError, canonical_decimal

EXACT = Context(prec=200)


def plain(number: Decimal) -> str:
    """The canonical spelling, worked out by Decimal alone."""
    text = format(number, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text


@pytest.mark.parametrize(
    ("size", "text", "quantity"),
    [
        ("0.01", "1", "0.01"),  # OKX BTC-USDT-SWAP
        ("0.01", "0.1", "0.001"),
        ("100", "3", "300"),  # COIN-M and OKX inverse
        ("10", "0.30", "3"),
        ("0.001", "123456789.125", "123456.789125"),
        ("1000", "0.0005", "0.5"),
        ("1", "007.50", "7.5"),
        ("1", "1.0002e6", "1000200"),
        ("1e-3", "5", "0.005"),
        ("1.50", "2", "3"),
        ("0.00000000000001", "0.00000001", "0.0000000000000000000001"),
        ("0.000000000000000000000000000001", "1", "0.000000000000000000000000000001"),
    ],
)
def test_contracts_are_multiplied_exactly_and_spelt_canonically(
    size: str, text: str, quantity: str
) -> None:
    assert ContractSize(size).sizes[text] == quantity


@pytest.mark.parametrize("size", ["1", "0.01", "100"])
@pytest.mark.parametrize("zero", ["0", "0.00000000", "-0", "0e5"])
def test_nothing_stays_nothing(size: str, zero: str) -> None:
    assert ContractSize(size).sizes[zero] == "0", "expected the quantity that deletes a level"


@pytest.mark.parametrize("size", ["1", "1.0", "1e0", "001"])
def test_a_size_of_one_is_known_in_every_spelling(size: str) -> None:
    assert ContractSize(size).is_one
    assert ContractSize(size).size == "1"


def test_a_size_that_is_not_one_says_so() -> None:
    assert not ContractSize("10").is_one
    assert not ContractSize("0.1").is_one


@pytest.mark.parametrize("size", ["", "0", "-1", "0.0", "nan", "ten", "1,5", "inf"])
def test_a_contract_size_is_a_number_greater_than_nothing(size: str) -> None:
    with pytest.raises(InvalidDecimalError):
        ContractSize(size)


@pytest.mark.parametrize("size", ["1", "0.01"])
@pytest.mark.parametrize("text", ["", "-1", "-0.5", "NaN", "x", "1 ", "0x10", "\uff11", "1" * 200])
def test_what_is_no_quantity_is_refused_each_time(size: str, text: str) -> None:
    contracts = ContractSize(size)
    for _ in range(2):
        with pytest.raises(InvalidDecimalError):
            contracts.sizes[text]


def test_a_result_that_nobody_could_read_back_is_refused() -> None:
    with pytest.raises(InvalidDecimalError, match="more than 30 digits"):
        ContractSize("1e-30").sizes["0.5"]
    with pytest.raises(InvalidDecimalError, match="more than 30 digits"):
        ContractSize("1000").sizes["9" * 29]


def test_levels_keep_their_prices_and_order() -> None:
    levels = ContractSize("0.01").levels([("97000.10", "15"), ("96999", "0"), ("1.0", "2.5")])
    assert levels == [("97000.10", "0.15"), ("96999", "0"), ("1.0", "0.025")]


def test_one_bad_level_refuses_all() -> None:
    with pytest.raises(InvalidDecimalError):
        ContractSize("0.01").levels([("1", "1"), ("2", "-1")])


def test_what_is_remembered_stays_bounded() -> None:
    sizes = ContractSize("0.1").sizes
    for number in range(10_000):
        assert sizes[str(number)] == plain(Decimal(number) / 10)
    assert len(sizes) <= 1024


numbers = st.decimals(
    min_value=0, max_value=10**12, allow_nan=False, allow_infinity=False, places=12
)


@given(
    size=st.decimals(min_value="0.000000000001", max_value=10**6, places=12),
    quantity=numbers,
    spell=st.sampled_from(["f", "E"]),
)
def test_every_product_equals_that_of_decimals(
    size: Decimal, quantity: Decimal, spell: str
) -> None:
    text = format(quantity, spell)
    result = ContractSize(format(size, "f")).sizes[text]
    assert result == plain(EXACT.multiply(size, quantity))
    assert canonical_decimal(result) == result


@given(st.text(max_size=40))
def test_any_text_is_a_quantity_or_refused_as_none(text: str) -> None:
    try:
        result = ContractSize("0.01").sizes[text]
    except InvalidDecimalError:
        return
    assert canonical_decimal(result) == result
    assert Decimal(result) == EXACT.multiply(Decimal(text), Decimal("0.01"))
