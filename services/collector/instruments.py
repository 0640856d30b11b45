"""Which of a venue's instruments are collected, and how each is described to everyone."""

import fnmatch
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from marketprism.market.v1 import instrument_pb2

from services.collector.contracts import ContractSize
from services.collector.observations import Publish
from services.collector.venues.base import InstrumentSpec
from services.shared.decimals import InvalidDecimalError

__all__ = [
    "Changed",
    "Changes",
    "Chosen",
    "announce",
    "choose",
    "compare",
    "instrument_message",
]

# A symbol is one word of a subject, whatever the venue calls its currencies.
_SYMBOL = re.compile(r"[^\s.*>]{1,100}")
_WILD = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is to be collected."""

    specs: tuple[InstrumentSpec, ...]
    """The instruments, by symbol; symbols and native symbols are unique."""
    problems: tuple[str, ...]
    """Why what was asked for is not collected, a sentence each."""


@dataclass(frozen=True, slots=True)
class Changed:
    """An instrument whose description is not what it was."""

    old: InstrumentSpec
    """What it was."""
    new: InstrumentSpec
    """What it is."""
    rebuild: bool
    """Whether quantities mean something else than before (contract size or unit), so that a book
    kept so far is wrong. Else only the description is to be published anew."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that differ."""
        return tuple(
            name
            for name in InstrumentSpec.__dataclass_fields__
            if getattr(self.old, name) != getattr(self.new, name)
        )


@dataclass(frozen=True, slots=True)
class Changes:
    """How a list of instruments differs from the one before."""

    added: tuple[InstrumentSpec, ...]
    """New ones."""
    removed: tuple[InstrumentSpec, ...]
    """Those that are no longer there. One that is called by another symbol now, or is of another
    kind, is removed and added: take what was removed away first."""
    changed: tuple[Changed, ...]
    """Those that are described differently."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


def instrument_message(
    spec: InstrumentSpec, receive_time_ns: int, *, delisted: bool = False
) -> instrument_pb2.Instrument:
    """Describe an instrument, as read from its venue at `receive_time_ns`.

    It is EXPIRED when it is `delisted` or its time is over, HALTED when it does not trade.
    """
    if delisted or 0 < spec.expiry_time <= receive_time_ns:
        status = instrument_pb2.INSTRUMENT_STATUS_EXPIRED
    elif spec.trading:
        status = instrument_pb2.INSTRUMENT_STATUS_TRADING
    else:
        status = instrument_pb2.INSTRUMENT_STATUS_HALTED
    message = instrument_pb2.Instrument(
        exchange=spec.exchange,
        symbol=spec.symbol,
        native_symbol=spec.native_symbol,
        kind=spec.kind,
        status=status,
        base=spec.base,
        quote=spec.quote,
        settlement=spec.settlement,
        tick_size=spec.tick_size,
        lot_size=spec.lot_size,
        min_quantity=spec.min_quantity,
        min_notional=spec.min_notional,
        contract_size=spec.contract_size,
        quantity_unit=spec.quantity_unit,
        strike=spec.strike,
        option_right=spec.option_right,
        underlying=spec.underlying,
    )
    if spec.expiry_time > 0:
        message.expiry_time.FromNanoseconds(spec.expiry_time)
    message.update_time.FromNanoseconds(receive_time_ns)
    return message


def announce(
    publish: Publish, spec: InstrumentSpec, receive_time_ns: int, *, delisted: bool = False
) -> bool:
    """Publish the description on `market.instrument.<exchange>.<symbol>`; False when not taken."""
    name = f"{spec.exchange}.{spec.symbol}"
    message = instrument_message(spec, receive_time_ns, delisted=delisted)
    return publish(
        f"market.instrument.{name}", message.SerializeToString(), f"{name}.{receive_time_ns}"
    )


def choose(
    specs: Iterable[InstrumentSpec],
    patterns: Sequence[str],
    now_ns: int,
    collected: Container[str] = frozenset(),
) -> Chosen:
    """Choose what is to be collected of a venue's list.

    `patterns` are canonical symbols; `*`, `?` and `[...]` stand for what they do in file names, and
    a leading `!` takes out what another one takes in, wherever it stands. Exclusions alone leave
    everything else. Only instruments that trade are taken, and those whose native symbol is among
    the `collected`, which may be halted; none that is expired at `now_ns`.
    """
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    unwanted = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    if not wanted and unwanted:
        wanted = ["*"]
    by_symbol: dict[str, InstrumentSpec] = {}
    by_native: dict[str, InstrumentSpec] = {}
    problems: list[str] = []
    for spec in specs:
        symbol = spec.symbol
        if not (
            (spec.trading or spec.native_symbol in collected)
            and not 0 < spec.expiry_time <= now_ns
            and _matches(symbol, wanted)
            and not _matches(symbol, unwanted)
        ):
            continue
        known = by_symbol.get(symbol) or by_native.get(spec.native_symbol)
        if known is None:
            if problem := _problem(spec):
                problems.append(problem)
            else:
                by_symbol[symbol] = by_native[spec.native_symbol] = spec
        elif known != spec:
            problems.append(
                f"{_shown(symbol)} ({_shown(spec.native_symbol)}) is not collected: the venue "
                f"lists {_shown(known.symbol)} ({_shown(known.native_symbol)}) under the same name"
            )
    problems += [
        f"no instrument {_shown(pattern)} trades at the venue"
        for pattern in wanted
        if not _WILD.intersection(pattern)
        and pattern not in by_symbol
        and not _matches(pattern, unwanted)
    ]
    if not by_symbol:
        problems.append(f"no instrument that trades matches {list(patterns)}")
    return Chosen(tuple(by_symbol[symbol] for symbol in sorted(by_symbol)), tuple(problems))


def compare(old: Mapping[str, InstrumentSpec], new: Sequence[InstrumentSpec]) -> Changes:
    """Tell how a list of instruments differs from the one before, which is by native symbol."""
    added: list[InstrumentSpec] = []
    removed: list[InstrumentSpec] = []
    changed: list[Changed] = []
    for spec in new:
        before = old.get(spec.native_symbol)
        if before is None:
            added.append(spec)
        elif (before.exchange, before.symbol, before.kind) != (
            spec.exchange,
            spec.symbol,
            spec.kind,
        ):
            removed.append(before)
            added.append(spec)
        elif before != spec:
            rebuild = (before.contract_size, before.quantity_unit) != (
                spec.contract_size,
                spec.quantity_unit,
            )
            changed.append(Changed(before, spec, rebuild))
    listed = {spec.native_symbol for spec in new}
    removed += [spec for native_symbol, spec in old.items() if native_symbol not in listed]
    return Changes(tuple(added), tuple(removed), tuple(changed))


def _matches(symbol: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(symbol, pattern) for pattern in patterns)


def _problem(spec: InstrumentSpec) -> str:
    """Tell why an instrument cannot be collected; empty when it can."""
    if _SYMBOL.fullmatch(spec.symbol) is None or not spec.symbol.isprintable():
        return (
            f"{_shown(spec.symbol)} is not collected: expected a symbol of 1 to 100 printable "
            "characters without spaces, dots, * and >"
        )
    try:
        ContractSize(spec.contract_size)
    except InvalidDecimalError as error:
        return f"{_shown(spec.symbol)} is not collected: {error}"
    return ""


def _shown(text: str) -> str:
    return text if text.isprintable() and len(text) <= 100 else repr(text)[:200]
