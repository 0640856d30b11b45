"""What is collected is what was asked for and can be named; what changes is noticed."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketprism.market.v1 import instrument_pb2

from services.collector.instruments import announce, choose, compare, instrument_message
from services.collector.venues.base import InstrumentSpec

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND
OPTION = InstrumentSpec(
    exchange="okx",
    symbol="BTC-USD-20261225-60000-C",
    native_symbol="BTC-USD-261225-60000-C",
    base="BTC",
    quote="USD",
    tick_size="0.0001",
    lot_size="0.01",
    min_quantity="0.02",
    min_notional="5",
    kind=instrument_pb2.INSTRUMENT_KIND_OPTION,
    settlement="BTC",
    contract_size="0.01",
    quantity_unit=instrument_pb2.QUANTITY_UNIT_BASE,
    expiry_time=NOW + 1000 * SECOND,
    strike="60000",
    option_right=instrument_pb2.OPTION_RIGHT_CALL,
    underlying="BTC-USD",
    family="BTC-USD",
)


def spec(symbol: str, native_symbol: str = "", **more: object) -> InstrumentSpec:
    base, _, quote = symbol.partition("-")
    native = native_symbol or symbol.replace("-", "")
    return replace(InstrumentSpec("binance", symbol, native, base, quote), **more)  # type: ignore[arg-type]


BTC, ETH, HALTED = spec("BTC-USDT"), spec("ETH-USDT"), spec("OLD-USDT", trading=False)


def symbols(specs: Sequence[InstrumentSpec]) -> list[str]:
    return [each.symbol for each in specs]


# The message


def test_a_message_tells_all_that_is_known() -> None:
    expected = instrument_pb2.Instrument(
        exchange="okx",
        symbol="BTC-USD-20261225-60000-C",
        native_symbol="BTC-USD-261225-60000-C",
        kind=instrument_pb2.INSTRUMENT_KIND_OPTION,
        status=instrument_pb2.INSTRUMENT_STATUS_TRADING,
        base="BTC",
        quote="USD",
        settlement="BTC",
        tick_size="0.0001",
        lot_size="0.01",
        min_quantity="0.02",
        min_notional="5",
        contract_size="0.01",
        quantity_unit=instrument_pb2.QUANTITY_UNIT_BASE,
        strike="60000",
        option_right=instrument_pb2.OPTION_RIGHT_CALL,
        underlying="BTC-USD",
    )
    expected.expiry_time.FromNanoseconds(NOW + 1000 * SECOND)
    expected.update_time.FromNanoseconds(NOW)
    message = instrument_message(OPTION, NOW)
    assert message == expected
    unset = {field.name for field in message.DESCRIPTOR.fields} - {
        field.name for field, _ in message.ListFields()
    }
    assert not unset, "expected every field of the message to be covered here"


def test_what_has_no_expiry_names_none() -> None:
    message = instrument_message(BTC, NOW)
    assert not message.HasField("expiry_time")
    assert (message.contract_size, message.quantity_unit) == (
        "1",
        instrument_pb2.QUANTITY_UNIT_BASE,
    )


@pytest.mark.parametrize(
    ("instrument", "delisted", "status"),
    [
        (BTC, False, instrument_pb2.INSTRUMENT_STATUS_TRADING),
        (HALTED, False, instrument_pb2.INSTRUMENT_STATUS_HALTED),
        (BTC, True, instrument_pb2.INSTRUMENT_STATUS_EXPIRED),
        (replace(OPTION, expiry_time=NOW), False, instrument_pb2.INSTRUMENT_STATUS_EXPIRED),
        (replace(OPTION, expiry_time=NOW + 1), False, instrument_pb2.INSTRUMENT_STATUS_TRADING),
        (
            replace(OPTION, expiry_time=NOW, trading=False),
            False,
            instrument_pb2.INSTRUMENT_STATUS_EXPIRED,
        ),
    ],
)
def test_the_status_tells_whether_it_trades(
    instrument: InstrumentSpec, delisted: bool, status: int
) -> None:
    assert instrument_message(instrument, NOW, delisted=delisted).status == status


def test_it_is_published_on_a_subject_of_its_own() -> None:
    sent: list[tuple[str, bytes, str, str | None]] = []

    def publish(
        subject: str, payload: bytes, message_id: str, *, droppable_key: str | None = None
    ) -> bool:
        sent.append((subject, payload, message_id, droppable_key))
        return True

    assert announce(publish, OPTION, NOW)
    assert sent == [
        (
            "market.instrument.okx.BTC-USD-20261225-60000-C",
            instrument_message(OPTION, NOW).SerializeToString(),
            f"okx.BTC-USD-20261225-60000-C.{NOW}",
            None,
        )
    ]


# The choice


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*"], ["BTC-USD-PERP", "BTC-USDC", "BTC-USDT", "ETH-USDT"]),
        (["*-USDT"], ["BTC-USDT", "ETH-USDT"]),
        (["BTC-USDT", "ETH-USDT"], ["BTC-USDT", "ETH-USDT"]),
        (["BTC-USD?"], ["BTC-USDC", "BTC-USDT"]),
        (["*-USDT", "!ETH-*"], ["BTC-USDT"]),
        (["!ETH-*", "*-USDT"], ["BTC-USDT"]),
        (["!*-PERP"], ["BTC-USDC", "BTC-USDT", "ETH-USDT"]),
        (["!*-PERP", "!*-USDC", "BTC-*"], ["BTC-USDT"]),
        (["btc-usdt"], []),
    ],
)
def test_patterns_take_in_and_take_out(patterns: list[str], expected: list[str]) -> None:
    listed = [ETH, BTC, spec("BTC-USDC"), spec("BTC-USD-PERP"), HALTED]
    assert symbols(choose(listed, patterns, NOW).specs) == expected


def test_what_does_not_trade_is_left_out_unless_it_is_collected_already() -> None:
    assert symbols(choose([BTC, HALTED], ["*"], NOW).specs) == ["BTC-USDT"]
    again = choose([BTC, HALTED], ["*"], NOW, collected={"OLDUSDT"})
    assert symbols(again.specs) == ["BTC-USDT", "OLD-USDT"]


def test_what_has_expired_is_left_out_even_when_it_is_collected() -> None:
    expired = replace(OPTION, expiry_time=NOW)
    chosen = choose([BTC, expired], ["*"], NOW, collected={expired.native_symbol})
    assert symbols(chosen.specs) == ["BTC-USDT"]
    assert chosen.problems == ()


@pytest.mark.parametrize(
    "symbol", ["A B-USDT", "A.B-USDT", "A*-USDT", "A>-USDT", "A\u200b-USDT", "A" * 101, ""]
)
def test_a_symbol_that_no_subject_can_carry_is_refused_with_the_reason(symbol: str) -> None:
    chosen = choose([BTC, spec(symbol, "ODD")], ["*"], NOW)
    assert symbols(chosen.specs) == ["BTC-USDT"]
    (problem,) = chosen.problems
    assert "printable characters without spaces" in problem
    assert problem.isprintable()


def test_symbols_need_not_be_ascii() -> None:
    assert symbols(choose([spec("币安-USDT")], ["*"], NOW).specs) == ["币安-USDT"]


@pytest.mark.parametrize("size", ["0", "-1", "", "ten"])
def test_a_contract_size_that_makes_no_sense_is_refused_with_the_reason(size: str) -> None:
    chosen = choose([BTC, spec("ETH-USDT", contract_size=size)], ["*"], NOW)
    assert symbols(chosen.specs) == ["BTC-USDT"]
    assert "ETH-USDT is not collected: expected a" in chosen.problems[0]


def test_two_instruments_of_one_symbol_are_not_mixed_up() -> None:
    chosen = choose([BTC, spec("BTC-USDT", "BTCUSDT2")], ["*"], NOW)
    assert chosen.specs == (BTC,)
    assert chosen.problems == (
        "BTC-USDT (BTCUSDT2) is not collected: the venue lists BTC-USDT (BTCUSDT) under the same "
        "name",
    )


def test_two_descriptions_of_one_native_symbol_are_not_mixed_up() -> None:
    chosen = choose([BTC, spec("BTC2-USDT", "BTCUSDT")], ["*"], NOW)
    assert chosen.specs == (BTC,)
    assert "BTC2-USDT (BTCUSDT) is not collected" in chosen.problems[0]


def test_an_instrument_that_is_listed_twice_is_no_trouble() -> None:
    assert choose([BTC, BTC], ["*"], NOW) == choose([BTC], ["*"], NOW)


def test_a_name_that_the_venue_does_not_have_is_told() -> None:
    chosen = choose([BTC, HALTED], ["BTC-USDT", "OLD-USDT", "DOGE-*"], NOW)
    assert chosen.problems == ("no instrument OLD-USDT trades at the venue",)
    assert choose([BTC, ETH], ["*", "ETH-USDT", "!ETH-USDT"], NOW).problems == ()


def test_a_choice_of_nothing_says_so() -> None:
    assert choose([BTC], ["ETH-*"], NOW).problems == (
        "no instrument that trades matches ['ETH-*']",
    )


@given(
    st.lists(
        st.tuples(st.text(max_size=12), st.text(max_size=6), st.sampled_from(["1", "0.01", "x"])),
        max_size=12,
    ),
    st.lists(st.text(max_size=6), max_size=4),
)
def test_whatever_is_listed_what_is_chosen_can_be_told_apart(
    listed: list[tuple[str, str, str]], patterns: list[str]
) -> None:
    specs = [
        InstrumentSpec("x", symbol, native, "B", "Q", contract_size=size)
        for symbol, native, size in listed
    ]
    chosen = choose(specs, ["*", *patterns], NOW)
    assert len({each.symbol for each in chosen.specs}) == len(chosen.specs)
    assert len({each.native_symbol for each in chosen.specs}) == len(chosen.specs)
    assert all(each.symbol and "." not in each.symbol for each in chosen.specs)
    assert all(problem.isprintable() for problem in chosen.problems)


# Changes


def by_native(*specs: InstrumentSpec) -> dict[str, InstrumentSpec]:
    return {each.native_symbol: each for each in specs}


def test_nothing_changed_is_nothing() -> None:
    changes = compare(by_native(BTC, ETH), [ETH, BTC])
    assert (changes.added, changes.removed, changes.changed) == ((), (), ())
    assert not changes


def test_what_appears_and_what_goes() -> None:
    changes = compare(by_native(BTC), [ETH])
    assert (changes.added, changes.removed, changes.changed) == ((ETH,), (BTC,), ())
    assert changes


@pytest.mark.parametrize(
    ("change", "rebuild"),
    [
        ({"tick_size": "0.1"}, False),
        ({"lot_size": "0.001"}, False),
        ({"min_notional": "10"}, False),
        ({"trading": False}, False),
        ({"expiry_time": NOW}, False),
        ({"contract_size": "10"}, True),
        ({"quantity_unit": instrument_pb2.QUANTITY_UNIT_QUOTE}, True),
        ({"quantity_unit": instrument_pb2.QUANTITY_UNIT_QUOTE, "tick_size": "1"}, True),
    ],
)
def test_only_a_change_of_what_quantities_mean_needs_a_new_book(
    change: dict[str, object], rebuild: bool
) -> None:
    new = replace(BTC, **change)  # type: ignore[arg-type]
    changes = compare(by_native(BTC, ETH), [new, ETH])
    (changed,) = changes.changed
    assert (changed.old, changed.new, changed.rebuild) == (BTC, new, rebuild)
    assert set(changed.fields) == set(change)
    assert (changes.added, changes.removed) == ((), ())


def test_another_symbol_is_another_instrument() -> None:
    renamed = replace(BTC, symbol="XBT-USDT")
    changes = compare(by_native(BTC), [renamed])
    assert (changes.added, changes.removed, changes.changed) == ((renamed,), (BTC,), ())
